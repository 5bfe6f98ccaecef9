"""What the Qwen-VL families take beside text: images of any size, and rotary positions in three coordinates.

An image of h × w visual tokens that starts at position p has the coordinates (time, height, width) = (p, p + row, p +
column), and what follows it goes on at p + max(h, w), all three alike. So positions are fewer than tokens behind an
image, and depend on its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.images import ImageSource, decode_image
from emocaliber.runtime.prompts import PromptTemplate

from .responders import conversation

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QwenImage:
    """One image as the vision tower takes it."""

    patches: Any
    """Tensor (h · w, values of a patch), in the order of the processor."""
    grid: tuple[int, int, int]
    """Time (1), rows and columns, in patches."""
    shape: tuple[int, int]
    """Rows and columns in visual tokens, of several patches each."""

    @property
    def count(self) -> int:
        """Number of visual tokens."""
        return self.shape[0] * self.shape[1]


def read_image(processor: Any, image: ImageSource) -> QwenImage:
    """Returns an image, scaled and cut into patches.

    Args:
        processor: Of a Qwen-VL family.
        image: Path, encoded bytes, Pillow image, or uint8 (H, W, 3) RGB array.

    Raises:
        InputError: If it cannot be read.
    """
    images = processor.image_processor
    read = images([Image.fromarray(decode_image(image))], return_tensors="pt")
    time, rows, columns = (int(size) for size in read["image_grid_thw"][0])
    merge = int(images.merge_size)
    return QwenImage(patches=read["pixel_values"], grid=(time, rows, columns), shape=(rows // merge, columns // merge))


def prompt_ids(processor: Any, template: PromptTemplate, labels: Sequence[str], mode: Mode) -> list[int]:
    """Returns the tokens of a prompt with one image token, in whose place `with_image` puts an image's own number.

    Raises:
        ExportError: If there is no chat template, or it does not put one image into the prompt.
    """
    turns = conversation(template.instruction(labels, mode), system=template.system, image_first=template.image_first)
    try:
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except ValueError as error:
        raise ExportError(f"the processor cannot render a prompt: {error}") from error
    ids: list[int] = processor.tokenizer.encode(text, add_special_tokens=False)
    if ids.count(processor.image_token_id) != 1:
        raise ExportError(
            f"the chat template puts {ids.count(processor.image_token_id)} images into the prompt, expected one: "
            f"{text!r}"
        )
    return ids


def with_image(ids: Sequence[int], image_token: int, image: QwenImage) -> list[int]:
    """Returns the tokens of `prompt_ids` with as many image tokens as the image has visual ones."""
    place = list(ids).index(image_token)
    return [*ids[:place], *[image_token] * image.count, *ids[place + 1 :]]


def rotary_positions(ids: Sequence[int], image_token: int, image: QwenImage) -> Ints:
    """Returns (3, S) positions of S tokens, of which the image's are those of `with_image`.

    Whatever follows the tokens goes on at one more than the last position.
    """
    start = list(ids).index(image_token)
    rows, columns = image.shape
    before = np.arange(start, dtype=np.int64)
    after = start + max(rows, columns) + np.arange(len(ids) - start - image.count, dtype=np.int64)
    cells = np.indices((rows, columns), dtype=np.int64).reshape(2, -1) + start
    inside = np.concatenate([np.full((1, image.count), start, dtype=np.int64), cells])
    return np.concatenate([np.tile(before, (3, 1)), inside, np.tile(after, (3, 1))], axis=1)
