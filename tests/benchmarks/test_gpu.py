"""The benchmark of GPUs, on the CPU at tiny size: it runs, and what it compares computes the same."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu

    return gpu


def test_both_sides_score_labels_alike(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--work", str(tmp_path), "--shape", "tiny", "--repeats", "1", "--starts", "0", "--threads", "1"]
    words += ["--device", "cpu", "--competitor", "fp32", "--competitor", "torch bf16"]
    seen: list[dict[str, float]] = []
    real = gpu.agrees
    monkeypatch.setattr(gpu, "agrees", lambda apart: seen.append(apart) or real(apart))
    scores: list[np.ndarray] = []
    centred = gpu._centred
    monkeypatch.setattr(gpu, "_centred", lambda given: scores.append(centred(given)) or scores[-1])
    assert gpu.main(words) == 0
    text = capsys.readouterr().out
    for needed in ("of 100 labels", "Times faster than torch fp32", "| fp32 | CPUExecutionProvider |"):
        assert needed in text
    # Eight labels whose scores differ, so that none is mistaken for another; in eight bits of mantissa they move.
    torch_fp32 = scores[0]
    assert torch_fp32.shape == (8,)
    assert np.diff(np.sort(torch_fp32)).min() > 0.01
    assert seen[0]["fp32"] < 1e-4 < seen[0]["torch bf16"]


def test_scores_that_differ_are_not_passed_over(gpu: ModuleType) -> None:
    assert gpu.agrees({"torch fp32": 0.0, "fp32": 0.001, "int8": 9.0})
    assert not gpu.agrees({"fp32": 0.5})
    assert not gpu.agrees({"fp16": float("nan")})
