"""Decoding: every kind of picture people have, and every broken file they have too."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.images import ImageLimits, decode_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

# 2 high, 3 wide, six different colours: any wrong turn or flip shows.
UPRIGHT = np.array([[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (10, 120, 200)]], np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    channels = {"L": 1, "RGB": 3}[mode]
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels a camera stores under this EXIF tag, from the definition of rows and columns in EXIF 2.32, 4.6.4 A."""
    return {
        1: upright,
        2: upright[:, ::-1],  # row 0 = top, column 0 = right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1, :],  # bottom, left
        5: upright.transpose(1, 0, 2),  # row 0 = left side, column 0 = top
        6: upright.transpose(1, 0, 2)[::-1, :],  # row 0 = right side, column 0 = top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right side, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left side, bottom
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(UPRIGHT, orientation)))
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, exif=exif, **options)
    np.testing.assert_array_equal(decode_image(data), UPRIGHT)


def test_exif_orientation_of_a_jpeg() -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, 16:] = 255  # left black, right white
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.ascontiguousarray(stored(upright, 6))), "JPEG", exif=exif, quality=95)
    rgb = decode_image(data)
    assert rgb.shape == (16, 32, 3)
    assert rgb[:, :8].max() < 20
    assert rgb[:, 24:].min() > 235


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_unknown_orientation_leaves_the_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(UPRIGHT), exif=exif)), UPRIGHT)


def test_broken_exif_block_is_ignored() -> None:
    data = encoded(Image.fromarray(UPRIGHT), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    np.testing.assert_array_equal(decode_image(data), UPRIGHT)


def test_alpha_is_laid_on_white() -> None:
    pixels = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [100, 50, 200, 128]]], np.uint8)
    # 100 * 128/255 + 255 * 127/255 = 177.2; 50 -> 152.1; 200 -> 227.4
    rgb = decode_image(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(rgb[0, :2], [WHITE, (0, 0, 0)])
    np.testing.assert_allclose(rgb[0, 2].astype(float), [177.2, 152.1, 227.4], atol=1.0)


def test_grey_with_alpha() -> None:
    image = Image.fromarray(np.array([[[0, 0], [0, 255], [80, 255]]], np.uint8), "LA")
    np.testing.assert_array_equal(decode_image(encoded(image))[0], [WHITE, (0, 0, 0), (80, 80, 80)])


def test_grey() -> None:
    rgb = decode_image(encoded(Image.fromarray(np.array([[0, 7, 255]], np.uint8))))
    np.testing.assert_array_equal(rgb[0], [(0, 0, 0), (7, 7, 7), WHITE])


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    return image


def test_palette() -> None:
    np.testing.assert_array_equal(decode_image(encoded(palette_image()))[0], [RED, GREEN, BLUE])


@pytest.mark.parametrize(("kind", "transparency"), [("GIF", 1), ("PNG", 1), ("PNG", b"\xff\x00\xff")])
def test_palette_with_transparency_is_laid_on_white(kind: str, transparency: int | bytes) -> None:
    data = encoded(palette_image(), kind, transparency=transparency)
    np.testing.assert_array_equal(decode_image(data)[0], [RED, WHITE, BLUE])


def test_transparent_colour_of_an_rgb_png() -> None:
    data = encoded(Image.fromarray(np.array([[RED, GREEN]], np.uint8)), transparency=GREEN)
    np.testing.assert_array_equal(decode_image(data)[0], [RED, WHITE])


def test_cmyk_jpeg_is_not_inverted() -> None:
    # Pillow writes CMYK as Adobe does: inverted, with an Adobe marker. No ink is white, full cyan has no red.
    image = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (16, 0, 32, 16))
    data = encoded(image, "JPEG", quality=95)
    assert b"Adobe" in data
    rgb = decode_image(data).astype(int)
    assert rgb[:, :12].min() > 240
    assert rgb[:, 20:, 0].max() < 15
    assert rgb[:, 20:, 1:].min() > 240


# 65535 / 257 = 255; 257 / 257 = 1; 32768 / 257 = 127.50; 128 / 257 = 0.498; 129 / 257 = 0.502
VALUES_16 = [0, 257, 32768, 65535, 128, 129]
VALUES_8 = [0, 1, 128, 255, 0, 1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    data = encoded(Image.fromarray(np.array([VALUES_16], np.uint16)), kind)
    np.testing.assert_array_equal(decode_image(data)[0, :, 0], VALUES_8)


def test_16_bit_pgm_big_endian() -> None:
    data = b"P5 6 1 65535\n" + np.array(VALUES_16, ">u2").tobytes()
    np.testing.assert_array_equal(decode_image(data)[0, :, 1], VALUES_8)


def test_16_bit_big_endian_tiff_in_memory() -> None:
    image = Image.frombytes("I;16B", (6, 1), np.array(VALUES_16, ">u2").tobytes())
    np.testing.assert_array_equal(decode_image(image)[0, :, 2], VALUES_8)


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode_image(encoded(image))[0], [(0, 0, 0), WHITE])


def test_float_pixels_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0.0, 0.5]], np.float32)), "TIFF")
    with pytest.raises(InputError, match="floating-point pixels"):
        decode_image(data)


def test_integer_pixels_of_unknown_range_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    with pytest.raises(InputError, match=r"outside 0\.\.65535"):
        decode_image(data)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_of_several(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 3  # type: ignore[attr-defined]
    np.testing.assert_array_equal(decode_image(data), np.full((4, 4, 3), RED, np.uint8))


@pytest.mark.parametrize("given", ["str", "path", "bytes", "pillow", "array"])
def test_every_kind_of_source_gives_the_same_pixels(given: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(UPRIGHT))
    path = tmp_path / "no suffix"
    path.write_bytes(data)
    source: Any = {
        "str": str(path),
        "path": path,
        "bytes": data,
        "pillow": Image.fromarray(UPRIGHT),
        "array": UPRIGHT,
    }[given]
    rgb = decode_image(source)
    assert rgb.dtype == np.uint8
    assert rgb.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(rgb, UPRIGHT)


def test_pillow_image_in_memory_is_laid_on_white_and_left_alone() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert decode_image(image).min() == 255
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (0, 0, 0, 0)


def test_closed_pillow_image_is_refused() -> None:
    image = Image.open(io.BytesIO(encoded(noise())))
    image.close()
    with pytest.raises(InputError, match="the given Pillow image cannot be decoded"):
        decode_image(image)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_of_other_type_or_shape_are_refused(array: Any) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \(H, W, 3\)"):
        decode_image(array)


@pytest.mark.parametrize("source", [None, 3, ["a.png"]])
def test_other_sources_are_refused(source: Any) -> None:
    with pytest.raises(InputError, match="give a path, bytes"):
        decode_image(source)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read image '.*gone\.jpg': No such file"):
        decode_image(tmp_path / "gone.jpg")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        decode_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        decode_image(tmp_path / "pipe")


def test_path_with_a_null_byte() -> None:
    with pytest.raises(InputError, match=r"null (byte|character)"):
        decode_image("a\0.png")


@pytest.mark.parametrize("url", ["http://example.org/a.jpg", "https://example.org/a.jpg", "file:///etc/passwd"])
def test_urls_are_not_followed(url: str) -> None:
    with pytest.raises(InputError, match="nothing is downloaded"):
        decode_image(url)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(InputError, match="0 bytes"):
        decode_image(path)
    with pytest.raises(InputError, match="0 bytes"):
        decode_image(b"")


@pytest.mark.parametrize(
    "data", [b"not an image at all\n" * 20, b"<svg xmlns='x'/>", b"\x00" * 500, b"%!PS-Adobe EPSF"]
)
def test_other_content_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="not an image of a supported format"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICNS"])
def test_formats_outside_the_list_are_refused_though_pillow_reads_them(kind: str) -> None:
    # EPS above all: Pillow hands it to another program.
    with pytest.raises(InputError, match="not an image of a supported format"):
        decode_image(encoded(noise(), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(InputError, match=r"truncated or corrupt|not an image"):
        decode_image(data[: int(len(data) * kept)])


def test_flipped_bytes_raise_nothing_but_input_errors() -> None:
    generator = np.random.default_rng(1)
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        original = np.frombuffer(encoded(noise(24, 24), kind), np.uint8)
        for _ in range(25):
            broken = original.copy()
            broken[generator.integers(0, min(len(broken), 200), 6)] = generator.integers(0, 256, 6)
            try:
                rgb = decode_image(broken.tobytes())
            except InputError:
                refused += 1
            else:
                assert rgb.dtype == np.uint8
                assert rgb.shape[2] == 3
    assert refused > 20


def png_with_size(width: int, height: int) -> bytes:
    """A valid small PNG file whose header claims a size, with the row data missing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(8_000, 8_000), (10_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_decompression_bombs_are_refused_from_the_header(width: int, height: int) -> None:
    # 64 MP: above our limit only; 120 MP: Pillow warns; 3600 MP: Pillow refuses. All the same to the caller.
    started = time.perf_counter()
    with pytest.raises(InputError, match="too large"):
        decode_image(png_with_size(width, height))
    assert time.perf_counter() - started < 1.0


def test_limits_are_the_callers() -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    assert decode_image(data, limits=ImageLimits(max_pixels=200)).shape == (10, 20, 3)
    with pytest.raises(InputError, match="20 x 10 is more than 199 pixels"):
        decode_image(data, limits=ImageLimits(max_pixels=199))
    with pytest.raises(InputError, match="more than 199 pixels"):
        decode_image(np.zeros((10, 20, 3), np.uint8), limits=ImageLimits(max_pixels=199))
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        ImageLimits(max_pixels=0)


def test_file_size_limit_holds_for_paths_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x" * 101)
    for source in (path, path.read_bytes()):
        with pytest.raises(InputError, match="101 bytes, at most 100"):
            decode_image(source, limits=ImageLimits(max_file_bytes=100))


def test_too_large_a_file_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(2**31)  # a sparse file: nothing is written
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the file was read"))
    with pytest.raises(InputError, match="2147483648 bytes"):
        decode_image(path)


def test_no_warning_escapes_and_pillow_keeps_its_settings() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(encoded(palette_image(), transparency=b"\xff\x00\xff"))
        with pytest.raises(InputError):
            decode_image(png_with_size(10_000, 12_000))
    assert caught == []
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_threads_decode_at_once_and_leave_the_warning_filters() -> None:
    filters = list(warnings.filters)
    data = encoded(noise(200, 200))
    expected = np.asarray(noise(200, 200))
    wrong: list[int] = []

    def work(number: int) -> None:
        right = all(np.array_equal(decode_image(data), expected) for _ in range(10))
        wrong.extend([] if right else [number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list(warnings.filters) == filters
