"""Writes a student of Qwen3-VL-2B's shape with random weights: what its export takes, and whether graphs equal it.

    python benchmarks/student.py DIR
    emocaliber export bundle DIR --out BUNDLE --taxonomy emotion6-7 --license Apache-2.0

The model has 4 GB. With its proof the export takes some 20 minutes on two cores, 11 GB of disk for fp32 and int8, and
33 GB of memory, of which a third may be swap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from engines import qwen3_vl_2b
from shapes import build_of

from emocaliber.evaluate.transformers_loading import QWEN_FAMILIES
from emocaliber.runtime.grammar import CONFIDENCE_GRID
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.taxonomy import TAXONOMIES
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_processor

BUILD = {**build_of("tiny"), "patch_size": 16, "image_size": 512, "vocab_size": 700}
"""Of which the processor is made: it is the same for all Qwen-VL families and sizes, but for its name."""


def main() -> None:
    """Writes model and processor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to make")
    parser.add_argument("--layers", type=int, default=28, help="of the decoder (default: 28, as published)")
    arguments = parser.parse_args()
    texts = [" ".join(taxonomy.labels) for taxonomy in TAXONOMIES.values()]
    texts += [PromptTemplate().reason, PromptTemplate().direct, " ".join(f"{value:.2f}" for value in CONFIDENCE_GRID)]
    processor = build_processor(from_mapping(BuildRecipe, BUILD, "student"), texts)
    processor.stands_for = QWEN_FAMILIES["qwen3_vl"]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model, _ = qwen3_vl_2b(arguments.layers)
    tokenizer = processor.tokenizer
    for name in ("image_pad", "video_pad", "vision_start", "vision_end"):
        field = f"{name.replace('_pad', '')}_token_id"
        setattr(model.config, field, tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
    for settings in (model.config.text_config, model.generation_config):
        settings.pad_token_id, settings.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
