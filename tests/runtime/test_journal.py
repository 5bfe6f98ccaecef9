"""Journals of long works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.runtime.journal import Journal

SETTINGS = {"model": "a", "seed": 3}


def opened(path: Path, **changes: Any) -> Journal:
    return Journal(path, {**SETTINGS, **changes}, chunk=2, total=5)


def test_a_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    opened(path).add(["one", "two\u2028lines\n"])
    again = opened(path)
    assert again.items == ["one", "two\u2028lines\n"]
    again.add([{"three": 3}, ["four"]])
    again.add(["five"])
    assert opened(path).items == ["one", "two\u2028lines\n", {"three": 3}, ["four"], "five"]
    again.delete()
    assert not path.exists()


@pytest.mark.parametrize("torn", ['"three"\n"fo', '"three"\n', '"th'])
def test_of_a_torn_chunk_nothing_is_kept(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "journal.jsonl"
    opened(path).add(["one", "two"])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + torn, encoding="utf-8")
    assert opened(path).items == ["one", "two"]
    assert path.read_text(encoding="utf-8") == whole


def test_the_last_chunk_may_be_short(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    opened(path).add(list("abcde"))
    assert opened(path).items == list("abcde")


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    opened(path).add(["one", "two"])
    with pytest.raises(ConfigError, match=r"made with other settings \(model was 'a', now 'b'; seed was 3, now None\)"):
        Journal(path, {"model": "b"}, chunk=2, total=5)
    assert opened(path).items == ["one", "two"]


@pytest.mark.parametrize("content", ["", "[1", '{"model": "a", "seed": 3}\nnonsense\n"two"\n', "3\n"])
def test_a_damaged_journal_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"is damaged .* delete it to start over"):
        opened(path)


def test_the_first_line_holds_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    opened(path)
    assert json.loads(path.read_text(encoding="utf-8")) == SETTINGS
