"""What ``bundle.json`` holds: everything a runtime must know of a model, and nothing it has to guess."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .archive import collisions, is_safe_name
from .errors import ArtifactError, ConfigError, EmoCaliberError, InputError
from .grammar import Mode
from .patches import PatchPreprocessing
from .preprocessing import Preprocessing
from .prompts import RenderedPrompt
from .records import MAX_FAULTS, from_mapping
from .strict_json import parse_json
from .taxonomy import TAXONOMIES, Taxonomy, resolve_taxonomy

BUNDLE_SCHEMA = 1
"""Schema version of ``bundle.json``."""

MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
CALIBRATION_NAME = "calibration.json"
MODEL_CARD_NAME = "MODEL_CARD.md"
PARITY_NAME = "parity.json"

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Identity of one file."""

    sha256: str
    """64 lower-case hexadecimal digits."""
    size_bytes: int
    """Size."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ArtifactError(f"sha256 is {self.sha256!r}, expected 64 hexadecimal digits")
        if self.size_bytes < 0:
            raise ArtifactError(f"size_bytes is {self.size_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFiles:
    """The three graphs of one precision, by their names in the bundle."""

    vision_encoder: str
    """``pixel_values`` float32 (N, 3, T, T) -> ``image_features`` float32 (N, count, hidden); of the Qwen-VL families
    one image's patches (P, values) and what `PatchPreprocessing.grid` says of them -> (count, hidden), and
    ``deepstack_features`` (D, count, hidden)."""
    embed_tokens: str
    """``input_ids`` int64 (B, S) -> ``inputs_embeds`` float32 (B, S, hidden)."""
    decoder: str
    """Embeddings, 4-D mask, positions, wanted rows, deep-stack features and past -> logits of those rows, and the new
    keys and values."""

    def names(self) -> tuple[str, str, str]:
        """Returns the three file names."""
        return self.vision_encoder, self.embed_tokens, self.decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBlock:
    """The tokens that stand for an image in the prompt."""

    before: str
    """Text before the image tokens."""
    token: str
    """The image token, written `count` times."""
    count: int | None
    """Number of image features, and so of image tokens; None where it depends on the image's size."""
    after: str
    """Text after the image tokens."""

    def __post_init__(self) -> None:
        if not self.token or (self.count is not None and self.count < 1):
            raise ArtifactError(f"image block has {self.count} tokens {self.token!r}, expected at least one")

    def text(self) -> str:
        """Returns the whole block; with one image token where their number depends on the image."""
        return self.before + self.token * (self.count or 1) + self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The rendered prompt of each mode."""

    reason: RenderedPrompt
    """Asks for the five-part reasoning first."""
    direct: RenderedPrompt
    """Asks for the answer at once."""

    def of(self, mode: Mode) -> RenderedPrompt:
        """Returns the prompt of a mode."""
        return self.reason if mode == "reason" else self.direct


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of the decoder graph."""

    num_layers: int
    """Layers, each with its own keys and values."""
    num_kv_heads: int
    """Key/value heads of a layer."""
    head_dim: int
    """Width of a head."""
    hidden_size: int
    """Width of an embedding."""
    vocab_size: int
    """Length of a logits row."""
    max_positions: int
    """Longest sequence, prompt and response together, in tokens."""
    position_axes: int = 1
    """1: positions are (B, S); 3: they are (3, B, S), of time, height and width."""
    deepstack_layers: int = 0
    """First layers of the decoder behind each of which a feature of its own is added to the image's tokens."""

    @property
    def embed_width(self) -> int:
        """Width of a token as the runtime passes it on: its embedding, then what is added behind the first layers."""
        return self.hidden_size * (1 + self.deepstack_layers)

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in self.__slots__}
        wrong = {name: size for name, size in sizes.items() if size < (name != "deepstack_layers")}
        if wrong:
            raise ArtifactError(f"decoder sizes must be positive, got {wrong}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of ``bundle.json``."""

    schema_version: int
    """`BUNDLE_SCHEMA`."""
    name: str
    """Name of the model."""
    version: str
    """Version of the model."""
    family: Literal["idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
    """Architecture, which decides how an image enters the prompt."""
    precisions: dict[str, GraphFiles]
    """The graphs of every precision, such as ``fp32`` and ``int8``."""
    default_precision: str
    """The precision that runs when none is asked for."""
    preprocessing: Preprocessing | PatchPreprocessing
    """From an RGB image to the vision encoder's input."""
    image_block: ImageBlock
    """The tokens that stand for an image."""
    prompts: Prompts
    """The prompt of each mode."""
    decoder: DecoderShape
    """Sizes of the decoder."""
    end_token_ids: tuple[int, ...]
    """Tokens that end a response."""
    suppressed_token_ids: tuple[int, ...]
    """Tokens that are never generated, such as the image token."""
    max_new_tokens: int
    """Longest response."""
    taxonomies: dict[str, tuple[str, ...]]
    """The label sets the model was trained for, by name."""
    default_taxonomy: str
    """The one that is used when none is asked for."""
    files: dict[str, FileRecord]
    """Every file of the bundle but ``bundle.json``, by its name relative to the bundle."""
    provenance: dict[str, Any]
    """What the model was made from, and how."""
    license: str
    """SPDX expression of the weights' licence."""

    def __post_init__(self) -> None:
        faults = [*self._file_faults(), *self._token_faults(), *self._taxonomy_faults()]
        if isinstance(self.preprocessing, PatchPreprocessing) != (self.image_block.count is None):
            faults.append(f"image_block.count is {self.image_block.count} with {self.preprocessing.kind} preprocessing")
        if self.schema_version != BUNDLE_SCHEMA:
            faults.append(f"schema_version is {self.schema_version}, this version reads {BUNDLE_SCHEMA}")
        for key in ("name", "version", "license"):
            text = getattr(self, key)
            if not text.strip():
                faults.append(f"{key} is empty")
            elif not text.isprintable():
                faults.append(f"{key} is {text[:80]!r}, which holds control characters")
        if faults:
            more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
            raise ArtifactError("; ".join([*faults[:MAX_FAULTS], *more]))

    def _file_faults(self) -> Iterable[str]:
        yield from (f"files: {name!r} is no name inside the bundle" for name in self.files if not is_safe_name(name))
        for first, second in collisions(self.files):
            yield f"files: {first!r} and {second!r} are one file on systems that take no notice of case"
        if self.default_precision not in self.precisions:
            yield f"default_precision {self.default_precision!r} is not in precisions ({', '.join(self.precisions)})"
        needed = [TOKENIZER_NAME, CALIBRATION_NAME, MODEL_CARD_NAME]
        needed += [name for graphs in self.precisions.values() for name in graphs.names()]
        yield from (f"files does not list {name!r}" for name in dict.fromkeys(needed) if name not in self.files)

    def _token_faults(self) -> Iterable[str]:
        for key in ("end_token_ids", "suppressed_token_ids"):
            wrong = [token for token in getattr(self, key) if not 0 <= token < self.decoder.vocab_size]
            if wrong:
                yield f"{key} holds {wrong[:3]}, outside the vocabulary of {self.decoder.vocab_size}"
        if not self.end_token_ids:
            yield "end_token_ids is empty"
        if self.max_new_tokens < 1:
            yield f"max_new_tokens is {self.max_new_tokens}"

    def _taxonomy_faults(self) -> Iterable[str]:
        if self.default_taxonomy not in self.taxonomies:
            yield f"default_taxonomy {self.default_taxonomy!r} is not in taxonomies ({', '.join(self.taxonomies)})"
        for name, labels in self.taxonomies.items():
            try:
                Taxonomy(name=name, labels=labels)
            except InputError as error:
                yield f"taxonomy {name}: {error}"
            if name in TAXONOMIES and TAXONOMIES[name].labels != labels:
                yield f"taxonomy {name} has the labels {', '.join(labels)}, which are not those of that name"

    @property
    def max_image_tokens(self) -> int:
        """Most tokens that an image takes in the prompt."""
        if isinstance(self.preprocessing, PatchPreprocessing):
            return self.preprocessing.max_tokens
        return self.image_block.count or 1

    def taxonomy(self, name: str | None = None) -> Taxonomy:
        """Returns a label set by name: the bundle's own, else a registered one; the default one for None.

        Raises:
            InputError: If neither knows the name.
        """
        asked = self.default_taxonomy if name is None else name
        if asked in TAXONOMIES or asked not in self.taxonomies:
            try:
                return resolve_taxonomy(asked)
            except InputError as error:
                raise InputError(f"{error} (this bundle also has: {', '.join(self.taxonomies)})") from error
        return Taxonomy(name=asked, labels=self.taxonomies[asked])

    def graph_bytes(self, precision: str) -> int:
        """Returns the size of a precision's graphs, with the weights that stand beside them in ``NAME_data``."""
        names = {end for name in self.precisions[precision].names() for end in (name, f"{name}_data")}
        return sum(record.size_bytes for name, record in self.files.items() if name in names)

    def precision(self, name: str | None = None) -> str:
        """Returns the name of a precision the bundle has; the default one for None.

        Raises:
            InputError: If the bundle does not have it.
        """
        asked = self.default_precision if name is None else name
        if asked not in self.precisions:
            raise InputError(f"bundle {self.name} has no precision {asked!r}; it has: {', '.join(self.precisions)}")
        return asked


def parse_manifest(text: str, where: str = MANIFEST_NAME) -> Manifest:
    """Returns the manifest of a ``bundle.json`` text.

    Raises:
        ArtifactError: Naming every fault found.
    """
    mapping = parse_json(text, where)
    if isinstance(mapping, dict) and mapping.get("schema_version", BUNDLE_SCHEMA) != BUNDLE_SCHEMA:
        found = mapping["schema_version"]
        raise ArtifactError(
            f"{where}: schema_version is {found!r}, this version reads {BUNDLE_SCHEMA}; "
            "update emocaliber, or export the bundle again"
        )
    try:
        return from_mapping(Manifest, mapping, where)
    except ConfigError as error:
        raise ArtifactError(str(error)) from error
    except EmoCaliberError:
        raise
    except RecursionError as error:
        raise ArtifactError(f"{where} is nested too deep") from error
