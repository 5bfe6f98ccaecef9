"""Writing text token by token: greedy or sampled, for a batch of images at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .context import Context, read
from .engine import Engine, Floats32
from .errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How reasonings are drawn. One sample without a temperature is greedy."""

    samples: int = 1
    """Reasonings for each image; their distributions are averaged."""
    temperature: float | None = None
    """0 is greedy; None is 0 for one sample and 1, the model's own distribution, for several."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities sum to this, in (0, 1]."""
    seed: int = 0
    """Seed of the draws: an image's draws depend on it and on the number of the sample, not on the batch."""
    image_seeds: tuple[int, ...] = ()
    """One number for each image, by which images draw apart; empty lets all of them draw alike."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 1024:
            raise InputError(f"samples is {self.samples!r}, expected 1 to 1024")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature!r}, expected a number >= 0")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p!r}, expected a number above 0 and at most 1")
        for seed in (self.seed, *self.image_seeds):
            if seed < 0:
                raise InputError(f"seed is {seed!r}, expected an integer >= 0")
        if self.samples > 1 and self.temperature == 0:
            raise InputError(f"{self.samples} samples at temperature 0 are all the same; give a temperature above 0")

    @property
    def effective_temperature(self) -> float:
        """The temperature after `None` is resolved; 0 is greedy."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else 1.0

    def generators(self, images: int) -> list[np.random.Generator]:
        """Returns one generator for each sample of each image, image by image.

        Raises:
            InputError: If there are seeds of other than ``images`` images.
        """
        own: list[tuple[int, ...]] = [(seed,) for seed in self.image_seeds] or [()] * images
        if len(own) != images:
            raise InputError(f"there are {len(own)} image seeds for {images} images, expected one each or none")
        return [np.random.default_rng([self.seed, number, *more]) for more in own for number in range(self.samples)]


GREEDY = Sampling()


def generate(
    engine: Engine,
    context: Context,
    logits: Floats32,
    *,
    sampling: Sampling,
    generators: Sequence[np.random.Generator],
    stop_ids: Collection[int],
    banned_ids: Sequence[int],
    budget: int,
) -> Iterator[tuple[list[list[int]], Context]]:
    """Yields the tokens each sequence has written and the context that holds them: before the first, and after each.

    The last ones are what each sequence writes before its stop token. Sequences that have ended get padding, which the
    context hides.

    Args:
        engine: Runs the graphs.
        context: B sequences that have read their prompt.
        logits: (B, vocab) logits after the prompt.
        sampling: How tokens are chosen.
        generators: (B,) what each sequence draws from; see `Sampling.generators`.
        stop_ids: Tokens that end a sequence; they are not read.
        banned_ids: Tokens that are never written.
        budget: Most tokens a sequence may write.
    """
    written: list[list[int]] = [[] for _ in range(context.batch)]
    active = np.ones(context.batch, dtype=np.bool_)
    yield written, context
    for _ in range(budget):
        tokens = _choose(logits, generators, sampling, banned_ids)
        active &= ~np.isin(tokens, list(stop_ids))
        if not active.any():
            return
        for row in np.flatnonzero(active):
            written[row].append(int(tokens[row]))
        stepped, context = read(engine, context, engine.embed(tokens[:, None]), [0], active=active)
        logits = stepped[:, 0]
        yield written, context


def _choose(
    logits: Floats32, generators: Sequence[np.random.Generator], sampling: Sampling, banned_ids: Sequence[int]
) -> NDArray[np.int64]:
    """Returns (B,) the next token of each sequence."""
    allowed = logits.astype(np.float64)
    allowed[:, list(banned_ids)] = -np.inf
    temperature = sampling.effective_temperature
    if temperature == 0:
        best: NDArray[np.int64] = allowed.argmax(axis=-1).astype(np.int64)
        return best
    drawn = [
        _draw(row / temperature, sampling.top_p, generator) for row, generator in zip(allowed, generators, strict=True)
    ]
    return np.array(drawn, dtype=np.int64)


def _draw(scores: NDArray[np.float64], top_p: float, generator: np.random.Generator) -> int:
    """Returns one token drawn from the nucleus (Holtzman et al. 2020) of ``softmax(scores)``."""
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")
    cumulated = np.cumsum(weights[order])
    kept = int(np.searchsorted(cumulated, top_p - 1e-12)) + 1
    point = generator.random() * cumulated[min(kept, len(order)) - 1]
    return int(order[np.searchsorted(cumulated[:kept], point, side="right").clip(0, kept - 1)])
