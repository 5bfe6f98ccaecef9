"""Label sets a caller may give, and those it may not."""

from __future__ import annotations

from typing import Any

import pytest

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.taxonomy import resolve_taxonomy


@pytest.mark.parametrize("labels", ["joy", "joy,fear", "", ["joy", 3]])
def test_labels_are_a_list_of_strings(labels: Any) -> None:
    with pytest.raises(InputError, match="labels must be a list of strings"):
        resolve_taxonomy(labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["joy"], "needs 2 to 1000 labels, got 1"),
        (["joy", "JOY"], "are the same label"),
        (["joy", "</answer>"], "labels are words, never tags"),
        (["joy", "fe\u200bar"], "control character"),
        (["joy", " fear"], "starts or ends with white space"),
        (["joy", "x" * 65], "65 characters"),
    ],
)
def test_labels_that_no_model_could_answer_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_taxonomy(labels=labels)


def test_names_and_aliases() -> None:
    assert resolve_taxonomy("webemo-25").index(" Cheerfulness ") == 1
    assert resolve_taxonomy(labels=["glad", "sad"]).name == "custom"
    with pytest.raises(InputError, match="unknown taxonomy 'moods'"):
        resolve_taxonomy("moods")
    with pytest.raises(InputError, match="either a taxonomy name or a list of labels"):
        resolve_taxonomy("fi-2", ["a", "b"])
