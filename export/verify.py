"""Proof that a bundle's graphs compute what the model computes, and how far quantisation moves them.

Four checks, each against transformers running the original model:

- the runtime's preprocessing and tokens against the processor's;
- logits over prompts of uneven length in one batch, then over greedy decode steps with the key/value cache;
- every label's log-likelihood from one pass over the label tree, against one whole pass per label;
- the drift of those label scores in the quantised graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emocaliber.evaluate.qwen_inputs import QwenImage, rotary_positions
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.context import Placement, empty_context, read, read_tree
from emocaliber.runtime.engine import OnnxEngine
from emocaliber.runtime.errors import ConfigError, ExportError
from emocaliber.runtime.grammar import ANSWER_CLOSE, ANSWER_OPEN, Mode
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.tokenization import PromptTokenizer
from emocaliber.runtime.tree import build_tree

from .graphs import exportable
from .reference import Floats, Ints, PaddedPrompts, Pixels, decoded_logits, expected_pixels, label_scores

EXACT_PRECISIONS = ("fp32",)
"""Precisions that must equal the model to rounding; every other one may drift within `Tolerances.drift`."""
EXTRA_LABELS = ("calm", "tense")
"""Labels of the one prompt that no bundle is made for, so that the lengths in a batch differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """Largest differences that are accepted."""

    preprocessing: float = 1e-5
    """Normalised pixel values."""
    logits: float = 1e-3
    """Logits, relative to the largest logit (at least 1), in float32 graphs."""
    scores: float = 1e-3
    """Label scores in nats, in float32 graphs: against the model, and tree against one pass per label."""
    independence: float = 0.03
    """Label scores in nats, in quantised graphs: tree against one pass per label."""
    drift: float = 0.5
    """Mean drift, in nats, of centred label scores in quantised graphs."""

    def __post_init__(self) -> None:
        wrong = {name: getattr(self, name) for name in self.__slots__ if not getattr(self, name) > 0}
        if wrong:
            raise ConfigError(f"tolerances must be positive, got {wrong}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionParity:
    """How one precision compares with the model."""

    max_logit_difference: float
    """Largest difference of a logit, in nats, over all prompts and steps."""
    largest_logit: float
    """Largest absolute logit of the model there, to judge the difference by."""
    greedy_tokens: int
    """Greedy choices compared."""
    greedy_mismatches: int
    """Choices that differ, the model's near ties (within twice the logit tolerance) not counted."""
    max_tree_difference: float
    """Largest difference, in nats, between a label's score in the tree and in a pass of its own, in this precision.

    Here and below each image's mean is removed: the tree leaves out the tokens that all answers start with."""
    mean_score_drift: float
    """Mean absolute difference from the model of label scores, in nats."""
    max_score_drift: float
    """Largest such difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """What was compared, and what was found."""

    images: int
    """Images used."""
    batch_sizes: tuple[int, ...]
    """Batches of uneven prompts, padded on the left."""
    decode_steps: int
    """Greedy steps with the key/value cache after each batch."""
    max_pixel_difference: float
    """Largest difference of a preprocessed pixel from the transformers processor."""
    precisions: dict[str, PrecisionParity]
    """Per precision of the bundle."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """What was accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One image with one prompt."""

    tokens: list[int]
    answers: list[list[int]]
    pixels: Floats | list[Floats]
    """The image as a batch of one."""


def verify_graphs(
    model: Any,
    folder: Path,
    *,
    processor: Any,
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
    steps: int = 8,
    tolerances: Tolerances | None = None,
) -> ParityReport:
    """Returns how a bundle's graphs compare with the model they came from.

    Args:
        model: The transformers model; it is not changed.
        folder: The bundle's folder.
        processor: The model's processor.
        images: uint8 (H, W, 3) images, at least three; synthetic ones of uneven sizes where None, for families with
            images of any size so large that windows of attention are cut at both edges.
        steps: Greedy decode steps.
        tolerances: Largest differences accepted.

    Raises:
        ExportError: If anything differs by more than that; every fault is named.
        ArtifactError: If the folder holds no valid bundle.
    """
    accepted = tolerances or Tolerances()
    if images is not None and len(images) < 3:
        raise ConfigError(f"parity needs at least three images, got {len(images)}")
    with Bundle.open(folder, verify=False) as bundle, exportable(model) as plain:
        preprocessing = bundle.manifest.preprocessing
        pictures = synthetic_images(_scale(preprocessing)) if images is None else list(images)
        pixels = [preprocessing.apply(image) for image in pictures]
        expected = [expected_pixels(processor.image_processor, image) for image in pictures]
        shapes = [(ours.shape, theirs.shape) for ours, theirs in zip(pixels, expected, strict=True)]
        if any(ours != theirs for ours, theirs in shapes):
            raise ExportError(f"the runtime and the processor cut images into other patches: {shapes}")
        pixel_difference = _largest(ours - theirs for ours, theirs in zip(pixels, expected, strict=True))
        cases = _cases(bundle, processor, pictures, pixels)
        pad = processor.tokenizer.pad_token_id or 0
        checker = _Checker(plain, bundle, cases, steps, accepted, pad)
        report = ParityReport(
            images=len(pictures),
            batch_sizes=checker.batch_sizes,
            decode_steps=steps,
            max_pixel_difference=pixel_difference,
            precisions={precision: checker.compare(precision) for precision in bundle.manifest.precisions},
            tolerances=accepted,
        )
    faults = _faults(report)
    if faults:
        raise ExportError(f"the graphs do not match the model: {'; '.join(faults)}")
    return report


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


def _scale(preprocessing: Preprocessing | PatchPreprocessing) -> float:
    """Returns the scale of the synthetic images: the small one is a visual token larger than a window."""
    if isinstance(preprocessing, Preprocessing):
        return 1.0
    return preprocessing.factor * ((preprocessing.window or 4) + 1) / 32


def _cases(
    bundle: Bundle, processor: Any, pictures: Sequence[npt.NDArray[np.uint8]], pixels: Sequence[Floats]
) -> list[_Case]:
    """Returns a case per image; prompts take turns.

    Raises:
        ExportError: If the runtime would tokenise a prompt otherwise than the processor does.
    """
    manifest = bundle.manifest
    tokenizer = PromptTokenizer(bundle.path("tokenizer.json"))
    labels = manifest.taxonomies[manifest.default_taxonomy]
    asked: list[tuple[Mode, Sequence[str]]] = [("direct", labels), ("reason", labels), ("direct", EXTRA_LABELS)]
    cases = []
    for place, (picture, image_pixels) in enumerate(zip(pictures, pixels, strict=True)):
        mode, candidates = asked[place % len(asked)]
        prompt = manifest.prompts.of(mode)
        before, after = prompt.prefix(candidates), prompt.after_image
        block, options = manifest.image_block.text(), {"do_image_splitting": False}
        if manifest.image_block.count is None:
            block, options = block * image_pixels.shape[0] * image_pixels.shape[1], {}
        tokens = tokenizer.encode(before + block + after)
        text, image = before + processor.image_token + after, Image.fromarray(picture)
        expected = processor(text=[text], images=[[image]], add_special_tokens=False, return_tensors="np", **options)
        if tokens != [int(token) for token in expected["input_ids"][0]]:
            raise ExportError(f"the bundle's tokenizer reads the {mode} prompt otherwise than the processor: {text!r}")
        answers = [tokenizer.encode(f"{ANSWER_OPEN}{label}{ANSWER_CLOSE}") for label in candidates]
        cases.append(_Case(tokens=tokens, answers=answers, pixels=manifest.preprocessing.batch([image_pixels])))
    return cases


class _Checker:
    """Holds the model's side of the comparison, computed once for all precisions."""

    def __init__(
        self, model: Any, bundle: Bundle, cases: list[_Case], steps: int, accepted: Tolerances, pad: int
    ) -> None:
        self.bundle = bundle
        self.cases = cases
        self.accepted = accepted
        self.image_token = int(model.config.image_token_id)
        self.batch_sizes = (1, 2, 3)
        self.batches = [
            PaddedPrompts.of(
                [case.tokens for case in cases[:size]],
                bundle.manifest.preprocessing.batch([image for case in cases[:size] for image in _each(case.pixels)]),
                pad,
            )
            for size in self.batch_sizes
        ]
        self.logits = [list(decoded_logits(model, batch, steps)) for batch in self.batches]
        self.scores = [label_scores(model, case.tokens, case.answers, case.pixels) for case in cases]

    def compare(self, precision: str) -> PrecisionParity:
        """Returns how one precision compares."""
        files = self.bundle.manifest.precisions[precision]
        engine = OnnxEngine(
            vision_encoder=self.bundle.path(files.vision_encoder),
            embed_tokens=self.bundle.path(files.embed_tokens),
            decoder=self.bundle.path(files.decoder),
            shape=self.bundle.manifest.decoder,
            preprocessing=self.bundle.manifest.preprocessing,
            engine="cpu",
        )
        steps = [
            (logits, expected)
            for batch, reference in zip(self.batches, self.logits, strict=True)
            for logits, (expected, _) in zip(
                _graph_logits(engine, self.bundle, batch, [tokens for _, tokens in reference[:-1]], self.image_token),
                reference,
                strict=True,
            )
        ]
        pairs = [self._label_scores(engine, case) for case in self.cases]
        drifts = [_centred(tree) - _centred(expected) for (tree, _), expected in zip(pairs, self.scores, strict=True)]
        return PrecisionParity(
            max_logit_difference=_largest(logits - expected for logits, expected in steps),
            largest_logit=_largest(expected for _, expected in steps),
            greedy_tokens=sum(len(logits) for logits, _ in steps),
            greedy_mismatches=sum(self._greedy_mismatches(logits, expected) for logits, expected in steps),
            max_tree_difference=_largest(_centred(tree) - _centred(alone) for tree, alone in pairs),
            mean_score_drift=float(np.abs(np.concatenate(drifts)).mean()),
            max_score_drift=_largest(drifts),
        )

    def _greedy_mismatches(self, logits: Floats, expected: Floats) -> int:
        chosen = np.take_along_axis(expected, logits.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        near_tie = 2 * self.accepted.logits * max(1.0, float(np.abs(expected).max()))
        return int((expected.max(axis=-1) - chosen > near_tie).sum())

    def _label_scores(self, engine: OnnxEngine, case: _Case) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns the scores [K] of a case's answers from one pass over their tree, and from one pass each."""
        tree = build_tree(case.answers)
        features, placement = _features(engine, case.pixels), self._placement(case)

        def embed(tokens: Sequence[int]) -> Floats:
            ids = np.array([tokens], np.int64)
            embeds = engine.embed(ids)
            embeds[ids == self.image_token] = features
            return embeds

        together, _ = read_tree(
            engine,
            empty_context(self.bundle.manifest.decoder),
            embed([*case.tokens, *tree.common, *tree.tokens.tolist()]),
            tree,
            placement=placement,
        )
        alone = np.empty(len(case.answers))
        for place, answer in enumerate(case.answers):
            rows = range(len(case.tokens) - 1, len(case.tokens) + len(answer) - 1)
            context = empty_context(self.bundle.manifest.decoder)
            embeds = embed([*case.tokens, *answer])
            logits = read(engine, context, embeds, rows, placement=placement)[0][0].astype(np.float64)
            with np.errstate(invalid="ignore"):  # logits that are NaN are reported, not warned about
                totals = np.logaddexp.reduce(logits, axis=-1)
            alone[place] = (logits[np.arange(len(answer)), answer] - totals).sum()
        return together[0], alone

    def _placement(self, case: _Case) -> Placement | None:
        """Returns where a case's prompt stands, where not simply in a line."""
        if isinstance(case.pixels, np.ndarray):
            return None
        positions = _rotary(case.tokens, self.image_token, case.pixels[0])
        shown = np.ones((1, len(case.tokens)), np.bool_)
        return Placement(shown=shown, offsets=positions[:, None], spans=positions[0, -1:] + 1)


def _graph_logits(
    engine: OnnxEngine, bundle: Bundle, batch: PaddedPrompts, forced: Sequence[Ints], image_token: int
) -> Iterator[Floats]:
    """Yields logits [B, vocab] after the prompts and after each forced token, as `reference.decoded_logits` does."""
    embeds = engine.embed(batch.ids)
    embeds[batch.ids == image_token] = _features(engine, batch.pixels)
    size, length = batch.ids.shape
    causal = np.tril(np.ones((length, length), np.bool_))
    mask, positions = causal & batch.mask[:, None, :], _positions(batch, image_token)
    past = empty_context(bundle.manifest.decoder).repeated(size).past
    known = batch.mask
    for tokens in [*forced, None]:
        last = np.array([embeds.shape[1] - 1])
        logits, past = engine.decode(embeds, mask[:, None], positions, last, past)
        yield logits[:, 0]
        if tokens is not None:
            known = np.concatenate([known, np.ones((size, 1), np.bool_)], axis=1)
            embeds, mask = engine.embed(tokens[:, None]), known[:, None, :]
            positions = positions[..., -1:] + 1


def _each(pixels: Pixels) -> list[Floats]:
    """Returns the images of a batch as preprocessing makes them."""
    return list(pixels[:, None]) if isinstance(pixels, np.ndarray) else list(pixels)


def _features(engine: OnnxEngine, pixels: Pixels) -> Floats:
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


def _largest(differences: Iterable[npt.NDArray[Any]]) -> float:
    """Returns the largest absolute value, NaN if there is one."""
    return float(np.max([np.abs(array).max() for array in differences]))


def _centred(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns scores without their mean, on which no probability depends: a tree leaves out what all answers share."""
    centred: npt.NDArray[np.float64] = scores - scores.mean()
    return centred


def _faults(report: ParityReport) -> list[str]:
    """Returns what exceeds the tolerances, in words."""
    accepted, faults = report.tolerances, []
    measured = [("pixel difference", report.max_pixel_difference, accepted.preprocessing)]
    for name, parity in report.precisions.items():
        independence = accepted.scores if name in EXACT_PRECISIONS else accepted.independence
        measured.append((f"{name} tree difference", parity.max_tree_difference, independence))
        if name in EXACT_PRECISIONS:
            limit = accepted.logits * max(1.0, parity.largest_logit)
            measured.append((f"{name} logit difference", parity.max_logit_difference, limit))
            measured.append((f"{name} label score difference", parity.max_score_drift, accepted.scores))
            if parity.greedy_mismatches:
                faults.append(f"{name}: {parity.greedy_mismatches} of {parity.greedy_tokens} greedy tokens differ")
        else:
            measured.append((f"{name} mean label score drift", parity.mean_score_drift, accepted.drift))
    # Written so that a NaN is a fault too.
    faults += [f"{what} is {value:.3g}, at most {limit:.3g}" for what, value, limit in measured if not value <= limit]
    return faults
