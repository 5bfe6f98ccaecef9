"""The light runtime: from an image and a bundle to a calibrated distribution over emotions."""

from .bundle import Bundle
from .calibration import Calibrator, ConfidenceFusion, Conformal
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
from .grammar import Mode, Response, parse_response, parse_response_official
from .images import ImageLimits, ImageSource
from .manifest import Manifest
from .model import EmotionModel, Scores
from .prediction import Prediction
from .taxonomy import TAXONOMIES, Taxonomy, resolve_taxonomy

__all__ = [
    "ArtifactError",
    "BackendError",
    "Bundle",
    "Calibrator",
    "ConfidenceFusion",
    "ConfigError",
    "Conformal",
    "DependencyError",
    "EmoCaliberError",
    "EmotionModel",
    "ExportError",
    "ImageLimits",
    "ImageSource",
    "InputError",
    "Manifest",
    "Mode",
    "Prediction",
    "Response",
    "ResponseError",
    "Scores",
    "TAXONOMIES",
    "Taxonomy",
    "parse_response",
    "parse_response_official",
    "resolve_taxonomy",
]
