"""From a trained model to a bundle: ONNX graphs, 8-bit variants, proof that they match, and the files around them."""

from emocaliber.runtime.parity import ParityReport, PrecisionParity

from .bundle import BundleSpec, write_bundle
from .graphs import GraphFiles, export_graphs
from .quantize import GraphQuantization, QuantizationReport, quantize_int8
from .transformers_js import write_transformers_js
from .verify import Tolerances, verify_graphs

__all__ = [
    "BundleSpec",
    "GraphFiles",
    "GraphQuantization",
    "ParityReport",
    "PrecisionParity",
    "QuantizationReport",
    "Tolerances",
    "export_graphs",
    "quantize_int8",
    "verify_graphs",
    "write_bundle",
    "write_transformers_js",
]
