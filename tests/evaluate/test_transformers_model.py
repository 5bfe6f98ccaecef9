"""A transformers model scored by the runtime: against plain forward passes, and against its own export."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import build_model, build_processor

from emocaliber.evaluate.torch_engine import TorchEngine
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.errors import ExportError, InputError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.prompts import PromptTemplate

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
GRID = [f"{0.05 * step:.2f}" for step in range(1, 20)]
SHORT = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    return build_model(processor)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((30, 50, 3), (64, 64, 3), (33, 20, 3))]


@pytest.fixture(scope="module")
def scored_model(model: Any, processor: Any) -> TransformersModel:
    return TransformersModel(model, processor, SHORT, 10)


class Plain:
    """Log-likelihoods of texts after one image's prompt, by plain forward passes."""

    def __init__(self, model: Any, processor: Any, image: np.ndarray, mode: Mode) -> None:
        content = [{"type": "text", "text": SHORT.instruction(LABELS, mode)}, {"type": "image"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        self.inputs = processor(
            text=[text], images=[[Image.fromarray(image)]], return_tensors="pt", add_special_tokens=False
        )
        self._model = model
        self._encode = processor.tokenizer.encode

    def likelihood(self, before: str, text: str, *, written: Sequence[int] = ()) -> float:
        prompt = [*self.inputs["input_ids"][0].tolist(), *written, *self._encode(before, add_special_tokens=False)]
        told = self._encode(text, add_special_tokens=False)
        ids = torch.tensor([prompt + told])
        with torch.inference_mode():
            logits = self._model(input_ids=ids, pixel_values=self.inputs["pixel_values"]).logits[0].double()
        log_probs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        return float(log_probs[range(len(told)), told].sum())

    def confidence(self, before: str) -> float:
        """Returns the expectation over the nineteen confidences that may follow."""
        weights = torch.tensor([self.likelihood(before + "<confidence>", f"{c}</confidence>") for c in GRID])
        return float(weights.softmax(0) @ torch.tensor([float(c) for c in GRID]))


def test_direct_scores_are_those_of_plain_passes(
    scored_model: TransformersModel, model: Any, processor: Any, images: list[np.ndarray]
) -> None:
    scored = scored_model.score(images, LABELS, "direct")
    assert scored.texts is None
    assert scored.verbalized is not None
    for i, image in enumerate(images):
        plain = Plain(model, processor, image, "direct")
        expected = [plain.likelihood("<answer>", f"{label}</answer>") for label in LABELS]
        assert scored.label_scores[i, 0] == pytest.approx(expected, abs=1e-3)
        best = LABELS[int(np.argmax(expected))]
        assert scored.verbalized[i] == pytest.approx(plain.confidence(f"<answer>{best}</answer>"), abs=1e-4)
    assert np.ptp(scored.label_scores[:, 0], axis=0).max() > 1e-2


def test_reason_mode_writes_greedily_and_scores_after_it(
    scored_model: TransformersModel, model: Any, processor: Any, images: list[np.ndarray]
) -> None:
    scored = scored_model.score(images[:2], LABELS, "reason", verbalize=False)
    assert scored.verbalized is None
    assert scored.texts is not None
    tokenizer = processor.tokenizer
    stops = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["</think>", "<answer>"])}
    special = [token for token in tokenizer.all_special_ids if token != tokenizer.eos_token_id]
    image_block = tokenizer.encode("<fake_token_around_image><global-img><image>", add_special_tokens=False)
    for i, image in enumerate(images[:2]):
        plain = Plain(model, processor, image, "reason")
        written = model.generate(
            **plain.inputs, do_sample=False, max_new_tokens=10, suppress_tokens=[*special, *image_block]
        )[0, plain.inputs["input_ids"].shape[1] :]
        # The tokens as they were written: their text may be split otherwise when it is read again.
        written = list(itertools.takewhile(lambda token: token not in stops, written.tolist()))
        assert written
        assert scored.texts[i] == (tokenizer.decode(written) + "</think>",)
        expected = [plain.likelihood("</think><answer>", f"{label}</answer>", written=written) for label in LABELS]
        assert scored.label_scores[i, 0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_the_model_and_its_export_agree(
    model: Any, processor: Any, tiny_bundle: Path, images: list[np.ndarray], mode: Mode
) -> None:
    """The committed bundle is an export of this very model."""
    ours = TransformersModel(model, processor, PromptTemplate(), 48)
    in_memory = ours.score(images, LABELS, mode, verbalize=True)
    with EmotionModel.load(tiny_bundle, precision="fp32", engine="cpu") as exported:
        theirs = exported.score(images, taxonomy="emotion6-7", mode=mode, verbalize=True)
    assert in_memory.label_scores.shape == (3, 1, 7)
    assert in_memory.label_scores[:, 0] == pytest.approx(theirs.label_scores.reshape(3, 7), abs=1e-3)
    assert in_memory.verbalized == pytest.approx(theirs.verbalized, abs=1e-4)


def test_the_engine_takes_read_only_arrays_and_other_precisions(processor: Any, images: list[np.ndarray]) -> None:
    engine = TorchEngine(build_model(processor).to(torch.bfloat16))
    assert engine.name == "torch-cpu"
    pixels = np.ones((2, 3, 32, 32), dtype=np.float32)
    pixels.flags.writeable = False
    features = engine.encode_images(pixels)
    assert (features.shape, features.dtype) == ((2, 4, 32), np.float32)
    assert np.array_equal(features[0], features[1])
    ids = np.array([[3, 4]])
    ids.flags.writeable = False
    assert engine.embed(ids).shape == (1, 2, 32)


def test_what_cannot_be_scored_is_refused(
    scored_model: TransformersModel, model: Any, processor: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        scored_model.score([str(tmp_path / "gone.png")], LABELS, "direct")
    other = build_processor(tile_size=48)
    with pytest.raises(ExportError, match="max_image_size=48 while the vision encoder takes 32"):
        TransformersModel(model, other, SHORT, 10)
