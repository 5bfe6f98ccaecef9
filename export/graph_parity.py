"""One engine's graphs against the model: logits, greedy choices, and label scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from emocaliber.evaluate.metrics import kl_divergence
from emocaliber.evaluate.qwen_inputs import QwenImage, rotary_positions
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.context import Context, Placement, empty_context, read, read_tree
from emocaliber.runtime.engine import Engine
from emocaliber.runtime.parity import PrecisionParity
from emocaliber.runtime.tree import build_tree

from .probes import Probe
from .reference import Floats, Ints, PaddedPrompts, Pixels, decoded_logits, label_scores

Scores = npt.NDArray[np.float64]

BATCH_SIZES = (1, 2, 3)


class GraphComparison:
    """Holds the model's side of the comparison, computed once for all precisions and engines."""

    def __init__(self, model: Any, bundle: Bundle, probes: list[Probe], *, steps: int, near: float, pad: int) -> None:
        """Runs the model.

        Args:
            model: The transformers model, in evaluation mode.
            bundle: The bundle.
            probes: At least three.
            steps: Greedy decode steps.
            near: Tolerance of logits, relative to the largest (at least 1), by which a greedy choice is a near tie.
            pad: Token that pads prompts on the left.
        """
        self._shape = bundle.manifest.decoder
        self._probes = probes
        self._near = near
        self._image_token = int(model.config.image_token_id)
        self._batches = [
            PaddedPrompts.of(
                [probe.tokens for probe in probes[:size]],
                bundle.manifest.preprocessing.batch([image for p in probes[:size] for image in _each(p.pixels)]),
                pad,
            )
            for size in BATCH_SIZES
        ]
        with tqdm(
            desc="running the model", total=len(BATCH_SIZES) + len(probes), leave=False, disable=None
        ) as progress:
            self._logits = []
            for batch in self._batches:
                self._logits.append(list(decoded_logits(model, batch, steps)))
                progress.update()
            self._scores = []
            for probe in probes:
                self._scores.append(label_scores(model, probe.tokens, probe.answers, probe.pixels))
                progress.update()

    def compare(self, engine: Engine) -> PrecisionParity:
        """Returns how one engine with one precision's graphs compares."""
        steps = [
            (logits, expected)
            for batch, reference in zip(self._batches, self._logits, strict=True)
            for logits, (expected, _) in zip(
                self._graph_logits(engine, batch, [tokens for _, tokens in reference[:-1]]), reference, strict=True
            )
        ]
        trees = [self._tree_scores(engine, probe) for probe in self._probes]
        singles = [self._single_scores(engine, probe) for probe in self._probes]
        drifts = [_centred(tree) - _centred(expected) for tree, expected in zip(trees, self._scores, strict=True)]
        tree_difference = largest(_centred(t) - _centred(a) for t, a in zip(trees, singles, strict=True))
        effects = [self._neighbour_effect(engine, probe) for probe in self._probes]
        return PrecisionParity(
            max_logit_difference=largest(logits - expected for logits, expected in steps),
            largest_logit=largest(expected for _, expected in steps),
            greedy_tokens=sum(len(logits) for logits, _ in steps),
            greedy_mismatches=sum(self._greedy_mismatches(logits, expected) for logits, expected in steps),
            max_tree_difference=tree_difference,
            max_neighbour_effect=float(np.max([tree_difference, *effects])),
            mean_score_drift=float(np.abs(np.concatenate(drifts)).mean()),
            max_score_drift=largest(drifts),
            kl_drift=self._kl_drift(trees),
        )

    def _kl_drift(self, trees: Sequence[Scores]) -> float:
        if not all(np.isfinite(scores).all() for scores in trees):
            return float("nan")
        pairs = [(softmax(expected), softmax(found)) for expected, found in zip(self._scores, trees, strict=True)]
        # Sums of rounded terms: a divergence of nothing can come out a little below zero.
        return max(0.0, float(np.mean([kl_divergence(p[None], q[None]) for p, q in pairs])))

    def _greedy_mismatches(self, logits: Floats, expected: Floats) -> int:
        chosen = np.take_along_axis(expected, logits.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        near_tie = 2 * self._near * max(1.0, float(np.abs(expected).max()))
        return int((expected.max(axis=-1) - chosen > near_tie).sum())

    def _tree_scores(self, engine: Engine, probe: Probe) -> Scores:
        """Returns the scores [K] of a probe's answers from one pass over prompt and tree."""
        return self._read_tree(engine, empty_context(self._shape), probe, probe.tokens, probe.answers)

    def _single_scores(self, engine: Engine, probe: Probe) -> Scores:
        """Returns the scores [K] of a probe's answers, without what all have in common, from a whole pass each."""
        alone = np.empty(len(probe.answers))
        common = len(build_tree(probe.answers, probe.opening).common)
        for place, answer in enumerate(probe.answers):
            own, start = answer[common:], len(probe.tokens) + common
            embeds = self._embed(engine, probe, [*probe.tokens, *answer])
            placement = self._placement(probe, len(probe.tokens))
            rows = range(start - 1, start + len(own) - 1)
            logits = read(engine, empty_context(self._shape), embeds, rows, placement=placement)[0][0]
            logits = logits.astype(np.float64)
            with np.errstate(invalid="ignore"):  # logits that are NaN are reported, not warned about
                totals = np.logaddexp.reduce(logits, axis=-1)
            alone[place] = (logits[np.arange(len(own)), own] - totals).sum()
        return alone

    def _neighbour_effect(self, engine: Engine, probe: Probe) -> float:
        """Returns how far a label's score moves, in nats, when only some of the labels are asked.

        The prompt stays the same and is read once, as the runtime does.
        """
        *before, last = probe.tokens
        embeds = self._embed(engine, probe, before)
        placement = self._placement(probe, len(before))
        context = read(engine, empty_context(self._shape), embeds, [len(before) - 1], placement=placement)[1]
        whole = self._read_tree(engine, context, probe, [last], probe.answers)
        effects = [0.0]
        for places in label_subsets(len(probe.answers)):
            some = self._read_tree(engine, context, probe, [last], [probe.answers[place] for place in places])
            effects.append(largest([_centred(whole[list(places)]) - _centred(some)]))
        return float(np.max(effects))

    def _read_tree(
        self, engine: Engine, context: Context, probe: Probe, tokens: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Scores:
        tree = build_tree(answers, probe.opening)
        embeds = self._embed(engine, probe, [*tokens, *tree.common, *tree.tokens.tolist()])
        placement = None if context.visible.size else self._placement(probe, len(tokens))
        scores, _ = read_tree(engine, context, embeds, tree, placement=placement)
        found: Scores = scores[0]
        return found

    def _embed(self, engine: Engine, probe: Probe, tokens: Sequence[int]) -> Floats:
        """Returns embeddings [1, S, width], with the probe's image where its tokens stand."""
        ids = np.array([tokens], np.int64)
        embeds, shown = engine.embed(ids), ids == self._image_token
        if shown.any():
            embeds[shown] = _features(engine, probe.pixels)
        return embeds

    def _placement(self, probe: Probe, length: int) -> Placement | None:
        """Returns where the first tokens of a probe's prompt stand, where not simply in a line."""
        if isinstance(probe.pixels, np.ndarray):
            return None
        positions = _rotary(probe.tokens, self._image_token, probe.pixels[0])[:, :length]
        return Placement(
            shown=np.ones((1, length), np.bool_), offsets=positions[:, None], spans=positions.max(axis=(0, 1))[None] + 1
        )

    def _graph_logits(self, engine: Engine, batch: PaddedPrompts, forced: Sequence[Ints]) -> Iterator[Floats]:
        """Yields logits [B, vocab] after the prompts and each forced token, as `reference.decoded_logits` does."""
        embeds = engine.embed(batch.ids)
        embeds[batch.ids == self._image_token] = _features(engine, batch.pixels)
        size, length = batch.ids.shape
        causal = np.tril(np.ones((length, length), np.bool_))
        mask, positions = causal & batch.mask[:, None, :], _positions(batch, self._image_token)
        past = empty_context(self._shape).repeated(size).past
        known = batch.mask
        for tokens in [*forced, None]:
            last = np.array([embeds.shape[1] - 1])
            logits, past = engine.decode(embeds, mask[:, None], positions, last, past)
            yield logits[:, 0]
            if tokens is not None:
                known = np.concatenate([known, np.ones((size, 1), np.bool_)], axis=1)
                embeds, mask = engine.embed(tokens[:, None]), known[:, None, :]
                positions = positions[..., -1:] + 1


def label_subsets(count: int) -> list[tuple[int, ...]]:
    """Returns which of ``count`` labels to ask together: both halves, every other one, and all pairs of neighbours."""
    places = range(count)
    groups = [places[: count // 2], places[count // 2 :], places[::2], places[1::2]]
    groups += [places[place : place + 2] for place in places[:-1]]
    return sorted({tuple(group) for group in groups if 2 <= len(group) < count})


def largest(differences: Iterable[npt.NDArray[Any]]) -> float:
    """Returns the largest absolute value, NaN if there is one."""
    return float(np.max([np.abs(array).max() for array in differences]))


def _each(pixels: Pixels) -> list[Floats]:
    """Returns the images of a batch as preprocessing makes them."""
    return list(pixels[:, None]) if isinstance(pixels, np.ndarray) else list(pixels)


def _features(engine: Engine, pixels: Pixels) -> Floats:
    """Returns the features [images · count, width] of a batch of images, one image behind the other."""
    parts = [pixels] if isinstance(pixels, np.ndarray) else pixels
    features = [engine.encode_images(part) for part in parts]
    return np.concatenate([part.reshape(-1, part.shape[-1]) for part in features])


def _positions(batch: PaddedPrompts, image_token: int) -> Ints:
    """Returns positions [B, S], or [3, B, S] where images have rows and columns; 0 on padding."""
    if isinstance(batch.pixels, np.ndarray):
        return batch.positions()
    positions = np.zeros((3, *batch.ids.shape), np.int64)
    for row, (ids, shown, patches) in enumerate(zip(batch.ids, batch.mask, batch.pixels, strict=True)):
        positions[:, row, shown] = _rotary(ids[shown].tolist(), image_token, patches)
    return positions


def _rotary(tokens: Sequence[int], image_token: int, patches: Floats) -> Ints:
    rows, columns = patches.shape[:2]
    image = QwenImage(patches=patches, grid=(1, rows, columns), shape=(rows, columns))
    return rotary_positions(tokens, image_token, image)


def _centred(scores: Scores) -> Scores:
    """Returns scores without their mean, on which no probability depends: a tree leaves out what all answers share."""
    centred: Scores = scores - scores.mean()
    return centred
