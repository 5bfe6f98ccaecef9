"""What graphs and model are both asked: synthetic images of uneven sizes, and the prompts of a bundle around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.grammar import ANSWER_CLOSE, ANSWER_OPEN, Mode
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.tokenization import PromptTokenizer

from .reference import Floats

EXTRA_LABELS = ("calm", "tense")
"""Labels of the one prompt that no bundle is made for, so that the lengths in a batch differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One image with one prompt."""

    tokens: list[int]
    """The prompt, image tokens included."""
    answers: list[list[int]]
    """Every candidate, with both tags."""
    opening: int
    """Tokens of the first tag."""
    pixels: Floats | list[Floats]
    """The image as a batch of one."""


def synthetic_images(scale: float = 1.0) -> list[npt.NDArray[np.uint8]]:
    """Returns three uint8 (H, W, 3) images, smooth with noise, of uneven sizes: wide, tall and small.

    Args:
        scale: How many times 32 pixels the small one has on a side, about.
    """
    rng = np.random.default_rng(20)
    images = []
    for height, width in ((round(scale * h), round(scale * w)) for h, w in ((61, 97), (130, 75), (33, 31))):
        ramps = np.linspace(0, 160, height)[:, None, None] * [1.0, 0.5, 0.2]
        ramps = ramps + np.linspace(0, 60, width)[None, :, None] * [0.1, 0.6, 1.0]
        images.append(np.clip(ramps + rng.normal(0, 30, (height, width, 3)), 0, 255).astype(np.uint8))
    return images


def probe_images(preprocessing: Preprocessing | PatchPreprocessing) -> list[npt.NDArray[np.uint8]]:
    """Returns `synthetic_images` of a scale where the small one is a visual token larger than a window."""
    if isinstance(preprocessing, Preprocessing):
        return synthetic_images()
    return synthetic_images(preprocessing.factor * ((preprocessing.window or 4) + 1) / 32)


def probes(
    bundle: Bundle, processor: Any, pictures: Sequence[npt.NDArray[np.uint8]], pixels: Sequence[Floats]
) -> list[Probe]:
    """Returns a probe per image; prompts take turns.

    Raises:
        ExportError: If the runtime would tokenise a prompt otherwise than the processor does.
    """
    manifest = bundle.manifest
    tokenizer = PromptTokenizer(bundle.path("tokenizer.json"))
    labels = manifest.taxonomies[manifest.default_taxonomy]
    asked: list[tuple[Mode, Sequence[str]]] = [("direct", labels), ("reason", labels), ("direct", EXTRA_LABELS)]
    made = []
    for place, (picture, image_pixels) in enumerate(zip(pictures, pixels, strict=True)):
        mode, candidates = asked[place % len(asked)]
        probe = probe_of(bundle, tokenizer, image_pixels, candidates, mode)
        prompt = manifest.prompts.of(mode)
        text = prompt.prefix(candidates) + processor.image_token + prompt.after_image
        options = {} if manifest.image_block.count is None else {"do_image_splitting": False}
        expected = processor(
            text=[text], images=[[Image.fromarray(picture)]], add_special_tokens=False, return_tensors="np", **options
        )
        if probe.tokens != [int(token) for token in expected["input_ids"][0]]:
            raise ExportError(f"the bundle's tokenizer reads the {mode} prompt otherwise than the processor: {text!r}")
        made.append(probe)
    return made


def probe_of(
    bundle: Bundle, tokenizer: PromptTokenizer, pixels: Floats, labels: Sequence[str], mode: Mode = "direct"
) -> Probe:
    """Returns the probe of one preprocessed image and one list of labels."""
    manifest = bundle.manifest
    prompt, block = manifest.prompts.of(mode), manifest.image_block.text()
    if manifest.image_block.count is None:
        block *= pixels.shape[0] * pixels.shape[1]
    return Probe(
        tokens=tokenizer.encode(prompt.prefix(labels) + block + prompt.after_image),
        answers=[tokenizer.encode(f"{ANSWER_OPEN}{label}{ANSWER_CLOSE}") for label in labels],
        opening=len(tokenizer.encode(ANSWER_OPEN)),
        pixels=manifest.preprocessing.batch([pixels]),
    )
