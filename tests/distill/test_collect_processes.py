"""Collections in real processes: killed and gone on with, and shared out among Ray's workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import scene_samples

from emocaliber.distill.collect import read_traces
from emocaliber.runtime.samples import write_samples

SCRIPT = Path(__file__).with_name("collect_run.py")
IMAGES = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_samples(scene_samples(tmp_path / "scenes", IMAGES), tmp_path / "samples.jsonl")
    return tmp_path


def begin(how: str, folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), how, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=800)
    assert process.returncode == 0, err


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


@pytest.mark.timeout(900)
def test_a_killed_collection_ends_as_if_it_had_not_been(folder: Path) -> None:
    finish(begin("here", folder))
    whole = shards(folder / "here")
    assert len(whole) == IMAGES + 1
    (folder / "here").rename(folder / "whole")
    process = begin("here", folder)
    deadline = time.monotonic() + 800
    while not (folder / "here" / "traces-00001.parquet").is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = {name for name in shards(folder / "here") if name.startswith("traces-")}
    assert 2 <= len(left) < IMAGES
    finish(begin("here", folder))
    assert {name: text for name, text in shards(folder / "here").items() if not name.startswith(".")} == whole
    assert len(read_traces(folder / "here")) == IMAGES * 4


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_two_workers_of_a_local_ray_cluster_leave_the_same_shards(folder: Path) -> None:
    pytest.importorskip("ray")
    finish(begin("workers", folder))
    finish(begin("here", folder))
    assert len(list((folder / "workers.pids").iterdir())) == 2
    assert shards(folder / "workers") == shards(folder / "here")
    advice = "say --set collect.workers=2, or add machines with 'ray start'"
    many, closed, blind, bug = json.loads((folder / "messages.json").read_text(encoding="utf-8"))
    assert many == f"BackendError: 3 workers need 3 CPUs, but the Ray cluster has 2; {advice}"
    # As they would be raised here.
    assert closed == "ArtifactError: there is no teacher here"
    assert blind.startswith("InputError: cannot read image /")
    assert bug == "BackendError: Ray failed: ZeroDivisionError: by nothing"
