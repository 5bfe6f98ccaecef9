"""How long TensorRT-RTX takes to build the engines of a published shape with random weights, and how large they are.

Needs the extra ``dev`` and no GPU: nothing is executed.

    python -m benchmarks.engines smolvlm-256m --target SM89
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
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
from emocaliber.export.graphs import export_graphs
from emocaliber.export.tensorrt import Network, decoder_profiles, embed_profile, vision_profile
from emocaliber.runtime.tensorrt.cache import EngineLimits
from emocaliber.runtime.tensorrt.library import named_target, tensorrt_library

MAX_NEW_TOKENS = 320


def smolvlm_256m() -> tuple[Any, Any]:
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
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
        },
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config), SimpleNamespace(tile_size=512)


def qwen3_vl_2b() -> tuple[Any, Any]:
    """Returns a model of the Qwen3-VL-2B shape, for images of at most 451,584 pixels, and its preprocessing."""
    config = Qwen3VLConfig(
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 16, "deepstack_visual_indexes": [5, 11, 17],
        },
        text_config={
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
    )  # fmt: skip
    pixels = SimpleNamespace(size={"shortest_edge": 65_536, "longest_edge": 451_584})
    preprocessing = patch_preprocessing_of(config.vision_config)
    object.__setattr__(preprocessing, "max_pixels", pixels.size["longest_edge"])
    return Qwen3VLForConditionalGeneration(config), preprocessing


SHAPES = {"smolvlm-256m": smolvlm_256m, "qwen3-vl-2b": qwen3_vl_2b}


def main() -> None:
    """Builds the three engines of a shape and writes a row of a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--target", default="SM89", help="GPU to build for (default SM89)")
    arguments = parser.parse_args()
    library = tensorrt_library()
    target = named_target(library, arguments.target)
    torch.manual_seed(0)
    model, preprocessing = SHAPES[arguments.shape]()
    count = getattr(model.model, "image_seq_len", None)
    manifest: Any = SimpleNamespace(
        preprocessing=preprocessing,
        image_block=SimpleNamespace(count=count),
        decoder=decoder_of(model),
        max_new_tokens=MAX_NEW_TOKENS,
    )
    limits = EngineLimits()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        files = export_graphs(model, Path(folder))
        del model
        sys.stdout.write(f"exported in {time.monotonic() - started:.0f} s; {limits}; {library.__version__}\n")
        for graph, profiles in (
            (files.vision_encoder, [vision_profile(manifest, limits)]),
            (files.embed_tokens, [embed_profile(limits)]),
            (files.decoder, list(decoder_profiles(manifest, limits).values())),
        ):
            started, used = time.monotonic(), time.process_time()
            plan = Network(library, graph).build(profiles, target=target)
            wall, used = time.monotonic() - started, time.process_time() - used
            sizes = f"{graph_bytes(graph):,} | {len(plan):,}"
            sys.stdout.write(f"| {graph.name} | {sizes} | {len(profiles)} | {used:.0f} | {wall:.0f} |\n")
            sys.stdout.flush()
            graph.unlink()


if __name__ == "__main__":
    main()
