"""Trying an engine on a bundle in a process of its own: what it takes, and that a crash of it is not ours.

Run as a module with a bundle's path (or ``-`` for the embedded one) and an engine, it writes one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

from emocaliber.runtime.engine import EngineName
from emocaliber.runtime.errors import EmoCaliberError
from emocaliber.runtime.manifest import Manifest

TIMEOUT_S = 900.0
"""TensorRT builds its engines at the first try."""

PROCESS_MIB = 78.0
"""Peak of a process with the runtime's libraries, three sessions of almost no weights and one prediction."""
MIB_PER_GRAPH_MIB = 3.4
"""Further peak for each MiB of graph files while they are loaded; how both were measured: docs/boards.md."""

_EMBEDDED = "-"
_REPETITIONS = 5


def predicted_peak_mib(manifest: Manifest, precision: str) -> float:
    """Returns about how many MiB a process peaks at that loads a precision on the processor and reads a small image."""
    names = set(manifest.precisions[precision].names())
    graphs_mib = sum(manifest.files[name].size_bytes for name in names) / 2**20
    return round(PROCESS_MIB + MIB_PER_GRAPH_MIB * graphs_mib, 1)


def try_engine(bundle: str | None, engine: str) -> dict[str, Any]:
    """Returns what one engine does: ``ok``, then milliseconds and peak MiB, or ``error``.

    ``first_ms`` is from nothing loaded to a prediction, ``ms`` the median of a few more, ``peak_mib`` of the process,
    None where the system does not tell.
    """
    command = [sys.executable, "-m", __name__, _EMBEDDED if bundle is None else bundle, engine]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"no prediction after {TIMEOUT_S:.0f} s"}
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"ok": False, "error": f"its process ended with status {done.returncode}: {last[:300]}"}


def _try(bundle: str | None, engine: str) -> dict[str, Any]:
    import numpy as np

    from emocaliber.runtime.model import EmotionModel

    grey = np.full((64, 64, 3), 128, np.uint8)
    times_ms = []
    started = time.perf_counter()
    try:
        with EmotionModel.load(bundle, engine=cast("EngineName", engine)) as model:
            for _ in range(1 + _REPETITIONS):
                model.predict(grey)
                times_ms.append((time.perf_counter() - started) * 1e3)
                started = time.perf_counter()
    except EmoCaliberError as error:
        return {"ok": False, "error": str(error)}
    first_ms, *rest_ms = times_ms
    return {
        "ok": True,
        "first_ms": round(first_ms, 1),
        "ms": round(statistics.median(rest_ms), 2),
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> float | None:
    """Returns the largest resident set of this process so far; not from `resource`, which counts the parent's too."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    peaks = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    return round(peaks[0], 1) if peaks else None


if __name__ == "__main__":
    path, name = sys.argv[1:]
    sys.stdout.write(json.dumps(_try(None if path == _EMBEDDED else path, name)))
