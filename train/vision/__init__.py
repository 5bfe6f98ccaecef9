"""A start for models built from scratch: the vision tower learns to see before the decoder learns to speak.

A pretrained model brings a vision tower that already sees. One with random weights spends most of its training learning
to, through a decoder that can guess the text without looking. So its tower and connector are first trained alone, and
cheaply: `stage` holds the stage, `probe` what is learnt, `images` the data, `augmentation` what happens to an image
before it is shown, and `teachers` the small convolutional networks that a recipe may train first and learn from.
"""

from __future__ import annotations

from .augmentation import altered, mirror_half
from .stage import train_vision

__all__ = ["altered", "mirror_half", "train_vision"]
