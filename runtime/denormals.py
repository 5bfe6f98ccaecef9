"""Floats too small for a full mantissa, taken as zeros while a graph runs.

A softmax over a masked row leaves such a float (4e-39) behind each hidden column in ONNX Runtime 1.32, and Intel's
processors are slow with whatever meets one. A session's option has the threads of its pool take them as zeros, but the
thread that calls does a share of the work, and its mode is the application's: it is changed for the run and then put
back.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

CAN_FLUSH = (sys.platform, platform.machine(), platform.libc_ver()[0]) == ("linux", "x86_64", "glibc")
"""Where the floating-point environment of the C library is known to end in the register MXCSR."""
_Environment = ctypes.c_uint32 * 8
_MXCSR = 7
_FLUSH_AND_TAKE_AS_ZERO = 0x8040


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Lets this thread read and write denormal floats as zeros meanwhile; does nothing where `CAN_FLUSH` is false."""
    if not CAN_FLUSH:
        yield
        return
    library = _c_library()
    kept = _Environment()
    library.fegetenv(kept)
    changed = _Environment.from_buffer_copy(kept)
    changed[_MXCSR] |= _FLUSH_AND_TAKE_AS_ZERO
    library.fesetenv(changed)
    try:
        yield
    finally:
        library.fesetenv(kept)


@cache
def _c_library() -> Any:
    return ctypes.CDLL("libm.so.6")
