"""From a trained model to a bundle: ONNX graphs, 8-bit variants, proof that they match, and the files around them."""

from .bundle import BundleSpec, replace_calibration, write_bundle
from .graphs import GraphFiles, export_graphs
from .model_card import model_card
from .quantize import GraphQuantization, QuantizationReport, quantize_int8
from .verify import ParityReport, PrecisionParity, Tolerances, verify_graphs

__all__ = [
    "BundleSpec",
    "GraphFiles",
    "GraphQuantization",
    "ParityReport",
    "PrecisionParity",
    "QuantizationReport",
    "Tolerances",
    "export_graphs",
    "model_card",
    "quantize_int8",
    "replace_calibration",
    "verify_graphs",
    "write_bundle",
]
