"""Graphs as ONNX Runtime has them once they are loaded, kept: a process that starts from them is ready sooner.

Before it runs a graph, ONNX Runtime rewrites it for the processor, and its weights with it; on one without VNNI every
signed byte becomes an unsigned one. ``NAME.onnxruntime/KEY/`` (see `built`) holds what comes of that. The numbers are
the same to the bit. The key is a hash of the version of ONNX Runtime, the processor, the precision and the graphs: a
folder that was carried to another machine, or stayed behind an update, is passed over.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path

from . import built
from .bundle import Bundle
from .engine import prepare_graph, processor_flags
from .errors import ArtifactError, BackendError, ConfigError
from .files import staged
from .manifest import FileRecord
from .onnx_runtime import onnxruntime
from .records import to_mapping

PREPARED_SCHEMA = 1
"""Schema version of ``prepared.json``; to be raised as well when `prepare_graph` lets other rewriting happen."""
RECORD_NAME = "prepared.json"
VISION_NAME = "vision_encoder.onnx"
DECODER_NAME = "decoder.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedKey:
    """What graphs were prepared from, and for."""

    onnxruntime: str
    """Its version."""
    processor: str
    """Operating system, architecture and a hash of the instruction sets."""
    precision: str
    """Precision of the bundle."""
    graphs_sha256: str
    """See `built.graphs_sha256`."""

    @classmethod
    def of(cls, bundle: Bundle, precision: str) -> PreparedKey:
        """Returns the key of a bundle's prepared graphs on this machine."""
        flags = built.sha256_of_json(sorted(processor_flags()))[:16]
        return cls(
            onnxruntime=onnxruntime.__version__,
            processor=f"{platform.system()}-{platform.machine()}-{flags}".lower(),
            precision=precision,
            graphs_sha256=built.graphs_sha256(bundle, precision),
        )

    @property
    def digest(self) -> str:
        """Name of the folder: 16 hexadecimal digits."""
        return built.sha256_of_json([PREPARED_SCHEMA, to_mapping(self)])[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRecord:
    """The content of ``prepared.json``."""

    schema_version: int
    """`PREPARED_SCHEMA`."""
    key: PreparedKey
    """What the graphs were prepared from and for."""
    files: dict[str, FileRecord]
    """Both graphs, and the weights beside them."""

    def __post_init__(self) -> None:
        if self.schema_version != PREPARED_SCHEMA:
            raise ArtifactError(f"schema_version is {self.schema_version}, this version reads {PREPARED_SCHEMA}")
        if not {VISION_NAME, DECODER_NAME} <= set(self.files):
            raise ArtifactError(f"files are {sorted(self.files)}, expected {DECODER_NAME} and {VISION_NAME}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Where the prepared graphs of one precision stand."""

    folder: Path
    size_bytes: int
    """Of its files."""
    seconds: float | None
    """What it took to make them; None where they stood there already."""


def prepare(bundle: Bundle, precision: str, *, rebuild: bool = False) -> Prepared:
    """Returns where the prepared graphs of one precision stand, made now unless they stand there already.

    Args:
        bundle: The bundle, in a folder.
        precision: One of its precisions.
        rebuild: Whether those that stand there are made anew all the same.

    Raises:
        ConfigError: If the bundle is a ``.tar`` or in the hub's cache, beside which nothing can stand.
        BackendError: If a graph cannot be prepared, or the folder cannot be written; then nothing is left of it.
        ArtifactError: If weights do not match their hash.
    """
    if not _has_place(bundle):
        raise ConfigError(
            "the bundle is a .tar file or in the hub's cache; prepared graphs stand beside a folder: make one"
        )
    key = PreparedKey.of(bundle, precision)
    folder = _folder(bundle, key)
    if not rebuild and folder.is_dir():
        try:
            record = built.read_record(PreparedRecord, folder / RECORD_NAME)
            return Prepared(folder=folder, size_bytes=_size_bytes(record), seconds=None)
        except ArtifactError:  # it is made anew
            pass
    started = time.monotonic()
    graphs = bundle.manifest.precisions[precision]
    bundle.check_weights(graphs.names())
    try:
        with staged(folder) as partial:
            prepare_graph(bundle.path(graphs.vision_encoder), partial / VISION_NAME)
            prepare_graph(bundle.path(graphs.decoder), partial / DECODER_NAME)
            files = built.file_records(sorted(partial.iterdir()))
            record = PreparedRecord(schema_version=PREPARED_SCHEMA, key=key, files=files)
            built.write_record(partial / RECORD_NAME, record)
    except OSError as error:
        raise BackendError(f"prepared graphs cannot be written to {folder}: {error.strerror}") from error
    return Prepared(folder=folder, size_bytes=_size_bytes(record), seconds=time.monotonic() - started)


def find_prepared(bundle: Bundle, precision: str) -> Path | None:
    """Returns the folder of the prepared graphs that fit this bundle, machine and ONNX Runtime, None if there is none.

    Raises:
        ArtifactError: If they are damaged.
    """
    if not _has_place(bundle) or not built.built_folder(bundle, "onnxruntime").is_dir():
        return None
    folder = _folder(bundle, PreparedKey.of(bundle, precision))
    if not folder.is_dir():
        return None
    try:
        built.read_record(PreparedRecord, folder / RECORD_NAME)
    except ArtifactError as error:
        again = f"emocaliber bundle prepare {bundle.folder} --precision {precision}"
        raise ArtifactError(f"{error}; make it anew with: {again}; or remove {folder}") from error
    return folder


def _has_place(bundle: Bundle) -> bool:
    return bundle.source is None and not bundle.is_unpacked


def _folder(bundle: Bundle, key: PreparedKey) -> Path:
    return built.built_folder(bundle, "onnxruntime") / key.digest


def _size_bytes(record: PreparedRecord) -> int:
    return sum(file.size_bytes for file in record.files.values())
