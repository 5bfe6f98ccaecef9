"""Sampled responses of a model with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emocaliber.runtime.samples import Sample
from emocaliber.train.models import build_model
from emocaliber.train.recipe import Recipe
from emocaliber.train.sampling import sample_responses


@pytest.fixture(scope="module")
def model(recipe: Recipe, processor: Any) -> Any:
    assert recipe.teacher.build is not None
    return build_model(recipe.teacher.build, processor, seed=0).eval()


def sampled(model: Any, processor: Any, scenes: list[Sample], recipe: Recipe, **changes: Any) -> list[list[str]]:
    options = {"count": 2, "temperature": 1.0, "batch_size": 2, "seed": 5, "max_new_tokens": 6, **changes}
    return sample_responses(model, processor, scenes[:3], recipe.prompt, "direct", **options)


def test_every_image_gets_its_responses_and_the_seed_decides_them(
    model: Any, processor: Any, scenes: list[Sample], recipe: Recipe
) -> None:
    responses = sampled(model, processor, scenes, recipe)
    assert [len(texts) for texts in responses] == [2, 2, 2]
    assert responses[0][0] != responses[0][1]
    assert sampled(model, processor, scenes, recipe) == responses
    assert sampled(model, processor, scenes, recipe, seed=6) != responses


def test_each_image_gets_its_own_response(model: Any, processor: Any, scenes: list[Sample], recipe: Recipe) -> None:
    # Cold sampling is greedy: what is written of an image must not depend on the others in its batch.
    cold = {"temperature": 1e-4, "count": 1}
    together = sampled(model, processor, scenes, recipe, **cold, batch_size=3)
    alone = sampled(model, processor, scenes, recipe, **cold, batch_size=1)
    assert together == alone
    assert len({text for texts in together for text in texts}) > 1


def test_image_tokens_are_never_written(
    model: Any, processor: Any, scenes: list[Sample], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    seen: list[torch.Tensor] = []
    generate = model.generate

    def recording(**inputs: Any) -> torch.Tensor:
        output = generate(**inputs)
        seen.append(output[:, inputs["input_ids"].shape[1] :])
        return output

    # A policy that writes nothing else, if it may.
    hook = model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([image]), 50.0)
    )
    monkeypatch.setattr(model, "generate", recording)
    sampled(model, processor, scenes, recipe)
    hook.remove()
    assert seen
    assert not any((part == image).any() for part in seen)
