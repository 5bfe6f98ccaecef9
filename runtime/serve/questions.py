"""What a request asks: read from a multipart form or from JSON, within the limits, without touching the disk."""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from emocaliber.runtime.errors import ArtifactError, InputError
from emocaliber.runtime.grammar import AskedMode
from emocaliber.runtime.manifest import Manifest
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.strict_json import parse_json
from emocaliber.runtime.taxonomy import resolve_taxonomy

_FIELDS = ("image", "taxonomy", "labels", "mode", "coverage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of an image; requests with equal questions are computed together."""

    taxonomy: str | None = None
    """Name of the label set; None is the bundle's default where `labels` is None too."""
    labels: tuple[str, ...] | None = None
    """A caller's own candidates."""
    mode: AskedMode = "direct"
    """Whether to answer at once, to reason first, or to reason where the answer is not sure."""
    coverage: float = 0.9
    """Coverage of the prediction set, in (0, 1)."""

    def __post_init__(self) -> None:
        if self.taxonomy is not None and self.labels is not None:
            raise InputError("taxonomy and labels are both given; give one of them")
        if not 0.0 < self.coverage < 1.0:
            raise InputError(f"coverage is {self.coverage!r}, expected a number between 0 and 1, both excluded")

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of `EmotionModel.predict`."""
        return {"taxonomy": self.taxonomy, "labels": self.labels, "mode": self.mode, "coverage": self.coverage}

    def check(self, manifest: Manifest) -> None:
        """Refuses a label set that the bundle cannot be asked about.

        Raises:
            InputError: If the taxonomy is unknown or a label cannot be used.
        """
        if self.labels is None:
            manifest.taxonomy(self.taxonomy)
        else:
            resolve_taxonomy(labels=self.labels)


async def read_request(request: Request, max_bytes: int) -> tuple[bytes, Question]:
    """Returns the encoded image and the question of a request.

    Raises:
        HTTPException: If the body is too large (413), of another kind (415) or not what its kind says (400).
        ConfigError: If a field is missing, unknown or of the wrong type.
        InputError: If the image is not base64, or the fields contradict each other.
    """
    body = _bounded(request, max_bytes)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, body)
    if kind == "application/json":
        return _from_json(b"".join([chunk async for chunk in body]))
    raise HTTPException(415, f"content type is {kind[:100]!r}, expected multipart/form-data or application/json")


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yields the body in pieces, as long as it is not too large."""
    too_large = HTTPException(413, f"the body has more than {max_bytes} bytes; scale the image down first")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        yield chunk


class _InMemoryParser(MultiPartParser):
    """Starlette's parser, which would write files above one megabyte to the disk."""

    spool_max_size = sys.maxsize


async def _from_form(request: Request, body: AsyncGenerator[bytes, None]) -> tuple[bytes, Question]:
    try:
        form = await _InMemoryParser(request.headers, body, max_files=1, max_fields=len(_FIELDS)).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the body is not a valid multipart form: {error.message}") from error
    try:
        names = [name for name, _ in form.multi_items()]
        if len(names) != len(set(names)):
            raise InputError(f"a field is given twice, got {', '.join(sorted(names))[:200]}")
        fields: dict[str, object] = dict(form)
        upload = fields.pop("image", None)
        if not isinstance(upload, UploadFile):
            raise InputError("the form has no file 'image'; nothing is downloaded, so send the image itself")
        image = await upload.read()
    finally:
        await form.close()
    if isinstance(labels := fields.get("labels"), str):
        fields["labels"] = [label.strip() for label in labels.split(",")]
    if isinstance(coverage := fields.get("coverage"), str):
        fields["coverage"] = _number(coverage)
    return image, from_mapping(Question, fields, "form")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"coverage is {text[:40]!r}, expected a number between 0 and 1") from None


def _from_json(body: bytes) -> tuple[bytes, Question]:
    try:
        fields = parse_json(body.decode("utf-8"), "the body")
    except (ArtifactError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the body is not JSON as RFC 8259 has it: {error}"[:300]) from error
    if not isinstance(fields, Mapping):
        raise InputError(f"the body is a JSON {type(fields).__name__}, expected an object with the key 'image'")
    fields = dict(fields)
    encoded = fields.pop("image", None)
    if not isinstance(encoded, str):
        raise InputError("the object has no text 'image'; give the file's bytes in base64")
    try:
        image = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"image is not plain base64 ({error}); nothing is downloaded, so URLs and data: prefixes are refused"
        ) from error
    return image, from_mapping(Question, fields, "body")
