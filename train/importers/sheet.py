"""A contact sheet: what a set looks like at a glance, with what people felt."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from emocaliber.runtime.files import atomic_path
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample, iterate_samples

SIDE, GAP, CAPTION = 96, 8, 30
"""Pixels: side of a picture, distance between two, height of the two lines below each."""


def write_sheet(samples: Path, path: Path, *, count: int = 48, columns: int = 8) -> None:
    """Writes the first ``count`` images of a samples file as one PNG, the two likeliest labels below each.

    Raises:
        InputError: If the samples file or one of the images cannot be read.
        OSError: If ``path`` cannot be written.
    """
    chosen = list(islice(iterate_samples(samples), count))
    rows = -(-len(chosen) // columns)
    step = SIDE + GAP
    sheet = Image.new("RGB", (min(len(chosen), columns) * step + GAP, rows * (step + CAPTION) + GAP), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for position, sample in enumerate(chosen):
        row, column = divmod(position, columns)
        left, top = GAP + column * step, GAP + row * (step + CAPTION)
        picture = ImageOps.contain(Image.fromarray(decode_image(sample.image)), (SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        draw.multiline_text((left + 1, top + SIDE), _caption(sample), font=font, fill=(40, 40, 40), spacing=1)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _caption(sample: Sample) -> str:
    shares = sample.true_posterior() or sample.distribution()
    if shares is None:
        return ""
    ranked = sorted(zip(shares, sample.resolve().labels, strict=True), reverse=True)[:2]
    return "\n".join(f"{label} {share:.0%}" for share, label in ranked)
