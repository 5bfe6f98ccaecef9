"""Memory of the GPU, through cuda-python: one stream, and arrays that stay there until somebody looks at them."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emocaliber.runtime.errors import BackendError, DependencyError

_SMALLEST_BYTES = 256
"""TensorRT wants an address even for an array without elements."""


def cuda_runtime() -> Any:
    """Returns cuda-python's module of the CUDA runtime, under its name of now or of before.

    Raises:
        DependencyError: If cuda-python is not installed.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise DependencyError("cuda-python is not installed; run: pip install cuda-bindings")


def checked(cuda: Any, result: tuple[Any, ...], what: str) -> Any:
    """Returns what a call of the CUDA runtime gave beside its status: nothing, or one value.

    Raises:
        BackendError: If the status is an error.
    """
    status, *values = result
    if int(status) != 0:
        raise BackendError(f"CUDA failed to {what}: {getattr(status, 'name', status)}")
    return values[0] if values else None


class Device:
    """The current GPU and one stream on it. Arrays are reused: everything on the stream happens in order."""

    def __init__(self, cuda: Any) -> None:
        """Makes the stream.

        Raises:
            BackendError: If there is no GPU, or no driver for it.
        """
        self._cuda = cuda
        self._stream = checked(cuda, cuda.cudaStreamCreate(), "make a stream")
        self._owned: list[int] = []
        self._free: dict[int, list[int]] = {}
        weakref.finalize(self, _release, cuda, self._owned, self._stream)

    @property
    def stream(self) -> int:
        """The stream, as a number."""
        return int(self._stream)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Returns an array with whatever stood there."""
        array = DeviceArray(self, shape, np.dtype(dtype))
        capacity = max(_SMALLEST_BYTES, 1 << (array.nbytes - 1).bit_length()) if array.nbytes else _SMALLEST_BYTES
        free = self._free.setdefault(capacity, [])
        try:
            array.address = free.pop()
        except IndexError:
            address = checked(self._cuda, self._cuda.cudaMalloc(capacity), f"reserve {capacity:,} bytes on the GPU")
            array.address = int(address)
            self._owned.append(array.address)
        weakref.finalize(array, free.append, array.address)
        return array

    def upload(self, values: NDArray[Any] | DeviceArray, dtype: DTypeLike) -> DeviceArray:
        """Returns the values on the device in this type; what is there already stays.

        The host's values must not change before the next `synchronize`.
        """
        if isinstance(values, DeviceArray) and values.device is self and values.dtype == dtype:
            return values
        host = np.ascontiguousarray(np.asarray(values), dtype=dtype)
        array = self.empty(host.shape, host.dtype)
        self._copy(array.address, host.ctypes.data, host.nbytes, "cudaMemcpyHostToDevice")
        array.source = host
        return array

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """Returns a copy in the host's memory."""
        host = np.empty(array.shape, array.dtype)
        self._copy(host.ctypes.data, array.address, array.nbytes, "cudaMemcpyDeviceToHost")
        self.synchronize()
        return host

    def joined(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        """Returns the arrays behind each other along their first axis."""
        first = arrays[0]
        whole = self.empty((sum(array.shape[0] for array in arrays), *first.shape[1:]), first.dtype)
        place = whole.address
        for array in arrays:
            self._copy(place, array.address, array.nbytes, "cudaMemcpyDeviceToDevice")
            place += array.nbytes
        return whole

    def rows(self, array: DeviceArray, start: int, stop: int) -> DeviceArray:
        """Returns a copy of some entries along the first axis: TensorRT wants aligned addresses, so it is no view."""
        part = self.empty((stop - start, *array.shape[1:]), array.dtype)
        each = array.nbytes // array.shape[0]
        self._copy(part.address, array.address + start * each, part.nbytes, "cudaMemcpyDeviceToDevice")
        return part

    def synchronize(self) -> None:
        """Waits until all is done."""
        checked(self._cuda, self._cuda.cudaStreamSynchronize(self._stream), "run")

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        if size_bytes:
            way = getattr(self._cuda.cudaMemcpyKind, kind)
            done = self._cuda.cudaMemcpyAsync(target, source, size_bytes, way, self._stream)
            checked(self._cuda, done, f"copy {size_bytes:,} bytes")


class DeviceArray:
    """An array on the device that numpy can read: ``np.asarray`` copies it, and half precision comes as float32.

    It has what the runtime asks of keys and values, so that these pass through a `Context` without leaving the device.
    """

    address: int
    source: NDArray[Any] | None = None
    """The host's memory from which it is copied: it must not go before that is done."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.device = device
        self.shape = tuple(shape)
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        host = self.device.download(self)
        kept = np.float32 if host.dtype == np.float16 else host.dtype
        return host.astype(kept if dtype is None else dtype, copy=False)

    def __getitem__(self, rows: slice) -> DeviceArray:
        start, stop, _ = rows.indices(self.shape[0])
        return self.device.rows(self, start, stop)

    def repeat(self, repeats: int, axis: int) -> DeviceArray:
        """Returns the one sequence of this array several times; ``np.repeat`` calls it.

        Args:
            repeats: How often.
            axis: 0; nothing else is ever repeated.
        """
        assert axis == 0
        assert self.shape[0] == 1
        return self if repeats == 1 else self.device.joined([self] * repeats)


def _release(cuda: Any, addresses: list[int], stream: Any) -> None:
    for address in addresses:
        cuda.cudaFree(address)
    cuda.cudaStreamDestroy(stream)
