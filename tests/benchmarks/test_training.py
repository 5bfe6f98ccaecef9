"""The training benchmark: its formulas by hand and against torch's own count, and a tiny run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_qwen import tiny_qwen
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig

from emocaliber.runtime.prompts import PromptTemplate

# TRL calls it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import costs

    return costs


def config_of(text: dict[str, Any], vision: dict[str, Any]) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


SMALL = config_of(
    {
        "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100,
    },
    {
        "hidden_size": 4, "intermediate_size": 6, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 3,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 8, "fullatt_block_indexes": [1],
        "out_hidden_size": 8,
    },
)  # fmt: skip


def test_operations_by_hand(costs: ModuleType) -> None:
    batch = costs.Batch(prompt_tokens=12, response_tokens=8, patches=32)
    forward = costs.forward_flops(SMALL, batch)
    # A decoder layer: q and o 8 x 8, k and v 8 x 4, three of 8 x 10: 128 + 64 + 240 = 432 weights, three layers, 20
    # tokens, and attention of 20 x 20 / 2 pairs at 4 x 8.
    assert forward.decoder == 2 * 20 * 3 * 432 + 3 * 4 * 8 * 200
    # A tower layer: 3 x 16 + 16 + 3 x 24 = 136; patches of 3 x 2 x 2 x 2 = 24 values. One layer of whole attention over
    # 32 patches, one within windows of 4 x 4. The merger: 16 x 16 + 16 x 8 on 8 tokens.
    assert forward.vision == 2 * 32 * (24 * 4 + 2 * 136) + 4 * 4 * 32 * (32 + 16) + 2 * 8 * 384
    assert forward.head == 2 * 8 * 8 * 100
    assert costs.training_flops(SMALL, batch) == 3 * forward.total
    # Two tables of 8 x 100.
    assert costs.weights(SMALL) == 3 * 432 + 1600 + 24 * 4 + 2 * 136 + 384
    # Rank 2 on both sides of every linear layer: (8+8)·2 + (8+4)·2 + (8+10)·3 = 110; (4+12) + (4+4) + (4+6)·3 = 54;
    # (16+16) + (16+8) = 56.
    assert costs.adapter_weights(SMALL, 2) == 2 * (3 * 110 + 2 * 54 + 56)
    trained = costs.training_flops(SMALL, batch, adapter_weights=988)
    assert trained == 2 * forward.total + 6 * 988 * 20


def test_operations_are_those_torch_counts(costs: ModuleType) -> None:
    model, _ = tiny_qwen([], PromptTemplate())
    config = model.config
    model.set_attn_implementation("eager")
    # One window of 8 x 8 patches is the whole image, so that both kinds of layers attend alike.
    ids = torch.tensor([[config.vision_start_token_id, *[config.image_token_id] * 16, *range(40, 63)]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(
            input_ids=ids,
            pixel_values=torch.zeros(64, 1176),
            image_grid_thw=torch.tensor([[1, 8, 8]]),
            mm_token_type_ids=(ids == config.image_token_id).int(),
            use_cache=False,
        )
    batch = costs.Batch(prompt_tokens=0, response_tokens=ids.shape[1], patches=64)
    ours = costs.forward_flops(config, batch).total
    # Without a kernel that knows of the mask, both halves of the causal square are computed.
    half = config.text_config.num_hidden_layers * 4 * config.text_config.hidden_size * ids.shape[1] ** 2 // 2
    assert ours + half == counter.get_total_flops()


def test_the_published_size_is_found(costs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import shapes

    from emocaliber.runtime.records import from_mapping
    from emocaliber.train.model_recipe import BuildRecipe
    from emocaliber.train.models import build_processor

    build = from_mapping(BuildRecipe, shapes.build_of("7b"), "7b")
    model = shapes.model_of(build, build_processor(build, ["word"]), 152_064, "meta")
    # The model card says 8.29 B.
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(8.29e9, rel=0.001)
    assert costs.weights(model.config) == pytest.approx(8.29e9, rel=0.001)
    assert costs.peak_tflops("NVIDIA H100 80GB HBM3") == 989.0
    assert costs.peak_tflops("AMD EPYC") is None


@pytest.mark.parametrize("words", [[], ["--lora", "4", "--checkpointing"]], ids=["all weights", "adapters"])
def test_a_tiny_run_fills_the_table(
    words: list[str], costs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training

    sizes = ["--steps", "2", "--batch", "2", "--rollouts", "2", "--new-tokens", "4", "--words", "10"]
    monkeypatch.setattr(sys, "argv", ["training.py", *sizes, *words, "--peak-tflops=1", f"--out={tmp_path / 't.md'}"])
    monkeypatch.setattr(training, "quiet_libraries", lambda: None)
    assert training.main() == 0
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| tiny")]
    assert [row[5] for row in rows] == ["reason", "calibrate: draw", "calibrate: learn"]
    assert {row[1] for row in rows} == {"LoRA 4" if words else "all"}
    assert all(float(row[6].replace(",", "")) > 0 for row in rows)
    assert [row[8].endswith("%") for row in rows] == [True, False, True]
    assert "benchmarks/training.py --steps 2" in text


def test_a_recipe_is_estimated() -> None:
    recipe = BENCHMARKS.parent / "recipes" / "emocaliber-7b" / "recipe.toml"
    words = [str(BENCHMARKS / "training.py"), "--shape=7b", f"--estimate={recipe}"]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / ".dev")}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "| " in line]
    found = {row[0]: row[1:] for row in rows}
    # 86,067 samples of 6 x 7.6 G x 936 operations and a little, at 0.4 x 989 T: between two hours and four.
    assert 2 <= float(found["reason"][0]) <= 4
    # 8.29 G weights of 4 bytes.
    assert found["reason"][2] == "31"
