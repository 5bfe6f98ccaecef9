"""Scenes by seed and number, and folders full of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.samples import Sample, write_samples
from emocaliber.runtime.taxonomy import resolve_taxonomy

from .affect import posterior
from .attributes import Attributes, draw_attributes
from .drawing import draw_scene
from .reasoning import render_reasoning

WORLD_VERSION = 1
"""Counts changes after which the same seed gives other scenes; part of every image's path."""

ANNOTATORS = 10
"""Votes per scene."""

DEFAULT_SPLITS: Mapping[str, float] = {"train": 0.7, "calibration": 0.15, "test": 0.15}

_ATTRIBUTES, _DRAWING, _LABELS, _PHRASING = range(4)
"""Streams of random numbers, kept apart so that a change of one leaves the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene of the small world, and all that is true of it."""

    seed: int
    index: int
    size: int
    """Side of the picture in pixels."""
    attributes: Attributes
    taxonomy: str
    posterior: tuple[float, ...]
    """True probability of each label, in the taxonomy's order; sums to 1."""
    answer: str
    """One label drawn from the posterior."""
    votes: dict[str, int]
    """How many of `ANNOTATORS` independent draws from the posterior fell on each label; zeros left out."""
    reasoning: dict[str, str]
    """Text of each of the five parts."""

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The picture, RGB (size, size, 3), drawn anew at each call."""
        return draw_scene(self.attributes, np.random.default_rng([self.seed, self.index, _DRAWING]), self.size)

    def png(self) -> bytes:
        """Returns the picture as a PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, format="PNG", compress_level=4)
        return buffer.getvalue()

    def sample(self, image: str, split: str | None = None) -> Sample:
        """Returns the scene as a line of a samples file, the picture being at ``image``."""
        labels = resolve_taxonomy(self.taxonomy).labels
        return Sample(
            image=image,
            taxonomy=self.taxonomy,
            answer=self.answer,
            votes={label: float(count) for label, count in self.votes.items()},
            posterior={label: round(p, 6) for label, p in zip(labels, self.posterior, strict=True)},
            reasoning=self.reasoning,
            split=split,
            id=f"scene-{self.seed}-{self.index}-{self.taxonomy}",
        )


def generate_scene(seed: int, index: int, *, size: int = 96, taxonomy: str = "emotion6-7") -> Scene:
    """Returns scene ``index`` of world ``seed``: the same whatever was generated before.

    Attributes do not depend on ``size`` or ``taxonomy``, nor the picture on ``taxonomy``.

    Raises:
        ConfigError: If the seed or index is negative, or the size is outside 32 to 512.
        InputError: If scenes know no posterior over the taxonomy.
    """
    _check(seed, index, size)
    attributes = draw_attributes(np.random.default_rng([seed, index, _ATTRIBUTES]))
    truth = posterior(attributes, taxonomy)
    labels = resolve_taxonomy(taxonomy).labels
    # The first bytes of the name: every taxonomy's labels are drawn on their own.
    rng = np.random.default_rng([seed, index, _LABELS, int.from_bytes(taxonomy.encode()[:8], "big")])
    answer = labels[int(rng.choice(len(labels), p=truth))]
    counts = rng.multinomial(ANNOTATORS, truth)
    return Scene(
        seed=seed,
        index=index,
        size=size,
        attributes=attributes,
        taxonomy=taxonomy,
        posterior=truth,
        answer=answer,
        votes={label: int(count) for label, count in zip(labels, counts, strict=True) if count},
        reasoning=render_reasoning(attributes, truth, taxonomy, np.random.default_rng([seed, index, _PHRASING])),
    )


def _check(seed: int, index: int, size: int) -> None:
    if seed < 0 or index < 0:
        raise ConfigError(f"seed {seed}, scene {index}: both must be 0 or more")
    if not 32 <= size <= 512:
        raise ConfigError(f"size is {size}, expected 32 to 512 pixels (64 to 128 are usual)")


def split_of(index: int, splits: Mapping[str, float]) -> str:
    """Returns the split of scene ``index``: it depends on nothing else, and every run of scenes keeps the shares.

    The multiples of the golden ratio, taken modulo 1, fill [0, 1) evenly; each split has its share of that interval.

    Raises:
        ConfigError: If there is no split, or a share is not positive.
    """
    if not splits or any(not share > 0 for share in splits.values()):
        raise ConfigError(f"splits are {dict(splits)}, expected at least one, each with a share above 0")
    position = (index * 0.6180339887498949) % 1.0 * sum(splits.values())
    for name, share in splits.items():
        position -= share
        if position < 0:
            return name
    return next(reversed(list(splits)))


def write_scenes(
    folder: Path,
    count: int,
    seed: int = 0,
    *,
    splits: Mapping[str, float] = DEFAULT_SPLITS,
    size: int = 96,
    taxonomies: Sequence[str] = ("emotion6-7",),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Returns the path of ``samples.jsonl``, written last; the pictures stand in ``images/`` beside it.

    Run again after an interruption, it keeps the pictures that are there: each was written in one step, and its path
    holds the world's version, seed and size.

    Args:
        folder: Where to write; made if missing.
        count: Number of scenes.
        seed: Which world.
        splits: Name and share of each split.
        size: Side of the pictures in pixels.
        taxonomies: One line a scene is written for each.
        progress: Called with (scenes done, count) after each scene.

    Raises:
        ConfigError: If the count, seed, size or splits make no sense.
        InputError: If scenes know no posterior over a taxonomy.
        OSError: If the folder cannot be written.
    """
    if count < 1:
        raise ConfigError(f"number of scenes is {count}, expected at least 1")
    if not taxonomies or len(set(taxonomies)) != len(taxonomies):
        raise ConfigError(f"taxonomies are {list(taxonomies)}, expected at least one, each once")
    _check(seed, 0, size)
    split_of(0, splits)
    samples = []
    for index in range(count):
        name = f"images/v{WORLD_VERSION}-seed{seed}-{size}px/{index:06d}.png"
        scenes = [generate_scene(seed, index, size=size, taxonomy=taxonomy) for taxonomy in taxonomies]
        if not (folder / name).exists():
            atomic_write(folder / name, scenes[0].png())
        samples += [scene.sample(name, split_of(index, splits)) for scene in scenes]
        if progress is not None:
            progress(index + 1, count)
    path = folder / "samples.jsonl"
    write_samples(samples, path)
    return path
