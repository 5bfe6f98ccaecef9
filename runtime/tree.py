"""Label trees: every candidate answer as a path of tokens, hung on one prompt and scored in a single decoder pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelTree:
    """A prefix tree (trie) of token paths; M nodes, K paths. Parents come before their children."""

    common: tuple[int, ...]
    """Tokens that every path starts with and that belong to the prompt, not to the tree."""
    tokens: Ints
    """(M,) token of each node."""
    parents: Ints
    """(M,) node above each node; -1 where that is the last token before the tree."""
    depths: Ints
    """(M,) distance from the last token before the tree, minus one: 0 for the first nodes."""
    inner: Ints
    """(I,) nodes that have children, rising: the ones whose logits are needed."""
    paths: tuple[tuple[int, ...], ...]
    """For each candidate its nodes, from the root."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Number of nodes of the longest path."""
        return int(self.depths.max()) + 1

    def nodes(self, *, leaves: bool) -> Ints:
        """Returns all nodes, or without the leaves the inner ones: all that scores need to be read."""
        return np.arange(len(self), dtype=np.int64) if leaves else self.inner

    def mask(self) -> NDArray[np.bool_]:
        """Returns (M, M) bool: row i is True where node i attends, which is itself and the nodes above it."""
        allowed = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                allowed[node] |= allowed[parent]
        return allowed

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns (..., K) float64: the log-likelihood in nats of every path, given all that stands before the tree.

        Args:
            logits: (..., 1 + I, V): of the last token before the tree, then of each inner node.
        """
        log_totals = np.stack([_log_total(logits[..., row, :]) for row in range(logits.shape[-2])], axis=-1)
        rows = np.searchsorted(self.inner, self.parents, side="right")
        node_scores = logits[..., rows, self.tokens] - log_totals[..., rows]
        starts = np.cumsum([0, *map(len, self.paths[:-1])])
        scores: NDArray[np.float64] = np.add.reduceat(node_scores[..., np.concatenate(self.paths)], starts, axis=-1)
        return scores


def build_tree(paths: Sequence[Sequence[int]], opening: int | None = None) -> LabelTree:
    """Returns the tree of these token paths.

    Args:
        paths: Tokens of every candidate, closing tag included, so that none is the beginning of another.
        opening: Of the tokens that all paths start with, how many belong to the prompt at most; None is all of them. In
            graphs that round rows to bytes prompt and tree are rounded otherwise: where the tree starts must not depend
            on what the labels that happen to be asked have in common.

    Raises:
        InputError: If two candidates have the same tokens, or one is the beginning of another.
    """
    common = _common_length(paths)
    shared = common if opening is None else min(common, opening)
    children: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    routes: list[tuple[int, ...]] = []
    for path in paths:
        parent = -1
        route: list[int] = []
        for depth, token in enumerate(path[shared:]):
            node = children.setdefault((parent, token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(parent)
                depths.append(depth)
            route.append(node)
            parent = node
        routes.append(tuple(route))
    inner = sorted({parent for parent in parents if parent >= 0})
    leaves = [route[-1] if route else -1 for route in routes]
    if len(set(leaves)) != len(leaves) or set(leaves) & {-1, *inner}:
        raise InputError("two labels are the same, or one begins like the other, once they are split into tokens")
    return LabelTree(
        common=tuple(paths[0][:shared]),
        tokens=np.array(tokens, dtype=np.int64),
        parents=np.array(parents, dtype=np.int64),
        depths=np.array(depths, dtype=np.int64),
        inner=np.array(inner, dtype=np.int64),
        paths=tuple(routes),
    )


def _log_total(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns (...) float64, the log of the summed exponentials along the last axis.

    Exponentials in single precision, which the logits have themselves: several times faster on large vocabularies.
    """
    peaks = logits.max(axis=-1, keepdims=True)
    total: NDArray[np.float64] = peaks[..., 0] + np.log(np.exp(logits - peaks).sum(axis=-1, dtype=np.float64))
    return total


def _common_length(paths: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all paths start with."""
    length = 0
    for column in zip(*paths, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
