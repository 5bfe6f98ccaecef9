"""Where built engines stand: beside the bundle, one folder for each target, with a record that is checked.

``NAME.tensorrt/KEY/`` (see `built`) holds ``engines.json`` and two engine files. The key is a hash of the target
(device, library, version), the precision and the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from emocaliber.runtime import built
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ArtifactError, BackendError, ConfigError
from emocaliber.runtime.manifest import FileRecord
from emocaliber.runtime.records import to_mapping

from .bindings import Target

CACHE_SCHEMA = 1
"""Schema version of ``engines.json``."""
RECORD_NAME = "engines.json"
VISION_NAME = "vision_encoder.engine"
DECODER_NAME = "decoder.engine"

PREFILL, DECODE, TREE = "prefill", "decode", "tree"
PROFILES = (PREFILL, DECODE, TREE)
"""The optimisation profiles of a decoder engine, in their order: a prompt, one more token, a label tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The largest inputs an engine takes; memory is planned for them."""

    batch: int = 8
    """Sequences, and images, of one pass. More are cut into several passes."""
    text_tokens: int = 512
    """Tokens beside the image that one pass reads: the prompt, or the tree of all labels."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, expected at least 1")
        if self.text_tokens < 16:
            raise ConfigError(f"text_tokens is {self.text_tokens}, expected at least 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What engines were built from, and for what."""

    target: Target
    """Device, library and version."""
    precision: str
    """Precision of the bundle."""
    graphs_sha256: str
    """Hash of the names and hashes of the graphs and of the weights beside them."""

    @classmethod
    def of(cls, bundle: Bundle, precision: str, target: Target) -> EngineKey:
        """Returns the key of a bundle's engines."""
        return cls(target=target, precision=precision, graphs_sha256=built.graphs_sha256(bundle, precision))

    @property
    def digest(self) -> str:
        """Name of the folder: 16 hexadecimal digits."""
        return built.sha256_of_json(to_mapping(self))[:16]

    def reason_against(self, other: EngineKey) -> str:
        """Returns in which way engines of the other key do not fit this one."""
        reasons = [
            f"{field.name.replace('_', ' ')} {getattr(other.target, field.name)} instead of "
            f"{getattr(self.target, field.name)}"
            for field in fields(Target)
            if getattr(other.target, field.name) != getattr(self.target, field.name)
        ]
        if other.graphs_sha256 != self.graphs_sha256:
            reasons.append("other graphs than the bundle holds now")
        return ", ".join(reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The content of ``engines.json``."""

    schema_version: int
    """`CACHE_SCHEMA`."""
    key: EngineKey
    """What the engines were built from and for."""
    limits: EngineLimits
    """What they take at most."""
    files: dict[str, FileRecord]
    """Both engine files."""

    def __post_init__(self) -> None:
        if self.schema_version != CACHE_SCHEMA:
            raise ArtifactError(f"schema_version is {self.schema_version}, this version reads {CACHE_SCHEMA}")
        if set(self.files) != {VISION_NAME, DECODER_NAME}:
            raise ArtifactError(f"files are {sorted(self.files)}, expected {DECODER_NAME} and {VISION_NAME}")


def cache_folder(bundle: Bundle) -> Path:
    """Returns the folder beside a bundle in which the engines of every target stand."""
    return built.built_folder(bundle, "tensorrt")


def write_record(folder: Path, key: EngineKey, limits: EngineLimits) -> None:
    """Writes ``engines.json`` for the two engine files that stand in ``folder``."""
    files = built.file_records(folder / name for name in (VISION_NAME, DECODER_NAME))
    record = EngineRecord(schema_version=CACHE_SCHEMA, key=key, limits=limits, files=files)
    built.write_record(folder / RECORD_NAME, record)


def read_record(folder: Path) -> EngineRecord:
    """Returns the record of built engines, after comparing the files with it.

    Raises:
        ArtifactError: If the record cannot be read or has been moved, or a file is missing or does not match its hash.
    """
    return built.read_record(EngineRecord, folder / RECORD_NAME)


def has_engines(bundle: Bundle) -> bool:
    """Returns whether engines of any target stand beside the bundle."""
    return any(cache_folder(bundle).glob(f"*/{RECORD_NAME}"))


def find_engines(bundle: Bundle, precision: str, target: Target) -> Path:
    """Returns the folder of the engines of exactly these graphs for exactly this target.

    Raises:
        BackendError: If there are none; the message says what those that stand there were built for.
        ArtifactError: If they are damaged.
    """
    key = EngineKey.of(bundle, precision, target)
    folder = cache_folder(bundle) / key.digest
    build = f"build them with: emocaliber export tensorrt {bundle.folder} --precision {precision}"
    if folder.is_dir():
        try:
            read_record(folder)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {build}") from error
        return folder
    others = [read_record(path.parent).key for path in sorted(cache_folder(bundle).glob(f"*/{RECORD_NAME}"))]
    reasons = sorted({key.reason_against(other) for other in others if other.precision == precision})
    precisions = sorted({other.precision for other in others} - {precision})
    found = [f"those that stand there have {reason}" for reason in reasons]
    found += [f"there are some of precision {', '.join(precisions)}"] if precisions else []
    raise BackendError(
        f"no TensorRT engines of {bundle.manifest.name} ({precision}) fit this machine"
        f"{': ' if found else ''}{'; '.join(found)}; {build}"
    )
