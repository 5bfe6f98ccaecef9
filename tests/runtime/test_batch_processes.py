"""``emocaliber batch`` in real processes: killed and gone on with, and shared out among Ray's workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

IMAGES = 150
BROKEN = (3, 70)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        path = tmp_path / "images" / f"{number:03d}.png"
        Image.fromarray(generator.integers(0, 256, (10, 8, 3), dtype=np.uint8)).save(path)
        if number in BROKEN:
            path.write_bytes(b"broken")
    return tmp_path


def begin(folder: Path, tiny_bundle: Path, *words: str, script: str = "") -> subprocess.Popen[str]:
    """Starts the command, with more statements before it where wanted."""
    code = f"import sys; from emocaliber.runtime.cli import main\n{script}\nsys.exit(main(sys.argv[1:]))"
    options = ["--bundle", str(tiny_bundle), "--threads", "1"]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", code, "batch", "images", *words, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int) -> str:
    out, err = process.communicate(timeout=800)
    assert (process.returncode, out) == (status, ""), err
    return err


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        found = pq.read_table(path).to_pylist()
    else:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "timing_ms"} for row in found]


def test_a_killed_run_ends_as_if_it_had_not_been(folder: Path, tiny_bundle: Path) -> None:
    finish(begin(folder, tiny_bundle, "--out", "whole.jsonl"), 1)
    partial = folder / "out.jsonl.partial"
    process, size = begin(folder, tiny_bundle, "--out", "out.jsonl"), 0
    for _ in range(2):
        deadline = time.monotonic() + 250
        # Until a chunk more is there.
        while not (partial.is_file() and partial.read_bytes().count(b"\n") > size + 32):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        size = partial.read_bytes().count(b"\n")
        assert not (folder / "out.jsonl").exists()
        with partial.open("a") as stream:
            stream.write('{"image": "torn li')
        process = begin(folder, tiny_bundle, "--out", "out.jsonl", "--resume")
    said = finish(process, 1)
    assert f"{len(BROKEN)} of {IMAGES} images could not be read" in said
    assert rows(folder / "out.jsonl") == rows(folder / "whole.jsonl")
    assert sorted(path.name for path in folder.iterdir()) == ["images", "out.jsonl", "whole.jsonl"]


DIES = """
import os, signal
from emocaliber.runtime.commands import collection
def write_table(lines, path, original=collection.write_table):
    if {before} and "-00001-of-" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    original(lines, path)
    if "-00001-of-" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
collection.write_table = write_table
"""


@pytest.mark.parametrize("before", [True, False])
def test_a_run_killed_around_a_shard_repeats_and_loses_nothing(folder: Path, tiny_bundle: Path, before: bool) -> None:
    words = ("--out", "out.parquet", "--shard-size", "60")
    process = begin(folder, tiny_bundle, *words, script=DIES.format(before=before))
    finish(process, -signal.SIGKILL)
    assert len(list(folder.glob("out-*-of-00003.parquet"))) == (1 if before else 2)
    finish(begin(folder, tiny_bundle, *words, "--resume"), 1)
    shards = sorted(folder.glob("out*"))
    assert [path.name for path in shards] == [f"out-0000{number}-of-00003.parquet" for number in range(3)]
    assert [pq.read_metadata(path).num_rows for path in shards] == [60, 60, 30]
    together = [row for path in shards for row in rows(path)]
    assert [row["image"] for row in together] == [f"images/{number:03d}.png" for number in range(IMAGES)]
    assert [number for number, row in enumerate(together) if row["error_type"]] == list(BROKEN)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_two_workers_of_a_local_ray_cluster_write_the_same(folder: Path, tiny_bundle: Path) -> None:
    pytest.importorskip("ray")
    words = ("--shard-size", "100")
    finish(begin(folder, tiny_bundle, "--out", "here.jsonl", *words), 1)
    start = "import ray; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)"
    # Tasks of one chunk, so that both workers have some.
    start += "\nfrom emocaliber.runtime.commands import workers; workers.TASK_CHUNKS = 1"
    said = finish(begin(folder, tiny_bundle, "--out", "ray.jsonl", *words, "--ray", "2", script=start), 1)
    assert f"{len(BROKEN)} of {IMAGES} images could not be read" in said
    for number in range(2):
        name = f"-0000{number}-of-00002.jsonl"
        assert rows(folder / f"ray{name}") == rows(folder / f"here{name}")
    said = finish(begin(folder, tiny_bundle, "--out", "more.jsonl", "--ray", "3", script=start), 1)
    assert "3 workers need 3 CPUs, but the Ray cluster has 2; say --ray 2, or add machines with 'ray start'" in said
    assert not list(folder.glob("more*"))
