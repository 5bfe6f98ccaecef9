"""Scoring: one cached, batched tree pass must equal whole sequences read one by one, without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.context import Context, empty_context, read, read_tree
from emocaliber.runtime.decoding import GREEDY, Sampling, generate
from emocaliber.runtime.engine import KeyValues, OnnxEngine
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import CONFIDENCE_GRID, Mode
from emocaliber.runtime.manifest import DecoderShape
from emocaliber.runtime.prompting import Planner
from emocaliber.runtime.scoring import Scored, Scorer
from emocaliber.runtime.tokenization import PromptTokenizer
from emocaliber.runtime.tree import LabelTree, build_tree

SHAPE = DecoderShape(num_layers=2, num_kv_heads=1, head_dim=8, hidden_size=8, vocab_size=20, max_positions=64)
LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


@dataclass
class NumpyEngine:
    """A two-layer transformer in a few lines: honours mask, positions and past, and counts its passes."""

    name: str = "numpy"
    passes: int = 0
    weights: np.ndarray = field(default_factory=lambda: np.random.default_rng(1).normal(size=(2, 4, 8, 8)) / 2)
    table: np.ndarray = field(default_factory=lambda: np.random.default_rng(2).normal(size=(20, 8)))

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return self.table[ids].astype(np.float32)

    def decode(
        self, embeds: np.ndarray, mask: np.ndarray, positions: np.ndarray, rows: np.ndarray, past: KeyValues
    ) -> tuple[np.ndarray, KeyValues]:
        self.passes += 1
        x = embeds + np.sin(positions[..., None] / 3 + np.arange(8))
        present = []
        for layer, (q, k, v, o) in enumerate(self.weights):
            keys = np.concatenate([past[2 * layer], (x @ k)[:, None]], axis=2)
            values = np.concatenate([past[2 * layer + 1], (x @ v)[:, None]], axis=2)
            present += [keys, values]
            scores = np.where(mask[:, 0], (x @ q) @ keys[:, 0].transpose(0, 2, 1) / 3, -np.inf)
            x = x + np.tanh(softmax(scores, axis=-1) @ values[:, 0] @ o)
        return (x @ self.table.T)[:, rows], tuple(present)


def whole(engine: NumpyEngine, tokens: Sequence[int]) -> np.ndarray:
    """Returns (S, V) log-probabilities of a sequence read at once with a causal mask and no past."""
    size = len(tokens)
    mask = np.tril(np.ones((1, 1, size, size), dtype=bool))
    logits, _ = engine.decode(
        engine.embed(np.array([tokens])), mask, np.arange(size)[None], np.arange(size), empty_context(SHAPE).past
    )
    return log_softmax(logits[0], axis=-1)


def likelihood(engine: NumpyEngine, before: Sequence[int], path: Sequence[int]) -> float:
    log_probs = whole(engine, [*before, *path])
    return sum(log_probs[len(before) + at - 1, token] for at, token in enumerate(path))


def test_a_tree_pass_equals_one_pass_per_label() -> None:
    engine = NumpyEngine()
    prompt, paths = [3, 1, 4, 1, 5], [[6, 7, 19], [6, 8, 19], [9, 19], [9, 7, 7, 19]]
    tree = build_tree(paths)
    embeds = engine.embed(np.array([[*prompt[3:], *tree.tokens]]))
    _, context = read(engine, empty_context(SHAPE), engine.embed(np.array([prompt[:3]])), [2])
    scores, after = read_tree(engine, context, embeds, tree)
    assert engine.passes == 2
    np.testing.assert_allclose(scores[0], [likelihood(engine, prompt, path) for path in paths], atol=1e-5)

    # Going on along one path equals having read that path.
    for choice, path in enumerate(paths):
        logits, _ = read(engine, after.along(tree, [choice]), engine.embed(np.array([[2, 11]])), [0, 1])
        expected = whole(engine, [*prompt, *path, 2, 11])[-2:]
        np.testing.assert_allclose(log_softmax(logits[0], axis=-1), expected, atol=1e-5)


def test_scores_need_no_leaves() -> None:
    engine = NumpyEngine()
    prompt, paths = [3, 1, 4], [[6, 7, 19], [8, 19], [6, 19], [9, 7, 7, 19]]
    tree = build_tree(paths)
    nodes = tree.nodes(leaves=False)
    assert tree.tokens[nodes].tolist() == [6, 7, 8, 9, 7, 7]
    embeds = engine.embed(np.array([[*prompt, *tree.tokens[nodes]]]))
    scores, after = read_tree(engine, empty_context(SHAPE), embeds, tree, leaves=False)
    np.testing.assert_allclose(scores[0], [likelihood(engine, prompt, path) for path in paths], atol=1e-5)
    assert after.visible.tolist() == [[True] * len(prompt) + [False] * len(nodes)]


def write(
    engine: NumpyEngine,
    context: Context,
    logits: np.ndarray,
    sampling: Sampling,
    *,
    stop_ids: set[int],
    banned: int,
    budget: int,
) -> tuple[list[list[int]], Context]:
    steps = generate(
        engine,
        context,
        logits,
        sampling=sampling,
        generators=sampling.generators(context.batch // sampling.samples),
        stop_ids=stop_ids,
        banned_ids=[banned],
        budget=budget,
    )
    *_, last = steps
    return last


def test_sequences_of_different_lengths_share_a_batch() -> None:
    engine = NumpyEngine()
    starts = [[3, 1], [4, 2], [5, 5], [6, 0], [17, 3]]

    def run(prompts: list[list[int]]) -> tuple[list[list[int]], np.ndarray]:
        context = empty_context(SHAPE).repeated(len(prompts))
        logits, context = read(engine, context, engine.embed(np.array(prompts)), [1])
        written, context = write(engine, context, logits[:, 0], GREEDY, stop_ids={7, 14, 11}, banned=3, budget=9)
        tree = build_tree([[1, 2], [1, 4], [1, 5, 6]])
        embeds = engine.embed(np.array([[*tree.common, *tree.tokens]] * len(prompts)))
        return written, read_tree(engine, context, embeds, tree)[0]

    together, scores = run(starts)
    alone = [run([start]) for start in starts]
    assert together == [written[0] for written, _ in alone]
    assert len({len(tokens) for tokens in together}) > 1, "the example must have rows that end at different steps"
    assert all(3 not in tokens for tokens in together)
    np.testing.assert_allclose(scores, np.concatenate([single for _, single in alone]), atol=1e-5)
    for start, tokens, row in zip(starts, together, scores, strict=True):
        for token, log_probs in zip(tokens, whole(engine, [*start, *tokens])[1:], strict=False):
            log_probs[3] = -np.inf
            assert token == log_probs.argmax()
        np.testing.assert_allclose(row[0], likelihood(engine, [*start, *tokens, 1], [2]), atol=1e-5)


def test_draws_follow_the_distribution_and_the_nucleus() -> None:
    engine = NumpyEngine()
    sampling = Sampling(samples=1000, temperature=0.5, seed=4)
    logits = np.tile(np.log([0.1, 0.2, 0.3, 0.4] + [1e-30] * 16).astype(np.float32), (1000, 1))
    context = empty_context(SHAPE).repeated(1000)

    def counts(sampling: Sampling) -> np.ndarray:
        written, _ = write(engine, context, logits, sampling, stop_ids=set(), banned=1, budget=1)
        return np.bincount([tokens[0] for tokens in written], minlength=20)[:4]

    # Token 1 is banned; at temperature 0.5 the others weigh 1 : 9 : 16. Five standard deviations are 80 draws.
    np.testing.assert_allclose(counts(sampling), [1000 / 26, 0, 9000 / 26, 16000 / 26], atol=80)
    # The nucleus of 0.9 is tokens 3 and 2 (25/26 of the mass), of 0.6 token 3 alone (16/26).
    assert counts(Sampling(samples=1000, temperature=0.5, top_p=0.9))[0] == 0
    assert counts(Sampling(samples=1000, temperature=0.5, top_p=0.6)).tolist() == [0, 0, 0, 1000]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"samples": 2, "temperature": 0.0}, "all the same"),
    ],
)
def test_impossible_sampling(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def real(request: pytest.FixtureRequest, tiny_bundle: Path) -> tuple[Bundle, PromptTokenizer, OnnxEngine]:
    bundle = Bundle.open(tiny_bundle)
    graphs = bundle.manifest.precisions[request.param]
    engine = OnnxEngine(
        vision_encoder=bundle.path(graphs.vision_encoder),
        embed_tokens=bundle.path(graphs.embed_tokens),
        decoder=bundle.path(graphs.decoder),
        shape=bundle.manifest.decoder,
        engine="cpu",
        threads=1,
    )
    return bundle, PromptTokenizer(bundle.path("tokenizer.json")), engine


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(5, 3, 32, 32)).astype(np.float32)


class Reference:
    """The definition, spelt out: the whole text in one causal pass, no cache, no tree, no batch."""

    def __init__(self, real: tuple[Bundle, PromptTokenizer, OnnxEngine], mode: Mode, image: np.ndarray) -> None:
        self.bundle, self.tokenizer, self.engine = real
        manifest = self.bundle.manifest
        prompt = manifest.prompts.of(mode)
        self.before = prompt.before_image.replace("{labels}", ", ".join(LABELS))
        self.after = prompt.after_image
        self.features = self.engine.encode_images(image[None])

    def log_likelihood(self, written: list[int], given: str, continuation: str) -> float:
        """Returns the log-likelihood of a continuation after the prompt, the written tokens, and a given text."""
        block = self.bundle.manifest.image_block
        text = self.before + block.before + block.token * block.count + block.after + self.after
        head = [*self.tokenizer.encode(text), *written, *self.tokenizer.encode(given)]
        tail = self.tokenizer.encode(continuation)
        ids = np.array([head + tail])
        embeds = self.engine.embed(ids)
        embeds[ids == self.tokenizer.token_id("<image>")] = self.features[0]
        size = ids.shape[1]
        logits, _ = self.engine.decode(
            embeds,
            np.tril(np.ones((1, 1, size, size), dtype=bool)),
            np.arange(size)[None],
            np.arange(size),
            (np.zeros((1, 1, 0, 16), dtype=np.float32),) * 4,
        )
        log_probs = log_softmax(logits[0].astype(np.float64), axis=-1)
        return sum(log_probs[len(head) + at - 1, token] for at, token in enumerate(tail))


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_real_graphs_agree_with_the_definition(
    real: tuple[Bundle, PromptTokenizer, OnnxEngine], pixels: np.ndarray, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, tokenizer, engine = real
    # Random weights write tokens that do not survive decoding and encoding again, so the tokens themselves are taken.
    written: list[list[int]] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: written.append(list(ids)) or decode(ids))
    scored = Scorer(bundle.manifest, tokenizer, engine).score(pixels, LABELS, mode, GREEDY, verbalize=True)
    assert scored.verbalized is not None
    assert np.ptp(scored.label_scores, axis=0).min() > 0, "the images must make a difference"
    for row in (0, 3):
        reference = Reference(real, mode, pixels[row])
        thought = written[row] if mode == "reason" else []
        close = "</think>" if mode == "reason" else ""
        expected = [reference.log_likelihood(thought, f"{close}<answer>", f"{label}</answer>") for label in LABELS]
        np.testing.assert_allclose(scored.label_scores[row, 0], expected, atol=2e-4)

        said = f"{close}<answer>{LABELS[int(np.argmax(expected))]}</answer>"
        stated = [f"<confidence>{value:.2f}</confidence>" for value in CONFIDENCE_GRID]
        weights = softmax([reference.log_likelihood(thought, said, text) for text in stated])
        assert scored.verbalized[row] == pytest.approx(float(weights @ CONFIDENCE_GRID), abs=1e-4)


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_a_batch_equals_its_images(
    real: tuple[Bundle, PromptTokenizer, OnnxEngine], pixels: np.ndarray, mode: Mode
) -> None:
    bundle, tokenizer, engine = real
    scorer = Scorer(bundle.manifest, tokenizer, engine)
    sampling = Sampling(samples=2, seed=5) if mode == "reason" else GREEDY

    def score(images: np.ndarray) -> Scored:
        return scorer.score(images, LABELS, mode, sampling, verbalize=True)

    batch, singles = score(pixels), [score(pixels[row : row + 1]) for row in range(len(pixels))]
    for row, single in enumerate(singles):
        assert (batch.texts and batch.texts[row]) == (single.texts and single.texts[0])
        np.testing.assert_allclose(batch.label_scores[row], single.label_scores[0], atol=1e-5)
        np.testing.assert_allclose(batch.verbalized[row], single.verbalized[0], atol=1e-5)


def test_images_with_seeds_of_their_own_draw_apart_wherever_they_stand(
    real: tuple[Bundle, PromptTokenizer, OnnxEngine], pixels: np.ndarray
) -> None:
    bundle, tokenizer, engine = real
    scorer = Scorer(bundle.manifest, tokenizer, engine)
    same = np.repeat(pixels[:1], 3, axis=0)

    def texts(*seeds: int) -> tuple[tuple[str, ...], ...]:
        sampling = Sampling(samples=2, seed=5, image_seeds=seeds)
        written = scorer.score(same[: len(seeds) or 3], LABELS, "reason", sampling, verbalize=False).texts
        assert written is not None
        return written

    one, other = texts(8, 9, 8)[:2]
    assert texts(8, 9, 8) == (one, other, one)
    assert texts(9, 8) == (other, one)
    assert len({*one, *other}) == 4
    assert len(set(texts())) == 1
    with pytest.raises(InputError, match="2 image seeds for 3 images, expected one each or none"):
        scorer.score(same, LABELS, "reason", Sampling(image_seeds=(1, 2)), verbalize=False)


def test_the_constant_prefix_is_read_once(
    real: tuple[Bundle, PromptTokenizer, OnnxEngine], pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, tokenizer, engine = real
    lengths: list[int] = []
    decode = engine.decode

    def counted(embeds: np.ndarray, *rest: np.ndarray) -> object:
        lengths.append(embeds.shape[1])
        return decode(embeds, *rest)

    monkeypatch.setattr(engine, "decode", counted)
    scorer = Scorer(bundle.manifest, tokenizer, engine)
    first = scorer.score(pixels[:1], LABELS, "direct", GREEDY, verbalize=False)
    again = scorer.score(pixels[:1], LABELS, "direct", GREEDY, verbalize=False)
    np.testing.assert_array_equal(first.label_scores, again.label_scores)
    assert len(lengths) == 3, "prefix, image; then only the image"
    assert lengths[1] == lengths[2]
    scorer.score(pixels[:1], LABELS[:3], "direct", GREEDY, verbalize=False)
    assert len(lengths) == 5, "another label set has another prefix"


@pytest.mark.parametrize("labels", [LABELS, ("mood a", "mood b"), ("mood",)])
def test_the_tree_starts_in_the_same_place_for_all_labels(
    real: tuple[Bundle, PromptTokenizer, OnnxEngine], labels: tuple[str, ...]
) -> None:
    """Also for those that begin alike: where rows are rounded to bytes, a score would otherwise be another one."""
    bundle, tokenizer, engine = real
    plan = Planner(bundle.manifest, tokenizer, engine).plan(labels, "direct")
    assert plan.answers.common == tuple(tokenizer.encode("<answer>"))


def test_labels_that_cannot_be_used(real: tuple[Bundle, PromptTokenizer, OnnxEngine], pixels: np.ndarray) -> None:
    bundle, tokenizer, engine = real
    scorer = Scorer(bundle.manifest, tokenizer, engine)
    with pytest.raises(InputError, match=r"'ang<image>er' holds '<image>', a special token"):
        scorer.score(pixels, ("joy", "ang<image>er"), "direct", GREEDY, verbalize=False)
    with pytest.raises(InputError, match=r"holds '<image>', a special token"):
        scorer.score(pixels, ("joy", "\uff1cimage\uff1e"), "direct", GREEDY, verbalize=False)
    many = tuple(f"mood {number}" for number in range(1000))
    with pytest.raises(InputError, match=r"1000 labels .* 1024 positions .*; the first \d+ of them fit") as caught:
        scorer.score(pixels, many, "reason", GREEDY, verbalize=False)
    fitting = int(str(caught.value).split("the first ")[1].split()[0])
    scorer.score(pixels[:1], many[:fitting], "reason", GREEDY, verbalize=True)
    with pytest.raises(InputError, match="of them fit"):
        scorer.score(pixels[:1], many[: fitting + 1], "reason", GREEDY, verbalize=False)


def test_every_reasoning_states_its_confidence_for_its_own_images_best_label(
    real: tuple[Bundle, PromptTokenizer, OnnxEngine], pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, tokenizer, engine = real
    scorer = Scorer(bundle.manifest, tokenizer, engine)
    chosen: list[list[int]] = []
    along = Context.along

    def recorded(context: Context, tree: LabelTree, choices: Sequence[int]) -> Context:
        chosen.append(list(choices))
        return along(context, tree, choices)

    monkeypatch.setattr(Context, "along", recorded)
    # Two reasonings each for three images. In the second image they disagree: 0.9 + 0.4 for label 1 beats 0.1 + 0.6.
    likelihoods = [[[9, 1], [8, 2]], [[1, 9], [6, 4]], [[2, 8], [1, 9]]]
    monkeypatch.setattr(
        scorer,
        "_reasoned",
        lambda plan, features, sampling: (
            np.log(likelihoods).reshape(6, 2),
            real_reasoned(plan, features, sampling)[1],
            (("", ""),) * 3,
        ),
    )
    real_reasoned = Scorer._reasoned.__get__(scorer)
    scorer.score(pixels[:3], ("joy", "awe"), "reason", Sampling(samples=2), verbalize=True)
    assert chosen == [[0, 0, 1, 1, 1, 1]]
