"""Models built and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_qwen import tiny_qwen

from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.samples import Sample
from emocaliber.train.model_recipe import ModelRecipe
from emocaliber.train.models import build_model, corpus, freeze_vision, initial
from emocaliber.train.recipe import Recipe


def test_a_built_model_has_the_sizes_asked_for(recipe: Recipe, processor: Any) -> None:
    assert recipe.teacher.build is not None
    model = build_model(recipe.teacher.build, processor, seed=3)
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads) == (64, 2, 1)
    assert (vision.hidden_size, vision.image_size, vision.patch_size) == (32, 32, 16)
    assert text.vocab_size == len(processor.tokenizer)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    again, other = (build_model(recipe.teacher.build, processor, seed=seed) for seed in (3, 4))
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_a_saved_model_loads_and_answers_the_same(recipe: Recipe, processor: Any, tmp_path: Path) -> None:
    assert recipe.teacher.build is not None
    model = build_model(recipe.teacher.build, processor, seed=3).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = initial(ModelRecipe(path=str(tmp_path)), [], recipe.prompt, 0, torch.float32)
    image = [[Image.effect_noise((40, 24), 80).convert("RGB")]]
    ours, theirs = (p(text=["<image>joy"], images=image, return_tensors="pt") for p in (processor, loaded_processor))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert not loaded.training
    with torch.inference_mode():
        assert torch.allclose(model(**ours).logits, loaded(**theirs).logits, atol=1e-5)


@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl"])
def test_a_frozen_tower_leaves_the_language_model_to_be_trained(
    recipe: Recipe, processor: Any, scenes: list[Sample], family: str
) -> None:
    assert recipe.teacher.build is not None
    if family == "qwen2_5_vl":
        model, _ = tiny_qwen(scenes, recipe.prompt)
    else:
        model = build_model(recipe.teacher.build, processor, seed=0)
    freeze_vision(model)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    seeing = {"idefics3": ("model.vision_model.", "model.connector."), "qwen2_5_vl": ("model.visual.",)}[family]
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(seeing)}
    assert frozen


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no model \(config.json is missing\)"):
        load_model(tmp_path)
    with pytest.raises(ArtifactError, match=r"holds no processor \(tokenizer.json is missing\)"):
        load_processor(tmp_path)


def test_the_corpus_holds_what_is_read_and_written(recipe: Recipe, scenes: list[Sample]) -> None:
    grid = {f"{0.05 * step:.2f}" for step in range(1, 20)}
    every = list(corpus(scenes[:1], recipe.prompt))
    assert grid < set(every)
    texts = [text for text in every if text not in grid]
    assert len(texts) == 4
    assert sum("Feel? [anger" in text for text in texts) == 2
    answer = f"<answer>{scenes[0].answer}</answer><confidence>0.50</confidence>"
    assert [text.endswith(answer) for text in texts] == [False, True, False, True]
    assert sum("<think>" in text for text in texts) == 1


@pytest.mark.parametrize("confidence", [f"{0.05 * step:.2f}" for step in range(1, 20)])
def test_the_decimals_of_every_confidence_are_one_token(processor: Any, confidence: str) -> None:
    tokens = processor.tokenizer.tokenize(f"<confidence>{confidence}</confidence>")
    assert tokens == ["<confidence>", "0", ".", confidence[2:], "</confidence>"]
