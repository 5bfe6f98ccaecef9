"""VECBench test lines and tables, VEC-CoT and other ms-swift lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from importer_run import imported, picture, provenance, run_import

MIKELS = ["amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"]
QUESTION = "Which emotion might this image evoke? Choose the most likely one from [{}]. Think step by step."
THINK = (
    "<think><element>a lake</element><human>nobody</human><context>dawn</context>"
    "<interaction>none</interaction><analysis>calm</analysis></think>"
)


def bench(image: str, task: str, truth: str, candidates: list[str], **more: Any) -> dict[str, Any]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION.format(", ".join(candidates))}]
    turns = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]
    return {"conversations": turns, "task": task, "ground_truth": truth, "candidates": candidates, **more}


def swift(image: str, reply: str, candidates: list[str] = MIKELS, **more: Any) -> dict[str, Any]:
    question = "<image>" + QUESTION.format(", ".join(candidates))
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": turns, "images": [image], **more}


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_test_lines_with_any_candidate_order_spelling_and_image_root(tmp_path):
    picture(tmp_path / "images/EmoSet/a.jpg", 1)
    picture(tmp_path / "images/UnbiasedEmo/b.jpg", 60)
    picture(tmp_path / "images/WebEmo/c.jpg", 120)
    path = write(
        tmp_path / "VECBench/test.jsonl",
        bench("images/EmoSet/a.jpg", "EmoSet-8", "Awe", MIKELS),
        bench("/somebody/else/images/UnbiasedEmo/b.jpg", "UnbaisedEmo-6", "love",
              ["love", "joy", "surprise", "anger", "sadness", "fear"]),
        bench("file:///data/images/WebEmo/c.jpg", "WebEmo-2", "Positive", ["positive", "negative"]),
    )  # fmt: skip
    lines = imported("vecbench", path, tmp_path / "out")
    found = [(line["taxonomy"], line["answer"], line["split"]) for line in lines.values()]
    assert found == [
        ("emoset-8", "awe", "test"), ("unbiasedemo-6", "love", "test"), ("webemo-2", "positive", "test")
    ]  # fmt: skip
    assert [Path(line["image"]) for line in lines.values()] == [
        tmp_path / "images" / name for name in ("EmoSet/a.jpg", "UnbiasedEmo/b.jpg", "WebEmo/c.jpg")
    ]
    assert list(lines) == ["vecbench/test/1", "vecbench/test/2", "vecbench/test/3"]
    assert all("labels" not in line for line in lines.values())
    counts = provenance(tmp_path / "out")["counts"]
    assert counts["unbiasedemo-6: candidates listed in another order"] == 1
    assert counts["webemo-2: candidates listed in another order"] == 1


def test_webemo_spellings_are_accepted(tmp_path):
    labels = [
        "affection", "cheerfulness", "confusion", "contentment", "disappointment", "disgust", "enthrallment", "envy",
        "exasperation", "gratitude", "horror", "irritability", "lust", "neglect", "nervousness", "optimism", "pride",
        "rage", "relief", "sadness", "shame", "suffering", "surprise", "sympathy", "zest",
    ]  # fmt: skip
    picture(tmp_path / "c.jpg")
    path = write(tmp_path / "test.jsonl", bench("c.jpg", "WebEmo-25", "irritability", labels))
    line = imported("vecbench", path, tmp_path / "out")["vecbench/test/1"]
    assert line["answer"] == "irritabilty"


def test_a_table_keeps_its_splits_and_a_picture_of_train_and_test_is_only_tested(tmp_path):
    for number, name in enumerate(("a", "b")):
        picture(tmp_path / f"images/{name}.jpg", number * 90)
    table = tmp_path / "VECBench/metadata.csv"
    table.parent.mkdir()
    table.write_text(
        "image_path,label,task,split\nimages/a.jpg,awe,FI-8,train\nimages/a.jpg,positive,FI-2,test\n"
        "images/b.jpg,fear,FI-8,train\n"
    )
    lines = imported("vecbench", table, tmp_path / "out")
    assert {key: (line["taxonomy"], line["answer"], line["split"]) for key, line in lines.items()} == {
        "vecbench/metadata/3": ("fi-2", "positive", "test"),
        "vecbench/metadata/4": ("fi-8", "fear", "train"),
    }


def test_reasoning_and_confidence_are_read_by_the_strict_grammar(tmp_path):
    for number in range(4):
        picture(tmp_path / f"images/EmoSet/{number}.jpg", number * 60)
    path = write(
        tmp_path / "VEC-CoT/stage2.jsonl",
        swift("EmoSet/0.jpg", f"{THINK}\n<answer>Awe</answer>\n<confidence>0.85</confidence>"),
        swift("EmoSet/1.jpg", f"{THINK}<answer>fear</answer>"),
        swift("EmoSet/2.jpg", "<think>short</think><answer>fear</answer><confidence>0.85</confidence>"),
        swift("EmoSet/3.jpg", f"{THINK}<answer>fear</answer>", ground_truth="anger"),
    )
    lines = imported("vec-cot", path, tmp_path / "out", "--images", str(tmp_path / "images"))
    first = lines["vec-cot/stage2/1"]
    assert first["reasoning"] == {
        "element": "a lake", "human": "nobody", "context": "dawn", "interaction": "none", "analysis": "calm"
    }  # fmt: skip
    assert (first["answer"], first["confidence"], first["taxonomy"]) == ("awe", 0.85, "emoset-8")
    assert first["split"] == "train"
    assert "confidence" not in lines["vec-cot/stage2/2"]
    assert lines["vec-cot/stage2/2"]["reasoning"]["analysis"] == "calm"
    assert "reasoning" not in lines["vec-cot/stage2/3"]
    assert lines["vec-cot/stage2/3"]["answer"] == "fear"
    assert "reasoning" not in lines["vec-cot/stage2/4"]
    assert lines["vec-cot/stage2/4"]["answer"] == "anger"
    counts = provenance(tmp_path / "out")["counts"]
    assert counts["responses that break the grammar: no reasoning"] == 1
    assert counts["responses with another answer than the truth: no reasoning"] == 1


def test_the_label_set_comes_from_the_path_the_option_or_the_candidates(tmp_path):
    images = ["FI/a.jpg", "Artphoto/b.jpg", "other/c.jpg", "other/d.jpg", "other/e.jpg"]
    for number, name in enumerate(images):
        picture(tmp_path / name, number * 45)
    path = write(
        tmp_path / "lines.jsonl",
        swift(images[0], "<answer>awe</answer>"),
        swift(images[1], "<answer>awe</answer>"),
        swift(images[2], "<answer>calm</answer>", ["calm", "tense"]),
        swift(images[3], "<answer>love</answer>", ["anger", "fear", "joy", "love", "sadness", "surprise"]),
        swift(images[4], "<answer>awe</answer>"),  # four sets have these eight, nothing says which
    )
    lines = list(imported("vec-cot", path, tmp_path / "out").values())
    assert [line["taxonomy"] for line in lines] == ["fi-8", "artphoto-8", "custom", "unbiasedemo-6", "custom"]
    assert [line.get("labels") for line in lines] == [None, None, ["calm", "tense"], None, MIKELS]
    only = write(tmp_path / "only.jsonl", swift(images[4], "<answer>awe</answer>"))
    line = imported("vec-cot", only, tmp_path / "out", "--taxonomy", "emoset-8")["vec-cot/only/1"]
    assert line["taxonomy"] == "emoset-8"


def test_questions_of_polarity_and_the_other_chat_dialect(tmp_path):
    picture(tmp_path / "FI/a.jpg")
    turns = [
        {"from": "human", "value": "<image>Is the emotion positive or negative?"},
        {"from": "gpt", "value": "<answer>Negative</answer>"},
    ]
    path = write(tmp_path / "lines.jsonl", {"conversations": turns, "image": "FI/a.jpg"})
    line = imported("vec-cot", path, tmp_path / "out")["vec-cot/lines/1"]
    assert (line["taxonomy"], line["answer"]) == ("fi-2", "negative")


def test_equal_file_names_of_different_folders_are_not_mixed_up(tmp_path):
    picture(tmp_path / "anger/1.jpg", 1)
    path = write(
        tmp_path / "lines.jsonl",
        bench("x/y/anger/1.jpg", "FI-8", "anger", MIKELS),
        bench("x/y/fear/1.jpg", "FI-8", "fear", MIKELS),
    )
    assert list(imported("vecbench", path, tmp_path / "out")) == ["vecbench/lines/1"]
    assert provenance(tmp_path / "out")["counts"]["left out: image is listed but absent"] == 1


GOOD = bench("a.jpg", "FI-8", "awe", MIKELS)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "ground_truth": "boredom"}, "line 2: label 'boredom' is not in fi-8"),
        ({**GOOD, "task": "FI-9"}, "line 2: unknown task 'FI-9'"),
        ({**GOOD, "candidates": ["awe", "fear"]}, "line 2: candidates are awe, fear, but fi-8 consists of"),
        ({**GOOD, "candidates": "awe"}, "line 2: candidates are 'awe', expected a list"),
        ({**GOOD, "images": ["a.jpg", "b.jpg"]}, "line 2: 2 image paths, expected one"),
        ({**GOOD, "images": ["https://example.org/a.jpg"]}, "expected the path of a local file"),
        ({**GOOD, "conversations": None}, "line 2: neither messages nor conversations"),
        ({"messages": [{"role": "user", "content": "Why?"}], "images": ["a.jpg"]}, "neither a task nor candidates"),
        (swift("a.jpg", "I think it is awe."), "line 2: no ground_truth"),
        ([1], "line 2: expected an object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, capsys, record, message):
    picture(tmp_path / "a.jpg")
    path = write(tmp_path / "test.jsonl", GOOD, record)
    assert run_import("vecbench", path, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "test.jsonl" in error
    assert message in error


def test_lines_that_are_no_json_are_named(tmp_path, capsys):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{oops\n")
    assert run_import("vecbench", path, tmp_path / "out") == 1
    assert "test.jsonl, line 2: not JSON" in capsys.readouterr().err
