"""A vision encoder in OpenVINO, which makes more of what a processor does with bytes and half-precision numbers.

Of precision ``qdq``, what has weights is multiplied in bytes, an attention's two activations and the rest in bfloat16
where the processor has it; ONNX Runtime takes float32 for those. Other graphs are multiplied in float32 here too. The
decoder stays with ONNX Runtime: with a label tree, and token by token, that is the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from numpy.typing import NDArray

from .errors import BackendError, DependencyError


class Port(NamedTuple):
    """An input or output, as ONNX Runtime names it."""

    name: str


class OpenVINOGraph:
    """One graph on the CPU, compiled for one image at a time; calls from several threads take turns."""

    def __init__(self, path: Path, threads: int | None, *, in_bytes: bool) -> None:
        """Compiles a graph.

        Args:
            path: A plain ONNX file.
            threads: Threads to use; None lets OpenVINO choose.
            in_bytes: Whether it has static scales, so that what is left may be rounded as well.

        Raises:
            DependencyError: If OpenVINO is not installed.
            BackendError: If it cannot take the graph.
        """
        try:
            import openvino
        except ImportError as error:
            raise DependencyError(
                f"engine 'openvino' needs the package openvino ({error}); pip install 'emocaliber[openvino]'"
            ) from error
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if not in_bytes:
            hints["INFERENCE_PRECISION_HINT"] = "f32"
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(path)
            # Compiled, a port that is cast at once goes by the name of what comes of it too.
            self._inputs, self._outputs = (
                [Port(port.any_name) for port in ports] for ports in (model.inputs, model.outputs)
            )
            self._request = core.compile_model(model, "CPU", hints).create_infer_request()
        except Exception as error:  # a RuntimeError of many lines
            raise BackendError(
                f"OpenVINO cannot take {path.name}: {str(error).strip().splitlines()[-1][:200]}"
            ) from error
        self._lock = Lock()

    def get_inputs(self) -> list[Port]:
        """Returns the inputs."""
        return self._inputs

    def get_outputs(self) -> list[Port]:
        """Returns the outputs."""
        return self._outputs

    def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]]) -> list[Any]:
        """Returns the named outputs for all inputs."""
        with self._lock:
            found = self._request.infer(feed)
            return [found[name] for name in outputs]
