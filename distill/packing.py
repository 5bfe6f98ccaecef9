"""Packed training sequences: a response to imitate and the label tree to score, in one forward pass.

A row is ``prompt · image · reasoning · answer · confidence``, padded, followed by the tree of its own candidates. The
tree's nodes attend to the tokens before the answer and to their own ancestors only, so that one pass yields both the
cross-entropy of the response and the log-likelihood of *every* candidate label: the training-time twin of the runtime's
scoring. Rows of different label sets may stand in one batch, and for the Qwen-VL families images of different sizes,
whose tokens have positions in three coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from emocaliber.evaluate.qwen_inputs import QwenImage, prompt_ids, read_image, rotary_positions, with_image
from emocaliber.evaluate.responders import conversation
from emocaliber.evaluate.transformers_loading import QwenImageProcessor
from emocaliber.runtime.grammar import ANSWER_CLOSE, ANSWER_OPEN, Mode
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.tree import LabelTree, build_tree

IGNORED = -100
"""Target of positions that are not learnt, as `torch.nn.functional.cross_entropy` skips it."""

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """One training example of the student."""

    image: str
    """Path."""
    labels: Labels
    """Candidates, in the order in which the prompt lists them."""
    mode: Mode
    reasoning: str
    """``<think>…</think>``; empty in direct mode."""
    answer: str
    """The candidate the response gives, as `labels` spells it."""
    response: str
    """Answer and confidence."""
    target: tuple[float, ...]
    """Label distribution to match, given the reasoning; in candidate order, sums to one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sequence:
    """One row as tokens."""

    ids: list[int]
    """Prompt, reasoning, answer, confidence, end."""
    positions: NDArray[np.int64]
    """(C, S) of `ids`, in one coordinate or three."""
    learnt: NDArray[np.bool_]
    """Which of them the student learns to write."""
    context: int
    """How many stand before the answer."""
    tree: LabelTree


@dataclass
class PackingCollator:
    """Turns rows into the tensors of one training step."""

    processor: Any
    template: PromptTemplate
    _prompts: dict[tuple[Labels, Mode], list[int]] = field(default_factory=dict)
    _trees: dict[Labels, LabelTree] = field(default_factory=dict)

    def __call__(self, rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
        """Returns the batch of B rows, of which the longest tree has N nodes and the largest label set K labels.

        ``input_ids, position_ids, labels`` (B, L) int64; ``attention_mask`` (B, 1, L, L) bool; ``pixel_values``
        (B, 1, 3, T, T) float32; of the trees' nodes ``node_parents`` (B, N) int64, the position whose logits predict
        them, and ``node_tokens`` (B, N) int64; ``paths`` (B, K, N) float32, 1 where a node is part of a label;
        ``candidates`` (B, K) bool, False where a row has fewer labels; ``target`` (B, K) float32.

        For the Qwen-VL families ``position_ids`` is (3, B, L), ``pixel_values`` (patches of all images, values) and
        ``image_grid_thw`` (B, 3) int64.
        """
        qwen = isinstance(self.processor, QwenImageProcessor)
        images = [read_image(self.processor, row.image) if qwen else None for row in rows]
        sequences = [self._sequence(row, image) for row, image in zip(rows, images, strict=True)]
        arrays = {
            **_packed(sequences, self.processor.tokenizer.pad_token_id),
            **_nodes(sequences, [row.target for row in rows]),
        }
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        sized = [image for image in images if image is not None]
        if sized:
            batch["pixel_values"] = torch.cat([image.patches for image in sized])
            batch["image_grid_thw"] = torch.tensor([image.grid for image in sized])
        else:
            batch["pixel_values"] = self._pixels(rows)
        return batch

    def _sequence(self, row: PackedRow, image: QwenImage | None) -> _Sequence:
        encode, end = self.processor.tokenizer.encode, self.processor.tokenizer.eos_token
        tree, prompt = self._tree(row.labels), self._prompt(row.labels, row.mode)
        positions = np.arange(len(prompt), dtype=np.int64)[None]
        if image is not None:
            token = self.processor.image_token_id
            prompt = with_image(prompt, token, image)
            positions = rotary_positions(prompt, token, image)
        context = prompt + encode(row.reasoning, add_special_tokens=False)
        ids = context + encode(row.response + end, add_special_tokens=False)
        learnt = np.arange(len(ids)) >= len(prompt)
        # The label's own tokens are learnt from the label distribution, which says more than one answer does.
        path = tree.paths[row.labels.index(row.answer)]
        label_start = len(context) + len(tree.common)
        learnt[label_start : label_start + len(path)] = False
        after = positions[:, -1:] + 1 + np.arange(len(ids) - len(prompt), dtype=np.int64)
        positions = np.concatenate([positions, after], axis=1)
        return _Sequence(ids=ids, positions=positions, learnt=learnt, context=len(context), tree=tree)

    def _tree(self, labels: Labels) -> LabelTree:
        if labels not in self._trees:
            encode = self.processor.tokenizer.encode
            self._trees[labels] = build_tree(
                [encode(ANSWER_OPEN + label + ANSWER_CLOSE, add_special_tokens=False) for label in labels]
            )
        return self._trees[labels]

    def _prompt(self, labels: Labels, mode: Mode) -> list[int]:
        if (labels, mode) not in self._prompts and isinstance(self.processor, QwenImageProcessor):
            self._prompts[labels, mode] = prompt_ids(self.processor, self.template, labels, mode)
        if (labels, mode) not in self._prompts:
            turns = conversation(
                self.template.instruction(labels, mode),
                system=self.template.system,
                image_first=self.template.image_first,
            )
            text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            blank = Image.new("RGB", (8, 8), (128, 128, 128))
            inputs = self.processor(text=[text], images=[[blank]], add_special_tokens=False)
            self._prompts[labels, mode] = list(inputs["input_ids"][0])
        return self._prompts[labels, mode]

    def _pixels(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        images = [[Image.fromarray(decode_image(row.image))] for row in rows]
        pixels: torch.Tensor = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return pixels


def _packed(sequences: Sequence[_Sequence], pad: int) -> dict[str, NDArray[Any]]:
    """Returns ids, labels, positions and mask: the sequences, padded, and behind them their trees, padded."""
    count, start = len(sequences), max(len(sequence.ids) for sequence in sequences)
    length = start + max(len(sequence.tree.common) + len(sequence.tree) for sequence in sequences)
    ids = np.full((count, length), pad, np.int64)
    labels = np.full((count, length), IGNORED, np.int64)
    positions = np.zeros((len(sequences[0].positions), count, length), np.int64)
    mask = np.broadcast_to(np.eye(length, dtype=np.bool_), (count, length, length)).copy()
    causal = np.tril(np.ones((length, length), np.bool_))
    for i, sequence in enumerate(sequences):
        used, context, tree = len(sequence.ids), sequence.context, sequence.tree
        common = len(tree.common)
        nodes = start + common
        end = nodes + len(tree)
        ids[i, :used] = sequence.ids
        labels[i, :used] = np.where(sequence.learnt, ids[i, :used], IGNORED)
        positions[:, i, :used] = sequence.positions
        mask[i, :used, :used] = causal[:used, :used]
        ids[i, start:nodes], ids[i, nodes:end] = tree.common, tree.tokens
        behind = sequence.positions[:, context - 1, None] + 1
        positions[:, i, start:nodes] = behind + np.arange(common)
        positions[:, i, nodes:end] = behind + common + tree.depths
        mask[i, start:end, :context] = True
        mask[i, start:end, start:nodes] = causal[: end - start, :common]
        mask[i, nodes:end, nodes:end] = tree.mask()
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions if len(positions) > 1 else positions[0],
        "attention_mask": mask[:, None],
    }


def _nodes(sequences: Sequence[_Sequence], targets: Sequence[Sequence[float]]) -> dict[str, NDArray[Any]]:
    """Returns where the trees' nodes are predicted, which labels they make up, and the labels' target."""
    start = max(len(sequence.ids) for sequence in sequences)
    count, nodes = len(sequences), max(len(sequence.tree) for sequence in sequences)
    labels = max(len(sequence.tree.paths) for sequence in sequences)
    parents, tokens = np.zeros((count, nodes), np.int64), np.zeros((count, nodes), np.int64)
    paths, candidates = np.zeros((count, labels, nodes), np.float32), np.zeros((count, labels), np.bool_)
    target = np.zeros((count, labels), np.float32)
    for i, sequence in enumerate(sequences):
        tree = sequence.tree
        # The root, whose parent is -1, is the last common token.
        parents[i, : len(tree)] = start + len(tree.common) + tree.parents
        tokens[i, : len(tree)] = tree.tokens
        for label, path in enumerate(tree.paths):
            paths[i, label, list(path)] = 1.0
        candidates[i, : len(tree.paths)] = True
        target[i, : len(tree.paths)] = targets[i]
    return {
        "node_parents": parents, "node_tokens": tokens, "paths": paths, "candidates": candidates, "target": target,
    }  # fmt: skip


def packed_losses(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (sequence loss, distribution loss, label scores) of a packed batch.

    The sequence loss is the mean cross-entropy of the response tokens but the label's own, in nats. The distribution
    loss is the batch mean of KL(target ‖ softmax(scores)) in nats, 0 for equal distributions. Scores are (B, K)
    log-likelihoods, -inf where a row has fewer labels.

    Args:
        model: Idefics3/SmolVLM model, or one of the Qwen-VL families.
        batch: What `PackingCollator` returns.
    """
    sizes = {name: batch[name] for name in ("image_grid_thw",) if name in batch}
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        pixel_values=batch["pixel_values"],
        **sizes,
        use_cache=False,
    ).last_hidden_state
    wanted = batch["labels"][:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    sequence_loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][wanted])
    at = batch["node_parents"][..., None]
    predicted = model.lm_head(hidden.gather(1, at.expand(-1, -1, hidden.shape[-1]))).float()
    nodes = torch.log_softmax(predicted, dim=-1).gather(2, batch["node_tokens"][..., None])
    # No matrix product, which mixed precision would round.
    scores = (batch["paths"] * nodes[:, None, :, 0]).sum(dim=-1).masked_fill(~batch["candidates"], -torch.inf)
    log_predicted = torch.log_softmax(scores, dim=-1).masked_fill(~batch["candidates"], 0.0)
    distribution_loss = torch.nn.functional.kl_div(log_predicted, batch["target"], reduction="batchmean")
    return sequence_loss, distribution_loss, scores
