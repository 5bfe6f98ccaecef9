"""Other architectures through all stages: a teacher may be any image-text-to-text model that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen import BUILD
from tiny_run import tiny_recipe
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from emocaliber.evaluate.transformers_loading import load_processor
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample, write_samples
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_processor, corpus
from emocaliber.train.stages import STAGES
from emocaliber.train.tokenizer import SMOLVLM, train_tokenizer
from emocaliber.train.workspace import Workspace

# TRL reads the attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def llava(texts: list[str]) -> tuple[Any, Any]:
    tokenizer = train_tokenizer(texts, 600, SMOLVLM)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids(SMOLVLM.image),
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", image_token=SMOLVLM.image,
        num_additional_image_tokens=1, chat_template=SMOLVLM.template,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def qwen(config_class: Any, model_class: Any, vision: dict[str, Any]) -> Callable[[list[str]], tuple[Any, Any]]:
    def make(texts: list[str]) -> tuple[Any, Any]:
        processor = build_processor(from_mapping(BuildRecipe, {**BUILD, "patch_size": 16}, "tiny"), texts)
        tokenizer = processor.tokenizer
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
        config = config_class(
            vision_config={"num_heads": 2, "patch_size": 16, "spatial_merge_size": 2, **vision},
            text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 16, "rope_parameters": rope},
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        )
        return model_class(config), processor

    return make


FAMILIES: dict[str, Callable[[list[str]], tuple[Any, Any]]] = {
    "LlavaProcessor": llava,
    "Qwen2VLProcessor": qwen(
        Qwen2VLConfig, Qwen2VLForConditionalGeneration, {"embed_dim": 32, "hidden_size": 32, "depth": 2, "mlp_ratio": 2}
    ),
    "Qwen3VLProcessor": qwen(
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        {
            "hidden_size": 32, "out_hidden_size": 32, "depth": 3, "intermediate_size": 64,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_all_stages_run(name: str, scenes: list[Sample], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = FAMILIES[name](list(corpus(scenes, tiny_recipe().prompt)))
    for key in ("pad_token_id", "eos_token_id"):
        setattr(model.generation_config, key, getattr(processor.tokenizer, key))
    model.save_pretrained(tmp_path / "start")
    processor.stands_for = name
    processor.save_pretrained(tmp_path / "start")
    write_samples(scenes, tmp_path / "samples.jsonl")
    recipe = tiny_recipe(
        teacher={"path": str(tmp_path / "start")},
        data={"samples": str(tmp_path / "samples.jsonl")},
        vision=None,
        respond={"split": "train", "max_new_tokens": 8},
    )
    workspace = Workspace(tmp_path / "run")
    for stage in ("reason", "annotate", "verbalize", "calibrate", "respond"):
        STAGES[stage](recipe, workspace)
    folder = workspace.stage("calibrate")
    assert json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["processor_class"] == name
    assert type(load_processor(folder).image_processor).__name__.endswith("Pil")
    assert len(workspace.responses("calibrate").read_text(encoding="utf-8").splitlines()) == len(scenes)
