"""How long TensorRT-RTX takes to build the engines of a published shape with random weights, and how large they are.

Needs the extra ``dev`` and no GPU: nothing is executed.

    python benchmarks/engines.py smolvlm-256m --graphs DIR
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from emocaliber.export.external_data import graph_bytes
from emocaliber.export.families import decoder_of, patch_preprocessing_of
from emocaliber.export.graphs import DECODER, EMBED, GRAPHS, VISION, export_graphs
from emocaliber.export.tensorrt import Network, decoder_profiles, embed_profile, vision_profile
from emocaliber.runtime.tensorrt.bindings import named_target, tensorrt_library
from emocaliber.runtime.tensorrt.cache import EngineLimits

MAX_NEW_TOKENS = 320


def smolvlm_256m(layers: int = 30) -> tuple[Any, Any]:
    """Returns a model of the SmolVLM-256M shape, and what a manifest would say of it."""
    config = Idefics3Config(
        scale_factor=4,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16,
        },
        text_config={
            "model_type": "llama", "vocab_size": 49_280, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
        },
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config), SimpleNamespace(tile_size=512)


def qwen3_vl_2b(layers: int = 28) -> tuple[Any, Any]:
    """Returns a model of the Qwen3-VL-2B shape, for images of at most 451,584 pixels, and its preprocessing."""
    config = Qwen3VLConfig(
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 16, "deepstack_visual_indexes": [5, 11, 17],
        },
        text_config={
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": layers, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
    )  # fmt: skip
    preprocessing = replace(patch_preprocessing_of(config.vision_config), max_pixels=451_584)
    return Qwen3VLForConditionalGeneration(config), preprocessing


SHAPES = {"smolvlm-256m": smolvlm_256m, "qwen3-vl-2b": qwen3_vl_2b}


def main() -> None:
    """Builds the engines of a shape and writes a row of a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--graphs", type=Path, required=True, metavar="DIR", help="where the graphs stand or are put")
    parser.add_argument("--graph", action="append", choices=GRAPHS, help="build this one alone; repeat for more")
    parser.add_argument("--layers", type=int, metavar="N", help="layers of the decoder (default: as published)")
    parser.add_argument("--target", default="SM89", help="GPU to build for (default SM89)")
    arguments = parser.parse_args()
    library, limits = tensorrt_library(), EngineLimits()
    target = named_target(library, arguments.target)
    wanted = arguments.graph or GRAPHS
    torch.manual_seed(0)
    model, preprocessing = SHAPES[arguments.shape](*([arguments.layers] if arguments.layers else []))
    manifest: Any = SimpleNamespace(
        preprocessing=preprocessing,
        image_block=SimpleNamespace(count=getattr(model.model, "image_seq_len", None)),
        decoder=decoder_of(model),
        max_new_tokens=MAX_NEW_TOKENS,
    )
    paths = {name: arguments.graphs / f"{name}.onnx" for name in wanted}
    if not all(path.is_file() for path in paths.values()):
        export_graphs(model, arguments.graphs)
    del model
    profiles = {
        VISION: [vision_profile(manifest, limits)],
        EMBED: [embed_profile(limits)],
        DECODER: list(decoder_profiles(manifest, limits).values()),
    }
    sys.stdout.write(f"{library.__name__} {library.__version__}, {arguments.target}, {limits}\n")
    for name, path in paths.items():
        started, used = time.monotonic(), time.process_time()
        plan = Network(library, path).build(profiles[name], target=target)
        wall, cpu = time.monotonic() - started, time.process_time() - used
        cells = (name, len(profiles[name]), f"{graph_bytes(path):,}", f"{len(plan):,}", f"{cpu:.0f}", f"{wall:.0f}")
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")


if __name__ == "__main__":
    main()
