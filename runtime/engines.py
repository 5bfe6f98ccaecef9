"""From the name of an engine to one that runs a bundle: ONNX Runtime's providers, or engines of TensorRT itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .bundle import Bundle
from .bundle_recipe import graph_precisions
from .engine import Engine, EngineName, OnnxEngine, available_engines, embedding_session
from .errors import BackendError
from .prepared import DECODER_NAME, VISION_NAME, find_prepared
from .tensorrt.cache import find_engines, has_engines

_PLAIN = {"fp32", "fp16", "qdq"}
"""Precisions whose graphs are plain ONNX, without operators of ONNX Runtime's own."""


def taken(precisions: Iterable[str], engine: EngineName) -> tuple[str, ...]:
    """Returns those of the precisions that an engine can run at all: OpenVINO has to read the vision encoder."""
    return tuple(name for name in precisions if engine != "openvino" or graph_precisions(name)[0] in _PLAIN)


def load_engine(bundle: Bundle, precision: str, engine: EngineName, *, threads: int | None = None) -> Engine:
    """Returns the named engine for one precision of a bundle.

    ``tensorrt`` is the native engine where ``emocaliber export tensorrt`` has put engines beside the bundle, and ONNX
    Runtime's TensorRT provider where there are none. On the CPU, graphs that ``emocaliber bundle prepare`` has put
    there are read in place of the bundle's.

    Args:
        bundle: The bundle.
        precision: One of its precisions.
        engine: ``cpu``, ``openvino``, ``cuda`` or ``tensorrt``, which must come up; ``auto`` is CUDA where it works,
            else CPU.
        threads: Threads an operator may use; None lets ONNX Runtime choose.

    Raises:
        InputError: If the engine is unknown or `threads` is not positive.
        BackendError: If the named engine does not come up, or no engines were built for this device.
        DependencyError: If OpenVINO is named, or there are engines of TensorRT, and what runs them is not installed.
        ArtifactError: If a graph, or what was built from it, is damaged.
    """
    graphs = bundle.manifest.precisions[precision]
    if not taken([precision], engine):
        others = ", ".join(taken(bundle.manifest.precisions, engine)) or "none such"
        raise BackendError(
            f"engine {engine!r} does not take precision {precision}: of vision encoders it reads "
            f"{', '.join(sorted(_PLAIN))}; this bundle has {others}; 'emocaliber export bundle --precision qdq-int8' "
            "makes the one that is fastest with it"
        )
    if engine == "tensorrt" and has_engines(bundle):
        bundle.check_weights([graphs.embed_tokens])
        return _native(bundle, precision)
    # An accelerator may read them; of a CPU alone, what was prepared for it tells whether they are read at all.
    if engine != "cpu" and (engine != "auto" or "cuda" in available_engines()):
        bundle.check_weights(graphs.names())

    def prepared() -> tuple[Path, Path] | None:
        folder = None if engine == "openvino" else find_prepared(bundle, precision)
        bundle.check_weights(graphs.names() if folder is None else [graphs.embed_tokens])
        return None if folder is None else (folder / VISION_NAME, folder / DECODER_NAME)

    return OnnxEngine(
        vision_encoder=bundle.path(graphs.vision_encoder),
        embed_tokens=bundle.path(graphs.embed_tokens),
        decoder=bundle.path(graphs.decoder),
        shape=bundle.manifest.decoder,
        preprocessing=bundle.manifest.preprocessing,
        engine=engine,
        threads=threads,
        prepared=prepared,
    )


def _native(bundle: Bundle, precision: str) -> Engine:
    # Imported here: `import emocaliber.runtime` stays as light as it is without a GPU.
    from .tensorrt.bindings import tensorrt_library
    from .tensorrt.engine import TensorRTEngine, local_target
    from .tensorrt.memory import Device, cuda_runtime

    library, cuda = tensorrt_library(), cuda_runtime()
    folder = find_engines(bundle, precision, local_target(library, cuda))
    return TensorRTEngine(
        folder,
        library=library,
        device=Device(cuda),
        embed=embedding_session(bundle.path(bundle.manifest.precisions[precision].embed_tokens)),
        shape=bundle.manifest.decoder,
        preprocessing=bundle.manifest.preprocessing,
    )
