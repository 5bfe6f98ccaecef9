"""The Qwen-VL families scored through trees, against whole texts through the plain model, one pass a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, tiny_family

from emocaliber.evaluate.qwen_inputs import prompt_ids, read_image, rotary_positions, with_image
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.decoding import GREEDY, Sampling
from emocaliber.runtime.errors import ExportError, InputError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.prompts import PromptTemplate

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
GRID = [f"{0.05 * step:.2f}" for step in range(1, 20)]
TEXT_FIRST = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
IMAGE_FIRST = PromptTemplate(
    reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]", system="Help.", image_first=True
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tiny_family(request.param)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Returns two images of uneven sizes: 4 x 3 and 1 x 4 visual tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((130, 90, 3), (40, 120, 3))]


class Plain:
    """Log-likelihoods of whole texts by plain forward passes: the model's own positions, no cache, no mask."""

    def __init__(self, family: tuple[Any, Any], image: np.ndarray, template: PromptTemplate, mode: Mode) -> None:
        self._model, self._processor = family
        content = [{"type": "text", "text": template.instruction(LABELS, mode)}, {"type": "image"}]
        turns = [{"role": "user", "content": content[::-1] if template.image_first else content}]
        if template.system:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": template.system}]})
        self._prompt = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        self._image = [[Image.fromarray(image)]]

    def tokens(self, text: str) -> list[float]:
        """Returns the log-probability of every token of a response."""
        prompt, whole = (
            self._processor(text=[part], images=self._image, return_tensors="pt")
            for part in (self._prompt, self._prompt + text)
        )
        start, ids = prompt["input_ids"].shape[1], whole["input_ids"]
        assert torch.equal(ids[:, :start], prompt["input_ids"])
        with torch.inference_mode():
            logits = self._model(**whole, use_cache=False).logits[0].double()
        log_probs = torch.log_softmax(logits[start - 1 : -1], -1)
        return log_probs[range(ids.shape[1] - start), ids[0, start:]].tolist()

    def likelihood(self, before: str, text: str) -> float:
        """Returns the log-likelihood of the tokens of ``text``, where none runs across its beginning."""
        return sum(self.tokens(before + text)) - sum(self.tokens(before))

    def confidence(self, before: str) -> float:
        """Returns the expectation over the nineteen confidences that may follow; their common tokens cancel."""
        weights = torch.tensor([sum(self.tokens(f"{before}<confidence>{c}</confidence>")) for c in GRID])
        return float(weights.softmax(0) @ torch.tensor([float(c) for c in GRID]))


@pytest.mark.parametrize("mode", ["direct", "reason"])
@pytest.mark.parametrize("template", [TEXT_FIRST, IMAGE_FIRST], ids=["text first", "image first"])
def test_scores_are_those_of_whole_texts(
    family: tuple[Any, Any], images: list[np.ndarray], mode: Mode, template: PromptTemplate
) -> None:
    model = TransformersModel(*family, template, 12)
    scored = model.score(images, LABELS, mode, Sampling(temperature=1.0, seed=3))
    assert scored.label_scores.shape == (2, 1, 7)
    assert scored.verbalized is not None
    assert (scored.texts is None) == (mode == "direct")
    for i, image in enumerate(images):
        plain = Plain(family, image, template, mode)
        reasoning = "" if scored.texts is None else scored.texts[i][0]
        expected = [plain.likelihood(reasoning + "<answer>", f"{label}</answer>") for label in LABELS]
        assert scored.label_scores[i, 0] == pytest.approx(expected, abs=1e-3)
        best = LABELS[int(np.argmax(expected))]
        stated = plain.confidence(f"{reasoning}<answer>{best}</answer>")
        assert scored.verbalized[i] == pytest.approx(stated, abs=1e-4)
    assert np.ptp(scored.label_scores[:, 0], axis=0).max() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_may_run_across_the_tags(name: str, images: list[np.ndarray]) -> None:
    """As they do in the vocabulary of Qwen's own models, which has no tag."""
    family = tiny_family(name, tags=False)
    pieces = family[1].tokenizer.tokenize("</think><answer>joy</answer><confidence>0.50</confidence>")
    assert "><" in pieces
    scored = TransformersModel(*family, IMAGE_FIRST, 12).score(images, LABELS, "reason", Sampling(temperature=1.0))
    assert scored.texts is not None
    assert scored.verbalized is not None
    for i, image in enumerate(images):
        plain, reasoning = Plain(family, image, IMAGE_FIRST, "reason"), scored.texts[i][0]
        whole = np.array([sum(plain.tokens(f"{reasoning}<answer>{label}</answer>")) for label in LABELS])
        scores = scored.label_scores[i, 0]
        # What all labels have before them adds the same to each.
        assert scores - scores[0] == pytest.approx(whole - whole[0], abs=1e-3)
        stated = plain.confidence(f"{reasoning}<answer>{LABELS[int(whole.argmax())]}</answer>")
        assert scored.verbalized[i] == pytest.approx(stated, abs=1e-4)


def test_several_reasonings_are_drawn_for_each_image_alone(family: tuple[Any, Any], images: list[np.ndarray]) -> None:
    model = TransformersModel(*family, TEXT_FIRST, 8)
    sampling = Sampling(samples=3, temperature=1.5, top_p=0.9, seed=5)
    together = model.score(images, LABELS, "reason", sampling)
    alone = [model.score([image], LABELS, "reason", sampling) for image in images]
    assert together.texts == tuple(scored.texts[0] for scored in alone if scored.texts)
    assert together.label_scores.shape == (2, 3, 7)
    assert together.label_scores == pytest.approx(np.concatenate([s.label_scores for s in alone]), abs=1e-3)
    assert together.verbalized == pytest.approx(np.concatenate([s.verbalized for s in alone]), abs=1e-4)  # type: ignore[misc]
    assert all(len(set(texts)) > 1 for texts in together.texts or ())
    other = model.score(images, LABELS, "reason", Sampling(samples=3, temperature=1.5, top_p=0.9, seed=6))
    assert other.texts != together.texts


def test_a_reasoning_ends_where_its_tag_closes(family: tuple[Any, Any], images: list[np.ndarray]) -> None:
    """The tag is what this model always writes; then what it never writes."""
    model, processor = family
    tokenizer = processor.tokenizer
    close = tokenizer.convert_tokens_to_ids("</think>")
    scorer = TransformersModel(model, processor, TEXT_FIRST, 9)
    bias = torch.zeros(len(tokenizer))
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    try:
        bias[close] = 1e4
        assert scorer.score(images, LABELS, "reason", GREEDY, verbalize=False).texts == (("</think>",),) * 2
        bias[[close, *tokenizer.convert_tokens_to_ids(["<answer>", tokenizer.eos_token])]] = -1e4
        scored = scorer.score(images, LABELS, "reason", GREEDY, verbalize=False)
        assert scored.texts is not None
        assert scored.verbalized is None
        for (text,) in scored.texts:
            assert text.count("</think>") == 1
            assert len(tokenizer.encode(text)) > 2
    finally:
        hook.remove()


def test_a_tag_ends_a_reasoning_though_no_token_ends_with_it(images: list[np.ndarray]) -> None:
    model, processor = tiny_family("qwen2_5_vl", tags=False)
    script = processor.tokenizer.encode("<think>x</think><answer>joy</answer>", add_special_tokens=False)
    steps = []

    def dictate(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        if logits.ndim == 2:  # the tree's
            return logits
        steps.append(script[len(steps)])
        return torch.nn.functional.one_hot(torch.full(logits.shape[:-1], steps[-1]), logits.shape[-1]).float()

    with model.lm_head.register_forward_hook(dictate):
        scored = TransformersModel(model, processor, IMAGE_FIRST, 30).score(images, LABELS, "reason", verbalize=False)
    assert scored.texts == (("<think>x</think>",),) * 2
    assert processor.tokenizer.decode(steps) == "<think>x</think><"


def test_positions_are_the_models_own(family: tuple[Any, Any], images: list[np.ndarray]) -> None:
    model, processor = family
    for template in (TEXT_FIRST, IMAGE_FIRST):
        for source in images:
            image, token = read_image(processor, source), processor.image_token_id
            ids = with_image(prompt_ids(processor, template, LABELS, "direct"), token, image)
            tensor = torch.tensor([ids])
            expected, _ = model.model.get_rope_index(
                tensor, mm_token_type_ids=(tensor == token).int(), image_grid_thw=torch.tensor([image.grid])
            )
            assert np.array_equal(rotary_positions(ids, token, image), expected[:, 0].numpy())
            assert image.count == ids.count(token) > 1


def test_many_images_are_read_in_parts(
    family: tuple[Any, Any], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TransformersModel(*family, TEXT_FIRST, 4)
    whole = model.score(images * 2, LABELS, "reason")
    monkeypatch.setattr("emocaliber.evaluate.qwen_scorer._TOKENS_AT_ONCE", 150)
    parts = model.score(images * 2, LABELS, "reason")
    assert parts.texts == whole.texts
    assert parts.label_scores == pytest.approx(whole.label_scores, abs=1e-3)
    assert parts.verbalized == pytest.approx(whole.verbalized, abs=1e-4)


def test_what_cannot_be_scored_is_refused(family: tuple[Any, Any], images: list[np.ndarray], tmp_path: Path) -> None:
    model, processor = family
    scorer = TransformersModel(model, processor, TEXT_FIRST, 4)
    with pytest.raises(InputError):
        scorer.score([str(tmp_path / "gone.png")], LABELS, "direct")
    with pytest.raises(InputError, match="special token"):
        scorer.score(images, ("joy", "<|im_end|>"), "direct")
    with pytest.raises(InputError, match="longer than the 512 positions"):
        scorer.score(images, tuple(f"label {i}" for i in range(200)), "reason")
    layers = model.config.text_config.layer_types if model.config.model_type != "qwen3_vl" else None
    if layers is not None:
        model.config.text_config.layer_types = ["sliding_attention"] * len(layers)
        try:
            with pytest.raises(ExportError, match="sliding_attention"):
                TransformersModel(model, processor, TEXT_FIRST, 4)
        finally:
            model.config.text_config.layer_types = layers
