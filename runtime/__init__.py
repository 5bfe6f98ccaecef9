"""The light runtime: from an image and a bundle to a calibrated distribution over emotions."""

from typing import TYPE_CHECKING, Any

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
from .prediction import Prediction
from .smoothing import Smoothed, Smoother
from .taxonomy import TAXONOMIES, Taxonomy, resolve_taxonomy

if TYPE_CHECKING:
    from .model import EmotionModel, Scores
    from .streaming import Final, Provisional, Section, StreamEvent

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


def __getattr__(name: str) -> Any:
    """Returns the names that need an inference engine, which is imported only now: `doctor` must come up without it."""
    if name in ("EmotionModel", "Scores"):
        from . import model

        return getattr(model, name)
    if name in ("Final", "Provisional", "Section", "StreamEvent"):
        from . import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
