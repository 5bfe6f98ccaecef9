"""``emocaliber evaluate`` from the command line, on files with figures worked out by hand."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

import emocaliber.evaluate
from emocaliber.runtime.cli import main

TINY_BUNDLE = Path(__file__).parents[1] / "data" / "tiny_bundle"


def prediction(image, distribution, chosen, taxonomy="sentiment-2", stated=None):
    label = max(distribution, key=distribution.get)
    return {
        "image": image,
        "taxonomy": taxonomy,
        "mode": "direct",
        "label": label,
        "confidence": distribution[label],
        "distribution": distribution,
        "prediction_set": chosen,
        "coverage": 0.9,
        "verbalized_confidence": stated,
        "reasoning": None,
        "calibrated": True,
        "bundle": {"name": "toy", "version": "1", "precision": "fp32", "engine": "cpu"},
        "timing_ms": {},
    }


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(tmp_path):
    """Four labelled images of one task, one of another; the last two have no usable answer."""
    for name in "abcd":
        Image.new("RGB", (32, 24), (90, 120, 200)).save(tmp_path / f"{name}.png")
    samples = [
        {"image": "a.png", "taxonomy": "sentiment-2", "answer": "positive", "split": "test"},
        {"image": "b.png", "taxonomy": "sentiment-2", "votes": {"negative": 3, "positive": 1}, "split": "test"},
        {"image": "c.png", "taxonomy": "sentiment-2", "answer": "positive", "split": "test"},
        {"image": "d.png", "taxonomy": "sentiment-2", "answer": "negative", "split": "test"},
        {"image": "a.png", "taxonomy": "unbiasedemo-6", "answer": "joy", "split": "other"},
    ]
    lines = [
        prediction("a.png", {"negative": 0.2, "positive": 0.8}, ["positive"], stated=0.6),
        prediction("b.png", {"negative": 0.5, "positive": 0.5}, ["negative", "positive"], stated=0.8),
        prediction("c.png", {"negative": 0.7, "positive": 0.3}, ["negative"]),
        {"image": "d.png", "error": {"type": "InputError", "message": "truncated"}},
        prediction("elsewhere.png", {"negative": 0.7, "positive": 0.3}, ["negative"]),
    ]
    write_lines(tmp_path / "samples.jsonl", samples)
    write_lines(tmp_path / "predictions.jsonl", lines)
    return tmp_path


def evaluate(files, *words):
    return main(
        ["evaluate", "--predictions", str(files / "predictions.jsonl"), "--data", str(files / "samples.jsonl"), *words]
    )


def test_json_by_hand(files, capsys):
    assert evaluate(files, "--split", "test", "--json", str(files / "out.json")) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 of 5 predictions belong to no sample" in captured.err
    result = json.loads((files / "out.json").read_text())
    assert result["scoring"] == "strict"
    assert result["groups"] == {}
    task = result["tasks"]["sentiment-2"]
    # a and b are right, c is wrong, d has no answer.
    assert (task["n"], task["answered"], task["acc"]) == (4, 3, 0.5)
    # negative: TP 1 (b), FP 1 (c), FN 1 (d); positive: TP 1 (a), FN 1 (c).
    assert task["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert task["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert task["brier"] == pytest.approx((0.2**2 + 0.5**2 + 0.7**2) / 3)
    # Bins of width 1/15 hold one answer each: |0.8 - 1|, |0.5 - 1|, |0.7 - 0|.
    assert task["ece"] == pytest.approx((0.2 + 0.5 + 0.7) / 3)
    # Right at 0.8 and 0.5, wrong at 0.7: one pair of two in order.
    assert task["auroc"] == 0.5
    assert task["kl"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert task["bayes_acc"] == pytest.approx(0.75)
    assert task["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.5) + math.log(0.3)) / 3)
    assert task["verbalized_brier"] == pytest.approx((0.4**2 + 0.2**2) / 2)
    assert task["verbalized_auroc"] is None
    assert (task["set_target"], task["set_coverage"], task["set_size"]) == (
        0.9,
        pytest.approx(2 / 3),
        pytest.approx(4 / 3),
    )
    assert result["overall"]["acc"] == 0.5


def test_table_on_standard_output(files, capsys):
    assert evaluate(files, "--taxonomy", "sentiment-2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["task", "n", "acc", "f1"]
    assert lines[1].split()[:3] == ["sentiment-2", "4", "0.500"]
    # Of four, two are positive and two negative: either constant answer is right twice.
    assert lines[2].split()[:2] == ["constant", "0.500"]
    assert lines[3].split()[:3] == ["all", "4", "0.500"]


def test_tasks_without_answers_count_as_wrong(files, capsys):
    assert evaluate(files, "--json", str(files / "out.json")) == 0
    result = json.loads((files / "out.json").read_text())
    assert result["tasks"]["unbiasedemo-6"]["acc"] == 0.0
    assert result["tasks"]["unbiasedemo-6"]["brier"] is None
    assert result["overall"]["acc"] == pytest.approx(2 / 5)


@pytest.fixture
def voted(tmp_path):
    """Four images whose votes prefer x, of ten votes each; the last has no answer."""
    votes = {"a": (5, 4, 1), "b": (6, 4, 0), "c": (7, 1, 2), "d": (6, 4, 0)}
    samples = [
        {
            "image": f"{name}.png",
            "taxonomy": "moods",
            "labels": ["x", "y", "z"],
            "votes": dict(zip("xyz", given, strict=True)),
        }
        for name, given in votes.items()
    ]
    lines = [
        prediction("a.png", {"x": 0.7, "y": 0.2, "z": 0.1}, ["x"], "custom"),
        prediction("b.png", {"x": 0.3, "y": 0.6, "z": 0.1}, ["y", "x"], "custom"),
        prediction("c.png", {"x": 0.9, "y": 0.05, "z": 0.05}, ["x"], "custom"),
        {"image": "d.png", "error": {"type": "InputError", "message": "truncated"}},
    ]
    write_lines(tmp_path / "samples.jsonl", samples)
    write_lines(tmp_path / "predictions.jsonl", lines)
    return tmp_path


def test_figures_against_votes_by_hand(voted):
    assert evaluate(voted, "--json", str(voted / "out.json")) == 0
    task = json.loads((voted / "out.json").read_text())["tasks"]["moods"]
    assert task["ece"] == pytest.approx((0.3 + 0.6 + 0.1) / 3)
    assert task["set_coverage"] == 1.0
    # The answers have 0.5, 0.4, 0.7 of the votes and confidences of 0.7, 0.6, 0.9.
    assert task["ece_votes"] == pytest.approx(0.2)
    assert task["brier_votes"] == pytest.approx((0.29 + 0.28 + 0.25) / 3)
    assert task["set_coverage_votes"] == pytest.approx((0.5 + 1 + 0.7) / 3)
    # Each bin holds one answer, 0.2 from its confidence, in every resample.
    assert task["intervals"]["ece_votes"] == pytest.approx([0.2, 0.2])
    for name, least, most in (("brier_votes", 0.25, 0.29), ("set_coverage_votes", 0.5, 1.0)):
        low, high = task["intervals"][name]
        assert least - 1e-9 <= low < task[name] < high <= most + 1e-9
    # The answers have 1.6 / 3 of the votes; all votes together are x 0.6, y 0.325, z 0.075.
    constant = task["baseline"]
    assert constant["ece_votes"] == pytest.approx(0.0)
    assert constant["brier_votes"] == pytest.approx(1.6 / 3 * 1.4 / 3)
    assert (constant["set_coverage"], constant["set_size"]) == (1.0, 2.0)
    assert constant["set_coverage_votes"] == pytest.approx(0.925)


def test_votes_are_shown(voted, capsys):
    report = voted / "report.html"
    assert evaluate(voted, "--report", str(report)) == 0
    header, task, *_ = capsys.readouterr().out.splitlines()
    shown = dict(zip(header.split(), task.split(), strict=True))
    assert (shown["ece_votes"], shown["set_coverage_votes"]) == ("0.200", "0.733")
    html = report.read_text()
    # The column of the tasks, and the row beside that of the label with most votes.
    assert "ECE, votes" in html
    assert "ECE 0.200 against the votes" in html
    assert '<th scope="row">moods, votes</th><td>90%</td><td>73.3%</td>' in html


def test_votes_of_some_samples_are_not_enough(voted, capsys):
    samples = [json.loads(line) for line in (voted / "samples.jsonl").read_text().splitlines()]
    del samples[0]["votes"]
    write_lines(voted / "samples.jsonl", [{**samples[0], "answer": "x"}, *samples[1:]])
    report = voted / "report.html"
    assert evaluate(voted, "--json", str(voted / "out.json"), "--report", str(report)) == 0
    task = json.loads((voted / "out.json").read_text())["tasks"]["moods"]
    for figures in (task, task["baseline"]):
        assert {figures[name] for name in ("ece_votes", "brier_votes", "set_coverage_votes")} == {None}
    # Every right label is x, which is then the set of the constant.
    assert (task["baseline"]["set_coverage"], task["baseline"]["set_size"]) == (1.0, 1.0)
    assert "moods, votes" not in report.read_text()


def test_official_scoring_of_our_own_predictions(files, capsys):
    """The error line is dropped; b answers negative, the earlier of two equal labels, and is right."""
    assert evaluate(files, "--split", "test", "--scoring", "official", "--json", str(files / "out.json")) == 0
    result = json.loads((files / "out.json").read_text())
    task = result["tasks"]["sentiment-2"]
    assert (result["scoring"], result["dropped"]) == ("official", 1)
    assert (task["n"], task["acc"]) == (3, pytest.approx(2 / 3))
    # 0.8 right, 0.5 right, 0.7 wrong, each alone in its bin.
    assert task["ece"] == pytest.approx((0.2 + 0.5 + 0.7) / 3)
    assert {name: group["n"] for name, group in result["groups"].items()} == {"ID VER": 0, "ID VSA": 0, "OOD VER": 0}


@pytest.mark.parametrize("scoring", ["strict", "official"])
def test_comparison_of_our_own_predictions(files, capsys, scoring):
    other = [json.loads(line) for line in (files / "predictions.jsonl").read_text().splitlines()]
    other[0] = prediction("a.png", {"negative": 0.6, "positive": 0.4}, ["negative"])
    write_lines(files / "other.jsonl", other)
    words = ("--split", "test", "--scoring", scoring, "--compare", str(files / "other.jsonl"))
    assert evaluate(files, *words, "--json", str(files / "out.json")) == 0
    compared = json.loads((files / "out.json").read_text())["comparison"]
    # Only a differs, right here and wrong there; official scoring drops d, strict scoring counts it as wrong twice.
    n = {"strict": 4, "official": 3}[scoring]
    assert (compared["n"], compared["acc"]["difference"]) == (n, pytest.approx(1 / n))
    assert compared["brier"]["difference"] == pytest.approx((0.2**2 - 0.6**2) / 3)
    assert evaluate(files, *words) == 0
    assert "compared" in capsys.readouterr().out


def test_report_shows_images_and_tasks(files, capsys):
    assert evaluate(files, "--report", str(files / "report.html")) == 0
    html = (files / "report.html").read_text()
    # Three in the gallery, and c.png again as the one mistake.
    assert html.count("data:image/jpeg;base64,") == 4
    assert "unbiasedemo-6" in html
    assert "2 of 5 samples have no answer" in html


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [*lines, lines[0]], "two predictions for a.png"),
        (lambda lines: [lines[4]], "none of 1 predictions belongs"),
        (lambda lines: [{"image": "a.png"}], "line 1: prediction line: missing key"),
        (lambda lines: [{"label": "joy"}], "names no image"),
        (lambda lines: [], "holds no predictions"),
        (
            lambda lines: [prediction("a.png", {"bad": 0.3, "good": 0.7}, ["good"])],
            "predicted among bad, good; the sample has negative, positive",
        ),
    ],
)
def test_unusable_predictions_are_named(files, capsys, spoil, message):
    path = files / "predictions.jsonl"
    write_lines(path, spoil([json.loads(line) for line in path.read_text().splitlines()]))
    assert evaluate(files, "--json", str(files / "out.json")) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (files / "out.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "nowhere"), "holds no sample of split 'nowhere'"),
        (("--mode", "reason"), "--mode says how a bundle is run"),
    ],
)
def test_unusable_options_are_named(files, capsys, words, message):
    assert evaluate(files, *words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--scoring", "other"), ("--bundle", "b")])
def test_usage_errors_exit_2(files, words):
    with pytest.raises(SystemExit) as stopped:
        evaluate(files, *words)
    assert stopped.value.code == 2


def test_bundle_run_survives_an_unreadable_image(files, capsys):
    (files / "b.png").write_bytes(b"not an image")
    words = ["evaluate", "--bundle", str(TINY_BUNDLE), "--data", str(files / "samples.jsonl"), "--split", "test"]
    report = files / "report.html"
    assert main([*words, "--precision", "fp32", "--json", str(files / "out.json"), "--report", str(report)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "b.png" in captured.err
    task = json.loads((files / "out.json").read_text())["tasks"]["sentiment-2"]
    assert (task["n"], task["answered"]) == (4, 3)
    assert 0 < task["brier"] < 1
    wrong = task["answered"] - round(task["acc"] * task["n"])
    assert report.read_text().count("data:image/jpeg;base64,") == 3 + wrong


def test_exported_names_are_sorted_and_there():
    names = emocaliber.evaluate.__all__
    assert names == sorted(names)
    assert all(hasattr(emocaliber.evaluate, name) for name in names)
