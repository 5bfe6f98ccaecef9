"""``emocaliber batch``: same lines as ``predict``, whole files or none, and runs that can be continued."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime.cli import main
from emocaliber.runtime.commands import batch, pipeline

NAMES = ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.bmp"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def run(tiny_bundle: Path, source: Path | str, out: Path, *words: str) -> int:
    return main(["batch", str(source), "--out", str(out), "--bundle", str(tiny_bundle), *words])


def read(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("timing_ms", None)
    return lines


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def test_every_line_is_the_line_of_predict(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "out.jsonl"
    assert run(tiny_bundle, folder, out, "--coverage", "0.8") == 0
    assert capsys.readouterr().out == ""
    assert not partial_of(out).exists()
    paths = [str(folder / name) for name in NAMES]
    main(["predict", *paths, "--json", "--bundle", str(tiny_bundle), "--coverage", "0.8"])
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in expected:
        line.pop("timing_ms")
    assert read(out) == expected
    assert [line["image"] for line in expected] == paths


def test_unreadable_image_is_a_line_and_the_rest_runs(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.JPG").write_bytes(b"")
    out = tmp_path / "out.jsonl"
    assert run(tiny_bundle, folder, out) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "1 of 4 images could not be read" in output.err
    lines = read(out)
    assert ["error" in line for line in lines] == [False, True, False, False]
    assert list(lines[1]) == ["image", "error"]
    assert "0 bytes" in lines[1]["error"]["message"]


def test_glob_and_single_file(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    assert run(tiny_bundle, str(folder / "**" / "*.[wb]*"), tmp_path / "glob.jsonl") == 0
    assert [Path(line["image"]).name for line in read(tmp_path / "glob.jsonl")] == ["c.webp", "d.bmp"]
    assert run(tiny_bundle, folder / "a.png", tmp_path / "one.jsonl") == 0
    assert [line["image"] for line in read(tmp_path / "one.jsonl")] == [str(folder / "a.png")]


@pytest.fixture
def samples(folder: Path) -> Path:
    lines = [
        {"image": "a.png", "taxonomy": "emotion6-7", "answer": "joy"},
        {"image": "b.JPG", "taxonomy": "custom", "labels": ["calm", "wild"]},
        {"image": "a.png", "taxonomy": "sentiment-2"},
    ]
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_samples_bring_their_own_candidates(tiny_bundle: Path, samples: Path, tmp_path: Path) -> None:
    assert run(tiny_bundle, samples, tmp_path / "out.jsonl") == 0
    lines = read(tmp_path / "out.jsonl")
    assert [line["taxonomy"] for line in lines] == ["emotion6-7", "custom", "sentiment-2"]
    assert [len(line["distribution"]) for line in lines] == [7, 2, 2]
    assert lines[0]["image"] == str((samples.parent / "a.png").resolve())
    assert [line["calibrated"] for line in lines] == [True, False, False]


def test_a_named_taxonomy_overrides_the_samples(tiny_bundle: Path, samples: Path, tmp_path: Path) -> None:
    assert run(tiny_bundle, samples, tmp_path / "out.jsonl", "--taxonomy", "sentiment-2") == 0
    assert [line["taxonomy"] for line in read(tmp_path / "out.jsonl")] == ["sentiment-2"] * 3


class Interruption:
    """Makes chunks of one image, and stops the run like Ctrl-C before chunk number ``at``; notes what was predicted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.predicted: list[str] = []
        original = pipeline._predict_chunk

        def predict_chunk(model: Any, chunk: Any, images: Any) -> Any:
            if len(self.predicted) == at:
                raise KeyboardInterrupt
            self.predicted += [item.image for item in chunk]
            return original(model, chunk, images)

        monkeypatch.setattr(batch, "CHUNK", 1)
        monkeypatch.setattr(pipeline, "_predict_chunk", predict_chunk)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_resumed_run_equals_an_uninterrupted_one(
    tiny_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (folder / "a.png").write_bytes(b"broken")
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert run(tiny_bundle, folder, whole) == 1
    with monkeypatch.context() as patch:
        Interruption(patch, at=2)
        assert run(tiny_bundle, folder, out) == 130
    assert not out.exists()
    assert len(partial_of(out).read_bytes().splitlines()) == 1 + 2
    with partial_of(out).open("a") as stream:
        stream.write('{"image": "torn li')
    with monkeypatch.context() as patch:
        second = Interruption(patch)
        assert run(tiny_bundle, folder, out, "--resume") == 1  # the first image, not read before, still counts
    assert [Path(path).name for path in second.predicted] == ["c.webp", "d.bmp"]
    assert not partial_of(out).exists()
    if suffix == ".jsonl":
        assert read(out) == read(whole)
    else:
        assert table(out) == table(whole)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [{key: cell for key, cell in row.items() if key != "timing_ms"} for row in csv.DictReader(stream)]


def test_an_image_named_twice_is_resumed_once(
    tiny_bundle: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        Interruption(patch, at=1)
        assert run(tiny_bundle, samples, out) == 130
    with monkeypatch.context() as patch:
        second = Interruption(patch)
        assert run(tiny_bundle, samples, out, "--resume") == 0
    assert [Path(path).name for path in second.predicted] == ["b.JPG", "a.png"]
    assert [line["taxonomy"] for line in read(out)] == ["emotion6-7", "custom", "sentiment-2"]


def test_csv_has_the_same_content(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").write_bytes(b"broken")
    run(tiny_bundle, folder, tmp_path / "out.jsonl")
    run(tiny_bundle, folder, tmp_path / "out.csv")
    rows, lines = table(tmp_path / "out.csv"), read(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows] == [line["image"] for line in lines]
    assert rows[0]["error_type"] == "InputError"
    assert rows[0]["label"] == ""
    assert rows[1]["error_type"] == ""
    assert rows[1]["label"] == lines[1]["label"]
    assert rows[1]["reasoning"] == ""
    for key in ("confidence", "distribution", "prediction_set", "bundle", "calibrated"):
        assert json.loads(rows[1][key]) == lines[1][key]


def test_existing_files_are_never_overwritten(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    assert run(tiny_bundle, folder, out) == 1
    assert "exists; delete it or choose another --out" in capsys.readouterr().err
    assert run(tiny_bundle, folder, out, "--resume") == 0
    assert "already complete" in capsys.readouterr().err
    assert out.read_text() == "precious\n"
    out.rename(partial_of(out))
    assert run(tiny_bundle, folder, out) == 1
    assert "--resume" in capsys.readouterr().err
    assert partial_of(out).read_text() == "precious\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1 is damaged"),
        ("[1, 2]\n", "line 1 is damaged"),
        ('{"settings": {}, "done": 0}\n', "line 1 is damaged"),
        ('{"settings": {}, "done": 0, "failed": 0}\n', "made with other settings"),
        ("HEAD" + "{torn in the middle\n", "line 2 is damaged"),
        ("HEAD" + '{"label": "joy"}\n', "line 2 is damaged"),
        ("HEAD" + '{"image": "elsewhere.png", "error": {}}\n', "line 2 is of 'elsewhere.png', not of "),
    ],
)
def test_damaged_partial_file_is_refused_and_kept(
    tiny_bundle: Path,
    folder: Path,
    tmp_path: Path,
    content: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        Interruption(patch, at=1)
        assert run(tiny_bundle, folder, out) == 130
    head = partial_of(out).read_text().splitlines(keepends=True)[0]
    partial_of(out).write_text(content.replace("HEAD", head))
    assert run(tiny_bundle, folder, out, "--resume") == 1
    assert message in capsys.readouterr().err
    assert partial_of(out).read_text() == content.replace("HEAD", head)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "reason"], "(mode was 'direct', now 'reason')"),
        (["--coverage", "0.8"], "(coverage was 0.9, now 0.8)"),
        (["--taxonomy", "sentiment-2"], "taxonomy was 'emotion6-7', now 'sentiment-2')"),
        (["--precision", "fp32"], "(precision was 'int8', now 'fp32')"),
        (["--seed", "3"], "(seed was 0, now 3)"),
        (["--shard-size", "2"], "(shard_size was None, now 2)"),
    ],
)
def test_resume_with_other_options_is_refused(
    tiny_bundle: Path,
    folder: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        Interruption(patch, at=2)
        assert run(tiny_bundle, folder, out) == 130
    before = partial_of(out).read_bytes()
    assert run(tiny_bundle, folder, out, "--resume", *words) == 1
    assert message in capsys.readouterr().err
    assert partial_of(out).read_bytes() == before


@pytest.mark.parametrize(
    ("source", "message"),
    [("empty", "holds no images"), ("gone", "no folder or file"), ("*.xyz", "no folder or file")],
)
def test_nothing_to_predict(
    tiny_bundle: Path, tmp_path: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tiny_bundle, str(tmp_path / source), tmp_path / "out.jsonl") == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("words", [["--taxonomy", "plutchik"], ["--labels", "a,a"], ["--precision", "int3"]])
def test_wrong_question_leaves_no_file(tiny_bundle: Path, folder: Path, tmp_path: Path, words: list[str]) -> None:
    assert run(tiny_bundle, folder, tmp_path / "out.jsonl", *words) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_stopped_before_the_first_line_leaves_no_file(
    tiny_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Interruption(monkeypatch, at=0)
    assert run(tiny_bundle, folder, tmp_path / "out.jsonl") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_damaged_samples_file_names_the_line(
    tiny_bundle: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.write_text(samples.read_text() + "{oops\n")
    assert run(tiny_bundle, samples, tmp_path / "out.jsonl") == 1
    assert "line 4: not JSON" in capsys.readouterr().err


def test_missing_bundle_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "none", folder, tmp_path / "out.jsonl") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
