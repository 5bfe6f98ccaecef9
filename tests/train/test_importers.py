"""What all importers share: where images are, splits, duplicates, what is recorded, what is refused."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from importer_run import imported, picture, provenance, run_import

from emocaliber.runtime.cli import main
from emocaliber.runtime.samples import read_samples
from emocaliber.train.importers import IMPORTERS

OASIS_HEADER = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N\n"


def oasis(folder: Path, themes: list[str], *, shade: int | None = None) -> Path:
    """Writes a set with a picture each; without `shade` all differ."""
    folder.mkdir()
    for number, theme in enumerate(themes):
        picture(folder / "images" / f"{theme}.jpg", number * 16 if shade is None else shade)
    rows = "".join(f"I{n},{theme},Object,Pixabay,5,1,100,2,1,99\n" for n, theme in enumerate(themes, 1))
    (folder / "OASIS.csv").write_text(OASIS_HEADER + rows)
    return folder


def test_images_stay_where_they_are_unless_they_are_below_out(tmp_path):
    source = oasis(tmp_path / "src", ["Fire 1"])
    away = imported("oasis", source, tmp_path / "out")["oasis/Fire 1.jpg"]
    assert away["image"] == str(source / "images" / "Fire 1.jpg")
    assert not (tmp_path / "out" / "images").exists()
    below = imported("oasis", source, tmp_path)["oasis/Fire 1.jpg"]
    assert below["image"] == "src/images/Fire 1.jpg"


def test_copies_are_complete_and_named_relative_to_out(tmp_path):
    source = oasis(tmp_path / "src", ["Fire 1", "Lake 2"])
    lines = imported("oasis", source, tmp_path / "out", "--copy")
    assert lines["oasis/Lake 2.jpg"]["image"] == "images/Lake 2.jpg"
    for name in ("Fire 1.jpg", "Lake 2.jpg"):
        assert (tmp_path / "out/images" / name).read_bytes() == (source / "images" / name).read_bytes()


def test_copying_into_the_set_itself_is_refused(tmp_path, capsys):
    source = oasis(tmp_path / "src", ["Fire 1"])
    assert run_import("oasis", source, source / "out", "--copy") == 1
    assert "lies inside SRC" in capsys.readouterr().err


def test_groups_are_never_split_and_shares_are_kept(tmp_path):
    themes = [f"{chr(97 + n % 26)}{n // 26} {k}" for n in range(300) for k in range(3)]
    source = oasis(tmp_path / "src", [])
    (source / "OASIS.csv").write_text(
        OASIS_HEADER + "".join(f"I{n},{theme},Object,P,5,1,100,2,1,99\n" for n, theme in enumerate(themes))
    )
    (source / "images").mkdir()
    for number, theme in enumerate(themes):
        # Distinct bytes: pictures are only compared by their bytes here, never decoded.
        (source / "images" / f"{theme}.jpg").write_bytes(number.to_bytes(4, "big"))
    lines = imported("oasis", source, tmp_path / "out")
    splits: dict[str, set[str]] = {}
    for key, line in lines.items():
        splits.setdefault(key.rpartition(" ")[0], set()).add(line["split"])
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(next(iter(found)) for found in splits.values())
    # 300 groups of 70 %, 15 %, 15 %: standard deviations of 7.9, 6.2, 6.2.
    assert counts["train"] == pytest.approx(210, abs=32)
    assert counts["calibration"] == pytest.approx(45, abs=25)
    assert counts["test"] == pytest.approx(45, abs=25)


def test_a_split_is_the_hash_of_seed_and_group(tmp_path):
    themes = [f"{word} 1" for word in ("Fire", "Lake", "Cat", "Wall", "Sun", "Moon", "Dog", "Seal")]
    source = oasis(tmp_path / "src", themes)
    for seed in (0, 5):
        words = ("--splits", "a=1,b=1", "--seed", str(seed))
        lines = imported("oasis", source, tmp_path / "out", *words)
        for theme in themes:
            digest = hashlib.sha256(f"{seed}/{theme[:-2].lower()}".encode()).hexdigest()
            expected = "a" if int(digest[0], 16) < 8 else "b"
            assert lines[f"oasis/{theme}.jpg"]["split"] == expected


def test_the_same_picture_in_two_groups_binds_them(tmp_path):
    themes = [f"{word} 1" for word in "abcdefghijklmnopqrstuvwxyz"]
    source = oasis(tmp_path / "src", themes, shade=3)
    assert len({line["split"] for line in imported("oasis", source, tmp_path / "out").values()}) == 1
    apart = oasis(tmp_path / "apart", themes)
    assert len({line["split"] for line in imported("oasis", apart, tmp_path / "out2").values()}) > 1


def test_a_second_run_writes_the_same_bytes(tmp_path):
    source = oasis(tmp_path / "src", ["Fire 1", "Lake 1", "Cat 1"])
    imported("oasis", source, tmp_path / "out")
    first = (tmp_path / "out/samples.jsonl").read_bytes()
    imported("oasis", source, tmp_path / "out")
    assert (tmp_path / "out/samples.jsonl").read_bytes() == first


def test_absent_images_are_counted_or_refused(tmp_path, capsys):
    source = oasis(tmp_path / "src", ["Fire 1", "Lake 1"])
    (source / "images/Lake 1.jpg").unlink()
    assert list(imported("oasis", source, tmp_path / "out")) == ["oasis/Fire 1.jpg"]
    assert provenance(tmp_path / "out")["counts"]["left out: image is listed but absent"] == 1
    assert "Lake 1.jpg" in capsys.readouterr().err
    assert run_import("oasis", source, tmp_path / "strict", "--strict") == 1
    message = capsys.readouterr().err
    assert "OASIS.csv, line 3" in message
    assert "Lake 1.jpg is missing" in message
    assert not (tmp_path / "strict").exists()


def test_a_set_without_any_image_is_an_error_and_images_can_be_elsewhere(tmp_path, capsys):
    source = oasis(tmp_path / "src", ["Fire 1"])
    (source / "images").rename(tmp_path / "elsewhere")
    assert run_import("oasis", source, tmp_path / "out") == 1
    assert "none of 1 images is there" in capsys.readouterr().err
    line = imported("oasis", source, tmp_path / "out", "--images", str(tmp_path / "elsewhere"))["oasis/Fire 1.jpg"]
    assert line["image"] == str(tmp_path / "elsewhere/Fire 1.jpg")


def test_the_provenance_says_what_was_read_and_under_which_terms(tmp_path):
    source = oasis(tmp_path / "src", ["Fire 1"])
    imported("oasis", source, tmp_path / "out", "--seed", "4")
    record = provenance(tmp_path / "out")
    assert record["importer"] == "oasis"
    assert record["options"] == {"seed": 4}
    assert record["counts"]["samples"] == 1
    table = hashlib.sha256((source / "OASIS.csv").read_bytes()).hexdigest()
    assert record["annotations"] == [{"name": "OASIS.csv", "sha256": table}]
    assert record["samples_sha256"] == hashlib.sha256((tmp_path / "out/samples.jsonl").read_bytes()).hexdigest()
    assert "research" in record["terms"]


def test_repeated_rows_count_once_and_contradicting_rows_are_refused(tmp_path, capsys):
    source = oasis(tmp_path / "src", ["Fire 1"])
    table = source / "OASIS.csv"
    table.write_text(table.read_text() + "I2,Fire 1,Object,Pixabay,5,1,100,2,1,99\n")
    assert len(imported("oasis", source, tmp_path / "out")) == 1
    assert provenance(tmp_path / "out")["counts"]["left out: line repeats another"] == 1
    table.write_text(table.read_text() + "I3,Fire 1,Object,Pixabay,3,1,100,2,1,99\n")
    assert run_import("oasis", source, tmp_path / "out") == 1
    assert "OASIS.csv, line 4: Fire 1.jpg is annotated otherwise in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Theme,Valence_mean,Valence_SD\nFire 1,5,1\n", "line 1: no column Valence_N"),
        ("Theme,Valence_mean,Valence_SD,Valence_N\nFire 1,5,1\n", "line 2: 3 cells under 4 columns"),
        ("Theme,Valence_mean,Valence_SD,Valence_N\n\nFire 1,8,1,9\n", "line 3: Valence_mean is '8'"),
        ("Theme,Valence_mean,Valence_SD,Valence_N\nFire 1,5,nan,9\n", "line 2: Valence_SD is 'nan'"),
        ("", "is empty"),
        ("Theme,Valence_mean,Valence_SD,Valence_N\n", "holds no annotated image"),
    ],
)
def test_a_broken_table_is_one_message_with_its_line(tmp_path, capsys, table, message):
    (tmp_path / "OASIS.csv").write_text(table)
    assert run_import("oasis", tmp_path, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["oasis", "nowhere", "out"], "does not exist"),
        (["oasis", ".", "out"], "holds no OASIS.csv"),
        (["oasis", ".", "out", "--size", "64"], "oasis takes no size"),
        (["scenes", "3", "out", "--copy"], "scenes takes no copy"),
        (["emotion6", ".", "out", "--raters", "us"], "emotion6 takes no raters"),
        (["fi", ".", "out", "--taxonomy", "webemo-7"], "this set has no webemo-7"),
        (["vecbench", ".", "out"], "is a folder, expected one file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run_import(words[0], Path(words[1]), Path(words[2]), *words[3:]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_importer_states_its_terms():
    assert set(IMPORTERS) == {
        "scenes", "vecbench", "vec-cot", "emotion6", "oasis", "ferplus", "bass", "emoset", "fi", "webemo",
        "unbiasedemo", "artphoto", "abstract",
    }  # fmt: skip
    assert all(importer.terms for importer in IMPORTERS.values())


def test_imported_sets_are_readable_samples_that_pass_the_check(tmp_path, capsys):
    source = oasis(tmp_path / "src", ["Fire 1", "Lake 1"])
    imported("oasis", source, tmp_path / "out")
    samples = read_samples(tmp_path / "out/samples.jsonl")
    assert [sample.taxonomy for sample in samples] == ["sentiment-2"] * 2
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "out/samples.jsonl")]) == 0
    assert "2 samples, 2 readable images" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/samples.jsonl").read_text().splitlines()[0])["answer"] == "positive"
