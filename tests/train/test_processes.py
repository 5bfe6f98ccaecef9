"""Two real processes over gloo: sharded or copied, the run is that of one process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen import save_tiny_qwen
from tiny_run import scene_samples

from emocaliber.evaluate.transformers_loading import load_model
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import read_samples, write_samples
from emocaliber.train import respond
from emocaliber.train.recipe import load_recipe
from emocaliber.train.stages import STAGES
from emocaliber.train.workspace import Workspace

# TRL calls it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

ROOT = Path(__file__).parents[2]
PROMPT = {"reason": "Feel? [{labels}] Think.", "direct": "Feel? [{labels}]", "system": "Help.", "image_first": True}
RECIPE = """
name = "two"
[prompt]
reason = "Feel? [{labels}] Think."
direct = "Feel? [{labels}]"
system = "Help."
image_first = true
[data]
samples = "FOLDER/samples.jsonl"
[teacher]
path = "FOLDER/start"
max_pixels = 12544
[launch]
processes = 2
shard = true
[reason]
learning_rate = 1e-3
batch_size = 4
epochs = 2
direct_share = 0.5
gradient_checkpointing = true
max_samples = 8
[verbalize]
learning_rate = 1e-2
batch_size = 5
epochs = 12
direct_share = 1.0
[calibrate]
learning_rate = 1e-3
steps = 2
prompts_per_step = 2
rollouts = 4
max_new_tokens = 12
direct_share = 1.0
gradient_checkpointing = true
"""
ALONE = ("launch.processes=1", "launch.shard=false")
ADAPTERS = ("lora.rank=4", "reason.gradient_checkpointing=false")
ANNOTATED = ("annotate.images=7", "annotate.samples=2", "annotate.batch_size=2")
COPIED = ("launch.shard=false", "reason.max_samples=7", "reason.epochs=1")
CHUNK = 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with ten samples, a tiny Qwen2.5-VL and a recipe."""
    folder = tmp_path_factory.mktemp("start")
    samples = scene_samples(folder / "scenes", 10)
    samples = [dataclasses.replace(sample, confidence=0.1 + 0.08 * i) for i, sample in enumerate(samples)]
    write_samples(samples, folder / "samples.jsonl")
    save_tiny_qwen(folder / "start", samples, PromptTemplate(**PROMPT))
    (folder / "recipe.toml").write_text(RECIPE.replace("FOLDER", str(folder)), encoding="utf-8")
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / '.dev'}", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def command(start: Path, out: Path, *words: str) -> list[str]:
    cli = [sys.executable, "-m", "emocaliber.runtime.cli", "train", "reason"]
    return [*cli, str(start / "recipe.toml"), f"--out={out}", *words]


def run_alone(start: Path, out: Path, stage: str, *changes: str) -> Path:
    """Runs a stage in this process, and returns the run's folder."""
    recipe = load_recipe(start / "recipe.toml", [*changes, *ALONE])
    STAGES[stage](recipe, Workspace(out))
    return out


def losses(stage: Path) -> list[float]:
    history = json.loads((stage / "stage.json").read_text(encoding="utf-8"))["history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def weights(stage: Path) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in load_model(stage).parameters()])


def assert_same(found: Path, expected: Path) -> None:
    """Checks losses to 1e-4 nats and weights to 1e-5 on average; steps of 1e-3 tell any wrong gradient."""
    assert losses(found) == pytest.approx(losses(expected), abs=1e-4)
    # Adam turns rounding in tiny gradients into steps of its own size, so a few weights may differ by more.
    assert (weights(found) - weights(expected)).abs().mean() < 1e-5


def test_one_command_starts_two_processes_that_share_the_weights_and_equal_one(start: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(start, tmp_path / "two"), env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'two' / 'reason'}\n"), done.stderr
    # One bar, drawn by one process.
    assert {line.partition(":")[0] for line in done.stderr.replace("\r", "\n").split("\n") if line} == {"reason"}
    alone = run_alone(start, tmp_path / "one", "reason")
    assert len(losses(alone / "reason")) == 4
    assert_same(tmp_path / "two" / "reason", alone / "reason")
    before = weights(start / "start")
    assert (weights(alone / "reason") - before).abs().mean() > 1e-4


@pytest.fixture(scope="module")
def taught(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run whose stage-2 model answers by the grammar."""
    out = tmp_path_factory.mktemp("taught")
    return run_alone(start, out, "verbalize", f"teacher.path={start / 'start'}", "teacher.trained=reason")


@pytest.fixture(scope="module")
def launched(start: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of several stages run by two processes of torchrun."""
    out = tmp_path_factory.mktemp("launched")
    policy = (f"teacher.path={taught / 'verbalize'}", "teacher.trained=verbalize")
    runs = [
        ("copied", "reason", *COPIED),
        ("adapted", "reason", *ADAPTERS),
        ("shared", "annotate", *policy, *ANNOTATED),
        ("whole", "calibrate", *policy),
        ("adapted", "calibrate", *policy, *ADAPTERS),
    ]
    words = [":".join([str(out / run[0]), *run[1:]]) for run in runs]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(ROOT / "tests" / "run_stages.py"), str(CHUNK), str(start / "recipe.toml"), *words],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_copies_that_train_on_an_uneven_number_of_samples_end(start: Path, launched: Path, tmp_path: Path) -> None:
    alone = run_alone(start, tmp_path, "reason", *COPIED)
    together = losses(launched / "copied" / "reason")
    # Seven samples are one whole batch and a short one, which the processes fill up from the start to share it evenly.
    assert len(together) == len(losses(alone / "reason")) == 2
    assert together[0] == pytest.approx(losses(alone / "reason")[0], abs=1e-4)


@pytest.mark.slow
def test_sharded_adapters_are_merged_as_one_process_merges_them(start: Path, launched: Path, tmp_path: Path) -> None:
    alone = run_alone(start, tmp_path, "reason", *ADAPTERS)
    assert_same(launched / "adapted" / "reason", alone / "reason")
    assert not list((launched / "adapted" / "reason").glob("adapter*"))


@pytest.mark.slow
def test_confidences_do_not_depend_on_the_number_of_processes(
    start: Path, taught: Path, launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(respond, "CHUNK", CHUNK)
    policy = (f"teacher.path={taught / 'verbalize'}", "teacher.trained=verbalize")
    alone = run_alone(start, tmp_path, "annotate", *policy, *ANNOTATED)
    found, expected = (read_samples(Workspace(out).annotated) for out in (launched / "shared", alone))
    assert found == expected
    assert len(found) == 7
    journals = sorted(path.name for path in (launched / "shared").glob("*.journal*"))
    assert journals == ["annotated.journal.0-of-2.jsonl", "annotated.journal.1-of-2.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["whole", "adapted"])
def test_a_sharded_policy_is_reinforced(taught: Path, launched: Path, run: str) -> None:
    stage = launched / run / "calibrate"
    history: list[dict[str, Any]] = json.loads((stage / "stage.json").read_text(encoding="utf-8"))["history"]
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    assert [reward > 0.1 for reward in rewards] == [True, True]
    moved = (weights(stage) - weights(taught / "verbalize")).abs()
    assert 0.0 < moved.max() < 0.1


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(start: Path, tmp_path: Path) -> None:
    words = command(start, tmp_path / "two", "--set=reason.save_steps=1", "--set=reason.epochs=4")
    child = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    checkpoints = tmp_path / "two" / "reason" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("checkpoint-[3-9]/trainer_state.json")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "two" / "reason" / "stage.json").exists()
    subprocess.run([*words, "--resume"], env=environment(), check=True, capture_output=True)
    alone = run_alone(start, tmp_path / "one", "reason", "reason.epochs=4")
    assert_same(tmp_path / "two" / "reason", alone / "reason")


@pytest.mark.slow
def test_the_error_of_a_process_is_shown_once(start: Path, tmp_path: Path) -> None:
    lines = (start / "samples.jsonl").read_text(encoding="utf-8").replace("answer", "answered")
    (tmp_path / "samples.jsonl").write_text(lines, encoding="utf-8")
    words = command(start, tmp_path / "run", f"--set=data.samples={tmp_path / 'samples.jsonl'}")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("emocaliber: error: process ")
