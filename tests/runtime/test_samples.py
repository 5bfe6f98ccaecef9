"""Samples files: what cannot be read is refused with the line that holds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample, read_samples, write_samples

GOOD = b'{"image": "a.png", "taxonomy": "emotion6-7", "answer": "joy"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": "caf\xe9.png", "taxonomy": "emotion6-7"}', "line 2: not UTF-8 .byte 15"),
        (b'{"image": "a.png",', "line 2: not JSON"),
        (b"[" * 100_000, "line 2: nested too deep"),
        (b'{"image": ' + b"[" * 900 + b"]" * 900 + b', "taxonomy": "emotion6-7"}', "line 2: "),
        (
            b'{"image": "a.png", "taxonomy": "emotion6-7", "votes": {"joy": 1' + b"0" * 400 + b"}}",
            "line 2: .*too large",
        ),
        (
            b'{"image": "a.png", "taxonomy": "emotion6-7", "votes": {"joy": 1' + b"0" * 5000 + b"}}",
            "line 2: .*too large",
        ),
        (b'{"image": "a.png", "taxonomy": "emotion6-7", "votes": {"joy": NaN}}', "line 2: votes of 'joy' is nan"),
        (b'{"image": "a.png", "taxonomy": "emotion6-7", "mood": 1}', "line 2: unknown key mood"),
        (b'{"image": "a.png", "taxonomy": "custom", "labels": "joy"}', "line 2: labels is 'joy', expected a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    with pytest.raises(InputError, match=message):
        read_samples(path)


def test_lines_may_end_as_on_windows_and_hold_any_letters(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes('{"image": "café.png", "taxonomy": "emotion6-7"}\r\n\r\n'.encode() + GOOD)
    assert [Path(sample.image).name for sample in read_samples(path)] == ["café.png", "a.png"]


def test_samples_read_back_as_written(tmp_path: Path) -> None:
    sample = Sample(
        image=str(tmp_path / "ö.png"),
        taxonomy="mine",
        labels=("glad", "sad"),
        answer="sad",
        votes={"sad": 3.0, "glad": 1.0},
        confidence=0.75,
        split="train",
        id="one",
    )
    write_samples([sample], tmp_path / "samples.jsonl")
    assert read_samples(tmp_path / "samples.jsonl", "train") == [sample]
    assert read_samples(tmp_path / "samples.jsonl", "test") == []
    assert sample.distribution() == [0.25, 0.75]
