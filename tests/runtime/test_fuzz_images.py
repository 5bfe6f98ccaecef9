"""Decoding of files that nobody meant to write: an array or one `InputError`, in bounded time and memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image

ROOT = Path(__file__).resolve().parents[2]
QUICK = settings(max_examples=100, derandomize=True, deadline=None, database=None)
LONG = settings(QUICK, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def seeds() -> tuple[bytes, ...]:
    """Valid small files: every format, odd modes, a colour profile, EXIF, animation."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        *[("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")],
        ("JPEG", "RGB", {"progressive": True, "icc_profile": profile, "exif": exif}),
        *[("PNG", mode, {}) for mode in ("RGB", "RGBA", "LA", "1", "P", "I;16")],
        ("PNG", "P", {"transparency": b"\x00\x80"}),
        ("PNG", "RGB", {"icc_profile": profile, "exif": exif}),
        *[("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)],
        ("WEBP", "RGB", {"icc_profile": profile, "exif": exif}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [noise.rotate(180)]}),
        *[("GIF", mode, {}) for mode in ("P", "L")],
        ("GIF", "P", {"save_all": True, "append_images": [noise.rotate(180).convert("P")]}),
        *[("TIFF", mode, {}) for mode in ("RGB", "LAB", "CMYK", "F", "1", "I;16", "YCbCr", "RGBX")],
        *[("TIFF", "RGB", {"compression": how}) for how in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")],
        ("TIFF", "1", {"compression": "group4"}),
        *[("BMP", mode, {}) for mode in ("RGB", "P", "1", "RGBA")],
        *[("PPM", mode, {}) for mode in ("RGB", "L", "1")],
        ("JPEG2000", "RGB", {}),
    ]
    if "AVIF" in Image.SAVE:
        kinds.append(("AVIF", "RGB", {}))
    return tuple(encoded(_in_mode(noise, mode), kind, **options) for kind, mode, options in kinds)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        assert converted is not None
        return converted
    return image.convert("L").convert(mode) if mode in ("I;16", "LA", "F") else image.convert(mode)


def decode_or_refuse(data: bytes) -> None:
    try:
        rgb = decode_image(data)
    except InputError as error:
        assert str(error).startswith("the given bytes")  # noqa: PT017 - both ends are right
        return
    assert rgb.dtype == np.uint8
    assert rgb.ndim == 3
    assert rgb.shape[2] == 3
    assert rgb.size > 0


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed, numbers put in, parts doubled, left out or swapped for another file's."""
    data = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["byte", "number", "cut", "drop", "double", "graft"])):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                data[at : at + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), number)
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 200))]
            case "graft":
                other = draw(st.sampled_from(seeds()))
                data[at:] = other[min(at, len(other)) :]
    return bytes(data)


@QUICK
@given(damaged())
def test_damaged_files(data: bytes) -> None:
    decode_or_refuse(data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(damaged())
def test_damaged_files_for_long(data: bytes) -> None:
    decode_or_refuse(data)


@QUICK
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x01\x00\x00WEBPVP8X", b"GIF89a",
    b"II*\x00", b"MM\x00*", b"BM", b"P6 ", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    b"\x00\x00\x00\x18ftypavif",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n"]), st.binary(max_size=300))  # fmt: skip
def test_junk_after_a_right_beginning(head: bytes, junk: bytes) -> None:
    decode_or_refuse(head + junk)


def test_undamaged_files_are_decoded_but_for_floating_point_pixels() -> None:
    modes = set()
    for data in seeds():
        with Image.open(io.BytesIO(data)) as image:
            modes.add(image.mode)
            if image.mode == "F":
                with pytest.raises(InputError, match="floating-point pixels"):
                    decode_image(data)
            else:
                assert decode_image(data).shape in ((17, 23, 3), (23, 17, 3))  # turned where EXIF says so
    assert modes >= {"RGB", "RGBA", "L", "LA", "1", "P", "I;16", "CMYK", "LAB", "F", "YCbCr"}


def test_heif_is_named_as_unsupported() -> None:
    with pytest.raises(InputError, match="not an image of a supported format"):
        decode_image(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(500))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_png_chunks(extra: bytes) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    return data[:33] + extra + data[33:]


def many_scans(count: int) -> bytes:
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def run_length_bmp(width: int, height: int) -> bytes:
    size = 54 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, size) + header + bytes(1024) + b"\x00\x01"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (many_scans(501), r"5\d\d JPEG scans, at most 500"),
        (with_png_chunks(chunk(b"teXt", b"") * 100_001), "more than 100000 PNG chunks"),
        (with_png_chunks(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20)))), "too large"),
        (with_png_chunks(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(64 << 20)))), "too large"),
        (b"P3 4000 3000 255\n" + b"1 " * 10, r"too large for its encoding \(ppm_plain\)"),
        (b"P6 4000 3000 100\n" + bytes(10), r"too large for its encoding \(ppm\)"),
        (run_length_bmp(4000, 3000), r"too large for its encoding \(bmp_rle\)"),
    ],
    ids=["scans", "chunks", "text", "profile", "plain-ppm", "odd-ppm", "run-length"],
)
def test_bombs_of_time_and_memory_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_image(data)


def test_a_photograph_with_as_many_scans_as_cameras_write_is_decoded() -> None:
    assert decode_image(many_scans(20)).shape == (64, 64, 3)


# A fresh process, as the peak of this one is past.
PEAK = """
import sys
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
before = peak()
try:
    decode_image(sys.argv[1])
except InputError as error:
    print("refused", error, file=sys.stderr)
print(peak() - before)
"""


def peak_bytes(path: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".dev")}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "I;16")])
def test_memory_is_bounded_by_the_pixels(kind: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.new(mode, (2000, 2000)), kind))
    assert peak_bytes(path) < 4_000_000 * 26 + (24 << 20)  # bytes a pixel, and what the decoders' libraries take


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG2000", "TIFF", "AVIF"])
def test_memory_at_the_limit_of_pixels(kind: str, tmp_path: Path) -> None:
    if kind not in Image.SAVE:
        pytest.skip(f"no {kind} here")
    mode = "RGB" if kind == "AVIF" else "RGBA"
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.new(mode, (7000, 7000)), kind))
    assert peak_bytes(path) < 1.5 * 2**30
