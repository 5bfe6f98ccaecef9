"""Measured cues: hand-worked images, and colour names against a survey."""

import numpy as np
import pytest
from matplotlib.colors import XKCD_COLORS, to_rgb

from emocaliber.train.cot.colours import COLOURS, name_colours, to_oklch
from emocaliber.train.cot.cues import SIDE, measure_cues

# Single colours as Ottosson 2020 and the CSS Color 4 specification give them: lightness, chroma, hue.
RED = (0.62796, 0.25768, 29.234)
BLUE = (0.45201, 0.31321, 264.052)

MODIFIERS = (
    "very dark light pale bright deep medium mid dull faded soft dirty muted rich true dusty dusky strong pure neon "
    "ugly warm cool vivid electric vibrant barely"
)


def plain(*rgb, height=12, width=16):
    return np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3)).copy()


def named(pixels):
    return [COLOURS[position] for position in name_colours(*to_oklch(pixels)).ravel()]


def test_oklch_is_the_published_space():
    light, chroma, hue = to_oklch(np.array([[[255, 0, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], np.uint8))
    assert (light[0, 0], chroma[0, 0], hue[0, 0]) == pytest.approx(RED, abs=2e-3)
    assert (light[0, 1], chroma[0, 1], hue[0, 1]) == pytest.approx(BLUE, abs=2e-3)
    assert light[0, 2:] == pytest.approx([1, 0], abs=1e-5)
    assert chroma[0, 2:] == pytest.approx([0, 0], abs=1e-4)


def test_colours_are_named_as_in_the_xkcd_survey():
    # Munroe 2010: what about 200,000 people called a colour; the names that are one of ours, perhaps modified.
    ours = {**{name: name for name in COLOURS}, "tan": "beige", "cream": "beige"}
    words = {name: name.removeprefix("xkcd:").split() for name in XKCD_COLORS}
    truth = {name: ours[w[-1]] for name, w in words.items() if w[-1] in ours and set(w[:-1]) <= set(MODIFIERS.split())}
    pixels = np.array([[np.round(np.array(to_rgb(XKCD_COLORS[name])) * 255) for name in truth]], np.uint8)
    right = [found == expected for found, expected in zip(named(pixels), truth.values(), strict=True)]
    assert len(truth) > 150
    assert set(truth.values()) == set(COLOURS)
    assert np.mean(right) > 0.9


def test_halves_of_black_and_white():
    pixels = plain(0, 0, 0, height=40, width=60)
    pixels[:20] = 255
    cues = measure_cues(pixels)
    assert cues.shares == pytest.approx({"black": 0.5, "white": 0.5})
    assert (cues.top, cues.bottom) == ({"white": 1.0}, {"black": 1.0})
    assert (cues.top_lightness, cues.bottom_lightness) == pytest.approx((1, 0), abs=1e-5)
    assert cues.lightness == pytest.approx(0.5, abs=1e-5)
    assert cues.contrast == pytest.approx(0.5, abs=1e-5)
    assert cues.chroma == pytest.approx(0, abs=1e-4)
    assert measure_cues(plain(0, 0, 0)).warmth == 0
    assert cues.vivid == {}
    assert cues.symmetry == pytest.approx(1)
    # One row of 60 steps of 1, halved: 30 of 40 x 60 pixels' worth, in the 20th row, half of it in the middle columns.
    assert cues.detail == pytest.approx(30 / 2400, rel=1e-4)
    assert cues.detail_y == pytest.approx(19.5 / 40, rel=1e-4)
    assert cues.detail_x == pytest.approx(0.5, rel=1e-4)
    assert cues.detail_in_centre == pytest.approx(0.5, rel=1e-4)


def test_left_and_right_are_opposite():
    pixels = plain(0, 0, 0)
    pixels[:, 8:] = 255
    cues = measure_cues(pixels)
    assert cues.symmetry == pytest.approx(-1)
    assert measure_cues(pixels.transpose(1, 0, 2)).symmetry == pytest.approx(1)


def test_middle_and_border():
    pixels = plain(0, 0, 0, height=16, width=16)
    pixels[4:12, 4:12] = 255
    cues = measure_cues(pixels)
    assert (cues.centre_lightness, cues.border_lightness) == pytest.approx((1, 0), abs=1e-5)


def test_warm_and_cool_pixels_balance():
    pixels = plain(230, 120, 20, height=10, width=10)
    assert measure_cues(pixels).warmth == pytest.approx(1)
    pixels[:, :8] = (30, 60, 200)
    cues = measure_cues(pixels)
    blue, orange = (float(to_oklch(pixels[:1, x : x + 1])[1][0, 0]) for x in (0, 9))
    assert cues.warmth == pytest.approx((0.2 * orange - 0.8 * blue) / (0.2 * orange + 0.8 * blue))
    assert cues.shares == pytest.approx({"orange": 0.2, "blue": 0.8})
    assert cues.vivid == pytest.approx({"orange": 0.2, "blue": 0.8})


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_any_shape_can_be_measured(height, width):
    cues = measure_cues(plain(90, 90, 90, height=height, width=width))
    assert cues.shares == {"grey": 1.0}
    assert (cues.detail, cues.detail_in_centre, cues.detail_x, cues.symmetry) == (0, 0.25, 0.5, 1)


def test_size_of_the_image_hardly_matters():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (48, SIDE, 3), dtype=np.uint8)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    assert measure_cues(large) == measure_cues(small)
