"""The runtime benchmark: its floors by hand, and with -m slow all of it at tiny size."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import roofline

    return roofline


def test_floors_by_hand(benchmarks: ModuleType) -> None:
    roofline = benchmarks.Roofline(fp32_gflops=1.0, int8_gops=4.0, read_gbs=2.0)
    shape = {
        "image_size": 32, "patch_size": 16, "vocabulary": 10,
        "vision": {"hidden_size": 4, "intermediate_size": 8, "layers": 3, "heads": 2},
        "text": {"hidden_size": 4, "intermediate_size": 8, "layers": 2, "heads": 2, "kv_heads": 1},
    }  # fmt: skip
    floors = benchmarks.floors_ms(shape, 5, "torch fp32", Path(), roofline)
    # 4 patches, a layer of 4 · 16 + 2 · 32 weights, and 4 · 4 scores and sums a patch; 2 operations each, 1e6 a ms.
    assert floors["vision"] == pytest.approx(2 * 4 * 3 * (128 + 32) / 1e6)
    # A layer of 2 · 16 + 2 · 8 + 3 · 32 weights, 5 tokens of which each sees half of 5; then one row of 10 · 4.
    assert floors["prefill"] == pytest.approx(2 * (5 * 2 * (144 + 5 * 4) + 40) / 1e6)
    assert floors["decode"] == pytest.approx(4 * (2 * 144 + 40) / 2e6)


@pytest.mark.slow
def test_the_whole_benchmark_at_tiny_size(benchmarks: ModuleType, tmp_path: Path) -> None:
    import runtime

    out = tmp_path / "runtime.md"
    words = ["--work", str(tmp_path), "--shape", "tiny", "--repeats", "1", "--threads", "1"]
    for name in ("int8", *runtime.RIVALS):  # those that are installed
        words += ["--competitor", name]
    assert runtime.main([*words, "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    for needed in (
        "torch fp32",
        "int8",
        "image to distribution",
        "Share of the roofline",
        "embedded bundle",
        "Not run",
    ):
        assert needed in text

    bundle, weights = runtime.made_bundle(tmp_path, "tiny")
    work, missing = runtime.made_work(bundle), runtime.not_run([])
    expected = runtime.stages_of("torch fp32", bundle, weights, work, 1)
    # OpenVINO multiplies in bfloat16 by itself where the processor has it.
    for name, most in {"fp32": 1e-4, "OpenVINO": 0.1}.items():
        if name in missing:
            continue
        stages = runtime.stages_of(name, bundle, weights, work, 1)
        for stage in ("prefill", "decode"):
            logits, _ = stages[stage]()
            np.testing.assert_allclose(logits.ravel(), expected[stage]().ravel(), atol=most, err_msg=f"{name} {stage}")
