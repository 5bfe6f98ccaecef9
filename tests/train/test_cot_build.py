"""``emocaliber data build-cot --from cues``, and the loop that every writer shares."""

import json

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import BackendError, ConfigError, InputError
from emocaliber.runtime.grammar import REASONING_TAGS
from emocaliber.runtime.samples import Sample, read_samples, write_samples
from emocaliber.train.cot import Outcome, build_reasoning

FILES = ("samples.jsonl", "rejected.jsonl", "samples.provenance.json")
PARTS = dict.fromkeys(REASONING_TAGS, "text")


@pytest.fixture
def source(tmp_path):
    """Returns samples of nine pictures: one has reasoning, one no answer, one is no picture."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(1)
    samples = []
    for number in range(9):
        colours = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
        Image.fromarray(colours).save(folder / f"{number}.png")
        samples.append(
            Sample(
                image=f"{number}.png", taxonomy="emotion6-7", split="train", id=f"handmade/{number}",
                answer=None if number == 3 else "joy", votes=None if number == 4 else {"joy": 3, "fear": 1},
                annotations={"category": "object"} if number == 5 else None,
                reasoning=PARTS if number == 6 else None,
            )
        )  # fmt: skip
    (folder / "7.png").write_bytes(b"no picture")
    write_samples(samples, folder / "samples.jsonl")
    (folder / "samples.provenance.json").write_text('{"terms": "ask the owners"}')
    return folder / "samples.jsonl"


class Numbered:
    """Writes what chunk and seed say, as a model does that draws by chance for a chunk; fails when it is told to."""

    chunk = 2

    def __init__(self, fail_at=None, seed=0):
        self.calls, self._fail_at, self._seed = 0, fail_at, seed

    def settings(self):
        return {"from": "test", "seed": self._seed}

    def write(self, samples):
        if self.calls == self._fail_at:
            raise BackendError("the lights went out")
        self.calls += 1
        first = samples[0].id
        return [Outcome(reasoning={**PARTS, "analysis": f"{first} to {sample.id}"}) for sample in samples]


def build(source, out, writer, reports=None):
    return build_reasoning(source, out, writer, lambda done, total: (reports or []).append((done, total)))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_command_keeps_every_field_and_says_why_it_rejects(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "build-cot", str(source), str(out), "--from", "cues"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{out / 'samples.jsonl'}\n"
    for line in (
        "9 samples", "7 kept", "1 kept: had reasoning before", "2 rejected",
        "rejected: 1, the sample has no answer", "rejected: 1, the image cannot be read",
    ):  # fmt: skip
        assert f"  {line}\n" in output.err
    before = {sample.id: sample for sample in read_samples(source)}
    after = {sample.id: sample for sample in read_samples(out / "samples.jsonl")}
    assert set(before) - set(after) == {"handmade/3", "handmade/7"}
    for name, sample in after.items():
        assert sample.reasoning is not None
        assert set(sample.reasoning) == set(REASONING_TAGS)
        for field in Sample.__slots__:
            if field != "reasoning" or before[name].reasoning is not None:
                assert getattr(sample, field) == getattr(before[name], field), field
    assert after["handmade/5"].reasoning["human"] == "subject: object"
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["id"] for line in rejected] == ["handmade/3", "handmade/7"]
    assert "7.png' is not an image" in rejected[1]["detail"]
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert main(["data", "check", str(out / "samples.jsonl")]) == 0


def test_the_record_says_what_was_made_of_what(source, tmp_path):
    out = tmp_path / "out"
    assert main(["data", "build-cot", str(source), str(out), "--from", "cues", "--annotations", "category"]) == 0
    record = json.loads((out / "samples.provenance.json").read_text())
    assert record["settings"]["from"] == "cues"
    assert record["settings"]["annotations"] == ["category"]
    assert record["settings"]["source"] == str(source)
    assert record["source_provenance"] == {"terms": "ask the owners"}
    assert record["counts"] == {"samples": 9, "kept": 7, "kept: had reasoning before": 1, "rejected": 2}
    written = [json.loads(line)["reasoning"] for line in (out / "samples.jsonl").read_text().splitlines()]
    words = [len(" ".join(parts.values()).split()) for parts in written]
    assert record["texts"]["words_max"] == max(words)
    assert record["texts"]["words_mean"] == pytest.approx(sum(words) / 7, abs=0.01)


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_build_that_failed_goes_on_where_it_stopped(source, tmp_path, fail_at):
    build(source, tmp_path / "whole", Numbered())
    reports = []
    with pytest.raises(BackendError):
        build(source, tmp_path / "halves", Numbered(fail_at))
    assert [path.name for path in (tmp_path / "halves").iterdir()] == ["journal.jsonl"]
    writer = Numbered()
    build_reasoning(source, tmp_path / "halves", writer, lambda *report: reports.append(report))
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")
    assert reports[0] == (2 * fail_at, 9)
    assert reports[-1] == (9, 9)
    assert writer.calls == 5 - fail_at
    assert sorted(path.name for path in (tmp_path / "halves").iterdir()) == sorted(FILES)


def test_a_journal_torn_anywhere_leads_to_the_same_result(source, tmp_path):
    build(source, tmp_path / "whole", Numbered())
    with pytest.raises(BackendError):
        build(source, tmp_path / "torn", Numbered(fail_at=3))
    journal = tmp_path / "torn" / "journal.jsonl"
    complete = journal.read_bytes()
    header = complete.index(b"\n") + 1
    for length in range(header, len(complete), 37):
        for name in FILES:
            (tmp_path / "torn" / name).unlink(missing_ok=True)
        journal.write_bytes(complete[:length])
        build(source, tmp_path / "torn", Numbered())
        assert contents(tmp_path / "torn") == contents(tmp_path / "whole"), length


def test_a_kill_while_the_results_are_written_is_made_good(source, tmp_path):
    build(source, tmp_path / "whole", Numbered())
    for missing in (FILES, FILES[1:], FILES[2:], ()):
        with pytest.raises(BackendError):
            build(source, tmp_path / "cut", Numbered(fail_at=4))
        for name, data in contents(tmp_path / "whole").items():
            if name not in missing:
                (tmp_path / "cut" / name).write_bytes(data)
        build(source, tmp_path / "cut", Numbered())
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
        assert not (tmp_path / "cut" / "journal.jsonl").exists()
        for name in FILES:
            (tmp_path / "cut" / name).unlink()


def test_a_finished_build_is_left_alone(source, tmp_path):
    first = build(source, tmp_path / "out", Numbered())
    writer = Numbered()
    assert build(source, tmp_path / "out", writer) == first
    assert writer.calls == 0


def test_other_settings_or_samples_are_refused(source, tmp_path):
    with pytest.raises(BackendError):
        build(source, tmp_path / "out", Numbered(fail_at=2))
    with pytest.raises(ConfigError, match=r"made with other settings \(seed was 0, now 1\); give the same ones"):
        build(source, tmp_path / "out", Numbered(seed=1))
    build(source, tmp_path / "out", Numbered())
    with pytest.raises(ConfigError, match="seed was 0, now 1"):
        build(source, tmp_path / "out", Numbered(seed=1))
    source.write_text(source.read_text().replace('"joy"', '"fear"', 1))
    with pytest.raises(ConfigError, match="source_sha256 was"):
        build(source, tmp_path / "out", Numbered())


def test_results_of_other_commands_and_changed_ones_are_not_touched(source, tmp_path):
    with pytest.raises(ConfigError, match="holds the samples of another command"):
        build(source, source.parent, Numbered())
    (tmp_path / "bare").mkdir()
    write_samples(read_samples(source), tmp_path / "bare" / "samples.jsonl")
    with pytest.raises(ConfigError, match=r"holds samples.jsonl of another command"):
        build(source, tmp_path / "bare", Numbered())
    build(source, tmp_path / "out", Numbered())
    (tmp_path / "out" / "samples.jsonl").write_text("changed\n")
    with pytest.raises(ConfigError, match=r"is not what .* says; delete"):
        build(source, tmp_path / "out", Numbered())


def test_an_id_on_two_lines_is_refused(source, tmp_path):
    source.write_text(source.read_text().replace("handmade/8", "handmade/1"))
    with pytest.raises(InputError, match="1 ids stand on several lines, such as 'handmade/1'"):
        build(source, tmp_path / "out", Numbered())


def test_images_beside_the_results_are_named_relative_to_them(source, tmp_path):
    built = build(source, tmp_path, Numbered())
    lines = [json.loads(line) for line in built.samples.read_text().splitlines()]
    assert [line["image"] for line in lines[:2]] == ["set/0.png", "set/1.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "cues", "--model", "m"], "--model: only with --from model"),
        (["--from", "cues", "--seed", "0", "--endpoint", "http://h/v1"], "--endpoint, --seed: only with --from model"),
        (["--from", "model"], "--from model needs --model"),
        (["--from", "model", "--model", "m", "--retries", "3"], "--retries: only with --from cues or --endpoint"),
        (["--from", "model", "--model", "m", "--annotations", "a"], "--annotations: only with --from cues"),
        (
            ["--from", "model", "--model", "m", "--endpoint", "http://h/v1", "--batch-size", "2"],
            "--batch-size: not with --endpoint",
        ),
    ],
)
def test_options_out_of_place_are_usage_errors(source, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as error:
        main(["data", "build-cot", str(source), str(tmp_path / "out"), *words])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
