"""Prompt templates: data of a recipe and of a bundle, never of the scoring code.

A `PromptTemplate` is the instruction as a person writes it, with ``{labels}`` where the candidates go. A
`RenderedPrompt` is the same after a model's chat template: the text before the image, which is constant for a taxonomy,
so that its key/value cache is computed once, and the text after it, up to where the response starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ConfigError
from .grammar import Mode

LABELS_FIELD = "{labels}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """The instruction of each mode."""

    reason: str = (
        "Which emotion might this image evoke? Choose the most likely one from [{labels}]. Think step by step. Respond "
        "in the format: <think>your reasoning</think><answer>your final answer</answer>"
        "<confidence>your confidence between 0 and 1</confidence>"
    )
    """Instruction for reasoning first (the paper's; its published end is reconstructed)."""
    direct: str = (
        "Which emotion might this image evoke? Choose the most likely one from [{labels}]. Answer at once. Respond "
        "in the format: <answer>your final answer</answer><confidence>your confidence between 0 and 1</confidence>"
    )
    """Instruction for answering at once."""
    system: str | None = None
    """What the system says first; None leaves it to the model's chat template."""
    image_first: bool = False
    """Whether the image stands before the instruction, as the paper has it; a student's never does, so that what is
    constant for a label set is read once."""

    def __post_init__(self) -> None:
        for mode, text in (("reason", self.reason), ("direct", self.direct)):
            if text.count(LABELS_FIELD) != 1:
                raise ConfigError(f"prompt {mode} must hold {LABELS_FIELD} exactly once, got {text!r}")

    def instruction(self, labels: Sequence[str], mode: Mode) -> str:
        """Returns the instruction with the candidates filled in."""
        return (self.reason if mode == "reason" else self.direct).replace(LABELS_FIELD, join_labels(labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """One mode's prompt after the chat template, cut at the image."""

    before_image: str
    """Text before the image, with ``{labels}`` still in it."""
    after_image: str
    """Text between the image and the first token of the response."""

    def __post_init__(self) -> None:
        if self.before_image.count(LABELS_FIELD) != 1:
            raise ConfigError(f"rendered prompt must hold {LABELS_FIELD} once before image, got {self.before_image!r}")

    def prefix(self, labels: Sequence[str]) -> str:
        """Returns the constant text before the image for these candidates."""
        return self.before_image.replace(LABELS_FIELD, join_labels(labels))


def join_labels(labels: Sequence[str]) -> str:
    """Returns the candidates as the prompt lists them."""
    return ", ".join(labels)
