"""Starting several processes: what is refused, and how errors reach the user. `test_processes` starts real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import tiny_recipe
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from emocaliber.runtime.errors import BackendError, ConfigError, InputError
from emocaliber.train import launch as launching
from emocaliber.train.arguments import cut_batch, teacher_arguments
from emocaliber.train.launch import in_place, launch, launched, processes
from emocaliber.train.recipe import LaunchRecipe


def fails(error: Exception) -> None:
    raise error


def message_of(failure: ProcessFailure, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns what the user reads when a launcher reports this failure."""

    def report(arguments: object) -> None:
        raise ChildFailedError("emocaliber", {1: failure})

    monkeypatch.setattr(launching, "launch_command", report)
    with pytest.raises(BackendError) as caught:
        launch(LaunchRecipe(processes=2), ["train", "reason", "recipe.toml"])
    return str(caught.value)


@pytest.fixture
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    return path


def test_an_error_made_on_purpose_reaches_the_user_as_a_line(error_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        in_place(lambda: fails(InputError("image 3.png does not exist")))
    assert caught.value.code == 1
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=1, error_file=str(error_file))
    assert message_of(failure, monkeypatch) == "process 2 of 2: InputError: image 3.png does not exist"


def test_of_any_other_error_the_trace_is_shown(error_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        in_place(lambda: fails(ZeroDivisionError("oh")))
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=1, error_file=str(error_file))
    message = message_of(failure, monkeypatch)
    assert message.startswith("process 2 of 2: Traceback")
    assert message.rstrip().endswith("ZeroDivisionError: oh")


@pytest.mark.parametrize(
    ("status", "text"),
    [(-9, "process 2 of 2 was ended by SIGKILL"), (3, "process 2 of 2 ended with status 3; what it said stands above")],
)
def test_a_process_that_left_no_error_is_named(status: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=status, error_file="none")
    assert message_of(failure, monkeypatch).startswith(text)


def test_outside_a_launcher_an_error_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    with pytest.raises(InputError, match="gone"):
        in_place(lambda: fails(InputError("gone")))
    assert not launched()
    assert (processes().num_processes, processes().is_main_process) == (1, True)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"processes is 8, but this machine has 2 GPUs; say --set launch.processes=2"):
        launch(LaunchRecipe(processes=8), [])


def test_one_process_cannot_share_weights() -> None:
    recipe = tiny_recipe(launch={"processes": 2, "shard": True})
    with pytest.raises(ConfigError, match=r"this is the only one; start the stage with 'emocaliber train'"):
        teacher_arguments(recipe.stage("reason"), recipe)


@pytest.mark.parametrize(
    ("batch", "micro", "count", "expected"),
    [(128, 8, 8, (8, 2)), (128, 8, 1, (8, 16)), (128, None, 4, (32, 1)), (8, 16, 2, (4, 1))],
)
def test_a_step_takes_the_whole_batch(
    batch: int, micro: int | None, count: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes(), "num_processes", count)
    assert cut_batch(batch, micro) == expected


@pytest.mark.parametrize(("batch", "micro", "count"), [(8, None, 3), (2, None, 4), (12, 4, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(
    batch: int, micro: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes(), "num_processes", count)
    with pytest.raises(ConfigError, match=f"a batch of {batch} cannot be shared by {count} processes"):
        cut_batch(batch, micro)
