"""From pixels to label scores: direct, or after a reasoning, with the confidence the model states.

``s_y = sum_t log p(token_t(y) | image, prompt, [reasoning], "<answer>")``, closing tag included, without the tokens
that all labels start with, which add the same to each. All labels are scored in one decoder pass. A reasoning is scored
as it was written, whether or not it follows the grammar: it is cut at its end token, or where it grows too long, and
closed with ``</think>``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .calibration import softmax
from .context import Context, read, read_tree
from .decoding import Sampling, generate
from .engine import Engine, Floats32
from .grammar import CONFIDENCE_GRID, THINK_CLOSE, Mode
from .manifest import Manifest
from .prompting import Plan, Planner
from .tokenization import PromptTokenizer

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

    features: Floats32
    """(N, count, hidden) image features."""
    vision_ms: float
    """Time of the vision encoder for all N images."""

    def at(self, rows: Sequence[int]) -> Seen:
        """Returns the images of these rows, with their share of the time."""
        share = self.vision_ms * len(rows) / len(self.features)
        return Seen(features=self.features[list(rows)], vision_ms=share)


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
        new = len(plan.prompt_embeds) + len(plan.answer_embeds)
        stored = plan.prefix.visible.shape[1] + new + (plan.budget if mode == "reason" else 0)
        logits = (1 + len(plan.answers.inner)) * self._manifest.decoder.vocab_size
        rows = min(MAX_BATCH, _MAX_MASK_CELLS // (new * stored), _MAX_LOGITS // logits)
        return max(1, int(rows) // samples)

    def score(
        self, pixel_values: Floats32, labels: tuple[str, ...], mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> Scored:
        """Returns the scores of N images.

        Args:
            pixel_values: (N, 3, T, T) preprocessed images.
            labels: The K candidates.
            mode: Whether the model reasons first.
            sampling: How reasonings are drawn; direct mode takes no notice of it.
            verbalize: Whether to read the stated confidence too, which takes one more pass.

        Raises:
            InputError: If the labels cannot be used.
            BackendError: If the engine fails.
        """
        return self.score_seen(self.see(pixel_values), labels, mode, sampling, verbalize=verbalize)

    def see(self, pixel_values: Floats32) -> Seen:
        """Returns what the vision encoder makes of (N, 3, T, T) preprocessed images.

        Raises:
            BackendError: If the engine fails.
        """
        start = time.perf_counter()
        features = self._engine.encode_images(pixel_values)
        return Seen(features=features, vision_ms=1e3 * (time.perf_counter() - start))

    def score_seen(
        self, seen: Seen, labels: tuple[str, ...], mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> Scored:
        """Returns the scores of N images that were seen before; arguments and errors as in `score`."""
        start = time.perf_counter()
        plan = self._planner.plan(labels, mode)
        texts = None
        if mode == "direct":
            label_scores, after = self._direct(plan, seen.features)
        else:
            label_scores, after, texts = self._reasoned(plan, seen.features, sampling)
        shaped = label_scores.reshape(len(seen.features), -1, len(labels))
        verbalized = self._verbalized(plan, shaped, after) if verbalize else None
        return Scored(
            label_scores=shaped,
            verbalized=verbalized,
            texts=texts,
            features=seen.features.mean(axis=1),
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
        logits, start = self._read_image(plan, seen.features)
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
            features=seen.features.mean(axis=1),
            vision_ms=seen.vision_ms,
            text_ms=text_ms + 1e3 * (time.perf_counter() - start),
        )

    def _direct(self, plan: Plan, features: Floats32) -> tuple[NDArray[np.float64], Context]:
        """Returns (N, K) scores and the context after the label tree: one decoder pass for all of it."""
        response = np.broadcast_to(plan.answer_embeds, (len(features), *plan.answer_embeds.shape))
        embeds = np.concatenate([_with_image(plan, features), response], axis=1)
        return read_tree(self._engine, plan.prefix.repeated(len(features)), embeds, plan.answers)

    def _reasoned(
        self, plan: Plan, features: Floats32, sampling: Sampling
    ) -> tuple[NDArray[np.float64], Context, tuple[tuple[str, ...], ...]]:
        """Returns (N * R, K) scores, the context after the label tree, and the (N, R) reasonings."""
        repeated = np.repeat(features, sampling.samples, axis=0)
        logits, context = self._read_image(plan, repeated)
        generators = sampling.generators(len(features))
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
        scores, _ = read_tree(self._engine, chosen, np.broadcast_to(embeds, (chosen.batch, *embeds.shape)), tree)
        expected: NDArray[np.float64] = softmax(scores) @ np.array(CONFIDENCE_GRID)
        return expected

    def _read_image(self, plan: Plan, features: Floats32) -> tuple[Floats32, Context]:
        """Returns (N, vocab) logits after the prompt with each image in it, and the context."""
        embeds = _with_image(plan, features)
        logits, context = read(self._engine, plan.prefix.repeated(len(features)), embeds, [embeds.shape[1] - 1])
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


def _with_image(plan: Plan, features: Floats32) -> Floats32:
    """Returns (N, S, hidden): the prompt from the image on, with the features in the image tokens' places."""
    count = features.shape[1]
    rest = np.broadcast_to(plan.prompt_embeds[count:], (len(features), *plan.prompt_embeds[count:].shape))
    return np.concatenate([features, rest], axis=1)
