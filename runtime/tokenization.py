"""The bundle's tokenizer, reduced to what scoring needs."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from .errors import ArtifactError, InputError


class PromptTokenizer:
    """A ``tokenizer.json`` that adds nothing of its own: no special tokens, no padding, no truncation."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(f"cannot load the tokenizer {path}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = (token.content for token in self._tokenizer.get_added_tokens_decoder().values())
        self.added_tokens = tuple(sorted(content for content in added if content.strip()))

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text; added tokens written in it become themselves."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, tags and special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_id(self, token: str) -> int:
        """Returns the id of a token.

        Raises:
            ArtifactError: If the vocabulary does not hold it.
        """
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise ArtifactError(f"the tokenizer has no token {token!r}, which this bundle needs")
        return found

    def check_labels(self, labels: Sequence[str]) -> None:
        """Refuses labels that would be read as more than plain words.

        Raises:
            InputError: If one holds an added token of the tokenizer, such as an end-of-turn mark.
        """
        for label in labels:
            # A tokenizer may turn full-width forms into plain ones before it looks for its tokens.
            spellings = (label, unicodedata.normalize("NFKC", label))
            held = next((token for token in self.added_tokens if any(token in text for text in spellings)), None)
            if held is not None:
                raise InputError(f"label {label!r} holds {held!r}, a special token of the model; give a plain word")
