"""A GPU that is not there: CUDA's calls on the host's memory, TensorRT's calls on ONNX Runtime's CPU sessions.

An "engine file" is the ONNX graph itself. The simulation is stricter than the device: it checks alignment, sizes and
profiles, and fills fresh and freed memory with bytes that spoil every result that reads them.
"""

# ruff: noqa: N802 - the names are those of CUDA and TensorRT

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from emocaliber.runtime.onnx_runtime import onnxruntime

ALIGNMENT = 256
SPOILT = 0xFF
"""As floats these bytes are NaN."""
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


class SimulatedCuda:
    """The calls of ``cuda.bindings.runtime`` that the engine makes; ``copied`` counts bytes by direction."""

    def __init__(self, *, status: int = 0) -> None:
        self.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down", cudaMemcpyDeviceToDevice="within"
        )
        self.status = status
        self.blocks: dict[int, Any] = {}
        self.copied = {"up": 0, "down": 0, "within": 0}
        self.streams = 0

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams += 1
        return self.status, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        assert stream == 7
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream == 7
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(size + ALIGNMENT)
        address = -(-ctypes.addressof(buffer) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(address, SPOILT, size)
        self.blocks[address] = (buffer, size)
        return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: str, stream: int) -> tuple[int]:
        assert stream == 7
        self.copied[kind] += count
        ctypes.memmove(target, source, count)
        return (0,)

    def cudaGetDevice(self) -> tuple[int, int]:
        return self.status, 0

    def cudaGetDeviceProperties(self, number: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(name=b"Simulated GPU\0\0", major=8, minor=7)


class SimulatedContext:
    """One execution context."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._results: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, name
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._run()[name].shape

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self._addresses) == set(self._engine.types)
        self._engine.profiles_used.append(self._profile)
        for name, values in self._run().items():
            ctypes.memmove(self._addresses[name], values.ctypes.data, values.nbytes)
        return True

    def _run(self) -> Mapping[str, Any]:
        """Returns the outputs for what stands at the inputs' addresses now."""
        feed = {}
        for name, shape in self._shapes.items():
            values = np.empty(shape, self._engine.types[name])
            ctypes.memmove(values.ctypes.data, self._addresses[name], values.nbytes)
            feed[name] = values
        names = [port.name for port in self._engine.session.get_outputs()]
        return dict(zip(names, self._engine.session.run(names, feed), strict=True))


class SimulatedEngine:
    """One engine with the profiles that it would have been built with."""

    def __init__(self, graph: bytes, profiles: Sequence[Mapping[str, Any]]) -> None:
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        ports = (*self.session.get_inputs(), *self.session.get_outputs())
        self.types = {port.name: _TYPES[port.type] for port in ports}
        self.profiles_used: list[int | None] = []
        self._profiles = profiles
        self.num_io_tensors = len(self.types)

    def get_tensor_name(self, place: int) -> str:
        return list(self.types)[place]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.types[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self._profiles[profile][name]

    def create_execution_context(self) -> SimulatedContext:
        return SimulatedContext(self)


class SimulatedLibrary:
    """The names of ``tensorrt`` that the engine uses."""

    __name__ = "tensorrt"
    __version__ = "10.9.0"

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    def __init__(self, vision: Sequence[Mapping[str, Any]], decoder: Sequence[Mapping[str, Any]]) -> None:
        self._profiles = {"pixel_values": vision, "inputs_embeds": decoder}
        self.engines: list[SimulatedEngine] = []

    def nptype(self, kind: Any) -> Any:
        return kind

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self._load(content, logger))

    def _load(self, content: bytes, logger: Any) -> SimulatedEngine | None:
        first = next((name for name in self._profiles if name.encode() in content), None)
        if first is None:
            logger.log(self.ILogger.ERROR, "the magic tag does not match")
            return None
        self.engines.append(SimulatedEngine(content, self._profiles[first]))
        return self.engines[-1]
