"""Responses of a model with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_model import build_model, build_processor

from emocaliber.evaluate.responders import Drawing, Request
from emocaliber.evaluate.transformers_responder import TransformersResponder
from emocaliber.runtime.errors import ConfigError, InputError

DRAWING = Drawing(count=2, temperature=1.0, max_new_tokens=6, seed=5)


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    return build_model(processor)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        Image.effect_noise((40, 24), 40 * (number + 1)).convert("RGB").save(folder / f"{number}.png")
    # Of uneven length, so that shorter prompts are padded.
    words = ("joy", "fear of anger", "contempt 0.35 sadness")
    return [Request(image=folder / f"{number}.png", instruction=text) for number, text in enumerate(words)]


def responses(model: Any, processor: Any, asked: list[Request], drawing: Drawing, batch_size: int = 2) -> Any:
    return TransformersResponder(model, processor, name="tiny", batch_size=batch_size).respond(asked, drawing)


def test_every_request_gets_its_responses_and_the_seed_decides_them(
    model: Any, processor: Any, requests: list[Request]
) -> None:
    torch.manual_seed(0)
    found = responses(model, processor, requests, DRAWING)
    assert [len(texts) for texts in found] == [2, 2, 2]
    assert found[0][0] != found[0][1]
    assert responses(model, processor, requests, DRAWING) == found
    assert responses(model, processor, requests, Drawing(count=2, temperature=1.0, max_new_tokens=6, seed=6)) != found
    # The caller's own random numbers go on as if nothing had been drawn.
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.fixture
def written(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The tokens of every response that the model writes from here on; as text, many of a random model look alike."""
    rows: list[tuple[int, ...]] = []
    generate = model.generate

    def recording(**inputs: Any) -> torch.Tensor:
        output = generate(**inputs)
        rows.extend(map(tuple, output[:, inputs["input_ids"].shape[1] :].tolist()))
        return output

    monkeypatch.setattr(model, "generate", recording)
    return rows


def test_what_is_written_does_not_depend_on_the_others_in_the_batch(
    model: Any, processor: Any, requests: list[Request], written: list[tuple[int, ...]]
) -> None:
    greedy = Drawing(max_new_tokens=8)
    together = responses(model, processor, requests, greedy, batch_size=3)
    assert together == responses(model, processor, requests, greedy, batch_size=1)
    assert written[:3] == written[3:]
    assert len(set(written)) > 1


def test_image_tokens_are_never_written(
    model: Any, processor: Any, requests: list[Request], written: list[tuple[int, ...]]
) -> None:
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    # A model that writes nothing else, if it may.
    hook = model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([image]), 50.0)
    )
    responses(model, processor, requests, DRAWING)
    hook.remove()
    assert len(written) == 6
    assert not any(image in row for row in written)


def test_an_unreadable_image_is_named(model: Any, processor: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.png"):
        responses(model, processor, [Request(image=tmp_path / "empty.png", instruction="joy")], DRAWING)


@pytest.mark.parametrize(
    "settings", [{"count": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"count": 2, "temperature": 0.0}]
)
def test_drawings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"cannot draw responses so|would be one response"):
        Drawing(**settings)


@pytest.mark.parametrize("image_first", [False, True])
def test_the_conversation_keeps_its_order(image_first: bool) -> None:
    turns = Request(image="a.png", instruction="Feel?", system="Be brief.", image_first=image_first).conversation()
    assert [turn["role"] for turn in turns] == ["system", "user"]
    kinds = ["text", "image"]
    assert [part["type"] for part in turns[1]["content"]] == (kinds[::-1] if image_first else kinds)
    assert len(Request(image="a.png", instruction="Feel?").conversation()) == 1
