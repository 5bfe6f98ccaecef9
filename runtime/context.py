"""What a decoder has read so far, and how to read on: linearly, or along the branches of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Floats32, KeyValues
from .manifest import DecoderShape
from .tree import LabelTree

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """Cached keys and values of B sequences of equal stored length L, some of whose columns are hidden.

    Hidden columns are what lets sequences of different lengths, and the other branches of a tree, share one batch.
    """

    past: KeyValues
    """Keys and values, each (B, kv_heads, L, head_dim)."""
    visible: Bools
    """(B, L), True where the token belongs to the sequence."""
    positions: Ints
    """(B,) position of the next token: the number of visible columns, or fewer behind an image of several rows."""

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.positions)

    @property
    def size_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(part.nbytes for part in self.past)

    def repeated(self, batch: int) -> Context:
        """Returns the one sequence of this context ``batch`` times."""
        if batch == 1:
            return self
        return Context(
            past=tuple(np.repeat(part, batch, axis=0) for part in self.past),
            visible=np.repeat(self.visible, batch, axis=0),
            positions=np.repeat(self.positions, batch, axis=0),
        )

    def along(self, tree: LabelTree, choices: Sequence[int]) -> Context:
        """Returns the context in which each sequence has taken one path of the tree that was just read.

        Args:
            tree: The tree whose nodes are the last columns of this context.
            choices: (B,) index of the path each sequence takes.
        """
        visible = self.visible.copy()
        start = visible.shape[1] - len(tree)
        for row, choice in enumerate(choices):
            visible[row, [start + node for node in tree.paths[choice]]] = True
        lengths = np.array([len(tree.paths[choice]) for choice in choices], dtype=np.int64)
        return Context(past=self.past, visible=visible, positions=self.positions + lengths)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Where the first n new tokens stand, if not simply behind each other: padding, or images with rows and columns."""

    shown: Bools
    """(B, n), False for padding."""
    offsets: Ints
    """(3, B, n) position of each in time, height and width, counted from the next position of its sequence."""
    spans: Ints
    """(B,) positions that the n tokens take; what follows goes on from there."""


def place_images(shapes: Sequence[tuple[int, int]]) -> Placement:
    """Returns the placement of one image for each sequence, padded on the left.

    The token in row r and column c of an image stands at (0, r, c), and what follows the image behind its longer side.

    Args:
        shapes: Rows and columns of each image, in visual tokens.
    """
    longest = max(rows * columns for rows, columns in shapes)
    shown = np.zeros((len(shapes), longest), dtype=np.bool_)
    offsets = np.zeros((3, len(shapes), longest), dtype=np.int64)
    for number, (rows, columns) in enumerate(shapes):
        start = longest - rows * columns
        shown[number, start:] = True
        offsets[1:, number, start:] = np.indices((rows, columns)).reshape(2, -1)
    return Placement(shown=shown, offsets=offsets, spans=np.array([max(shape) for shape in shapes], dtype=np.int64))


def empty_context(shape: DecoderShape) -> Context:
    """Returns the context of one sequence that has read nothing."""
    part = np.zeros((1, shape.num_kv_heads, 0, shape.head_dim), dtype=np.float32)
    return Context(
        past=(part,) * (2 * shape.num_layers),
        visible=np.zeros((1, 0), dtype=np.bool_),
        positions=np.zeros(1, dtype=np.int64),
    )


def read(
    engine: Engine,
    context: Context,
    embeds: Floats32,
    rows: Sequence[int],
    *,
    tree: LabelTree | None = None,
    leaves: bool = True,
    active: Bools | None = None,
    placement: Placement | None = None,
) -> tuple[Floats32, Context]:
    """Returns (B, R, vocab) logits of the wanted rows, and the context with the new tokens in it.

    Tokens of a tree stay hidden in the new context; `Context.along` shows one path of them.

    Args:
        engine: Runs the decoder.
        context: What was read so far.
        embeds: (B, S, width) new tokens: first the linear ones, then the nodes of ``tree``.
        rows: New tokens whose logits are wanted.
        tree: The tree whose nodes come last.
        leaves: Whether all of its nodes come; False is ``tree.inner`` alone, after which no path can be taken.
        active: (B,) False where a sequence has ended: its new token is padding and stays hidden.
        placement: Of the first linear tokens, where these hold padding or images with rows and columns.
    """
    batch, length = embeds.shape[:2]
    nodes = np.zeros(0, dtype=np.int64) if tree is None else tree.nodes(leaves=leaves)
    linear = length - len(nodes)
    among = np.tril(np.ones((length, length), dtype=np.bool_))
    steps = np.arange(length, dtype=np.int64)
    if tree is not None:
        among[linear:, linear:] = tree.mask()[np.ix_(nodes, nodes)]
        steps[linear:] = linear + tree.depths[nodes]
    shown = np.ones((batch, length), dtype=np.bool_) if active is None else np.tile(active[:, None], length)
    offsets, taken = steps[None], np.full(batch, linear, dtype=np.int64)
    if placement is not None:
        placed = placement.shown.shape[1]
        shown[:, :placed] &= placement.shown
        among = among & shown[:, None, None, :]
        taken = placement.spans + linear - placed
        offsets = _placed(placement, steps)
    mask = np.concatenate(
        [
            np.broadcast_to(context.visible[:, None, None, :], (batch, 1, length, context.visible.shape[1])),
            np.broadcast_to(among, (batch, 1, length, length)),
        ],
        axis=-1,
    )
    positions = context.positions[:, None] + offsets
    logits, past = engine.decode(
        np.ascontiguousarray(embeds), mask, positions, np.asarray(rows, dtype=np.int64), context.past
    )
    shown[:, linear:] = False
    visible = np.concatenate([context.visible, shown], axis=1)
    taken = taken if active is None else taken * active
    return logits, Context(past=past, visible=visible, positions=context.positions + taken)


def _placed(placement: Placement, steps: Ints) -> Ints:
    """Returns (3, B, S) offsets of S tokens: the first ones as placed, the others by their steps behind them."""
    placed = placement.shown.shape[1]
    following = placement.spans[:, None] + steps[placed:] - placed
    return np.concatenate([placement.offsets, np.broadcast_to(following, (3, *following.shape))], axis=-1)


def read_tree(
    engine: Engine,
    context: Context,
    embeds: Floats32,
    tree: LabelTree,
    *,
    leaves: bool = True,
    placement: Placement | None = None,
) -> tuple[NDArray[np.float64], Context]:
    """Returns (B, K) float64 log-likelihoods of the tree's paths, and the context to go on from with `Context.along`.

    Args:
        engine: Runs the decoder.
        context: What was read so far.
        embeds: (B, S, width): at least one linear token, then the tree's nodes.
        tree: The tree.
        leaves: As in `read`: the scores do not need them, going on along a path does.
        placement: As in `read`.
    """
    nodes = tree.nodes(leaves=leaves)
    start = embeds.shape[1] - len(nodes)
    rows = [start - 1, *(start + np.searchsorted(nodes, tree.inner)).tolist()]
    logits, after = read(engine, context, embeds, rows, tree=tree, leaves=leaves, placement=placement)
    return tree.scores(logits), after
