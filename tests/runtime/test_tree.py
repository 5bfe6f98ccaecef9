"""Label trees against hand-drawn ones and against one sum per label."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import log_softmax

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.tree import build_tree

VOCABULARY = 12


def logits_after(prefix: tuple[int, ...]) -> np.ndarray:
    """A made-up model: the logits after a prefix are random, but always the same for that prefix."""
    return np.random.default_rng([7, *prefix]).normal(size=VOCABULARY, scale=3).astype(np.float32)


def test_hand_drawn_tree() -> None:
    # 1 is common; then 2-9, 3-9, 3-4-9:   root -> 2(0) -> 9(1);  root -> 3(2) -> 9(3);  3(2) -> 4(4) -> 9(5)
    tree = build_tree([(1, 2, 9), (1, 3, 9), (1, 3, 4, 9)])
    assert tree.common == (1,)
    assert tree.tokens.tolist() == [2, 9, 3, 9, 4, 9]
    assert tree.parents.tolist() == [-1, 0, -1, 2, 2, 4]
    assert tree.depths.tolist() == [0, 1, 0, 1, 1, 2]
    assert tree.inner.tolist() == [0, 2, 4]
    assert tree.paths == ((0, 1), (2, 3), (2, 4, 5))
    assert tree.depth == 3
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 1, 0],
        [0, 0, 1, 0, 1, 1],
    ]
    assert tree.mask().astype(int).tolist() == expected


def test_what_labels_share_behind_the_opening_stays_in_the_tree() -> None:
    tree = build_tree([(1, 2, 5, 9), (1, 2, 6, 9)], opening=1)
    assert tree.common == (1,)
    assert tree.tokens.tolist() == [2, 5, 9, 6, 9]
    assert tree.paths == ((0, 1, 2), (0, 3, 4))
    alone = build_tree([(1, 2, 5, 9)], opening=1)
    assert (alone.common, alone.paths) == ((1,), ((0, 1, 2),))
    assert build_tree([(1, 2, 9), (1, 3, 9)], opening=2).common == (1,)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_scores_equal_one_sum_per_label(count: int) -> None:
    rng = np.random.default_rng(count)
    paths = {(0, 1, *rng.integers(2, 8, rng.integers(1, 5)).tolist(), 11) for _ in range(count)}
    ordered = sorted(paths)
    tree = build_tree(ordered)
    node_prefix: dict[int, tuple[int, ...]] = {-1: tree.common}
    for node, parent in enumerate(tree.parents.tolist()):
        node_prefix[node] = (*node_prefix[parent], int(tree.tokens[node]))
    logits = np.stack([logits_after(node_prefix[node]) for node in [-1, *tree.inner.tolist()]])

    start = len(tree.common)
    expected = [
        sum(log_softmax(logits_after(path[:at]).astype(np.float64))[path[at]] for at in range(start, len(path)))
        for path in ordered
    ]
    # Exponentials are taken in single precision.
    np.testing.assert_allclose(tree.scores(logits), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(tree.scores(np.stack([logits, logits])), [expected, expected], rtol=0, atol=1e-6)


def test_all_endings_of_a_closed_vocabulary_have_probability_one() -> None:
    # Every two-token path over the whole vocabulary: their probabilities must sum to one.
    paths = [(5, *pair) for pair in itertools.product(range(VOCABULARY), repeat=2)]
    tree = build_tree(paths)
    nodes = [int(tree.tokens[node]) for node in tree.inner]
    logits = np.stack([logits_after((5,)), *(logits_after((5, token)) for token in nodes)])
    assert np.exp(tree.scores(logits)).sum() == pytest.approx(1.0, abs=1e-7)


def test_scores_survive_huge_logits() -> None:
    tree = build_tree([(1, 2), (1, 3)])
    logits = np.zeros((1, 4), dtype=np.float32)
    logits[0, 2] = 3e4
    np.testing.assert_allclose(tree.scores(logits), [0.0, -3e4])


@pytest.mark.parametrize("paths", [[(1, 2), (1, 2)], [(1, 2), (1, 2, 3)], [(1, 2, 3), (1, 2), (4, 5)]])
def test_ambiguous_labels_are_refused(paths: list[tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="split into tokens"):
        build_tree(paths)
