"""``emocaliber data build-cot --from model``, whole, against a real HTTP server and against a model in memory."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chat_server import Reply, chat_server, image_of, text_of
from PIL import Image
from tiny_model import build_model, build_processor

from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.grammar import REASONING_TAGS, render_response
from emocaliber.runtime.samples import Sample, read_samples, write_samples
from emocaliber.train.cot.prompted import BLANK, PromptSettings, blanked, gives_away

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
FILES = ("samples.jsonl", "rejected.jsonl", "samples.provenance.json")
STEP = 12
"""Grey levels between two images, by which the server knows which is which."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def make_source(folder: Path, count: int) -> Path:
    samples = []
    for number in range(count):
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), number * STEP, np.uint8)).save(folder / f"{number}.png")
        answer = LABELS[number % len(LABELS)]
        samples.append(Sample(image=f"{number}.png", taxonomy="emotion6-7", answer=answer, id=f"s/{number}"))
    write_samples(samples, folder / "samples.jsonl")
    return folder / "samples.jsonl"


def number_of(body):
    return round(float(np.asarray(image_of(body)).mean()) / STEP)


def is_judge(body):
    return "blanked" in text_of(body)


def good(number, seed):
    answer = LABELS[number % len(LABELS)]
    parts = {tag: f"{tag} of image {number}, attempt {seed}" for tag in REASONING_TAGS}
    parts["analysis"] = f"grey {number} weighs most, so {answer}"
    return render_response(answer, None, parts)


def verdict(number, *, right=True):
    return f"<answer>{LABELS[(number + (not right)) % len(LABELS)]}</answer>"


def convincing(body, _):
    number = number_of(body)
    return Reply(texts=(verdict(number) if is_judge(body) else good(number, body["seed"]),))


def rejected_in(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def build(server, source, out, *words):
    quick = ["--retries", "2", "--concurrency", "4", "--timeout-s", "5"]
    asked = ["--from", "model", "--endpoint", server.url, "--model", "strong", *quick, *words]
    return main(["data", "build-cot", str(source), str(out), *asked])


def test_every_filter_and_every_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emocaliber.evaluate.endpoint.random.uniform", lambda *_: 0.0)  # no wait between repetitions
    source = make_source(tmp_path / "set", 10)
    seen = Counter()

    def script(body, _):
        number, seed, judge = number_of(body), body["seed"], is_judge(body)
        seen[number, judge] += 1
        if judge:
            right = number not in (4, 5) or (number == 4 and seed > 0)
            return Reply(texts=(verdict(number, right=right),))
        text = good(number, seed)
        if number == 1 and seed == 0:
            text = "```" + text + "```"
        if number == 2:
            text = text.replace("<answer>fear", "<answer>joy")
        if number == 3:
            text = text.replace("weighs most", "agrees with the given label joy, the ground truth")
        if number == 6:
            return Reply(status=400, body=b"not that image")
        if number in (7, 8) and seen[number, judge] == 1:
            return Reply(status=429 if number == 7 else 500)
        return Reply(texts=(text,), wait_s=0.2 if number == 9 else 0.0)

    with chat_server(script) as server:
        assert build(server, source, tmp_path / "out") == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / 'out' / 'samples.jsonl'}\n"
    kept = {sample.id: sample for sample in read_samples(tmp_path / "out" / "samples.jsonl")}
    assert set(kept) == {"s/0", "s/1", "s/4", "s/7", "s/8", "s/9"}
    assert kept["s/0"].reasoning["element"] == "element of image 0, attempt 0"
    assert kept["s/1"].reasoning["element"] == "element of image 1, attempt 1"
    assert kept["s/4"].reasoning["element"] == "element of image 4, attempt 1"
    rejected = {line["id"]: line for line in rejected_in(tmp_path / "out")}
    assert {name: line["reason"] for name, line in rejected.items()} == {
        "s/2": "answers otherwise than it was told",
        "s/3": "gives away that the answer was told",
        "s/5": "the blind second pass answers otherwise",
        "s/6": "the model refuses the request",
    }
    assert [attempt["detail"] for attempt in rejected["s/5"]["attempts"]] == [
        "the judge answers neutral, not surprise"
    ] * 3
    assert rejected["s/3"]["attempts"][0]["detail"] == "says 'given label'"
    assert "not that image" in rejected["s/6"]["detail"]
    record = json.loads((tmp_path / "out" / "samples.provenance.json").read_text())
    assert record["counts"]["responses refused: breaks the grammar"] == 1
    assert record["settings"]["writer"] == record["settings"]["judge"] == f"strong at {server.url}"
    assert "felt {answer}" in record["settings"]["write_prompt"]
    assert "  rejected: 1, the model refuses the request\n" in output.err
    assert main(["data", "check", str(tmp_path / "out" / "samples.jsonl")]) == 0


def test_the_writer_is_told_the_answer_and_the_judge_is_not(tmp_path):
    source = make_source(tmp_path / "set", 1)
    with chat_server(convincing) as server:
        assert build(server, source, tmp_path / "out", "--temperature", "0.9", "--judge-model", "other") == 0
    written, judged = server.bodies
    assert "felt anger." in text_of(written)
    assert "<answer>anger</answer>" in text_of(written)
    assert (written["model"], judged["model"]) == ("strong", "other")
    assert (written["temperature"], judged["temperature"]) == (0.9, 0.0)
    assert f"grey 0 weighs most, so {BLANK}" in text_of(judged)
    assert text_of(judged).count("anger") == 1  # in the list of candidates
    assert f"[{', '.join(LABELS)}]" in text_of(judged)
    assert np.asarray(image_of(judged)).max() < STEP / 2


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path):
    source = make_source(tmp_path / "set", 20)

    def slow(body, number):
        return Reply(texts=convincing(body, number).texts, wait_s=0.02)

    with chat_server(slow) as server:
        assert build(server, source, tmp_path / "whole", "--concurrency", "1") == 0
        uninterrupted = len(server.bodies)
        words = ["data", "build-cot", str(source), str(tmp_path / "killed"), "--from", "model", "--model", "strong"]
        words += ["--endpoint", server.url, "--concurrency", "1"]
        code = "import sys; from emocaliber.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
        links = str(Path(__file__).resolve().parents[2] / ".dev")
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env={**os.environ, "PYTHONPATH": links},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            # Chunks are of four: kill it in the middle of the third.
            while len(server.bodies) < uninterrupted + 18 and process.poll() is None:
                time.sleep(0.01)
        finally:
            process.kill()
        assert process.communicate()[0] == b""
        assert process.returncode == -9
        assert [path.name for path in (tmp_path / "killed").iterdir()] == ["journal.jsonl"]
        before = len(server.bodies)
        assert build(server, source, tmp_path / "killed", "--concurrency", "1") == 0
        assert len(server.bodies) - before == uninterrupted - 16
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_dead_endpoint_keeps_what_is_done(tmp_path, capsys):
    source = make_source(tmp_path / "set", 6)
    down = False

    def script(body, number):
        return Reply(status=401) if down and number >= 8 else convincing(body, number)

    with chat_server(script) as server:
        down = True
        assert build(server, source, tmp_path / "out", "--concurrency", "1") == 1
        assert "the key is missing or wrong" in capsys.readouterr().err
        down = False
        assert build(server, source, tmp_path / "out", "--concurrency", "1") == 0
    assert "6 kept" in capsys.readouterr().err
    assert len(server.bodies) == 8 + 1 + 4


def test_nothing_kept_is_a_failure_with_reasons(tmp_path, capsys):
    source = make_source(tmp_path / "set", 2)
    with chat_server(lambda *_: Reply(texts=("I cannot help with that.",))) as server:
        assert build(server, source, tmp_path / "out", "--attempts", "2") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "  rejected: 2, breaks the grammar\n" in output.err
    assert "  no sample was kept; rejected.jsonl says why for each\n" in output.err
    assert not (tmp_path / "out" / "samples.jsonl").exists()
    lines = rejected_in(tmp_path / "out")
    assert [len(line["attempts"]) for line in lines] == [2, 2]
    assert lines[0]["attempts"][0]["response"] == "I cannot help with that."
    assert sorted(body["seed"] for body in server.bodies) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("words", "variables", "sent"),
    [
        ((), {}, None),
        ((), {"OPENAI_API_KEY": "sesame"}, "Bearer sesame"),
        (("--api-key-env", "MY_KEY"), {"OPENAI_API_KEY": "no", "MY_KEY": "sesame\n"}, "Bearer sesame"),
    ],
)
def test_the_key_comes_from_the_environment(tmp_path, monkeypatch, words, variables, sent):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with chat_server(convincing) as server:
        assert build(server, make_source(tmp_path / "set", 1), tmp_path / "out", *words) == 0
    assert server.headers[0].get("Authorization") == sent
    assert all(b"sesame" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_key_that_is_named_must_be_there_and_the_usual_one_stays_on_safe_ways(tmp_path, monkeypatch, capsys):
    from emocaliber.train.commands.cot import _api_key

    source = make_source(tmp_path / "set", 1)
    with chat_server(convincing) as server:
        assert build(server, source, tmp_path / "out", "--api-key-env", "NO_SUCH_KEY") == 1
    assert "variable NO_SUCH_KEY of --api-key-env is not set" in capsys.readouterr().err
    assert server.bodies == []
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert _api_key(None, "http://far.example/v1") is None
    assert _api_key(None, "https://far.example/v1") == "sesame"
    assert _api_key("OPENAI_API_KEY", "http://far.example/v1") == "sesame"


def test_a_model_in_memory_is_asked_and_a_random_one_rejected(tmp_path, capsys):
    processor = build_processor()
    build_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    source = make_source(tmp_path / "set", 3)
    words = ["--from", "model", "--model", str(tmp_path / "model"), "--max-new-tokens", "12", "--batch-size", "2"]
    outs = [tmp_path / "first", tmp_path / "again"]
    for out in outs:
        assert main(["data", "build-cot", str(source), str(out), *words]) == 1
    assert "  rejected: 3, breaks the grammar\n" in capsys.readouterr().err
    lines = rejected_in(outs[0])
    assert [len(line["attempts"]) for line in lines] == [3, 3, 3]
    assert len({attempt["response"] for attempt in lines[0]["attempts"]}) == 3
    assert (outs[0] / "rejected.jsonl").read_bytes() == (outs[1] / "rejected.jsonl").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "This matches the ground truth.", "in line with the ground-truth label", "the given label is joy",
        "the provided emotion fits", "consistent with the stated feeling", "the target emotion", "as instructed, yes",
        "joy, as told", "joy, as provided", "I was told it is joy", "the feeling is given as joy",
        "the annotators chose joy", "the correct answer is joy", "viewers reported joy",
    ],
)  # fmt: skip
def test_words_that_give_the_answer_away(text):
    assert gives_away(f"A dog runs. {text}.") is not None


@pytest.mark.parametrize(
    "text",
    [
        "a bottle with a red label", "she was given flowers", "the story is told by light", "most likely joy",
        "the expected rain stays away", "the correct posture", "clouds as well as sun", "the answer to the storm",
    ],
)  # fmt: skip
def test_words_that_do_not(text):
    assert gives_away(text) is None


def test_blanks_hide_every_candidate_and_nothing_else():
    reasoning = {"element": "a sad, fearful child; Joy!", "analysis": "not anger but sadness: she is unhappy"}
    assert blanked(reasoning, LABELS) == {
        "element": f"a {BLANK}, {BLANK} child; {BLANK}!",
        "analysis": f"not {BLANK} but {BLANK}: she is unhappy",
    }


@pytest.mark.parametrize("options", [{"attempts": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"chunk": 0}])
def test_settings_that_make_no_sense(options):
    with pytest.raises(ConfigError):
        PromptSettings(**options)
