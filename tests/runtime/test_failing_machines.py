"""Full disks, missing permissions, read-only places and Ctrl-C: a message, the right status, nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime import sealing

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits, users and signals as Linux has them")

# Without its capabilities (capset, version 3) root too is held to the permissions of its files.
START = """
import ctypes, resource, sys
limit = int(sys.argv[1])
from emocaliber.runtime.cli import main
if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
print("started", file=sys.stderr, flush=True)
sys.exit(main(sys.argv[2:]))
"""


def command(*words: str, limit: int = 0) -> list[str]:
    return [sys.executable, "-c", START, str(limit), *words]


def run(
    *words: str, limit: int = 0, stdout: int | None = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command where a file may have ``limit`` bytes."""
    return subprocess.run(
        command(*words, limit=limit),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".dev"), **environment},
    )


def one_message(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "started"
    assert lines[-1].startswith("emocaliber: ")
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "place" / "bundle"))


def test_disk_full_for_standard_output(tiny_bundle: Path, photo: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = run("predict", str(photo), "--json", "--bundle", str(tiny_bundle), stdout=full.fileno())
    one_message(done, "No space left on device")


def test_disk_full_for_the_output_file(tiny_bundle: Path, tmp_path: Path, photo: Path) -> None:
    out = tmp_path / "out" / "lines.jsonl"
    done = run("batch", str(photo), "--out", str(out), "--bundle", str(tiny_bundle), limit=100)
    one_message(done, "File too large")
    assert not out.exists()
    again = run("batch", str(photo), "--out", str(out), "--bundle", str(tiny_bundle), "--resume")
    assert again.returncode == 0, again.stderr
    assert [json.loads(line)["image"] for line in out.read_text().splitlines()] == [str(photo)]


def test_disk_full_while_an_archive_is_unpacked(tiny_bundle: Path, tmp_path: Path, photo: Path) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tiny_bundle, ".")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = run("predict", str(photo), "--bundle", str(tmp_path / "b.tar"), limit=50_000, TMPDIR=str(scratch))
    one_message(done, "cannot unpack", "File too large")
    assert list(scratch.iterdir()) == []


def test_read_only_home_and_no_place_for_temporary_files(bundle: Path, photo: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home))
    done = run("predict", str(photo), "--json", "--bundle", str(bundle), **places)
    assert (done.returncode, done.stderr) == (0, "started\n")
    assert json.loads(done.stdout)["image"] == str(photo)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("locked", "parts"),
    [
        ("bundle.json", ("cannot read bundle.json: Permission denied",)),
        ("tokenizer.json", ("tokenizer.json cannot be read: Permission denied",)),
        (".", ("Permission denied",)),
        ("..", ("Permission denied",)),
    ],
)
def test_bundles_that_may_not_be_read(bundle: Path, photo: Path, locked: str, parts: tuple[str, ...]) -> None:
    place = (bundle / locked).resolve()
    place.chmod(0)
    done = run("predict", str(photo), "--bundle", str(bundle))
    place.chmod(0o755)
    one_message(done, *parts)


def test_images_that_may_not_be_read(bundle: Path, photo: Path) -> None:
    photo.chmod(0)
    done = run("predict", str(photo), "--json", "--bundle", str(bundle))
    assert done.returncode == 1
    assert "Permission denied" in json.loads(done.stdout)["error"]["message"]


def test_folders_that_may_not_be_written(bundle: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    done = run("batch", str(photo), "--out", str(folder / "out.jsonl"), "--bundle", str(bundle))
    one_message(done, "Permission denied")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("after_ms", [0, 40, 120, 300])
def test_interrupted_at_any_time(tiny_bundle: Path, photo: Path, tmp_path: Path, after_ms: int) -> None:
    interrupt(tiny_bundle, photo, tmp_path, after_ms)


@pytest.mark.slow
@pytest.mark.parametrize("after_ms", range(0, 1500, 25))
def test_interrupted_at_many_times(tiny_bundle: Path, photo: Path, tmp_path: Path, after_ms: int) -> None:
    interrupt(tiny_bundle, photo, tmp_path, after_ms)


def interrupt(tiny_bundle: Path, photo: Path, tmp_path: Path, after_ms: int) -> None:
    """Sends the signal of Ctrl-C so long after the command's first line ran, into work that takes long."""
    (tmp_path / "images").mkdir()
    for number in range(2000):
        os.link(photo, tmp_path / "images" / f"{number}.png")
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        command("batch", str(tmp_path / "images"), "--out", str(out), "--bundle", str(tiny_bundle), "--mode", "reason"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".dev")},
        # What a shell starts in the background ignores the signal, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    time.sleep(after_ms / 1000)
    process.send_signal(signal.SIGINT)
    written, errors = process.communicate(timeout=60)
    assert (process.returncode, written) == (130, ""), errors
    assert "Traceback" not in errors
    assert errors.endswith("emocaliber: interrupted\n")
    assert not out.exists()
    for path in tmp_path.glob("out.jsonl*"):  # what is kept is the settings and whole lines, but for a torn last one
        lines = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        assert all(json.loads(line)["image"] for line in lines[1:])


@pytest.mark.parametrize("moment", ["first", "second"])
def test_an_interrupted_replacement_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    rename, calls = Path.rename, []

    def interrupted(path: Path, to: Path) -> Path:
        calls.append(path)
        if len(calls) == 2 and moment == "second":
            raise KeyboardInterrupt
        done = rename(path, to)
        if len(calls) == 1 and moment == "first":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), sealing.staged(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in target.iterdir()] == ["old"]
