"""Procedural affective scenes: a small world whose posterior over emotions is known (see ``docs/scenes.md``)."""

from .attributes import Attributes
from .generator import DEFAULT_SPLITS, Scene, generate_scene, write_scenes

__all__ = ["DEFAULT_SPLITS", "Attributes", "Scene", "generate_scene", "write_scenes"]
