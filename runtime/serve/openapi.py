"""The OpenAPI description of the service, written by hand: its answers are the package's own records."""

from __future__ import annotations

from typing import Any

from emocaliber.runtime.grammar import ASKED_MODES, MODES, REASONING_TAGS
from emocaliber.runtime.prediction import BUNDLE_KEYS, BUNDLE_SOURCE, LINE_KEYS
from emocaliber.runtime.taxonomy import MAX_LABEL_LENGTH, MAX_LABELS

from .settings import Settings

_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_NAMES = {"type": "array", "items": {"type": "string"}}

_GREY_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
"""A PNG of one pixel, in base64."""

_FAULTS = {
    400: "The body is not a valid form or not JSON.",
    403: "A browser sent this for a page of another site.",
    408: "The upload took too long.",
    413: "The body is too large.",
    415: "The content type is neither multipart/form-data nor application/json.",
    422: "The image cannot be read, is too large, or what is asked makes no sense.",
    500: "The model failed.",
    504: "The prediction took too long.",
}


def describe(settings: Settings, version: str) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the service with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "EmoCaliber",
            "version": version,
            "description": "The emotion an image evokes in people who look at it, as a calibrated probability "
            "distribution. Never what a person in it feels; not for judging, ranking, monitoring or targeting people.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/predict": {
                "post": _operation(
                    "predict", "The prediction for one image.", "application/json", _reference("Prediction"), settings
                )
            },
            "/v1/stream": {
                "post": _operation(
                    "stream",
                    "The same as it is made: one JSON object a line, at most one 'provisional', any number of "
                    "'section', then one 'final' or 'error'.",
                    "application/x-ndjson",
                    {"type": "string"},
                    settings,
                )
            },
            "/v1/model": {"get": _read("model", "The bundle, its label sets and the limits.", _reference("Model"))},
            "/healthz": {"get": _health()},
            "/metrics": {"get": _read("metrics", "Metrics for Prometheus.", {"type": "string"}, "text/plain")},
        },
        "components": {
            "schemas": {
                "Prediction": _prediction(),
                "Question": _question(settings),
                "Form": _form(),
                "Model": _model(),
                "Error": _record({"error": _record({"type": {"type": "string"}, "message": {"type": "string"}})}),
            }
        },
    }


def _operation(name: str, summary: str, kind: str, schema: dict[str, Any], settings: Settings) -> dict[str, Any]:
    responses = {
        "200": {"description": summary, "content": {kind: {"schema": schema}}},
        **{str(status): _fault(text) for status, text in _FAULTS.items()},
        "503": {
            **_fault("The service is busy, or stops."),
            "headers": {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            },
        },
    }
    return {
        "operationId": name,
        "summary": summary,
        "description": f"Bodies of at most {settings.max_body_bytes} bytes, images of at most {settings.max_pixels} "
        f"pixels, {settings.time_limit_s:g} seconds. Nothing is downloaded: URLs are refused.",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _reference("Form")},
                "application/json": {"schema": _reference("Question")},
            },
        },
        "responses": responses,
    }


def _read(name: str, summary: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    content = {kind: {"schema": schema}}
    return {"operationId": name, "summary": summary, "responses": {"200": {"description": summary, "content": content}}}


def _health() -> dict[str, Any]:
    read = _read("health", "Whether the service takes requests.", _record({"status": {"enum": ["ok", "stopping"]}}))
    stopping = {**read["responses"]["200"], "description": "The service stops."}
    return {**read, "responses": {**read["responses"], "503": stopping}}


def _fault(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _reference("Error")}}}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _record(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _bundle() -> dict[str, Any]:
    names = (*BUNDLE_KEYS, BUNDLE_SOURCE)
    return _record({key: {"type": "string"} for key in names}, required=list(BUNDLE_KEYS))


def _question(settings: Settings) -> dict[str, Any]:
    label = {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_LENGTH}
    labels = {"type": ["array", "null"], "items": label, "minItems": 2, "maxItems": MAX_LABELS, "uniqueItems": True}
    record = _record(
        {
            "image": {
                "type": "string",
                "contentEncoding": "base64",
                "maxLength": settings.max_body_bytes,
                "description": "The bytes of an image file, in plain base64.",
            },
            "taxonomy": {"type": ["string", "null"], "description": "Name of a label set; see /v1/model."},
            "labels": {**labels, "description": "Your own candidates, in place of a taxonomy."},
            "mode": {"enum": list(ASKED_MODES), "default": "direct"},
            "coverage": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.9},
        },
        ["image"],
    )
    return {**record, "examples": [{"image": _GREY_PIXEL}, {"image": _GREY_PIXEL, "labels": ["calm", "tense"]}]}


def _form() -> dict[str, Any]:
    return _record(
        {
            "image": {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"},
            "taxonomy": {"type": "string", "description": "Name of a label set; see /v1/model."},
            "labels": {"type": "string", "description": "Your own candidates, separated by commas."},
            "mode": {"enum": list(ASKED_MODES), "default": "direct"},
            "coverage": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.9},
        },
        ["image"],
    )


def _prediction() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "image": {"type": "null", "description": "No name is kept."},
        "taxonomy": {"type": "string"},
        "mode": {"enum": list(MODES)},
        "label": {"type": "string"},
        "confidence": _PROBABILITY,
        "distribution": {"type": "object", "additionalProperties": _PROBABILITY, "minProperties": 2},
        "prediction_set": {**_NAMES, "minItems": 1},
        "coverage": _PROBABILITY,
        "verbalized_confidence": {**_PROBABILITY, "type": ["number", "null"]},
        "reasoning": {
            "type": ["object", "null"],
            "properties": {tag: {"type": "string"} for tag in REASONING_TAGS},
            "required": list(REASONING_TAGS),
            "additionalProperties": False,
        },
        "calibrated": {"type": "boolean"},
        "bundle": _bundle(),
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    }
    return _record({key: properties[key] for key in LINE_KEYS})


def _model() -> dict[str, Any]:
    positive = {"type": "number", "exclusiveMinimum": 0}
    limits = ("max_body_bytes", "max_pixels", "time_limit_s", "capacity")
    modes = {"type": "array", "items": {"enum": list(MODES)}}
    return _record(
        {
            "bundle": _bundle(),
            "default_taxonomy": {"type": "string"},
            "taxonomies": {
                "type": "array",
                "items": _record({"name": {"type": "string"}, "labels": _NAMES, "calibrated_modes": modes}),
            },
            "modes": {"type": "array", "items": {"enum": list(ASKED_MODES)}},
            "limits": _record(dict.fromkeys(limits, positive)),
        }
    )
