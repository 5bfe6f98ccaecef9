"""Training images in memory as bytes, with their targets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample

from .labels import LabelBlocks

_WORD = re.compile(r"[a-z]+")
MIN_WORD_COUNT = 20
"""A word that fewer images have teaches nothing."""

Example = dict[str, torch.Tensor]


class Images(Dataset[Example]):
    """Square images with the label distribution and the words of each; see `__getitem__`."""

    def __init__(self, samples: Sequence[Sample], blocks: LabelBlocks, processor: Any, side: int) -> None:
        """Reads all images.

        Args:
            samples: Training samples.
            blocks: Their label sets.
            processor: Idefics3 processor; it resizes.
            side: Pixels of a side.

        Raises:
            InputError: If an image cannot be read, or a sample has neither votes nor an answer.
        """
        words = vocabulary(samples)
        self.word_count = len(words)
        """Number of words that are told apart."""
        self.sets = blocks.of_samples
        """(N,) the label set of each image."""
        self._labels = blocks.targets(samples)
        used = [words_of(sample) for sample in samples]
        self._words = torch.tensor([[float(word in each) for word in words] for each in used])
        self._pixels = [_resized(sample, processor.image_processor, side) for sample in samples]

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Example:
        """Returns ``pixel_values`` (3, side, side) uint8, ``sets`` (), ``labels`` (total,), ``words`` (words,)."""
        return {
            "pixel_values": self._pixels[index].expand(3, -1, -1),
            "sets": self.sets[index],
            "labels": self._labels[index],
            "words": self._words[index],
        }


def balanced(sets: torch.Tensor, members: Sequence[int], balance: float) -> list[int]:
    """Returns the indices of an epoch: those of small label sets stand in it several times.

    A set of n images gets ``n_max (n / n_max) ** balance`` places, n_max being the largest set's images.

    Args:
        sets: (N,) label set of each image.
        members: Indices of the images that take part.
        balance: 1 leaves the sets as they are, 0 makes them equally large.
    """
    groups: dict[int, list[int]] = {}
    for index in members:
        groups.setdefault(int(sets[index]), []).append(index)
    largest = max(map(len, groups.values()))
    places = []
    for group in groups.values():
        count = round(largest * (len(group) / largest) ** balance)
        places += [group[place % len(group)] for place in range(count)]
    return sorted(places)


def vocabulary(samples: Sequence[Sample]) -> list[str]:
    """Returns the words of the reasoning that are neither too rare nor too common to tell images apart."""
    counts = Counter(word for sample in samples for word in words_of(sample))
    return sorted(word for word, count in counts.items() if MIN_WORD_COUNT <= count <= len(samples) - MIN_WORD_COUNT)


def words_of(sample: Sample) -> set[str]:
    """Returns the words of a sample's reasoning, in lower case."""
    return set(_WORD.findall(" ".join((sample.reasoning or {}).values()).lower()))


def _resized(sample: Sample, images: Any, side: int) -> torch.Tensor:
    """Returns (3, side, side) bytes; (1, side, side) of a grey image, which thus takes a third of the memory."""
    edge = {"longest_edge": side}
    picture = [[Image.fromarray(decode_image(sample.image))]]
    options = {"size": edge, "max_image_size": edge, "do_rescale": False, "do_normalize": False}
    values: torch.Tensor = images(picture, return_tensors="pt", **options)["pixel_values"][0, 0]
    pixels = values.to(torch.uint8)
    return pixels[:1].clone() if bool((pixels == pixels[:1]).all()) else pixels
