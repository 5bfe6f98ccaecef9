"""From pixels to label scores: direct, or after a reasoning, with the confidence the model states.

``s_y = sum_t log p(token_t(y) | image, prompt, [reasoning], "<answer>")``, closing tag included. All labels are scored
in one pass of the decoder. A reasoning is scored as it was written, whether or not it follows the grammar: it is cut at
its end token, or where it grows too long, and closed with ``</think>``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .calibration import softmax
from .context import Context, Placement, place_images, read, read_tree
from .decoding import Sampling, generate
from .engine import Engine, Floats32
from .grammar import CONFIDENCE_GRID, THINK_CLOSE, Mode
from .manifest import Manifest
from .prompting import Plan, Planner
from .tokenization import PromptTokenizer

Pixels = Floats32 | Sequence[Floats32]
"""Images of one size (N, 3, T, T), or of each its patches (rows, columns, merge², values)."""

MAX_BATCH = 32
_MAX_MASK_CELLS = 1 << 25
_MAX_LOGITS = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Raw scores of N images with R reasonings each (R is 1 in direct mode)."""

    label_scores: NDArray[np.float64]
    """(N, R, K) log-likelihoods in nats."""
    verbalized: NDArray[np.float64] | None
    """(N,) confidence in (0, 1) stated for the best raw score's label, mean over the reasonings; None if not asked."""
    texts: tuple[tuple[str, ...], ...] | None
    """(N, R) reasonings as the scores were conditioned on them, up to ``</think>``; None in direct mode."""
    features: Floats32 | None = None
    """(N, hidden) what the vision encoder made of each image, mean over its positions."""
    vision_ms: float
    """Time of the vision encoder for all N images."""
    text_ms: float
    """Time of tokenizer and decoder for all N images."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """N images as the vision encoder sees them."""

    features: Sequence[Floats32]
    """(count, width) image features of each; see `Engine.encode_images`."""
    shapes: Sequence[tuple[int, int]] | None
    """Rows and columns of each image's tokens; None where all images have one size, and no rows."""
    vision_ms: float
    """Time of the vision encoder for all N images."""

    def at(self, rows: Sequence[int]) -> Seen:
        """Returns the images of these rows, with their share of the time."""
        share = self.vision_ms * len(rows) / len(self.features)
        shapes = None if self.shapes is None else [self.shapes[row] for row in rows]
        return Seen(features=[self.features[row] for row in rows], shapes=shapes, vision_ms=share)

    def means(self, hidden_size: int) -> Floats32:
        """Returns (N, hidden) each image's features, mean over its positions."""
        return np.stack([features[:, :hidden_size].mean(axis=0) for features in self.features])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """One reasoning of one image, as far as it is written."""

    sample: int
    """Number of the reasoning, from 0."""
    text: str
    """What is written; up to ``</think>`` where it is complete."""
    label_scores: NDArray[np.float64] | None = None
    """(K,) log-likelihoods in nats after this reasoning; None until it is complete."""
    after: Context | None = None
    """What was read, the label tree last; None until the reasoning is complete."""


class Scorer:
    """Scores images with one bundle and one engine."""

    def __init__(self, manifest: Manifest, tokenizer: PromptTokenizer, engine: Engine) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._engine = engine
        self._planner = Planner(manifest, tokenizer, engine)

    def batch_size(self, labels: tuple[str, ...], mode: Mode, samples: int) -> int:
        """Returns how many images one call of `score` should take, so that masks and logits stay small.

        Raises:
            InputError: If the labels cannot be used; see `Planner.plan`.
        """
        plan = self._planner.plan(labels, mode)
        new = plan.image_tokens + len(plan.after_embeds) + len(plan.answer_embeds)
        stored = plan.prefix.visible.shape[1] + new + (plan.budget if mode == "reason" else 0)
        logits = (1 + len(plan.answers.inner)) * self._manifest.decoder.vocab_size
        rows = min(MAX_BATCH, _MAX_MASK_CELLS // (new * stored), _MAX_LOGITS // logits)
        return max(1, int(rows) // samples)

    def score(
        self, pixel_values: Pixels, labels: tuple[str, ...], mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> Scored:
        """Returns the scores of N images.

        Args:
            pixel_values: N preprocessed images, as ``batch`` of the manifest's preprocessing returns them.
            labels: The K candidates.
            mode: Whether the model reasons first.
            sampling: How reasonings are drawn; direct mode takes no notice of it.
            verbalize: Whether to read the stated confidence too, which takes one more pass.

        Raises:
            InputError: If the labels cannot be used.
            BackendError: If the engine fails.
        """
        return self.score_seen(self.see(pixel_values), labels, mode, sampling, verbalize=verbalize)

    def see(self, pixel_values: Pixels) -> Seen:
        """Returns what the vision encoder makes of N preprocessed images.

        Raises:
            BackendError: If the engine fails.
        """
        start = time.perf_counter()
        shapes, features = None, []
        if isinstance(pixel_values, np.ndarray):
            features = list(self._engine.encode_images(pixel_values))
        else:
            features = [self._engine.encode_images(patches)[0] for patches in pixel_values]
            shapes = [(patches.shape[0], patches.shape[1]) for patches in pixel_values]
        return Seen(features=features, shapes=shapes, vision_ms=1e3 * (time.perf_counter() - start))

    def score_seen(
        self, seen: Seen, labels: tuple[str, ...], mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> Scored:
        """Returns the scores of N images that were seen before; arguments and errors as in `score`."""
        start = time.perf_counter()
        plan = self._planner.plan(labels, mode)
        texts = None
        if mode == "direct":
            label_scores, after = self._direct(plan, seen, leaves=verbalize)
        else:
            label_scores, after, texts = self._reasoned(plan, seen, sampling)
        shaped = label_scores.reshape(len(seen.features), -1, len(labels))
        verbalized = self._verbalized(plan, shaped, after) if verbalize else None
        return Scored(
            label_scores=shaped,
            verbalized=verbalized,
            texts=texts,
            features=seen.means(self._manifest.decoder.hidden_size),
            vision_ms=seen.vision_ms,
            text_ms=1e3 * (time.perf_counter() - start),
        )

    def drafts(self, seen: Seen, labels: tuple[str, ...], sampling: Sampling) -> Iterator[Draft]:
        """Yields the reasonings of one image as they grow, one after another: after each token, and when complete.

        Between two drafts lies one decoder pass; before a complete one, the pass that scores the labels.

        Args:
            seen: One image.
            labels: The K candidates.
            sampling: How reasonings are drawn; they are those of `score`.

        Raises:
            InputError: If the labels cannot be used.
            BackendError: If the engine fails.
        """
        plan = self._planner.plan(labels, "reason")
        logits, start = self._read_images(plan, seen)
        for sample, generator in enumerate(sampling.generators(1)):
            for step in self._writing(plan, start, logits, sampling, [generator]):
                yield Draft(sample=sample, text=self._tokenizer.decode(step[0][0]))
            [tokens], context = step
            scores, after = read_tree(self._engine, context, plan.answer_embeds[None], plan.answers)
            text = self._tokenizer.decode(tokens) + THINK_CLOSE
            yield Draft(sample=sample, text=text, label_scores=scores[0], after=after)

    def score_drafts(self, seen: Seen, labels: tuple[str, ...], drafts: Sequence[Draft], *, text_ms: float) -> Scored:
        """Returns the scores of one image from complete drafts, with the stated confidence: one pass a draft.

        Raises:
            BackendError: If the engine fails.
        """
        plan = self._planner.plan(labels, "reason")
        start = time.perf_counter()
        complete = [
            (draft.text, draft.label_scores, draft.after)
            for draft in drafts
            if draft.label_scores is not None and draft.after is not None
        ]
        label_scores = np.stack([scores for _, scores, _ in complete])[None]
        best = int(softmax(label_scores).mean(axis=1).argmax())
        stated = [self._stated(plan, after, [best])[0] for _, _, after in complete]
        return Scored(
            label_scores=label_scores,
            verbalized=np.array([np.mean(stated)]),
            texts=(tuple(text for text, _, _ in complete),),
            features=seen.means(self._manifest.decoder.hidden_size),
            vision_ms=seen.vision_ms,
            text_ms=text_ms + 1e3 * (time.perf_counter() - start),
        )

    def _direct(self, plan: Plan, seen: Seen, *, leaves: bool) -> tuple[NDArray[np.float64], Context]:
        """Returns (N, K) scores and the context after the label tree: one decoder pass for all of it."""
        prompt, placement = _with_images(plan, seen)
        answers = plan.response_embeds(leaves=leaves)
        response = np.broadcast_to(answers, (len(prompt), *answers.shape))
        embeds = np.concatenate([prompt, response], axis=1)
        context = plan.prefix.repeated(len(prompt))
        return read_tree(self._engine, context, embeds, plan.answers, leaves=leaves, placement=placement)

    def _reasoned(
        self, plan: Plan, seen: Seen, sampling: Sampling
    ) -> tuple[NDArray[np.float64], Context, tuple[tuple[str, ...], ...]]:
        """Returns (N * R, K) scores, the context after the label tree, and the (N, R) reasonings."""
        images = len(seen.features)
        repeated = [image for image in range(images) for _ in range(sampling.samples)]
        logits, context = self._read_images(plan, seen.at(repeated))
        generators = sampling.generators(images)
        written, context = deque(self._writing(plan, context, logits, sampling, generators), maxlen=1).pop()
        response = np.broadcast_to(plan.answer_embeds, (len(repeated), *plan.answer_embeds.shape))
        scores, after = read_tree(self._engine, context, response, plan.answers)
        texts = [self._tokenizer.decode(tokens) + THINK_CLOSE for tokens in written]
        grouped = tuple(
            tuple(texts[first : first + sampling.samples]) for first in range(0, len(texts), sampling.samples)
        )
        return scores, after, grouped

    def _verbalized(self, plan: Plan, label_scores: NDArray[np.float64], after: Context) -> NDArray[np.float64]:
        """Returns (N,) the expected value of the confidence tokens that follow each image's best label."""
        images, reasonings, _ = label_scores.shape
        best = softmax(label_scores).mean(axis=1).argmax(axis=1)
        expected = self._stated(plan, after, [int(k) for k in np.repeat(best, reasonings)])
        mean: NDArray[np.float64] = expected.reshape(images, reasonings).mean(axis=1)
        return mean

    def _stated(self, plan: Plan, after: Context, choices: Sequence[int]) -> NDArray[np.float64]:
        """Returns (B,) the expected value of the confidence tokens that follow each sequence's chosen label."""
        chosen = after.along(plan.answers, choices)
        tree = self._planner.confidences
        embeds = self._planner.confidence_embeds
        response = np.broadcast_to(embeds, (chosen.batch, *embeds.shape))
        scores, _ = read_tree(self._engine, chosen, response, tree, leaves=False)
        expected: NDArray[np.float64] = softmax(scores) @ np.array(CONFIDENCE_GRID)
        return expected

    def _read_images(self, plan: Plan, seen: Seen) -> tuple[Floats32, Context]:
        """Returns (N, vocab) logits after the prompt with each image in it, and the context."""
        embeds, placement = _with_images(plan, seen)
        context = plan.prefix.repeated(len(embeds))
        logits, context = read(self._engine, context, embeds, [embeds.shape[1] - 1], placement=placement)
        return logits[:, 0], context

    def _writing(
        self,
        plan: Plan,
        context: Context,
        logits: Floats32,
        sampling: Sampling,
        generators: Sequence[np.random.Generator],
    ) -> Iterator[tuple[list[list[int]], Context]]:
        """Yields the tokens of each sequence's reasoning and the context, token by token."""
        return generate(
            self._engine,
            context,
            logits,
            sampling=sampling,
            generators=generators,
            stop_ids={self._planner.think_close, self._planner.answer_open, *self._manifest.end_token_ids},
            banned_ids=self._manifest.suppressed_token_ids,
            budget=plan.budget,
        )


def _with_images(plan: Plan, seen: Seen) -> tuple[Floats32, Placement | None]:
    """Returns (N, S, width): the prompt from the images on, padded on the left; and where their tokens stand."""
    longest = max(map(len, seen.features))
    count, width = plan.after_embeds.shape
    embeds = np.zeros((len(seen.features), longest + count, width), dtype=np.float32)
    embeds[:, longest:] = plan.after_embeds
    for row, features in zip(embeds, seen.features, strict=True):
        row[longest - len(features) : longest] = features
    return embeds, place_images(seen.shapes) if seen.shapes else None
