"""The seam to TensorRT: TensorRT 10 and newer and TensorRT-RTX have one API under two import names."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from dataclasses import dataclass
from typing import Any

from emocaliber.runtime.errors import BackendError, ConfigError, DependencyError

LIBRARIES = ("tensorrt", "tensorrt_rtx")
OLDEST = 10
"""First version of TensorRT whose names are used here; TensorRT-RTX counts from 1."""
INSTALL = "pip install 'emocaliber[tensorrt]', or 'emocaliber[tensorrt-rtx]' for an RTX GPU"

ANY_DEVICE = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an engine runs on: it fits nothing else."""

    package: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    package_version: str
    """Its version."""
    platform: str
    """Operating system and processor, such as ``linux-x86_64``."""
    device: str
    """Name of the GPU; `ANY_DEVICE` for TensorRT-RTX, whose engines fit every GPU of a compute capability."""
    compute_capability: str
    """Such as ``8.9``."""


def tensorrt_library() -> Any:
    """Returns the module ``tensorrt``, or ``tensorrt_rtx`` where that is installed instead.

    Raises:
        DependencyError: If neither is installed.
        BackendError: If it cannot be imported, or is too old.
    """
    name = next((name for name in LIBRARIES if importlib.util.find_spec(name) is not None), None)
    if name is None:
        raise DependencyError(f"TensorRT is not installed; run: {INSTALL}")
    try:
        library = importlib.import_module(name)
    except Exception as error:  # a missing driver or library shows in many ways
        raise BackendError(f"{name} is installed but cannot be imported: {error}") from error
    if name == "tensorrt" and int(library.__version__.split(".")[0]) < OLDEST:
        raise BackendError(f"TensorRT {library.__version__} is installed, {OLDEST} or newer is needed; run: {INSTALL}")
    return library


def target_of(library: Any, device: str, major: int, minor: int) -> Target:
    """Returns the target that a GPU of this name and compute capability is for this library.

    Raises:
        BackendError: If the library has no engines for such a GPU.
    """
    name = library.__name__
    if name == "tensorrt_rtx" and f"SM{major}{minor}" not in _known(library):
        raise BackendError(
            f"this GPU is SM{major}{minor}; {name} {library.__version__} knows {', '.join(_known(library))}; "
            "install TensorRT itself (pip install tensorrt) in its place, or use --engine cuda"
        )
    return Target(
        package=name,
        package_version=library.__version__,
        platform=f"{platform.system()}-{platform.machine()}".lower(),
        device=device if name == "tensorrt" else ANY_DEVICE,
        compute_capability=f"{major}.{minor}",
    )


def named_target(library: Any, name: str) -> Target:
    """Returns the target of a name such as ``SM89``, whose GPU need not be in this machine.

    Raises:
        ConfigError: If the library builds for the GPU of this machine only, or not for such a GPU.
    """
    if library.__name__ == "tensorrt":
        raise ConfigError(f"target is {name!r}; TensorRT builds for the GPU of this machine alone")
    if name not in (known := _known(library)):
        raise ConfigError(f"target is {name!r}; {library.__name__} {library.__version__} knows {', '.join(known)}")
    return target_of(library, ANY_DEVICE, int(name[2:-1]), int(name[-1]))


def _known(library: Any) -> list[str]:
    """Returns the compute capabilities that TensorRT-RTX has engines for, such as ``SM89``."""
    return [name for name in library.ComputeCapability.__members__ if name.startswith("SM")]


def collecting_logger(library: Any) -> Any:
    """Returns a logger of the library that prints nothing and keeps what went wrong in its list ``errors``."""
    severity = library.ILogger

    class Collecting(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Collecting()
