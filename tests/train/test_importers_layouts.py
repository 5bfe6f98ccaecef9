"""Class folders, tables and lists of EmoSet, FI, WebEmo, UnbiasedEmo, ArtPhoto and Abstract."""

import json

import pytest
from importer_run import imported, picture, run_import


def test_class_folders_in_any_case_with_splits_above_and_subfolders_below(tmp_path):
    source = tmp_path / "src"
    picture(source / "train/Amusement/amusement_0001.JPG", 1)
    picture(source / "test/AWE/deep/x.png", 90)
    picture(source / "val/sad/y.png", 180)
    (source / "train/Amusement/notes.txt").write_text("no image")
    picture(source / ".cache/z.png", 250)
    lines = imported("fi", source, tmp_path / "out")
    assert {key: (line["answer"], line["split"]) for key, line in lines.items()} == {
        "fi/train/Amusement/amusement_0001.JPG": ("amusement", "train"),
        "fi/test/AWE/deep/x.png": ("awe", "test"),
        "fi/val/sad/y.png": ("sadness", "validation"),
    }
    assert {line["taxonomy"] for line in lines.values()} == {"fi-8"}


def test_unbiasedemo_objects_stand_below_the_emotion(tmp_path):
    picture(tmp_path / "src/images/love/cat/1.jpg", 1)
    picture(tmp_path / "src/images/fear/love/2.jpg", 90)  # the outermost label counts
    lines = imported("unbiasedemo", tmp_path / "src", tmp_path / "out")
    assert [line["answer"] for line in lines.values()] == ["fear", "love"]


def test_coarser_taxonomies_are_derived_and_share_the_split(tmp_path):
    classes = ["affection", "Cheerfulness", "irritabilty", "sympathy", "surprise", "confusion", "nervousness"]
    for number, name in enumerate(classes):
        picture(tmp_path / "src" / name / "1.jpg", number * 30)
    words = [word for name in ("webemo-25", "webemo-7", "webemo-2") for word in ("--taxonomy", name)]
    lines = imported("webemo", tmp_path / "src", tmp_path / "out", *words)
    assert len(lines) == 21
    found = {
        name: [lines[f"webemo/{name}/1.jpg{suffix}"]["answer"] for suffix in ("", "#webemo-7", "#webemo-2")]
        for name in classes
    }
    # From the table of WebEmo's hierarchy, by hand.
    assert found == {
        "affection": ["affection", "love", "positive"],
        "Cheerfulness": ["cheerfullness", "joy", "positive"],
        "irritabilty": ["irritabilty", "anger", "negative"],
        "sympathy": ["sympathy", "sadness", "negative"],
        "surprise": ["surprise", "surprise", "positive"],
        "confusion": ["confusion", "confusion", "negative"],
        "nervousness": ["nervousness", "fear", "negative"],
    }
    for name in classes:
        assert len({line["split"] for key, line in lines.items() if f"/{name}/" in key}) == 1


def test_webemo_lists_of_addresses_and_numbers(tmp_path):
    """Lines as its authors publish them; the images as three public readers save them."""
    source = tmp_path / "src"
    address = "https://stock.example/jpg/01/00/{}.jpg"
    lists = {
        "train25.txt": [("a", 0), ("b", 24), ("gone", 3)],
        "test25.txt": [("c", 11), ("d", 17)],
    }
    source.mkdir()
    for name, rows in lists.items():
        (source / name).write_text("".join(f"{address.format(stem)} {number}\n" for stem, number in rows))
    for number, place in enumerate(("train25/0/a", "images/train/24/b", "images/11/c", "d")):
        picture(source / f"{place}.jpg", number * 60)
    lines = imported("webemo", source, tmp_path / "out", "--taxonomy", "webemo-25", "--taxonomy", "webemo-7")
    fine = {key: (line["answer"], line["split"]) for key, line in lines.items() if "#" not in key}
    # Positions in the alphabetical order of the 25, counted by hand.
    assert fine == {
        "webemo/train25/0/a.jpg": ("affection", "train"),
        "webemo/train/24/b.jpg": ("zest", "train"),
        "webemo/11/c.jpg": ("irritabilty", "test"),
        "webemo/d.jpg": ("rage", "test"),
    }
    assert lines["webemo/d.jpg#webemo-7"]["answer"] == "anger"


def test_webemo_lists_of_paths_with_three_numbers(tmp_path):
    index = tmp_path / "test-images-25-6-2-category.txt"
    index.write_text("/data/stock/images/25-category/envy/7.jpg 7 0 0\n")
    picture(tmp_path / "images/25-category/envy/7.jpg", 1)
    [line] = imported("webemo", index, tmp_path / "out").values()
    assert (line["answer"], line["split"]) == ("envy", "test")


def test_webemo_folders_named_by_numbers(tmp_path):
    picture(tmp_path / "src/images/test25/10/x.jpg", 1)
    picture(tmp_path / "src/images/train25/22/y.jpg", 90)
    lines = imported("webemo", tmp_path / "src", tmp_path / "out")
    assert [(line["answer"], line["split"]) for line in lines.values()] == [("horror", "test"), ("surprise", "train")]
    # Other sets have no numbered classes.
    assert run_import("fi", tmp_path / "src", tmp_path / "out2") == 1


@pytest.mark.parametrize("text", ["https://stock.example/a.jpg\n", "https://stock.example/a.jpg 25\n", "a.jpg joy\n"])
def test_a_broken_webemo_list_is_named(tmp_path, capsys, text):
    (tmp_path / "train25.txt").write_text(text)
    assert run_import("webemo", tmp_path, tmp_path / "out") == 1
    assert "train25.txt, line 1 is" in capsys.readouterr().err


def test_the_hierarchy_of_webemo_is_complete():
    from emocaliber.runtime.taxonomy import TAXONOMIES
    from emocaliber.train.importers.hierarchy import WEBEMO_7

    fine = [label for labels in WEBEMO_7.values() for label in labels]
    assert sorted(fine) == sorted(TAXONOMIES["webemo-25"].labels)
    assert sorted(WEBEMO_7) == sorted(TAXONOMIES["webemo-7"].labels)


def test_fi_polarity(tmp_path):
    names = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
    for number, name in enumerate(names):
        picture(tmp_path / "src" / name / "1.jpg", number * 30)
    lines = imported("fi", tmp_path / "src", tmp_path / "out", "--taxonomy", "fi-2")
    assert [lines[f"fi/{name}/1.jpg#fi-2"]["answer"] for name in names] == ["positive"] * 4 + ["negative"] * 4


def test_artphoto_has_its_labels_in_the_file_names(tmp_path):
    picture(tmp_path / "src/content_0001.jpg", 1)
    picture(tmp_path / "src/Sad_0002.jpg", 90)
    lines = imported("artphoto", tmp_path / "src", tmp_path / "out")
    assert lines["artphoto/content_0001.jpg"]["answer"] == "contentment"
    assert lines["artphoto/Sad_0002.jpg"]["answer"] == "sadness"
    picture(tmp_path / "src/cat_0003.jpg", 180)
    assert run_import("artphoto", tmp_path / "src", tmp_path / "out") == 1


def test_an_image_without_a_label_folder_is_refused_by_name(tmp_path, capsys):
    picture(tmp_path / "src/anger/1.jpg", 1)
    picture(tmp_path / "src/boredom/2.jpg", 90)
    assert run_import("fi", tmp_path / "src", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "2.jpg: no folder above it is named as a label of fi-8" in message


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    assert run_import("emoset", tmp_path / "src", tmp_path / "out") == 1
    assert "holds no images" in capsys.readouterr().err


def test_emoset_lists_with_and_without_an_id(tmp_path):
    source = tmp_path / "src"
    rows = {
        "train": [["amusement", "amusement_1", "image/amusement/amusement_1.jpg", "annotation/amusement/a.json"]],
        "val": [["awe", "image/awe/awe_2.jpg", "annotation/awe/awe_2.json"]],
        "test": [["fear", "image/fear/fear_3.jpg", "annotation/fear/fear_3.json"]],
    }
    for number, (name, entries) in enumerate(rows.items()):
        path = next(cell for cell in entries[0] if cell.endswith(".jpg"))
        picture(source / path, number * 60)
        (source / f"{name}.json").write_text(json.dumps(entries))
    picture(source / "image/fear/unlisted.jpg", 250)
    lines = imported("emoset", source, tmp_path / "out")
    assert {key: (line["answer"], line["split"]) for key, line in lines.items()} == {
        "emoset/image/amusement/amusement_1.jpg": ("amusement", "train"),
        "emoset/image/awe/awe_2.jpg": ("awe", "validation"),
        "emoset/image/fear/fear_3.jpg": ("fear", "test"),
    }


def test_emoset_attributes_are_annotations(tmp_path, capsys):
    picture(tmp_path / "image/awe/awe_2.jpg")
    (tmp_path / "train.json").write_text('[["awe", "image/awe/awe_2.jpg", "annotation/awe/awe_2.json"]]')
    noted = tmp_path / "annotation/awe/awe_2.json"
    noted.parent.mkdir(parents=True)
    attributes = {"emotion": "awe", "brightness": 0.4, "scene": "Lake", "object": ["Tree", "Boat"], "human_action": ""}
    noted.write_text(json.dumps(attributes))
    (line,) = imported("emoset", tmp_path, tmp_path / "out").values()
    assert line["annotations"] == {"scene": "lake", "object": "tree, boat"}
    for text, message in (("{", "awe_2.json is not JSON"), ("[]", "awe_2.json holds no object")):
        noted.write_text(text)
        assert run_import("emoset", tmp_path, tmp_path / "out") == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[["amusement", 3]]', "train.json, entry 1 is ['amusement', 3]"),
        ('[["boredom", "image/a.jpg"]]', "train.json, entry 1: label 'boredom' is not in taxonomy emoset-8"),
        ("{}", "holds no list"),
        ("[", "is not JSON"),
    ],
)
def test_a_broken_list_is_named(tmp_path, capsys, text, message):
    (tmp_path / "train.json").write_text(text)
    assert run_import("emoset", tmp_path, tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_tables_of_paths_and_labels(tmp_path):
    picture(tmp_path / "images/a.jpg", 1)
    picture(tmp_path / "images/sub/b.jpg", 90)
    table = tmp_path / "labels.csv"
    table.write_text("\ufeffImage,Label,Split\na.jpg,Joy,train\nsub\\b.jpg,LOVE,testing\n", encoding="utf-8")
    lines = imported("unbiasedemo", table, tmp_path / "out")
    assert lines["unbiasedemo/a.jpg"]["answer"] == "joy"
    assert lines["unbiasedemo/sub/b.jpg"]["split"] == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.jpg\n", "line 1: no column label or emotion"),
        ("label\njoy\n", "line 1: no column image_path or image"),
        ("path,label\na.jpg,joy\na.jpg,boredom\n", "line 3: label 'boredom' is not in taxonomy unbiasedemo-6"),
        ("path,label\n,joy\n", "line 2: path is empty"),
    ],
)
def test_a_broken_table_is_named(tmp_path, capsys, text, message):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    assert run_import("unbiasedemo", table, tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_paths_that_climb_out_are_copied_inside(tmp_path):
    picture(tmp_path / "away/a.jpg")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/labels.csv").write_text("path,label\n../away/a.jpg,joy\n")
    lines = imported("unbiasedemo", tmp_path / "src/labels.csv", tmp_path / "out", "--copy")
    assert lines["unbiasedemo/../away/a.jpg"]["image"] == "images/away/a.jpg"
    assert (tmp_path / "out/images/away/a.jpg").is_file()
