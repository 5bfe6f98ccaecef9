"""Emotion6, FER+, OASIS, BASS, Abstract: votes and ratings, with numbers worked by hand."""

import csv
import json
from pathlib import Path

import pytest
from importer_run import imported, picture, provenance, run_import

EMOTION6_HEADER = (
    "[image_filename]\t[valence]\t[arousal]\t[prob. anger]\t[prob. disgust]\t[prob. fear]\t[prob. joy]\t"
    "[prob. sadness]\t[prob. surprise]\t[prob. neutral]\n"
)
FERPLUS_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\r\n"
BASS_HEADER = "file_name,val_mean_us,val_sd_us,val_n_us,val_mean_ch,val_sd_ch,val_n_ch\n"
# The standard normal distribution function at 1 and at -1, from a table: 0.841344746 and 0.158655254.
PHI_1, PHI_MINUS_1 = 0.841344746, 0.158655254


def test_emotion6_keeps_the_published_shares_and_ignores_the_folder(tmp_path):
    rows = "disgust/1.jpg\t2.5\t3.8\t0.133333\t0.7\t0\t0.0666667\t0.1\t0\t0\n"
    rows += "joy/2.jpg\t5\t5\t0\t0\t0.4\t0.2\t0\t0.4\t0\n"
    (tmp_path / "ground_truth.txt").write_text(EMOTION6_HEADER + rows)
    picture(tmp_path / "images/disgust/1.jpg", 1)
    picture(tmp_path / "images/joy/2.jpg", 99)
    lines = imported("emotion6", tmp_path, tmp_path / "out")
    first, second = lines["emotion6/disgust/1.jpg"], lines["emotion6/joy/2.jpg"]
    assert first["taxonomy"] == "emotion6-7"
    assert first["votes"] == {"anger": 0.133333, "disgust": 0.7, "joy": 0.0666667, "sadness": 0.1}
    assert first["answer"] == "disgust"
    assert second["answer"] == "fear"  # tied with surprise; fear comes first
    assert provenance(tmp_path / "out")["counts"]["votes tied at the top, the first label taken as answer"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("joy/1.jpg\t5\t5\t0\t0\t0.4\t0.2\t0\t0.2\t0", "line 2: the shares of the votes sum to 0.800"),
        ("joy/1.jpg\t5\t5\t0\t0\t-0.4\t1.2\t0\t0.2\t0", "line 2: [prob. fear] is '-0.4', expected a number in [0, 1]"),
        ("joy/1.jpg\t5", "line 2: 2 cells under 10 columns"),
    ],
)
def test_emotion6_names_the_broken_line(tmp_path, capsys, row, message):
    (tmp_path / "ground_truth.txt").write_text(f"{EMOTION6_HEADER}{row}\n")
    assert run_import("emotion6", tmp_path, tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_emotion6_gives_sentiment_from_its_valence(tmp_path, capsys):
    # 1.44 above the middle of the scale is one deviation: Phi(1).
    rows = "joy/1.jpg\t6.44\t5\t0\t0\t0.4\t0.6\t0\t0\t0\nfear/1.jpg\t3.56\t5\t0\t0\t1\t0\t0\t0\t0\n"
    (tmp_path / "ground_truth.txt").write_text(EMOTION6_HEADER + rows)
    picture(tmp_path / "images/joy/1.jpg", 1)
    picture(tmp_path / "images/fear/1.jpg", 2)
    both = imported("emotion6", tmp_path, tmp_path / "a", "--taxonomy", "emotion6-7", "--taxonomy", "sentiment-2")
    assert len(both) == 4
    bright, dark = both["emotion6/joy/1.jpg#sentiment-2"], both["emotion6/fear/1.jpg#sentiment-2"]
    assert (bright["taxonomy"], bright["answer"], dark["answer"]) == ("sentiment-2", "positive", "negative")
    assert bright["votes"] == pytest.approx({"positive": PHI_1, "negative": PHI_MINUS_1}, abs=1e-6)
    assert dark["votes"] == pytest.approx({"negative": PHI_1, "positive": PHI_MINUS_1}, abs=1e-6)
    alone = imported("emotion6", tmp_path, tmp_path / "b", "--taxonomy", "sentiment-2")
    assert {key: value | {"split": None} for key, value in alone.items()} == {
        key: value | {"split": None} for key, value in both.items() if key.endswith("#sentiment-2")
    }
    capsys.readouterr()
    assert run_import("emotion6", tmp_path, tmp_path / "c", "--taxonomy", "fi-8") == 1
    assert "this set has no fi-8; it can be written for emotion6-7, sentiment-2" in capsys.readouterr().err


def ferplus(folder: Path, rows: list[str], shades: dict[str, int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fer2013new.csv").write_bytes((FERPLUS_HEADER + "".join(f"{row}\r\n" for row in rows)).encode())
    for name, shade in shades.items():
        picture(folder / "images" / name, shade)
    return folder


def test_ferplus_drops_unknown_votes_and_faces_that_most_call_unknown(tmp_path):
    rows = [
        "Training,a.png,4,0,0,1,3,2,0,0,0,0",
        "Training,b.png,6,0,1,1,0,0,0,0,2,0",  # two unknown: eight votes remain
        "Training,c.png,3,0,0,0,0,0,0,0,7,0",  # left out: unknown
        "PublicTest,d.png,1,0,0,0,0,0,0,1,0,8",  # left out: not a face
        "PublicTest,e.png,0,4,0,0,0,0,2,0,4,0",  # unknown only equals happiness: kept
        "PublicTest,,0,9,0,0,0,0,0,0,0,1",  # FER+ lists removed faces without a name
    ]
    source = ferplus(tmp_path / "src", rows, {"a.png": 1, "b.png": 20, "c.png": 40, "d.png": 60, "e.png": 80})
    lines = imported("ferplus", source, tmp_path / "out")
    assert set(lines) == {"ferplus/a.png", "ferplus/b.png", "ferplus/e.png"}
    assert lines["ferplus/a.png"]["votes"] == {"neutral": 4, "sadness": 1, "anger": 3, "disgust": 2}
    assert lines["ferplus/b.png"]["votes"] == {"neutral": 6, "surprise": 1, "sadness": 1}
    assert lines["ferplus/b.png"]["answer"] == "neutral"
    assert lines["ferplus/e.png"]["votes"] == {"happiness": 4, "fear": 2}
    assert lines["ferplus/e.png"]["answer"] == "happiness"
    assert [lines[f"ferplus/{name}.png"]["split"] for name in "abe"] == ["train", "train", "validation"]
    counts = provenance(tmp_path / "out")["counts"]
    assert counts["left out: most voted unknown or not a face"] == 2
    assert counts["left out: row names no image"] == 1


def test_ferplus_faces_of_both_splits_stay_in_validation_only(tmp_path):
    rows = [
        "Training,a.png,9,0,0,0,0,0,0,0,0,0",
        "Training,b.png,9,0,0,0,0,0,0,0,0,0",
        "PublicTest,c.png,8,1,0,0,0,0,0,0,0,0",
    ]
    source = ferplus(tmp_path / "src", rows, {"a.png": 5, "b.png": 90, "c.png": 5})
    assert set(imported("ferplus", source, tmp_path / "out")) == {"ferplus/b.png", "ferplus/c.png"}
    assert len(imported("ferplus", source, tmp_path / "out", "--keep-duplicates")) == 3
    again = imported("ferplus", source, tmp_path / "out", "--splits", "one=1,two=1")
    assert {line["split"] for line in again.values()} <= {"one", "two"}
    assert again["ferplus/a.png"]["split"] == again["ferplus/c.png"]["split"]


def test_ferplus_refuses_an_unknown_usage(tmp_path, capsys):
    source = ferplus(tmp_path, ["Trial,a.png,9,0,0,0,0,0,0,0,0,0"], {"a.png": 1})
    assert run_import("ferplus", source, tmp_path / "out") == 1
    assert "fer2013new.csv, line 2: Usage is 'Trial'" in capsys.readouterr().err


def test_oasis_ratings_become_votes_through_the_normal_distribution(tmp_path):
    # Scale 1 to 7, middle 4: one standard deviation above, one below, exactly in the middle.
    header = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N\n"
    (tmp_path / "OASIS.csv").write_text(
        header + "I1,Fire 1,Object,P,5,1,100\nI2,Fire 2,Object,P,3.5,0.5,200\nI3,Lake 1,Scenery,P,4,0,50\n"
    )
    for shade, name in enumerate(("Fire 1", "Fire 2", "Lake 1")):
        picture(tmp_path / f"Images/{name}.jpg", shade * 40)
    lines = imported("oasis", tmp_path, tmp_path / "out")
    votes = {key: line["votes"] for key, line in lines.items()}
    expected = {"positive": 100 * PHI_1, "negative": 100 * PHI_MINUS_1}
    assert votes["oasis/Fire 1.jpg"] == pytest.approx(expected, abs=1e-5)
    expected = {"positive": 200 * PHI_MINUS_1, "negative": 200 * PHI_1}
    assert votes["oasis/Fire 2.jpg"] == pytest.approx(expected, abs=1e-5)
    assert votes["oasis/Lake 1.jpg"] == {"negative": 25, "positive": 25}
    assert [lines[f"oasis/{name}.jpg"]["answer"] for name in ("Fire 1", "Fire 2")] == ["positive", "negative"]
    assert lines["oasis/Fire 1.jpg"]["split"] == lines["oasis/Fire 2.jpg"]["split"]


@pytest.mark.parametrize(
    ("words", "positive", "negative"),
    [
        ((), 100 * PHI_1 + 50 * PHI_MINUS_1, 100 * PHI_MINUS_1 + 50 * PHI_1),
        (("--raters", "us"), 100 * PHI_1, 100 * PHI_MINUS_1),
        (("--raters", "chinese"), 50 * PHI_MINUS_1, 50 * PHI_1),
    ],
)
def test_bass_adds_up_the_raters_of_both_countries(tmp_path, words, positive, negative):
    # Scale 1 to 9, middle 5: Americans one standard deviation above, Chinese one below.
    (tmp_path / "BASS_data.csv").write_text(BASS_HEADER + "dog2.png,6,1,100,3,2,50\n", encoding="utf-8-sig")
    picture(tmp_path / "images/dog2.png")
    line = imported("bass", tmp_path, tmp_path / "out", *words)["bass/dog2.png"]
    assert line["votes"] == pytest.approx({"positive": positive, "negative": negative}, abs=1e-5)
    assert line["taxonomy"] == "sentiment-2"


def test_abstract_votes_with_its_quotes_and_abbreviations(tmp_path):
    header = "'','Amusement','Anger','Awe','Content','Disgust','Excitement','Fear','Sad'\n"
    rows = "'abstract_0001.jpg',0,1,0,5,0,0,0,3\n'abstract_0002.jpg',0,0,0,0,0,0,2,4\n"
    (tmp_path / "ABSTRACT_groundTruth.csv").write_text(header + rows)
    picture(tmp_path / "abstract_0001.jpg", 1)
    picture(tmp_path / "abstract_0002.jpg", 90)
    lines = imported("abstract", tmp_path, tmp_path / "out")
    assert lines["abstract/abstract_0001.jpg"]["votes"] == {"anger": 1, "contentment": 5, "sadness": 3}
    assert lines["abstract/abstract_0001.jpg"]["answer"] == "contentment"
    assert lines["abstract/abstract_0002.jpg"]["answer"] == "sadness"


@pytest.mark.parametrize("name", ["emotion6", "oasis", "bass"])
def test_real_sets_keep_every_annotated_image(tmp_path, real_sets, name):
    source = real_sets / name
    if not source.is_dir():
        pytest.skip(f"no {name}")
    lines = imported(name, source, tmp_path / "out", "--strict")
    table = {"emotion6": "ground_truth.txt", "oasis": "OASIS.csv", "bass": "BASS_data.csv"}[name]
    with (source / table).open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t" if name == "emotion6" else ","))
    assert len(lines) == len(rows) - 1
    assert all(Path(line["image"]).is_file() for line in lines.values())
    assert json.loads((tmp_path / "out/samples.provenance.json").read_text())["counts"]["samples"] == len(rows) - 1
