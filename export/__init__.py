"""From a trained model to a bundle: ONNX graphs, 8-bit variants, proof that they match, and the files around them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emocaliber.runtime.parity import ParityReport, PrecisionParity

    from .bundle import BundleSpec, write_bundle
    from .graphs import GraphFiles, export_graphs
    from .quantize import GraphQuantization, QuantizationReport, quantize_graphs
    from .tensorrt import build_engines
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
    "build_engines",
    "export_graphs",
    "quantize_graphs",
    "verify_graphs",
    "write_bundle",
    "write_transformers_js",
]

_HOMES = {
    "bundle": ("BundleSpec", "write_bundle"),
    "graphs": ("GraphFiles", "export_graphs"),
    "quantize": ("GraphQuantization", "QuantizationReport", "quantize_graphs"),
    "tensorrt": ("build_engines",),
    "transformers_js": ("write_transformers_js",),
    "verify": ("ParityReport", "PrecisionParity", "Tolerances", "verify_graphs"),
}


def __getattr__(name: str) -> Any:
    """Returns an exported name from its module, which is imported only now: building engines needs no torch."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is not None:
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
