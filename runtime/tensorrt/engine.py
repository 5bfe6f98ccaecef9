"""The native TensorRT engine: vision encoder and decoder on the GPU, the embedding table in ONNX Runtime on the CPU.

Keys and values stay on the device from one pass to the next.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.engine import Floats32, GraphEngine, KeyValues
from emocaliber.runtime.errors import BackendError
from emocaliber.runtime.manifest import DecoderShape
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.preprocessing import Preprocessing

from .bindings import Target, collecting_logger, target_of
from .cache import DECODE, DECODER_NAME, PREFILL, PROFILES, TREE, VISION_NAME
from .memory import Device, DeviceArray, checked

_CHOICE = tuple(PROFILES.index(name) for name in (DECODE, TREE, PREFILL))
"""The profiles, the narrowest first: a pass runs under the first that takes its shapes."""
_STAYS = "present."
"""Outputs that are not copied to the host."""


class TensorRTEngine(GraphEngine):
    """The graphs as engines that stand in a folder of the cache."""

    def __init__(
        self,
        folder: Path,
        *,
        library: Any,
        device: Device,
        embed: Any,
        shape: DecoderShape,
        preprocessing: Preprocessing | PatchPreprocessing,
    ) -> None:
        """Loads the engines.

        Args:
            folder: What `find_engines` returned.
            library: ``tensorrt`` or ``tensorrt_rtx``.
            device: The GPU.
            embed: ONNX Runtime's session of the embedding table.
            shape: Sizes of the decoder.
            preprocessing: How pixels are made.

        Raises:
            BackendError: If an engine cannot be loaded.
        """
        decoder = LoadedEngine(folder / DECODER_NAME, library, device, _CHOICE)
        vision = LoadedEngine(folder / VISION_NAME, library, device, (0,))
        name = library.__name__.replace("_", "-")
        super().__init__(
            name=name, vision=vision, embed=embed, decoder=decoder, shape=shape, preprocessing=preprocessing
        )
        self._device = device
        self._lock = threading.Lock()
        self._batch = decoder.largest("inputs_embeds")[0]

    def encode_images(self, pixel_values: Floats32) -> Floats32:
        """Returns (N, count, width) image features; see `Engine`."""
        with self._lock:
            encode, size = super().encode_images, self._batch
            if self._patches is not None or len(pixel_values) <= size:
                return encode(pixel_values)
            starts = range(0, len(pixel_values), size)
            return np.concatenate([encode(pixel_values[start : start + size]) for start in starts])

    def decode(
        self,
        embeds: Floats32,
        mask: NDArray[np.bool_],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        past: KeyValues,
    ) -> tuple[Floats32, KeyValues]:
        """Returns logits of the wanted rows, and keys and values on the device; see `Engine`."""
        with self._lock:
            if len(embeds) <= self._batch:
                return super().decode(embeds, mask, positions, rows, past)
            logits, states = [], []
            for start in range(0, len(embeds), self._batch):
                part = slice(start, start + self._batch)
                some = tuple(state[part] for state in past)
                read, present = super().decode(embeds[part], mask[part], positions[..., part, :], rows, some)
                logits.append(read)
                states.append(present)
            joined: Any = tuple(self._device.joined(parts) for parts in zip(*states, strict=True))
            return np.concatenate(logits), joined


class LoadedEngine:
    """One engine with an execution context for each profile in use; it runs as a session of ONNX Runtime does."""

    def __init__(self, path: Path, library: Any, device: Device, profiles: Sequence[int]) -> None:
        """Loads an engine file.

        Args:
            path: The file.
            library: ``tensorrt`` or ``tensorrt_rtx``.
            device: The GPU.
            profiles: Numbers of its profiles, in the order in which they are tried.

        Raises:
            BackendError: If TensorRT refuses it.
        """
        self._device, self._name, self._profiles = device, path.name, profiles
        self._logger = collecting_logger(library)
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BackendError(self._failure("cannot be loaded"))
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self._types = {name: np.dtype(library.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._contexts: dict[int, Any] = {}

    def largest(self, name: str) -> tuple[int, ...]:
        """Returns the largest shape of an input under the profile that is tried last."""
        return tuple(self._engine.get_tensor_profile_shape(name, self._profiles[-1])[2])

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any] | DeviceArray]) -> list[Any]:
        """Returns the outputs; keys and values as arrays on the device.

        Raises:
            BackendError: If the engine was not built for such shapes, or fails.
        """
        context = self._context(self._profile_for(feed))
        held = {name: self._device.upload(values, self._types[name]) for name, values in feed.items()}
        for name, array in held.items():
            if not (context.set_input_shape(name, array.shape) and context.set_tensor_address(name, array.address)):
                raise BackendError(self._failure(f"refuses {name} {array.shape}"))
        for name in outputs:
            held[name] = self._device.empty(tuple(context.get_tensor_shape(name)), self._types[name])
            context.set_tensor_address(name, held[name].address)
        if not context.execute_async_v3(self._device.stream):
            raise BackendError(self._failure("failed while running"))
        self._device.synchronize()
        return [held[name] if name.startswith(_STAYS) else np.asarray(held[name]) for name in outputs]

    def _profile_for(self, feed: Mapping[str, Any]) -> int:
        """Returns the first profile that takes these shapes."""
        for profile in self._profiles:
            if all(self._takes(profile, name, values.shape) for name, values in feed.items()):
                return profile
        asked = ", ".join(f"{name} {values.shape}" for name, values in list(feed.items())[:4])
        raise BackendError(
            f"{self._name} was not built for ({asked}); build engines with larger limits: emocaliber export tensorrt "
            "BUNDLE --text-tokens N"
        )

    def _takes(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
                raise BackendError(self._failure(f"gives no context for profile {profile}"))
            self._contexts[profile] = context
        return self._contexts[profile]

    def _failure(self, what: str) -> str:
        return f"TensorRT engine {self._name} {what}: {'; '.join(self._logger.errors[-3:]) or 'no reason given'}"


def local_target(library: Any, cuda: Any) -> Target:
    """Returns the target that the current GPU of this machine is.

    Raises:
        BackendError: If there is none, or no driver for it.
    """
    number = checked(cuda, cuda.cudaGetDevice(), "find a GPU")
    found = checked(cuda, cuda.cudaGetDeviceProperties(number), f"read the properties of GPU {number}")
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    return target_of(library, name.strip("\0 "), found.major, found.minor)
