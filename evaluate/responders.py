"""What answers a question about an image in words: a model in memory, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from emocaliber.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question about one image."""

    image: str | Path
    """The image file."""
    instruction: str
    """The user's turn, without the image."""
    system: str | None = None
    """The system's turn; None leaves it to the model's chat template."""
    image_first: bool = False
    """Whether the image stands before the instruction."""

    def conversation(self) -> list[dict[str, Any]]:
        """Returns the turns as chat templates of transformers read them, the image as a place holder."""
        return conversation(self.instruction, system=self.system, image_first=self.image_first)


def conversation(instruction: str, *, system: str | None, image_first: bool) -> list[dict[str, Any]]:
    """Returns the turns of a question about one image, as chat templates of transformers read them.

    Args:
        instruction: The user's turn, without the image.
        system: The system's turn, or None.
        image_first: Whether the image stands before the instruction.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": instruction}, {"type": "image"}]
    turns = [{"role": "user", "content": content[::-1] if image_first else content}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How responses are drawn."""

    count: int = 1
    """Responses per request."""
    temperature: float = 0.0
    """0 takes the most probable token each time."""
    max_new_tokens: int = 1024
    """Longest response, in tokens."""
    seed: int = 0
    """Makes the draw reproducible, as far as the responder can."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.max_new_tokens < 1 or not 0.0 <= self.temperature < float("inf"):
            raise ConfigError(f"cannot draw responses so: {self}; count and tokens are >= 1, the temperature >= 0")
        if self.count > 1 and self.temperature == 0.0:
            raise ConfigError(f"{self.count} responses at temperature 0 would be one response {self.count} times")


class Responder(Protocol):
    """Answers questions about images."""

    @property
    def name(self) -> str:
        """Which model, for the record."""

    def respond(self, requests: Sequence[Request], drawing: Drawing) -> list[list[str]]:
        """Returns ``drawing.count`` responses for each request, in order, without end tokens.

        Raises:
            InputError: If an image cannot be read.
            BackendError: If the model or the endpoint fails.
        """
