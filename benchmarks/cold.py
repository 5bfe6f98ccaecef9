"""What a fresh process takes until its first distribution: seconds, memory, and memory of the GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tqdm import tqdm

_PROCESS = """
import time; begun = time.perf_counter()
{code}
spent = time.perf_counter() - begun
try:
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except (OSError, StopIteration):
    peak = 0
import subprocess; held = subprocess.run({held!r}, capture_output=True, text=True).stdout.split() if {held!r} else [0]
print(spent, peak / 1024, held[0])
"""
_HELD = ("nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Medians of several processes."""

    seconds: float
    peak_mib: float
    """Of the process's own memory."""
    device_mib: float
    """What the process holds of the GPU at its end, its context included; 0 without one."""


def first_prediction(bundle: Path | None, precision: str | None, engine: str, threads: int) -> str:
    """Returns the code of one prediction by this package; None is the embedded bundle, its own precision."""
    path = None if bundle is None else str(bundle)
    return (
        "import numpy as np; from emocaliber.runtime import EmotionModel\n"
        f"model = EmotionModel.load({path!r}, precision={precision!r}, engine={engine!r}, threads={threads})\n"
        "model.predict(np.zeros((480, 640, 3), np.uint8))"
    )


def first_forward(weights: Path, kind: str, device: str, threads: int) -> str:
    """Returns the code of one forward pass by torch in a type such as ``float32``."""
    return (
        f"import torch; torch.set_num_threads({threads})\nfrom transformers import Idefics3ForConditionalGeneration\n"
        f"model = Idefics3ForConditionalGeneration.from_pretrained({str(weights)!r}, dtype=torch.{kind}).eval()\n"
        f"model = model.to({device!r})\n"
        "size, count = model.config.vision_config.image_size, model.model.image_seq_len\n"
        "ids = torch.full((1, 60 + count), 9); ids[0, 20:20 + count] = model.config.image_token_id\n"
        f"pixels = torch.ones(1, 1, 3, size, size, dtype=torch.{kind}).to({device!r})\n"
        f"with torch.inference_mode(): model(input_ids=ids.to({device!r}), pixel_values=pixels).logits.float().cpu()"
    )


def cold_starts(codes: Mapping[str, str], repeats: int, *, gpu: bool = False) -> dict[str, ColdStart]:
    """Returns what each code takes in fresh processes, in turn.

    Args:
        codes: By name.
        repeats: Processes for each.
        gpu: Whether to ask the driver what is held of the first GPU, on which nothing else may start meanwhile.
    """
    held = _HELD if gpu else ()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in codes}
    for _ in tqdm(range(repeats), desc="cold starts", file=sys.stderr, disable=None):
        for name, code in codes.items():
            before = float(_printed(held)) if gpu else 0.0
            seconds, peak, after = map(
                float, _printed((sys.executable, "-c", _PROCESS.format(code=code, held=held))).split()
            )
            found[name].append((seconds, peak, after - before))
    return {
        name: ColdStart(seconds=seconds, peak_mib=peak, device_mib=device)
        for name, rows in found.items()
        if rows
        for seconds, peak, device in [map(median, zip(*rows, strict=True))]
    }


def _printed(command: tuple[str, ...]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
