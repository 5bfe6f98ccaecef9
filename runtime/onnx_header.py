"""What an ONNX file says of itself, read without an engine: its ports, and the other files it would read.

A walk over the protocol buffer (https://protobuf.dev/programming-guides/encoding/) that skips the weights; field
numbers are those of ``onnx.proto``. So that a graph which does not fit its bundle is refused before anything runs it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import ArtifactError

Span = tuple[int, int]
"""Start and end of a length-delimited field in the file."""

MAX_DEPTH = 16
"""Subgraphs within subgraphs that are followed; the bundle's own graphs have none."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# Where tensors may hide, message by message: field number -> the message that stands there.
_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _KEY, _VALUE = 13, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """Ports and outside files of one ONNX file."""

    inputs: dict[str, tuple[int | None, ...]]
    """Shape of each input; None for a size that is only known when it runs."""
    outputs: dict[str, tuple[int | None, ...]]
    """Shape of each output, likewise."""
    external: frozenset[str]
    """Files beside it, as it names them, that hold weights of it."""


def read_header(path: Path) -> OnnxHeader:
    """Returns the header of an ONNX file.

    Raises:
        ArtifactError: If it cannot be read or is no ONNX file.
    """
    with _reading(path) as reader:
        return reader.header()


def read_metadata(path: Path) -> dict[str, str]:
    """Returns what the maker of an ONNX file wrote into it, by key; nothing else of the file is read.

    Raises:
        ArtifactError: If it cannot be read or is no ONNX file.
    """
    with _reading(path) as reader:
        return reader.metadata()


@contextmanager
def _reading(path: Path) -> Iterator[_Reader]:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Reader(data)
    except OSError as error:
        raise ArtifactError(f"cannot read {path.name}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{path.name} is no ONNX file, or is damaged: {error}") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data

    def header(self) -> OnnxHeader:
        graphs = [span for number, span in self._messages((0, len(self._data))) if number == 7]
        if len(graphs) != 1:
            raise ValueError(f"it holds {len(graphs)} graphs")
        ports: dict[int, dict[str, tuple[int | None, ...]]] = {11: {}, 12: {}}
        for number, span in self._messages(graphs[0]):
            if number in ports:
                ports[number].update([self._port(span)])
        external = frozenset(self._external("model", (0, len(self._data)), 0))
        return OnnxHeader(inputs=ports[11], outputs=ports[12], external=external)

    def metadata(self) -> dict[str, str]:
        entries = (dict(self._messages(span)) for span in self._inside((0, len(self._data)), 14))
        return {self._text(entry[_KEY]): self._text(entry[_VALUE]) for entry in entries if {_KEY, _VALUE} <= set(entry)}

    def _external(self, kind: str, span: Span, depth: int) -> Iterator[str]:
        """Yields the locations that the tensors of a message name."""
        if depth > MAX_DEPTH * len(_NESTED):
            raise ValueError("its subgraphs are nested too deep")
        for number, inner in self._messages(span):
            if kind == "tensor" and number == _EXTERNAL_DATA:
                entry = {key: self._text(value) for key, value in self._messages(inner)}
                if entry.get(_KEY) == "location":
                    yield entry.get(_VALUE, "")
            elif number in _NESTED.get(kind, ()):
                yield from self._external(_NESTED[kind][number], inner, depth + 1)

    def _port(self, span: Span) -> tuple[str, tuple[int | None, ...]]:
        """Returns name and shape of a ValueInfoProto."""
        name = "".join(self._text(inner) for number, inner in self._messages(span) if number == 1)
        tensors = [inner for kind in self._inside(span, 2) for inner in self._inside(kind, 1)]
        shapes = [shape for tensor in tensors for shape in self._inside(tensor, 2)]
        return name, tuple(self._size(size) for shape in shapes for size in self._inside(shape, 1))

    def _size(self, span: Span) -> int | None:
        return next((value for number, value in self._fields(span) if number == 1 and isinstance(value, int)), None)

    def _inside(self, span: Span, wanted: int) -> list[Span]:
        return [inner for number, inner in self._messages(span) if number == wanted]

    def _text(self, span: Span) -> str:
        return self._data[span[0] : span[1]].decode("utf-8")

    def _messages(self, span: Span) -> Iterator[tuple[int, Span]]:
        for number, value in self._fields(span):
            if isinstance(value, tuple):
                yield number, value

    def _fields(self, span: Span) -> Iterator[tuple[int, Span | int]]:
        """Yields number and content of each field: a varint's value, or where a length-delimited one stands."""
        position, end = span
        while position < end:
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, position = self._varint(position, end)
                yield number, value
            elif wire == _LENGTH:
                length, position = self._varint(position, end)
                if position + length > end:
                    raise ValueError("a field is longer than what holds it")
                yield number, (position, position + length)
                position += length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire} is unknown")
        if position != end:
            raise ValueError("a field is longer than what holds it")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Returns an unsigned number of at most 64 bits, and where it ends."""
        value = shift = 0
        while position < end and shift < 70:
            byte = self._data[position]
            value |= (byte & 0x7F) << shift
            position += 1
            if byte < 0x80:
                return value, position
            shift += 7
        raise ValueError("a number does not end")
