"""``dev.py``: an environment is used only when its set-up came to the end, for these files, in this place."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Machine:
    """Stands in for pip and for the programs of the environment; records what is asked of them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.created = 0
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.answers: dict[str, int | BaseException] = {}
        self.dev = self._load()
        monkeypatch.setattr(self.dev.venv, "create", self._create)
        monkeypatch.setattr(self.dev.subprocess, "run", self._run)

    def _load(self) -> ModuleType:
        (self.folder / ".dev" / "emocaliber" / "runtime").mkdir(parents=True)
        for name in ("dev.py", "pyproject.toml", "constraints.txt"):
            (self.folder / name).write_bytes((ROOT / name).read_bytes())
        specification = importlib.util.spec_from_file_location("dev", self.folder / "dev.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    def _create(self, path: Path, **options: bool) -> None:
        assert options == {"with_pip": True, "clear": True}
        self.created += 1
        python = self.dev._program("python")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    def _run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.environments.append(options["env"])
        name = "pip" if "pip" in command else Path(command[0]).stem
        answer = self.answers.get(name, 0)
        if isinstance(answer, BaseException):
            raise answer
        return subprocess.CompletedProcess(command, answer)

    def main(self, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dev.py", *words])
        status: int = self.dev.main()
        return status

    def programs(self) -> list[str]:
        return ["pip" if "pip" in command else Path(command[0]).stem for command in self.commands]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "check out", monkeypatch)


def test_set_up_once_then_only_the_command(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert machine.main(monkeypatch, "test", "-k", "tree", "--maxfail=1") == 0
    assert machine.main(monkeypatch, "test") == 0
    assert (machine.created, machine.programs()) == (1, ["pip", "pytest", "pytest"])
    assert machine.commands[0][-2:] == ["-e", f"{machine.folder.resolve()}[dev]"]
    assert machine.commands[1][1:] == ["-n", "auto", "-k", "tree", "--maxfail=1"]
    assert not [environment for environment in machine.environments if "PYTHONPATH" in environment]


def test_changed_versions_are_installed_into_the_same_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.main(monkeypatch, "setup")
    with (machine.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    machine.main(monkeypatch, "setup")
    machine.main(monkeypatch, "setup")
    assert (machine.created, machine.programs()) == (1, ["pip", "pip"])


@pytest.mark.parametrize("change", [False, True], ids=["first set-up", "update"])
@pytest.mark.parametrize("failure", [1, KeyboardInterrupt()], ids=["pip fails", "interrupted"])
def test_half_an_environment_is_made_again(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: bool,
    failure: int | BaseException,
) -> None:
    if change:
        machine.main(monkeypatch, "setup")
        with (machine.folder / "pyproject.toml").open("a") as file:
            file.write("# changed\n")
    before = machine.created
    machine.answers["pip"] = failure
    assert machine.main(monkeypatch, "test") == (1 if failure == 1 else 130)
    assert "pytest" not in machine.programs()
    assert ("pip could not install" if failure == 1 else "interrupted") in capsys.readouterr().err
    machine.answers.clear()
    assert machine.main(monkeypatch, "test") == 0
    assert machine.created == before + (1 if change else 2)
    assert machine.programs()[-2:] == ["pip", "pytest"]


def test_moved_checkout_gets_an_environment_of_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.main(monkeypatch, "setup")
    stamp = machine.dev.STAMP
    stamp.write_text(stamp.read_text().replace("check out", "elsewhere"))
    machine.main(monkeypatch, "setup")
    assert machine.created == 2


def test_environment_whose_python_has_gone_is_made_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.main(monkeypatch, "setup")
    machine.dev._program("python").unlink()
    machine.main(monkeypatch, "setup")
    assert machine.created == 2


def test_links_that_are_plain_files_are_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = machine.folder / ".dev" / "emocaliber" / "runtime"
    link.rmdir()
    link.write_text("../../runtime")
    assert machine.main(monkeypatch, "setup") == 1
    assert "core.symlinks" in capsys.readouterr().err
    assert machine.created == 0


@pytest.mark.parametrize("status", [1, -9], ids=["complains", "killed"])
def test_check_runs_every_linter_and_fails_if_one_does(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    machine.main(monkeypatch, "setup")
    machine.answers["mypy"] = status
    assert machine.main(monkeypatch, "check") == 1
    assert machine.programs()[1:] == ["ruff", "ruff", "mypy", "lint-imports"]
    assert "failed: mypy" in capsys.readouterr().err
    machine.answers.clear()
    assert machine.main(monkeypatch, "check") == 0


@pytest.mark.parametrize("words", [("check", "runtime"), ("setup", "-x"), ("lint",), ()])
def test_wrong_usage(machine: Machine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        machine.main(monkeypatch, *words)
    assert (stopped.value.code, machine.commands) == (2, [])
