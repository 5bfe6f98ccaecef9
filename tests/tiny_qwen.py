"""A tiny Qwen2.5-VL: the class and the code path of the paper's 7B model, at a size that tests can afford."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_model, build_processor, corpus

BUILD = {
    "family": "qwen2_5_vl",
    # Two windows a side at the largest, of 4 × 4 visual tokens each, and uneven ones below that.
    "image_size": 224,
    "patch_size": 14,
    "scale_factor": 2,
    "max_positions": 1024,
    "vocab_size": 700,
    "vision": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2},
    "text": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "kv_heads": 2},
}


def tiny_qwen(samples: Sequence[Sample], template: PromptTemplate, *, seed: int = 0) -> tuple[Any, Any]:
    """Returns a random model of about 0.2 M weights and a processor whose tokenizer knows the samples' words."""
    build = from_mapping(BuildRecipe, BUILD, "tiny Qwen2.5-VL")
    processor = build_processor(build, corpus(samples, template))
    return build_model(build, processor, seed), processor


def save_tiny_qwen(folder: Path, samples: Sequence[Sample], template: PromptTemplate) -> Path:
    """Returns ``folder`` with the tiny model in it, as a recipe's ``teacher.path`` takes it."""
    model, processor = tiny_qwen(samples, template)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
