"""The light runtime: from an image and a bundle to a calibrated distribution over emotions.

A name is imported when it is first asked for: `doctor` must come up without an inference engine, and a program that
only imports this package should not wait for one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .calibration import Calibrator
    from .confidence import BetaConfidence, ConfidenceFusion, IsotonicConfidence
    from .conformal import Conformal
    from .drift import Drift, DriftGuard, DriftReference
    from .errors import (
        ArtifactError,
        BackendError,
        ConfigError,
        DependencyError,
        EmoCaliberError,
        ExportError,
        InputError,
        ResponseError,
    )
    from .grammar import AskedMode, Mode, Response, parse_response, parse_response_official
    from .images import ImageLimits, ImageSource
    from .manifest import Manifest
    from .model import EmotionModel, Scores
    from .prediction import Prediction
    from .smoothing import Smoothed, Smoother
    from .streaming import Final, Provisional, Section, StreamEvent
    from .taxonomy import TAXONOMIES, Taxonomy, resolve_taxonomy

__all__ = [
    "ArtifactError",
    "AskedMode",
    "BackendError",
    "BetaConfidence",
    "Bundle",
    "Calibrator",
    "ConfidenceFusion",
    "ConfigError",
    "Conformal",
    "DependencyError",
    "Drift",
    "DriftGuard",
    "DriftReference",
    "EmoCaliberError",
    "EmotionModel",
    "ExportError",
    "Final",
    "ImageLimits",
    "ImageSource",
    "InputError",
    "IsotonicConfidence",
    "Manifest",
    "Mode",
    "Prediction",
    "Provisional",
    "Response",
    "ResponseError",
    "Scores",
    "Section",
    "Smoothed",
    "Smoother",
    "StreamEvent",
    "TAXONOMIES",
    "Taxonomy",
    "parse_response",
    "parse_response_official",
    "resolve_taxonomy",
]


_NAMES = {
    "bundle": ("Bundle",),
    "calibration": ("Calibrator",),
    "confidence": ("BetaConfidence", "ConfidenceFusion", "IsotonicConfidence"),
    "conformal": ("Conformal",),
    "drift": ("Drift", "DriftGuard", "DriftReference"),
    "errors": (
        "ArtifactError", "BackendError", "ConfigError", "DependencyError", "EmoCaliberError", "ExportError",
        "InputError", "ResponseError",
    ),
    "grammar": ("AskedMode", "Mode", "Response", "parse_response", "parse_response_official"),
    "images": ("ImageLimits", "ImageSource"),
    "manifest": ("Manifest",),
    "model": ("EmotionModel", "Scores"),
    "prediction": ("Prediction",),
    "smoothing": ("Smoothed", "Smoother"),
    "streaming": ("Final", "Provisional", "Section", "StreamEvent"),
    "taxonomy": ("TAXONOMIES", "Taxonomy", "resolve_taxonomy"),
}  # fmt: skip
"""Exported names by the module they stand in."""


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
