"""Keys and values that stay on an accelerator from one pass of ONNX Runtime to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STAYS = "present."
"""Outputs that are not copied to the host."""


class ResidentArray:
    """An array of float32 on a device; numpy gets a copy of it wherever it asks for one."""

    def __init__(self, value: Any) -> None:
        """Takes ONNX Runtime's value."""
        self.value = value
        self.shape = tuple(value.shape())

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return 4 * int(math.prod(self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Returns a copy on the host."""
        return np.asarray(self.value.numpy(), dtype=dtype)


class ResidentGraph:
    """A session of ONNX Runtime whose keys and values are neither copied to the host nor back."""

    def __init__(self, session: Any, device: str) -> None:
        """Takes the session.

        Args:
            session: Whose outputs ``present.*`` are to stay.
            device: Where, as ONNX Runtime names it, such as ``cuda``.
        """
        self._session, self._device = session, device

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any] | ResidentArray]) -> list[Any]:
        """Returns the named outputs: those that stay as `ResidentArray`, the others as arrays."""
        binding = self._session.io_binding()
        for name, values in feed.items():
            if isinstance(values, ResidentArray):
                binding.bind_ortvalue_input(name, values.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
        stays = [name.startswith(_STAYS) for name in outputs]
        for name, stay in zip(outputs, stays, strict=True):
            binding.bind_output(name, self._device if stay else "cpu")
        self._session.run_with_iobinding(binding)
        found = zip(binding.get_outputs(), stays, strict=True)
        return [ResidentArray(value) if stay else value.numpy() for value, stay in found]
