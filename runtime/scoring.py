"""From pixels to label scores: direct, or after a reasoning, with the confidence the model states.

``s_y = sum_t log p(token_t(y) | image, prompt, [reasoning], "<answer>")``, closing tag included, without the tokens
that all labels start with, which add the same to each. All labels are scored in one decoder pass. A reasoning is scored
as it was written, whether or not it follows the grammar: it is cut at its end token, or where it grows too long, and
closed with ``</think>``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
class _Image:
    """What the vision encoder made of one image."""

    features: Floats32
    """(count, width)."""
    shape: tuple[int, int] | None
    """Rows and columns of its tokens, where these have positions of their own."""


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
        self,
        pixel_values: Floats32 | Sequence[Floats32],
        labels: tuple[str, ...],
        mode: Mode,
        sampling: Sampling,
        *,
        verbalize: bool,
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
        begun = time.perf_counter()
        plan = self._planner.plan(labels, mode)
        start = time.perf_counter()
        images = self._encode(pixel_values)
        seen = time.perf_counter()
        texts = None
        if mode == "direct":
            label_scores, after = self._direct(plan, images)
        else:
            label_scores, after, texts = self._reasoned(plan, images, sampling)
        shaped = label_scores.reshape(len(images), -1, len(labels))
        verbalized = self._verbalized(plan, shaped, after) if verbalize else None
        return Scored(
            label_scores=shaped,
            verbalized=verbalized,
            texts=texts,
            features=np.stack(
                [image.features[:, : self._manifest.decoder.hidden_size].mean(axis=0) for image in images]
            ),
            vision_ms=1e3 * (seen - start),
            text_ms=1e3 * (start - begun + time.perf_counter() - seen),
        )

    def _encode(self, pixel_values: Floats32 | Sequence[Floats32]) -> list[_Image]:
        if isinstance(pixel_values, np.ndarray):
            return [_Image(features=features, shape=None) for features in self._engine.encode_images(pixel_values)]
        return [
            _Image(features=self._engine.encode_images(patches)[0], shape=(patches.shape[0], patches.shape[1]))
            for patches in pixel_values
        ]

    def _direct(self, plan: Plan, images: Sequence[_Image]) -> tuple[NDArray[np.float64], Context]:
        """Returns (N, K) scores and the context after the label tree: one decoder pass for all of it."""
        prompt, placement = _with_images(plan, images)
        response = np.broadcast_to(plan.answer_embeds, (len(images), *plan.answer_embeds.shape))
        embeds = np.concatenate([prompt, response], axis=1)
        context = plan.prefix.repeated(len(images))
        return read_tree(self._engine, context, embeds, plan.answers, placement=placement)

    def _reasoned(
        self, plan: Plan, images: Sequence[_Image], sampling: Sampling
    ) -> tuple[NDArray[np.float64], Context, tuple[tuple[str, ...], ...]]:
        """Returns (N * R, K) scores, the context after the label tree, and the (N, R) reasonings."""
        repeated = [image for image in images for _ in range(sampling.samples)]
        embeds, placement = _with_images(plan, repeated)
        context = plan.prefix.repeated(len(repeated))
        logits, context = read(self._engine, context, embeds, [embeds.shape[1] - 1], placement=placement)
        written, context = generate(
            self._engine,
            context,
            logits[:, 0],
            sampling=sampling,
            stop_ids={self._planner.think_close, self._planner.answer_open, *self._manifest.end_token_ids},
            banned_ids=self._manifest.suppressed_token_ids,
            budget=plan.budget,
        )
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
        chosen = after.along(plan.answers, [int(k) for k in np.repeat(best, reasonings)])
        tree = self._planner.confidences
        embeds = self._planner.confidence_embeds
        scores, _ = read_tree(self._engine, chosen, np.broadcast_to(embeds, (chosen.batch, *embeds.shape)), tree)
        expected = softmax(scores) @ np.array(CONFIDENCE_GRID)
        mean: NDArray[np.float64] = expected.reshape(images, reasonings).mean(axis=1)
        return mean


def _with_images(plan: Plan, images: Sequence[_Image]) -> tuple[Floats32, Placement | None]:
    """Returns (N, S, width): the prompt from the images on, padded on the left; and where their tokens stand."""
    longest = max(len(image.features) for image in images)
    count, width = plan.after_embeds.shape
    embeds = np.zeros((len(images), longest + count, width), dtype=np.float32)
    embeds[:, longest:] = plan.after_embeds
    for row, image in zip(embeds, images, strict=True):
        row[longest - len(image.features) : longest] = image.features
    shapes = [image.shape for image in images if image.shape is not None]
    return embeds, place_images(shapes) if shapes else None
