"""Images as callers hand them in, turned into upright 8-bit RGB arrays; hostile and broken files are refused."""

from __future__ import annotations

import io
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .errors import ConfigError, InputError

ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, an encoded file, a Pillow image, or a decoded uint8 (H, W, 3) RGB array."""

IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
"""Lower-case suffixes that a folder scan takes for images; a single file may be named anything."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
"""The only decoders tried. Pillow knows more, among them one that starts another program (EPS)."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112

_MAX_JPEG_SCANS = 500
"""A scan of a few bytes costs a pass over all pixels, and photographs have about ten (libjpeg-turbo, fuzz limits)."""
_MAX_PNG_CHUNKS = 100_000
"""Every chunk costs the same time, however empty; encoders write a few thousand at most."""
_MAX_SLOW = 8 << 20
"""Bytes of a file, and pixels, that Pillow may decode in Python: text PNM, run-length BMP, PNM of odd ranges."""
_ROWS_AT_ONCE = 256
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

# `warnings.catch_warnings` swaps process-wide state, so only one thread may be inside it.
_WARNINGS_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Sizes above which an image is refused before it is decoded."""

    max_pixels: int = 50_000_000
    """Width times height, in pixels."""
    max_file_bytes: int = 128 * 2**20
    """Size of the encoded file, in bytes."""

    def __post_init__(self) -> None:
        for name, value in (("max_pixels", self.max_pixels), ("max_file_bytes", self.max_file_bytes)):
            if value < 1:
                raise ConfigError(f"image limit {name} is {value!r}, expected a positive integer")


DEFAULT_LIMITS = ImageLimits()


def decode_image(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> npt.NDArray[np.uint8]:
    """Returns the image as uint8 (H, W, 3) RGB, upright, in 0..255.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled (not clipped), and of an animation
    the first frame is taken. Colour profiles are not applied. A path is always a local file: URLs are not followed.

    Args:
        source: A path, an encoded file, a Pillow image, or an array that is already uint8 (H, W, 3) RGB.
        limits: Sizes above which the image is refused, from its header, before its pixels are decoded.

    Raises:
        InputError: If the image is missing, empty, truncated, too large, of an unsupported kind, or no image at all.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source, limits)
    if isinstance(source, Image.Image):
        return _convert_given(source, "the given Pillow image", limits)
    if isinstance(source, (str, Path)):
        where = f"image {str(source)!r}"
        return _decode(_read(source, where, limits), where, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "the given bytes", limits)
    raise InputError(
        f"cannot read an image from {type(source).__name__}; "
        "give a path, bytes, a Pillow image, or a uint8 (H, W, 3) array"
    )


def _check_array(array: npt.NDArray[np.uint8], limits: ImageLimits) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InputError(f"image array is {array.dtype} {array.shape}, expected uint8 (H, W, 3) RGB with H, W >= 1")
    _check_pixels(array.shape[1], array.shape[0], "the given array", limits)
    return np.ascontiguousarray(array)


def _check_pixels(width: int, height: int, where: str, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{where} is empty: {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise InputError(
            f"{where} is too large: {width} x {height} is more than {limits.max_pixels} pixels; scale it down first"
        )


def _read(path: str | Path, where: str, limits: ImageLimits) -> bytes:
    if isinstance(path, str) and _URL.match(path):
        raise InputError(f"{where} is a URL; nothing is downloaded, give a local file")
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{where} is {kind}, expected an image file")
        if status.st_size > limits.max_file_bytes:
            raise InputError(
                f"{where} is too large: {status.st_size} bytes, at most {limits.max_file_bytes} are allowed"
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {where}: {error}") from error


def _decode(data: bytes, where: str, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    if not data:
        raise InputError(f"{where} is empty (0 bytes)")
    if len(data) > limits.max_file_bytes:
        raise InputError(f"{where} is too large: {len(data)} bytes, at most {limits.max_file_bytes} are allowed")
    _check_structure(data, where)
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with _without_warnings():
            image = Image.open(io.BytesIO(data), formats=formats)
        with image:
            if len(data) > _MAX_SLOW or image.width * image.height > _MAX_SLOW:
                _refuse_slow(image, where)
            return _convert(image, where, limits)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{where} cannot be decoded: not enough memory; scale it down first") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{where} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{where} is not an image of a supported format ({', '.join(formats)})") from error
    except Exception as error:  # decoders fed with broken files raise errors of any kind
        raise InputError(f"{where} cannot be decoded: it is truncated or corrupt ({_reason(error)})") from error


def _check_structure(data: bytes, where: str) -> None:
    """Refuses small files that would keep a decoder busy for minutes."""
    # Inside compressed data 0xFF is always followed by 0x00, so that only scans match.
    if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > _MAX_JPEG_SCANS:
        raise InputError(f"{where} has {scans} JPEG scans, at most {_MAX_JPEG_SCANS} are allowed; save it again")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        position, chunks = 8, 0
        while position < len(data) and chunks <= _MAX_PNG_CHUNKS:
            position += 12 + int.from_bytes(data[position : position + 4], "big")
            chunks += 1
        if chunks > _MAX_PNG_CHUNKS:
            raise InputError(f"{where} has more than {_MAX_PNG_CHUNKS} PNG chunks; save it again")


def _refuse_slow(image: Image.Image, where: str) -> None:
    slow = next((tile[0] for tile in getattr(image, "tile", ()) if tile[0] in Image.DECODERS), None)
    if slow is not None:
        raise InputError(
            f"{where} is too large for its encoding ({slow}), which is slow to decode: at most {_MAX_SLOW} bytes "
            "and pixels are allowed; save it as PNG"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps Pillow's warnings about odd files to itself; not around the decoding, so that threads decode at once."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert_given(image: Image.Image, where: str, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    """Returns `_convert` of a caller's Pillow image, which may still be an open file that is not decoded yet."""
    try:
        return _convert(image, where, limits)
    except InputError:
        raise
    except Exception as error:  # as in `_decode`; a closed image raises ValueError
        raise InputError(f"{where} cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _convert(image: Image.Image, where: str, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    _check_pixels(image.width, image.height, where, limits)
    with _without_warnings() if image.format == "TIFF" else nullcontext():  # TIFF reads its EXIF while loading
        image.load()
    _check_pixels(image.width, image.height, where, limits)
    with _without_warnings():
        # After `load`: some formats store EXIF behind the pixels, and TIFF turns itself upright while loading.
        transpose = _TRANSPOSE.get(_orientation(image))
        rgb = _to_rgb(image, where)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    return np.array(rgb, dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a picture with a broken EXIF block is still a picture
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Returns the image in mode RGB: transparency laid on white, 16-bit values scaled to 8 bits."""
    if image.mode == "F":
        raise InputError(f"{where} has floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image, where)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, _in_mode(image, "RGBA")).convert("RGB")
    return _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Returns the image itself where it has the mode: Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image.Image, where: str) -> Image.Image:
    """Returns grey values 0..65535 scaled to 0..255; Pillow's own conversion clips them to 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{where} has integer pixels outside 0..65535, whose range is unknown; convert it to 16 bits")
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = values[start : start + _ROWS_AT_ONCE].astype(np.uint32)
        grey[start : start + _ROWS_AT_ONCE] = (rows + 128) // 257  # round(v / 257); 65535 / 257 = 255
    return Image.fromarray(grey).convert("RGB")
