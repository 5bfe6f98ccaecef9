"""``emocaliber data``: what it writes, what it reports, how it exits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime.cli import main
from emocaliber.runtime.samples import read_samples
from emocaliber.train.importers import IMPORTERS


@pytest.fixture
def scenes(tmp_path, capsys):
    assert main(["data", "import", "scenes", "6", str(tmp_path / "set"), "--size", "32"]) == 0
    capsys.readouterr()
    return tmp_path / "set" / "samples.jsonl"


def rewrite(path, change):
    """Rewrites the samples file after ``change`` has seen its lines as dicts."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def check(path, capsys):
    status = main(["data", "check", str(path)])
    output = capsys.readouterr()
    assert output.err == ""
    return status, output.out


def test_import_takes_options_and_prints_the_path_only(tmp_path, capsys):
    words = ["--seed", "3", "--size", "40", "--splits", "train=3,test=1", "--taxonomy", "sentiment-2"]
    assert main(["data", "import", "scenes", "20", str(tmp_path / "set"), *words]) == 0
    path = tmp_path / "set" / "samples.jsonl"
    assert capsys.readouterr().out == f"{path}\n"
    samples = read_samples(path)
    assert len(samples) == 20
    assert {sample.taxonomy for sample in samples} == {"sentiment-2"}
    assert {sample.split for sample in samples} == {"train", "test"}
    assert sum(sample.split == "train" for sample in samples) == pytest.approx(15, abs=1)
    with Image.open(samples[0].image) as image:
        assert image.size == (40, 40)


def test_import_draws_a_contact_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "import", "scenes", "10", str(tmp_path / "set"), "--size", "32", "--sheet", str(sheet)]) == 0
    with Image.open(sheet) as image:
        # Eight columns and two rows of 96 pixels, 8 between, 30 of caption.
        assert image.size == (8 * 104 + 8, 2 * 134 + 8)
        assert np.asarray(image.convert("L")).std() > 20


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["import", "nothing", "1", "out"], 2, "invalid choice"),
        (["import", "scenes", "many", "out"], 1, "expected how many to draw"),
        (["import", "scenes", "0", "out"], 1, "expected how many to draw"),
        (["import", "scenes", "3", "out", "--taxonomy", "fi-8"], 1, "no posterior over 'fi-8'"),
        (["import", "scenes", "3", "out", "--size", "7"], 1, "size is 7"),
        (["import", "scenes", "3", "out", "--splits", "train"], 2, "NAME=SHARE"),
        (["import", "scenes", "3", "out", "--splits", "train=1,train=2"], 2, "each name once"),
        (["import", "scenes", "3", "out", "--splits", "train=nan"], 2, "shares above 0"),
        (["check", "missing.jsonl"], 1, "cannot read samples"),
        ([], 2, "ACTION"),
    ],
)
def test_wrong_usage_gets_one_message_and_writes_nothing(tmp_path, monkeypatch, capsys, words, status, message):
    monkeypatch.chdir(tmp_path)
    try:
        returned = main(["data", *words])
    except SystemExit as stop:
        returned = stop.code
    output = capsys.readouterr()
    assert (returned, output.out) == (status, "")
    assert message in output.err
    assert list(tmp_path.iterdir()) == []


def test_check_reports_a_sound_set(scenes, capsys):
    rewrite(scenes, lambda lines: [line.update(split="train", votes={"joy": 3, "fear": 1}) for line in lines])
    status, report = check(scenes, capsys)
    assert status == 0
    assert "6 samples, 6 readable images" in report
    assert "emotion6-7, train: 6 samples" in report
    assert "fear 25.0%" in report
    assert "joy 75.0%" in report
    assert report.endswith("no faults\n")


def test_check_finds_the_same_picture_in_two_splits(scenes, capsys):
    folder = scenes.parent
    samples = read_samples(scenes)
    copy = folder / "copy.bmp"  # another format, the same pixels
    with Image.open(samples[0].image) as image:
        image.save(copy)

    def leak(lines):
        lines[0]["split"], lines[1]["split"] = "train", "test"
        lines[1]["image"] = "copy.bmp"

    rewrite(scenes, leak)
    status, report = check(scenes, capsys)
    assert status == 1
    assert "pictures in more than one split: 1" in report
    assert "train (line 1), test (line 2)" in report
    assert report.endswith("1 faults\n")


def test_check_counts_repeats_within_a_split_without_calling_them_faults(scenes, capsys):
    first = read_samples(scenes)[0].image
    shutil.copy(first, scenes.parent / "again.png")

    def repeat(lines):
        for line in lines:
            line["split"] = "train"
        lines[1]["image"] = "again.png"

    rewrite(scenes, repeat)
    status, report = check(scenes, capsys)
    assert status == 0
    assert "1 images repeat another of their split" in report


def test_one_image_may_serve_several_taxonomies(tmp_path, capsys):
    words = ["--size", "32", "--taxonomy", "emotion6-7", "--taxonomy", "sentiment-2"]
    assert main(["data", "import", "scenes", "4", str(tmp_path), *words]) == 0
    capsys.readouterr()
    status, report = check(tmp_path / "samples.jsonl", capsys)
    assert status == 0
    assert "8 samples, 4 readable images" in report
    assert "repeat" not in report


def test_check_finds_broken_and_missing_images_and_goes_on(scenes, capsys):
    samples = read_samples(scenes)
    broken = Path(samples[2].image)
    broken.write_bytes(broken.read_bytes()[:300])
    rewrite(scenes, lambda lines: lines[4].update(image="images/none.png"))
    status, report = check(scenes, capsys)
    assert status == 1
    assert "6 samples, 4 readable images" in report
    assert "unreadable images: 2" in report
    assert "line 3:" in report
    assert "line 5:" in report


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"image": "a.png", "taxonomy": "emotion6-7", "answer": "boredom"}',
            "'boredom' is not in taxonomy emotion6-7",
        ),
        ('{"image": "a.png", "taxonomy": "emotion6-7", "votes": {"awe": 1}}', "'awe' is not in taxonomy"),
        ('{"image": "a.png", "taxonomy": "moods"}', "unknown taxonomy 'moods'"),
        ('{"image": "a.png", "taxonomy": "fi-8", "mood": 1}', "unknown key mood"),
        ('{"image": "a.png"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON in UTF-8"),
    ],
)
def test_check_names_the_invalid_line_and_goes_on(scenes, capsys, line, message):
    with scenes.open("ab") as stream:
        stream.write(line.encode("utf-8", "surrogateescape") + b"\n")
    status, report = check(scenes, capsys)
    assert status == 1
    assert "invalid lines: 1" in report
    assert "line 7" in report
    assert message in report
    assert "6 samples, 6 readable images" in report


def test_check_finds_an_id_used_twice(scenes, capsys):
    rewrite(scenes, lambda lines: lines[3].update(id=lines[0]["id"]))
    status, report = check(scenes, capsys)
    assert status == 1
    assert "line 4: id 'scene-0-0-emotion6-7' is that of line 1" in report


def test_check_refuses_an_empty_file(tmp_path, capsys):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    assert main(["data", "check", str(path)]) == 1
    assert "holds no samples" in capsys.readouterr().err


def test_long_lists_of_faults_are_cut_but_counted(scenes, capsys):
    with scenes.open("a") as stream:
        stream.write("{}\n" * 25)
    status, report = check(scenes, capsys)
    assert status == 1
    assert "invalid lines: 25" in report
    assert "... and 15 more" in report


def test_every_importer_says_what_it_is():
    assert "scenes" in IMPORTERS
    for name, importer in IMPORTERS.items():
        assert name == name.strip().lower()
        assert importer.help
        assert importer.source
