"""Response lines: strict scoring, comparison of two runs, unusable files, and the report made of them."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from emocaliber.evaluate.comparing import mcnemar, sign_flip
from emocaliber.runtime.cli import main

PARTS = "".join(f"<{tag}>x</{tag}>" for tag in ("element", "human", "context", "interaction", "analysis"))


def line(truth, response, task="FI-2", **more):
    candidates = ["positive", "negative"]
    return {"task": task, "ground_truth": truth, "candidates": candidates, "response": response, **more}


def said(answer, confidence=None):
    stated = "" if confidence is None else f"<confidence>{confidence}</confidence>"
    return f"<think>{PARTS}</think><answer>{answer}</answer>{stated}"


ROWS = [
    line("positive", said("Positive", 0.8), image="a.png", id=1),
    line("negative", said("positive", 0.6), image="a.png", id=2),
    line("negative", "<answer>negative</answer><confidence>0.7</confidence>", task="webemo-2", id=3),
    line("positive", said("positive"), task="WebEmo-2", id=4),
    line("positive", "positive, surely", task="WebEmo-2", id=5),
    line("positive", said("positive", 1.0), task="WebEmo-2", id=6),
    {**line("positive", "", task="WebEmo-2", id=7), "response": None, "error": "out of memory"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def evaluate(tmp_path, rows, *words):
    out = tmp_path / "out.json"
    path = write(tmp_path / "p.jsonl", rows)
    assert main(["evaluate", "--predictions", path, "--json", str(out), *words]) == 0
    return json.loads(out.read_text(), parse_constant=pytest.fail)


def test_strict_scoring_by_hand(tmp_path):
    result = evaluate(tmp_path, ROWS)
    assert result["scoring"] == "strict"
    assert result["truth_not_a_candidate"] == 0
    fi, web = result["tasks"]["FI-2"], result["tasks"]["WebEmo-2"]
    assert (fi["acc"], fi["n"], fi["parse_rate"]) == (0.5, 2, 1.0)
    # No tags, a confidence of 1, and an error are no answers: two of five are right.
    assert (web["acc"], web["n"], web["answered"], web["n_confidence"]) == (0.4, 5, 2, 1)
    group = result["groups"]["ID VSA"]
    assert list(result["groups"]) == ["ID VSA"]
    assert group["acc"] == pytest.approx(3 / 7)
    assert group["acc_task_mean"] == pytest.approx(0.45)
    assert group["parse_rate"] == pytest.approx(4 / 7)
    assert group["brier"] == pytest.approx((0.2**2 + 0.6**2 + 0.3**2) / 3)
    # Constants: 1/2 for FI-2, 1 for the one answer of WebEmo-2 that states a confidence.
    assert group["baseline"]["brier"] == pytest.approx((0.25 + 0.25 + 0) / 3)
    assert group["brier_skill"] == pytest.approx(1 - (0.04 + 0.36 + 0.09) / 0.5)
    # Right 0.8 and 0.7, wrong 0.6.
    assert (group["auroc"], group["auroc_within"]) == (1.0, 1.0)
    # Surest first: right, right, wrong; the best order is the same.
    assert group["aurc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert group["e_aurc"] == pytest.approx(0.0)
    assert (group["nll"], group["kl"], group["ece_classwise"]) == (None, None, None)


def test_official_scoring_of_the_same_lines(tmp_path):
    result = evaluate(tmp_path, ROWS, "--scoring", "official")
    # All are right but id 2; the error line is dropped.
    assert result["dropped"] == 1
    assert result["tasks"]["FI-2"]["acc"] == 0.5
    assert result["tasks"]["WebEmo-2"]["acc"] == 1.0


@pytest.mark.parametrize("first", [True, False])
def test_failed_images_of_the_published_inference_are_counted(tmp_path, first):
    """It writes only what it was given and the error; a line of an earlier version has its fields beside the error."""
    asked = {"conversations": [], "task": "FI-2", "ground_truth": "positive", "candidates": ["positive", "negative"]}
    failed = {"original_data": asked, "error": "cannot identify image file"}
    rows = [failed, *ROWS] if first else [*ROWS, failed]
    strict = evaluate(tmp_path, rows)
    assert (strict["errors"], strict["overall"]["n"]) == (2, 8)
    # Of FI-2 one in three is right now, and two in three have an answer.
    assert strict["tasks"]["FI-2"]["acc"] == pytest.approx(1 / 3)
    assert strict["tasks"]["FI-2"]["parse_rate"] == pytest.approx(2 / 3)
    published = evaluate(tmp_path, rows, "--scoring", "official")
    assert (published["errors"], published["dropped"]) == (2, 2)
    assert published["tasks"]["FI-2"]["acc"] == 0.5


def test_constant_of_each_task_by_hand(tmp_path):
    constant = evaluate(tmp_path, ROWS)["overall"]["baseline"]
    # FI-2: one of two whatever is answered; WebEmo-2: "positive" is right four times of five.
    assert constant["acc"] == pytest.approx((1 + 4) / 7)
    # Taken as positive: 5 right; positive 2 * 5 / (5 + 7), negative never.
    assert constant["f1"] == pytest.approx(5 / 7 * 10 / 12)
    assert constant["macro_f1"] == pytest.approx((10 / 12 + 0) / 2)
    # Two at 0.5, one right; and one at 1 that is right.
    assert constant["log_loss"] == pytest.approx(2 * np.log(2) / 3, abs=1e-5)
    assert constant["ece"] == pytest.approx(0.0)
    assert (constant["nll"], constant["kl"], constant["set_size"]) == (None, None, None)


def test_every_figure_has_an_interval_and_the_file_says_how(tmp_path):
    result = evaluate(tmp_path, ROWS)
    assert result["bootstrap"] == {"level": 0.95, "resamples": 1000, "seed": 0, "drawn_within": "task"}
    group = result["groups"]["ID VSA"]
    counts = {"n", "answered", "n_confidence", "baseline", "intervals"}
    means = {"acc_task_mean", "f1_task_mean", "macro_f1_task_mean"}
    figures = {name for name, value in group.items() if value is not None} - counts - means
    assert set(group["intervals"]) == figures
    # Of seven draws within two tasks, some have no right answer in FI-2 and all in WebEmo-2.
    low, high = group["intervals"]["acc"]
    assert 0 <= low < group["acc"] < high <= 1


def test_images_named_in_the_conversation_are_shown(tmp_path):
    (tmp_path / "FI").mkdir()
    Image.new("RGB", (32, 24), (90, 120, 200)).save(tmp_path / "FI/a.png")
    parts = [{"type": "image", "image": "file:///authors/disk/FI/a.png"}, {"type": "text", "text": "Which?"}]
    row = line("negative", said("positive", 0.6), conversations=[{"role": "user", "content": parts}])
    report = tmp_path / "r.html"
    evaluate(tmp_path, [row], "--report", str(report))
    assert report.read_text().count("data:image/jpeg;base64,") == 1


def test_truth_by_alias_and_truth_that_is_no_candidate(tmp_path):
    rows = [
        {"task": "WebEmo-25", "ground_truth": truth, "candidates": ["cheerfullness", "rage"], "response": said("rage")}
        for truth in ("cheerfulness", "bliss", "rage")
    ]
    result = evaluate(tmp_path, rows)
    assert result["truth_not_a_candidate"] == 1
    assert result["overall"]["acc"] == pytest.approx(1 / 3)


def test_comparison_by_hand(tmp_path):
    other = [dict(row) for row in reversed(ROWS)]
    for row in other:
        if row["id"] in (1, 4):
            row["response"] = said("negative", 0.9)
    compared = evaluate(tmp_path, ROWS, "--compare", write(tmp_path / "other.jsonl", other))["comparison"]
    assert (compared["n"], compared["n_confidence"]) == (7, 3)
    # This run gets ids 1, 3, 4; the other one only 3: two won, none lost, p = 2 / 2^2.
    assert compared["acc"]["difference"] == pytest.approx(2 / 7)
    assert compared["acc"]["p"] == pytest.approx(0.5)
    # Both state a confidence for 1, 2, 3; only 1 differs: 0.2^2 against 0.9^2.
    assert compared["brier"]["difference"] == pytest.approx((0.04 - 0.81) / 3)
    assert compared["brier"]["low"] <= compared["brier"]["difference"] <= compared["brier"]["high"]
    # One difference that is not zero: every sign reaches it, and every exchange.
    assert compared["brier"]["p"] == 1.0
    assert compared["log_loss"]["difference"] == pytest.approx((np.log(0.1) - np.log(0.8)) / 3)
    # 15 bins, one confidence each: this run 0.2 + 0.6 + 0.3, the other 0.9 instead of 0.2.
    assert compared["ece"]["difference"] == pytest.approx((0.2 - 0.9) / 3)
    assert compared["ece"]["p"] == 1.0
    assert compared["ece"]["low"] <= compared["ece"]["difference"] <= compared["ece"]["high"]
    # This run: two right above one wrong; the other: one right between two wrong.
    assert compared["auroc"]["difference"] == pytest.approx(1 - 1 / 2)
    assert (compared["nll"], compared["kl"]) == (None, None)


def test_exchange_test_by_hand(tmp_path):
    """Ten lines, all differ by as much: of 2^10 exchanges only two reach the difference of ECE."""
    rows = [line("positive", said("positive", 0.9), id=k) for k in range(10)]
    other = [line("positive", said("positive", 0.6), id=k) for k in range(10)]
    compared = evaluate(tmp_path, rows, "--compare", write(tmp_path / "other.jsonl", other))["comparison"]
    assert compared["ece"]["difference"] == pytest.approx(-0.3)
    # 1,000 draws: about two reach it, and one is added; 12 or more would come once in a million times.
    assert 1 / 1001 <= compared["ece"]["p"] < 12 / 1001
    assert compared["auroc"] is None


def test_tests_of_differences():
    mine, theirs = np.array([1] * 12 + [0] * 3 + [1] * 5), np.array([0] * 12 + [1] * 3 + [1] * 5)
    assert mcnemar(mine.astype(float), theirs.astype(float)) == pytest.approx(binomtest(3, 15).pvalue)
    assert mcnemar(np.ones(3), np.ones(3)) == 1.0
    # Ten equal differences: 2 of 2^10 sign patterns reach their sum.
    assert sign_flip(np.full(10, 0.3), flips=40000) == pytest.approx(2 / 1024, abs=1e-3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROWS[0], "candidates": "joy"}], "line 1: candidates are 'joy'"),
        ([ROWS[0], {"task": "FI-2"}], "line 2: not a response line: it has no ground_truth, candidates, response"),
        ([ROWS[0], {**ROWS[0], "response": 3}], "line 2: response is 3"),
    ],
)
def test_unusable_lines_are_named(tmp_path, capsys, rows, message):
    assert main(["evaluate", "--predictions", write(tmp_path / "p.jsonl", rows)]) == 1
    assert message in capsys.readouterr().err


def test_cut_off_files_are_refused(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:40])
    assert main(["evaluate", "--predictions", str(path)]) == 1
    assert "line 2: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([line("positive", "x")], "and no ids or images by which to pair them"),
        ([{**ROWS[0], "id": 99}], "no line of one run is about"),
        ([{**ROWS[0], "ground_truth": "negative"}], "different questions"),
    ],
)
def test_runs_that_do_not_pair_are_refused(tmp_path, capsys, other, message):
    words = ["--compare", write(tmp_path / "other.jsonl", other)]
    assert main(["evaluate", "--predictions", write(tmp_path / "p.jsonl", ROWS), *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("scoring", ["strict", "official"])
def test_report_of_responses(tmp_path, scoring):
    Image.new("RGB", (32, 24), (90, 120, 200)).save(tmp_path / "a.png")
    report = tmp_path / "r.html"
    compared = ("--compare", str(tmp_path / "p.jsonl"))
    evaluate(tmp_path, ROWS, "--report", str(report), "--scoring", scoring, *compared)
    html = report.read_text()
    # The one sure mistake, id 2, with its image; the paper's accuracy of FI-2; the matrix; the curve; the comparison.
    assert html.count("data:image/jpeg;base64,") == 1
    for expected in (
        "Surely wrong",
        "88.10",
        "worth more than a constant",
        "stay silent",
        "taken for what",
        "minus p.j",
    ):
        assert expected in html
    assert "green is the best" not in html
