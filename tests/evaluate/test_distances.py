"""Distances of label distributions, by hand."""

import math

import pytest

from emocaliber.evaluate.distances import DISTANCES
from emocaliber.runtime.errors import InputError

P, Q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kl", 0.5 * math.log(2)),
        # m = (3/8, 1/2, 1/8).
        ("js", (0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)) / 2),
        ("chebyshev", 0.25),
        # (1/4) / (3/4) = 1/3, 0, and (1/4) / (1/4) = 1.
        ("clark", math.sqrt(1 / 9 + 1)),
        ("canberra", 1 / 3 + 1),
        # (1/8 + 1/4) / (sqrt(1/2) sqrt(3/8)).
        ("cosine", 0.375 / math.sqrt(0.5 * 0.375)),
        ("intersection", 0.75),
    ],
)
def test_by_hand(name, expected):
    assert DISTANCES[name]([P], [Q]) == pytest.approx(expected)


@pytest.mark.parametrize("name", list(DISTANCES))
def test_equal_distributions(name):
    same = 1.0 if name in ("cosine", "intersection") else 0.0
    # With a label that neither gives any mass: 0 / 0 is 0.
    assert DISTANCES[name]([P, [1, 0, 0]], [P, [1, 0, 0]]) == pytest.approx(same)


@pytest.mark.parametrize("name", list(DISTANCES))
def test_unequal_shapes_are_refused(name):
    with pytest.raises(InputError, match="cannot be compared"):
        DISTANCES[name]([P], [[0.5, 0.5]])
