"""Official scoring: every quirk by hand, and against an independent reimplementation on random lines."""

import json
import random
import re

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from emocaliber.evaluate import official
from emocaliber.evaluate.responses import read_responses
from emocaliber.runtime.cli import main
from emocaliber.runtime.grammar import parse_response_official

JOYS = ["joy", "sadness", "anger"]


def line(task, truth, response, candidates=JOYS):
    return {"task": task, "ground_truth": truth, "candidates": candidates, "response": response}


def tagged(answer, confidence):
    return f"<think>hm</think><answer>{answer}</answer><confidence>{confidence}</confidence>"


def score(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return official.score_official(read_responses(path))


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        # Substring, in list order: "joy" stands before "sadness" in the list though after it in the text.
        ("<answer>sadness, not joy</answer>", "joy", None),
        ("<answer>angerless</answer>", "anger", None),
        # Something in the answer, but no candidate: the reasoning is not looked at.
        ("joy <answer>bliss</answer>", "unknown", None),
        # White space is not empty.
        ("joy <answer> </answer>", "unknown", None),
        # An empty answer, none, or one with a newline inside: anywhere in the text, in list order.
        ("anger, then sadness <answer></answer>", "sadness", None),
        ("I feel ANGER", "anger", None),
        ("<answer>anger\n</answer> sadness", "sadness", None),
        # The first on one line counts, even behind one that is broken by a newline.
        ("<answer>joy\n</answer><answer>anger</answer>", "anger", None),
        ("<answer>anger</answer><answer>joy</answer>", "anger", None),
        ("nothing here", "unknown", None),
        # Tags of the answer in any case, for the text is lower-cased; those of the confidence only in lower case.
        ("<ANSWER>Sadness</ANSWER><Confidence>0.5</Confidence>", "sadness", None),
        ("joy<confidence>{0.8}</confidence>", "joy", 0.8),
        ("joy<confidence> {{.5}} </confidence>", "joy", 0.5),
        ("joy<confidence>85</confidence>", "joy", 85.0),
        ("joy<confidence>-1e-1</confidence>", "joy", -0.1),
        ("joy<confidence>0.3</confidence><confidence>0.9</confidence>", "joy", 0.3),
        ("joy<confidence>0.3\n</confidence>", "joy", None),
        ("joy<confidence>0.3", "joy", None),
        ("joy<confidence>inf</confidence>", "joy", float("inf")),
        ("joy<confidence>1_0</confidence>", "joy", 10.0),
        ("joy<confidence>0.5\n</confidence><confidence>0.7</confidence>", "joy", 0.7),
        ("joy<confidence>0.5<confidence>", "joy", None),
        # Within other words; in capitals; nested tags; separators that are no newline.
        ("<answer>enjoyment</answer>", "joy", None),
        ("<answer>SADNESS.</answer>", "sadness", None),
        ("<answer><answer>anger</answer></answer>", "anger", None),
        ("<answer>no\u2028anger</answer>", "anger", None),
        # The first on one line counts, empty or not; then the whole text is searched.
        ("<think>joy <answer></answer></think><answer>anger</answer>", "joy", None),
    ],
)
def test_what_is_read_from_a_response(text, answer, confidence):
    response = parse_response_official(text, ("Joy", "sadness", "anger"))
    assert (response.answer, response.confidence) == (answer, confidence)


@pytest.mark.parametrize("stated", ["high", "", "0.8.1", "80%", "{}", "0,9", "0.9 (sure)"])
def test_a_confidence_that_is_no_number_drops_the_line(stated):
    assert parse_response_official(f"<answer>joy</answer><confidence>{stated}</confidence>", JOYS) is None


def test_every_figure_by_hand(tmp_path):
    result = score(
        tmp_path / "p.jsonl",
        [
            line("FI-8", "Joy", tagged("joy", "0.9")),  # right
            line("FI-8", "sadness", tagged("anger", "{1.0}")),  # wrong, and in no bin
            line("FI-8", "anger", tagged("bliss", "0.85")),  # unknown, wrong
            line("FI-8", "joy", "<answer>joy</answer>"),  # right, no confidence
            line("FI-8", "joy", tagged("joy", "sure")),  # dropped
            line("EmoSet-8", "sadness", tagged("sadness", "1.7")),  # right, clipped to 1, in no bin
            line("EmoSet-8", "anger", "sadness? no:" + tagged("anger", "-3")),  # right, clipped to 0
            line("UnbaisedEmo-6", "joy", tagged("sadness", "0.5")),  # wrong
            line("My own", "joy", tagged("joy", "0.5")),  # in no group
        ],
    )
    assert result["scoring"] == "official"
    assert result["dropped"] == 1
    fi = result["tasks"]["FI-8"]
    # joy, anger, unknown, joy for joy, sadness, anger, joy: 2 of 4.
    # F1 joy 2*2/(2+2) = 1 with support 2; sadness 0, anger 0 (one answer, wrong); unknown 0 without support.
    assert (fi["acc"], fi["f1"], fi["n"], fi["n_confidence"]) == (0.5, 0.5, 4, 3)
    emoset = result["tasks"]["EmoSet-8"]
    assert (emoset["acc"], emoset["f1"], emoset["n"]) == (1.0, 1.0, 2)
    assert set(result["tasks"]) == {"FI-8", "EmoSet-8", "UnbiasedEmo-6", "My own"}
    group = result["groups"]["ID VER"]
    assert (group["n"], group["n_confidence"]) == (6, 5)
    # With a confidence: 0.9 right, 1.0 wrong, 0.85 wrong, 1 right, 0 right: 3 of 5.
    assert group["acc"] == pytest.approx(3 / 5)
    # Over all six: joy 1 (support 2); sadness TP 1 FN 1: 2/3 (support 2); anger TP 1, FP 1, FN 1: 1/2 (support 2).
    assert group["f1"] == pytest.approx((2 * 1 + 2 * 2 / 3 + 2 * 1 / 2) / 6)
    assert group["acc_task_mean"] == pytest.approx((0.5 + 1.0) / 2)
    # [0, .1): |0 - 1| / 5; [.8, .9): |0.85 - 0| / 5; [.9, 1): |0.9 - 1| / 5; the two at 1.0 only fill the denominator.
    assert group["ece"] == pytest.approx((1 + 0.85 + 0.1) / 5)
    assert group["brier"] == pytest.approx((0.1**2 + 1 + 0.85**2 + 0 + 1) / 5)
    # Right 0.9, 1, 0 against wrong 1, 0.85: 0.9 wins 1 of 2, 1 ties one and wins one, 0 wins none.
    assert group["auroc"] == pytest.approx((1 + 1.5 + 0) / 6)
    # Constants: FI-8 1/3 (three with confidence), EmoSet-8 1: (2/3)^2 + 2 (1/3)^2 + 0 + 0 over 5.
    assert group["baseline"]["brier"] == pytest.approx((4 / 9 + 2 / 9) / 5)
    # Right at 1/3, 1, 1 against wrong at 1/3, 1/3.
    assert group["baseline"]["auroc"] == pytest.approx((0.5 * 2 + 4) / 6)
    # From 0.9 up, on what was stated: 0.9, 1.0 and 1.7, two right, of six; joy F1 1, sadness TP 1 FN 1 2/3, anger 0.
    at = {entry["threshold"]: entry for entry in group["thresholds"]}
    assert list(at) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert at[0.9]["coverage"] == 0.5
    assert at[0.9]["acc"] == pytest.approx(2 / 3)
    assert at[0.9]["f1"] == pytest.approx((1 * 1 + 2 * 2 / 3) / 3)
    assert at[0.1]["coverage"] == pytest.approx(4 / 6)
    ood = result["groups"]["OOD VER"]
    assert (ood["acc"], ood["ece"], ood["brier"], ood["auroc"], ood["n"]) == (0.0, 0.5, 0.25, None, 1)
    # 0.5 is in from 0.5 on, and out above, where nothing is left to judge.
    at = {entry["threshold"]: entry for entry in ood["thresholds"]}
    assert at[0.5] == {"threshold": 0.5, "acc": 0.0, "f1": 0.0, "coverage": 1.0}
    assert at[0.6] == {"threshold": 0.6, "acc": None, "f1": None, "coverage": 0.0}
    empty = result["groups"]["ID VSA"]
    assert (empty["acc"], empty["f1"], empty["ece"], empty["brier"], empty["n"]) == (None, None, None, None, 0)
    # Overall, anywhere in the response: joy right, anger wrong, nothing found wrong, joy right, sadness right,
    # sadness before anger in the list: wrong, sadness wrong, joy right: 4 of 8.
    assert (result["overall"]["acc"], result["overall"]["n"]) == (0.5, 8)


def test_metric_log_keeps_what_the_confidence_drops(tmp_path):
    rows = [
        line("FI-8", "joy", tagged("joy", "0.9")),
        line("FI-8", "joy", tagged("anger", "0.5")),
        line("FI-8", "sadness", tagged("sadness", "sure")),  # kept only before confidences are read
        {**line("FI-8", "joy", ""), "error": ""},  # an empty error is one
    ]
    result = score(tmp_path / "p.jsonl", rows)
    assert (result["errors"], result["dropped"]) == (1, 2)
    assert (result["tasks"]["FI-8"]["acc"], result["tasks"]["FI-8"]["n"]) == (0.5, 2)
    logged = result["metric_log"]["tasks"]["FI-8"]
    # joy TP 1 FN 1: 2/3, support 2; sadness 1, support 1; anger without support.
    assert logged == {"acc": pytest.approx(2 / 3), "f1": pytest.approx((2 * 2 / 3 + 1) / 3), "n": 3}
    # Anywhere: joy, anger, sadness.
    assert result["metric_log"]["overall"]["acc"] == pytest.approx(2 / 3)
    assert result["overall"]["acc"] == 0.5


def test_intervals_and_constant_beside_official_figures(tmp_path):
    rows = [line("FI-2", "joy", tagged(answer, c)) for answer in ("joy", "joy", "anger") for c in ("0.9", "0.4", "0.7")]
    task = score(tmp_path / "p.jsonl", rows)["tasks"]["FI-2"]
    assert set(task["intervals"]) == {"acc", "f1", "ece", "brier", "auroc"}
    assert task["intervals"]["acc"][0] < 2 / 3 < task["intervals"]["acc"][1]
    assert task["baseline"]["acc"] == 1.0
    assert task["baseline"]["brier"] == pytest.approx(2 / 9)


def test_overall_looks_for_candidates_as_spelt(tmp_path):
    rows = [line("FI-2", "positive", tagged("Positive", "0.7"), ["Positive", "Negative"])] * 2
    rows.append(line("FI-2", "negative", "negative or positive", ["positive", "negative"]))
    result = score(tmp_path / "p.jsonl", rows)
    # The task lower-cases candidates: right, right, and "positive" for negative.
    assert result["tasks"]["FI-2"]["acc"] == pytest.approx(2 / 3)
    # Overall does not: "Positive" never occurs in a lower-cased text.
    assert result["overall"]["acc"] == 0.0


def test_bin_edges_are_those_of_linspace(tmp_path):
    # 0.3 lies below numpy's 0.30000000000000004, so it shares the bin of 0.25: |(0.3 + 0.25) / 2 - 1 / 2|.
    rows = [line("FI-2", "joy", tagged("joy", "0.3")), line("FI-2", "joy", tagged("anger", "0.25"))]
    assert score(tmp_path / "p.jsonl", rows)["groups"]["ID VSA"]["ece"] == pytest.approx(0.225)


def test_not_a_number_is_undefined_and_valid_json(tmp_path, capsys):
    rows = [line("FI-2", "joy", tagged("joy", "nan")), line("FI-2", "joy", tagged("anger", "0.25"))]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.json"
    assert main(["evaluate", "--predictions", str(path), "--scoring", "official", "--json", str(out)]) == 0
    group = json.loads(out.read_text(), parse_constant=pytest.fail)["groups"]["ID VSA"]
    assert (group["acc"], group["n_confidence"], group["brier"], group["auroc"]) == (0.5, 2, None, None)
    assert group["ece"] == pytest.approx(0.25 / 2)


def test_published_figures_of_groups_are_the_means_of_tasks():
    from emocaliber.evaluate.vecbench import GROUPS, PUBLISHED

    for group, tasks in GROUPS.items():
        mean = np.mean([PUBLISHED[task].acc for task in tasks])
        assert PUBLISHED[group].acc == pytest.approx(mean, abs=2e-4)


def reimplemented(rows):
    """Returns the figures as anchors describes them, written without a look at the package."""
    read = []
    for row in rows:
        found = re.search("<confidence>(.*?)</confidence>", row["response"])
        stated = None
        if found:
            try:
                stated = float(found[1].replace("{", "").replace("}", ""))
            except ValueError:
                continue
        text = row["response"].lower()
        inside = re.search("<answer>(.*?)</answer>", text)
        place = text if inside is None or inside[1] == "" else inside[1]
        guess, anywhere = "unknown", "unknown"
        for candidate in reversed(row["candidates"]):
            if candidate.lower() in place:
                guess = candidate.lower()
            if candidate in text:
                anywhere = candidate
        task = row["task"].replace("Unbaised", "Unbiased")
        read.append((task, row["ground_truth"].lower(), guess, stated, anywhere))

    def f1(items, which):
        return f1_score([item[1] for item in items], [item[which] for item in items], average="weighted")

    tasks = {}
    for name in {item[0] for item in read}:
        items = [item for item in read if item[0] == name]
        tasks[name] = (sum(item[1] == item[2] for item in items) / len(items), f1(items, 2), len(items))
    groups = {}
    for name, members in {
        "ID VER": ["EmoSet-8", "FI-8", "WebEmo-7", "WebEmo-25"],
        "ID VSA": ["FI-2", "WebEmo-2"],
        "OOD VER": ["UnbiasedEmo-6", "Abstract-8", "Artphoto-8"],
    }.items():
        items = [item for item in read if item[0] in members]
        sure = [item for item in items if item[3] is not None]
        confidence = [min(1.0, max(0.0, item[3])) for item in sure]
        hit = [item[1] == item[2] for item in sure]
        ece, edges = 0.0, np.linspace(0, 1, 11)
        for k in range(10):
            inside = [i for i, c in enumerate(confidence) if edges[k] <= c < edges[k + 1]]
            ece += abs(sum(confidence[i] - hit[i] for i in inside)) / len(confidence)
        brier = sum((c - h) ** 2 for c, h in zip(confidence, hit, strict=True)) / len(hit)
        curve = {
            t: sum(h for h, item in zip(hit, sure, strict=True) if item[3] >= t)
            / max(1, sum(item[3] >= t for item in sure))
            for t in (0.2, 0.7)
        }
        figures = (sum(hit) / len(hit), f1(items, 2), ece, brier, roc_auc_score(hit, confidence), len(items))
        groups[name] = (figures, curve)
    overall = (sum(item[1] == item[4] for item in read) / len(read), f1(read, 4), len(read))
    return tasks, groups, overall


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(8))
def test_random_lines_against_the_reimplementation(tmp_path, seed):
    chance = random.Random(seed)  # noqa: S311
    names = ["EmoSet-8", "FI-8", "WebEmo-7", "FI-2", "WebEmo-2", "UnbaisedEmo-6", "UnbiasedEmo-6", "Artphoto-8", "Own"]
    words = ["joy", "Joy", "sadness", "SADNESS", "anger", "rage", "disjoyed", " ", ""]
    rows = []
    for _ in range(400):
        candidates = chance.sample(["joy", "Sadness", "anger", "rage"], 4)
        answer = chance.choice(words)
        opening, closing = chance.choice(
            [("<answer>", "</answer>")] * 4 + [("<answer>\n", "</answer>"), ("<Answer>", "</ANSWER>"), ("", "")]
        )
        number = chance.choice(["1", "1.0", "0", "{0.7}", "0.3", "0.6", "high", "2.5", "-1", f"{chance.random():.3f}"])
        stated = chance.choice([f"<confidence>{number}</confidence>"] * 4 + ["<confidence>0.5\n</confidence>", ""])
        text = f"<think>{chance.choice(words)} {chance.choice(words)}</think>{opening}{answer}{closing}{stated}"
        rows.append(line(chance.choice(names), chance.choice(["joy", "Sadness", "anger"]), text, candidates))
    result = score(tmp_path / "p.jsonl", rows)
    tasks, groups, overall = reimplemented(rows)
    ours = {name: (t["acc"], t["f1"], t["n"]) for name, t in result["tasks"].items()}
    assert set(ours) == set(tasks)
    for name, figures in tasks.items():
        assert ours[name] == pytest.approx(figures, abs=1e-12)
    for name, (figures, curve) in groups.items():
        group = result["groups"][name]
        got = tuple(group[key] for key in ("acc", "f1", "ece", "brier", "auroc", "n"))
        assert got == pytest.approx(figures, abs=1e-12)
        at = {entry["threshold"]: entry["acc"] for entry in group["thresholds"]}
        assert {t: at[t] for t in curve} == pytest.approx(curve, abs=1e-12)
    assert tuple(result["overall"][key] for key in ("acc", "f1", "n")) == pytest.approx(overall, abs=1e-12)
