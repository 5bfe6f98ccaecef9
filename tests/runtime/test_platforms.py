"""Places and ways to run that differ from system to system: paths, spawned processes, engines, memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime import Bundle, EmotionModel
from emocaliber.runtime.cli import main
from emocaliber.runtime.commands import doctor, trial
from emocaliber.runtime.errors import ArtifactError, InputError

ROOT = Path(__file__).resolve().parents[2]
GREY = np.full((8, 8, 3), 128, np.uint8)


def run_python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".dev"), **environment},
    )


@pytest.mark.parametrize("name", ["with a space", "ünï-模型-😀", "#100% [a]*?", "x" * 200, "-dash", "a.tar"])
def test_bundles_and_images_in_folders_of_any_name(
    tiny_bundle: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.name == "nt" and set('<>:"|?*') & set(name):
        pytest.skip("not a file name there")
    folder = tmp_path / name
    shutil.copytree(tiny_bundle, folder)
    image = folder / f"{name}.png"
    Image.fromarray(GREY).save(image)
    assert main(["predict", str(image), "--json", "--bundle", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(image)


def test_paths_that_are_too_long_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be opened: File name too long|does not exist"):
        Bundle.open(tmp_path / ("x" * 5000))
    with EmotionModel.load() as model, pytest.raises(InputError, match="cannot read image"):
        model.predict(tmp_path / ("x" * 5000))


SPAWN = """
import multiprocessing, sys
import numpy as np
from emocaliber.runtime import EmotionModel

def work(bundle, value):
    with EmotionModel.load(bundle, engine="cpu", threads=1) as model:
        return model.predict(np.full((8, 8, 3), value, np.uint8))

if __name__ == "__main__":
    with EmotionModel.load(sys.argv[1], engine="cpu", threads=1) as model:  # the parent's model is no child's trouble
        own = model.predict(np.full((8, 8, 3), 7, np.uint8))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            first, second = pool.starmap(work, [(sys.argv[1], 7), (sys.argv[1], 200)])
    assert first.distribution == own.distribution and second.distribution != own.distribution
    print(first.label)
"""


def test_a_model_in_spawned_processes(tiny_bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWN)
    done = run_python(str(script), str(tiny_bundle))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="its engine reports by another way there")
def test_nothing_is_written_to_home_and_nothing_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys; from emocaliber.runtime import EmotionModel; EmotionModel.load(sys.argv[1]).close()"
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home))
    done = run_python("-c", code, str(tiny_bundle), **places)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(home.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("which", ["tiny", "embedded"])
def test_doctor_predicts_the_memory_of_a_fresh_process(tiny_bundle: Path, which: str) -> None:
    path = str(tiny_bundle) if which == "tiny" else None
    findings = doctor.examine(path)["bundle"]
    assert findings["engines"]["cpu"]["ok"] is True
    assert findings["predicted_peak_mib"] == pytest.approx(findings["engines"]["cpu"]["peak_mib"], rel=0.25)


def test_doctor_names_the_fastest_engine_of_those_that_work(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # "abacus" is no engine: it is tried like the others, in a process of its own, and its reason is shown.
    monkeypatch.setattr("emocaliber.runtime.engine.available_engines", lambda: ("cpu", "abacus"))
    assert main(["doctor", "--bundle", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    assert "engine     abacus: does not work: engine is 'abacus'" in text
    assert "the fastest that works" in next(line for line in text.splitlines() if line.startswith("engine     cpu"))


def test_an_engine_that_kills_its_process_is_a_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.sys, "executable", shutil.which("false") or "/bin/false")
    assert trial.try_engine(str(tiny_bundle), "cpu") == {
        "ok": False,
        "error": "its process ended with status 1: no message",
    }
