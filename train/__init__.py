"""The teacher: samples, procedural scenes, and the three stages reason, verbalize and calibrate."""
