"""From the teacher's traces to a small student whose probabilities can be believed."""
