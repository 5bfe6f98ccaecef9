"""The vLLM teacher on a stand-in for vLLM: the tiny model behind the same calls. vLLM itself runs nowhere here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emocaliber.distill import vllm_teacher
from emocaliber.distill.traces import make_traces
from emocaliber.distill.vllm_teacher import VllmTeacher, choose_engine, open_vllm
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.decoding import Sampling
from emocaliber.runtime.errors import BackendError, DependencyError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample
from emocaliber.train.stage_recipes import CollectRecipe

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
TEMPLATE = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")


@dataclass
class Parameters:
    """Fields of vLLM's ``SamplingParams`` with its defaults; others are refused, as vLLM does."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    max_tokens: int = 16
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None


class StandIn:
    """``vllm.LLM`` as far as `VllmTeacher` calls it, by plain passes of a transformers model, one request at a time."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self.asked: list[Parameters] = []

    def generate(self, prompts: Sequence[Any], sampling_params: Sequence[Parameters], use_tqdm: bool) -> list[Any]:
        assert len(prompts) == len(sampling_params)
        assert not use_tqdm
        self.asked += sampling_params
        return [self._answer(prompt, parameters) for prompt, parameters in zip(prompts, sampling_params, strict=True)]

    def log_probs(self, text: str, image: Image.Image, written: Sequence[int] = ()) -> tuple[list[int], torch.Tensor]:
        """Returns the token ids of a prompt, place holders expanded, and (S, vocab) log-probabilities after each."""
        inputs = self._processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
        ids = [*inputs["input_ids"][0].tolist(), *written]
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([ids]), pixel_values=inputs["pixel_values"]).logits[0]
        return ids, torch.log_softmax(logits.double(), -1)

    def _answer(self, prompt: Any, parameters: Parameters) -> Any:
        image = prompt["multi_modal_data"]["image"]
        ids, after = self.log_probs(prompt["prompt"], image)
        given = None
        if parameters.prompt_logprobs is not None:
            # The first token has none; a mapping holds the token's own and as many of the best as were asked for.
            scored = [{token: SimpleNamespace(logprob=float(after[i, token]))} for i, token in enumerate(ids[1:])]
            given = [None, *scored]
        text = self._write(prompt["prompt"], image, parameters)
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=given, outputs=[SimpleNamespace(text=text)])

    def _write(self, prompt: str, image: Image.Image, parameters: Parameters) -> str:
        tokenizer = self._processor.tokenizer
        generator = torch.Generator().manual_seed(parameters.seed or 0)
        written: list[int] = []
        while len(written) < parameters.max_tokens:
            _, after = self.log_probs(prompt, image, written)
            scores = after[-1].clone()
            for token, bias in (parameters.logit_bias or {}).items():
                scores[token] += bias
            if parameters.temperature == 0.0:
                token = int(scores.argmax())
            else:
                chances = torch.softmax(scores / parameters.temperature, -1)
                token = int(torch.multinomial(chances, 1, generator=generator))
            if token == tokenizer.eos_token_id:
                break
            written.append(token)
            text = tokenizer.decode(written, skip_special_tokens=parameters.skip_special_tokens)
            for stop in parameters.stop:
                if stop in text:
                    return text[: text.index(stop)]
        return str(tokenizer.decode(written, skip_special_tokens=parameters.skip_special_tokens))


@pytest.fixture
def engine(model: Any, processor: Any) -> StandIn:
    return StandIn(model, processor)


@pytest.fixture
def teacher(engine: StandIn, processor: Any) -> VllmTeacher:
    return VllmTeacher(engine, Parameters, processor, TEMPLATE, 6)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((30, 50, 3), (64, 64, 3))]


def test_direct_scores_are_those_of_the_label_tree(
    teacher: VllmTeacher, model: Any, processor: Any, images: list[np.ndarray]
) -> None:
    expected = TransformersModel(model, processor, TEMPLATE, 6).score(images, LABELS, "direct")
    scored = teacher.score(images, LABELS, "direct")
    assert scored.texts is None
    assert scored.verbalized is not None
    np.testing.assert_allclose(scored.label_scores, expected.label_scores, atol=1e-3)
    np.testing.assert_allclose(scored.verbalized, expected.verbalized, atol=1e-4)
    assert np.ptp(scored.label_scores[:, 0], axis=0).max() > 1e-2


def test_greedy_reasonings_are_those_of_transformers_and_scored_as_text(
    teacher: VllmTeacher, engine: StandIn, model: Any, processor: Any, images: list[np.ndarray]
) -> None:
    greedy = Sampling(temperature=0.0)
    scored = teacher.score(images, LABELS, "reason", greedy)
    assert (
        scored.texts == TransformersModel(model, processor, TEMPLATE, 6).score(images, LABELS, "reason", greedy).texts
    )
    assert scored.texts is not None
    turns = [
        {
            "role": "user",
            "content": [{"type": "text", "text": TEMPLATE.instruction(LABELS, "reason")}, {"type": "image"}],
        }
    ]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    for i, image in enumerate(images):
        # The likelihood of everything, prompt included: only the label differs.
        whole = []
        for label in LABELS:
            text = f"{prompt}{scored.texts[i][0]}<answer>{label}</answer>"
            ids, after = engine.log_probs(text, Image.fromarray(image))
            whole.append(float(after[range(len(ids) - 1), ids[1:]].sum()))
        np.testing.assert_allclose(
            scored.label_scores[i, 0] - scored.label_scores[i, 0].mean(), np.array(whole) - np.mean(whole), atol=1e-3
        )


def test_draws_go_by_the_image(teacher: VllmTeacher, engine: StandIn, images: list[np.ndarray]) -> None:
    both = teacher.score(images, LABELS, "reason", Sampling(temperature=1.0, seed=1, image_seeds=(7, 8)))
    seeds = [asked.seed for asked in engine.asked if asked.prompt_logprobs is None]
    assert len(set(seeds)) == 2
    alone = teacher.score(images[1:], LABELS, "reason", Sampling(temperature=1.0, seed=1, image_seeds=(8,)))
    assert both.texts is not None
    assert alone.texts == both.texts[1:]
    other = teacher.score(images[1:], LABELS, "reason", Sampling(temperature=1.0, seed=2, image_seeds=(8,)))
    assert other.texts != alone.texts


def test_tokens_of_images_are_kept_out_of_reasonings(
    teacher: VllmTeacher, engine: StandIn, processor: Any, images: list[np.ndarray]
) -> None:
    teacher.score(images[:1], LABELS, "reason", Sampling(temperature=1.0, image_seeds=(1,)))
    (drawn,) = [asked for asked in engine.asked if asked.prompt_logprobs is None]
    assert drawn.logit_bias is not None
    assert processor.image_token_id in drawn.logit_bias
    assert processor.tokenizer.eos_token_id not in drawn.logit_bias
    assert set(drawn.logit_bias.values()) == {-100.0}


def test_traces_are_collected_from_it(teacher: VllmTeacher, scenes: list[Sample]) -> None:
    rows = make_traces(teacher, scenes[:2], CollectRecipe(label_orders=2), name="vllm", seed=0, progress=lambda _: None)
    assert [(row["mode"], row["sample"]) for row in rows] == [("direct", 0), ("direct", 1)] * 2 + [("reason", 0)] * 2


def test_answers_without_the_prompts_probabilities_are_refused(
    teacher: VllmTeacher, engine: StandIn, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = engine.generate

    def shortened(*arguments: Any, **options: Any) -> list[Any]:
        outputs = answer(*arguments, **options)
        for output in outputs:
            output.prompt_logprobs = output.prompt_logprobs[5:]
        return outputs

    monkeypatch.setattr(engine, "generate", shortened)
    with pytest.raises(BackendError, match=r"vLLM returned \d+ log-probabilities for a prompt of \d+ tokens"):
        teacher.score(images[:1], LABELS, "direct")


@pytest.mark.parametrize(
    ("asked", "installed", "gpu", "built", "expected"),
    [("auto", True, True, False, "vllm"), ("auto", True, True, True, "transformers"),
     ("auto", True, False, False, "transformers"), ("auto", False, True, False, "transformers"),
     ("transformers", True, True, False, "transformers"), ("vllm", True, True, True, "vllm")],
)  # fmt: skip
def test_the_engine_is_chosen(
    asked: Any, installed: bool, gpu: bool, built: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_engine(asked, built=built) == expected


def test_vllm_that_is_not_there_is_an_error(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_teacher.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        BackendError, match=r"engine is 'vllm', but vLLM is not installed \(pip .* is no CUDA device; or"
    ):
        choose_engine("vllm", built=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DependencyError, match="engine is 'vllm', but vLLM is not installed"):
        open_vllm("folder", processor, TEMPLATE, 6, "fp32", {})
