"""Packed training sequences: a response to imitate and the label tree to score, in one forward pass.

A row is ``prompt · image · reasoning · answer · confidence``, padded, followed by the label tree. The tree's nodes
attend to the tokens before the answer and to their own ancestors only, so that one pass yields both the cross-entropy
of the response and the log-likelihood of *every* candidate label: the training-time twin of the runtime's scoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from emocaliber.runtime.grammar import ANSWER_CLOSE, ANSWER_OPEN, Mode
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.taxonomy import Taxonomy
from emocaliber.runtime.tree import LabelTree, build_tree

IGNORED = -100
"""Target of positions that are not learnt, as `torch.nn.functional.cross_entropy` skips it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """One training example of the student."""

    image: str
    """Path."""
    mode: Mode
    reasoning: str
    """``<think>…</think>``; empty in direct mode."""
    answer: str
    """The label the response gives."""
    response: str
    """Answer and confidence."""
    target: tuple[float, ...]
    """Label distribution to match, given the reasoning; in candidate order, sums to one."""


@dataclass
class PackingCollator:
    """Turns rows of one taxonomy into the tensors of one training step."""

    processor: Any
    template: PromptTemplate
    taxonomy: Taxonomy
    _prompts: dict[Mode, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        encode = self.processor.tokenizer.encode
        self.tree: LabelTree = build_tree(
            [encode(ANSWER_OPEN + label + ANSWER_CLOSE, add_special_tokens=False) for label in self.taxonomy.labels]
        )

    def __call__(self, rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
        """Returns the batch.

        ``input_ids, position_ids, labels`` (B, L) int64; ``attention_mask`` (B, 1, L, L) bool; ``pixel_values``
        (B, 1, 3, T, T) float32; ``target`` (B, K) float32; ``tree_start`` () int64, the position at which the tree,
        its common tokens included, begins.
        """
        encode = self.processor.tokenizer.encode
        end = self.processor.tokenizer.eos_token
        sequences, contexts, learnt = [], [], []
        for row in rows:
            prompt = self._prompt(row.mode)
            context = prompt + encode(row.reasoning, add_special_tokens=False)
            sequence = context + encode(row.response + end, add_special_tokens=False)
            flags = np.arange(len(sequence)) >= len(prompt)
            # The label's own tokens are learnt from the label distribution, which says more than one answer does.
            path = self.tree.paths[self.taxonomy.index(row.answer)]
            label_start = len(context) + len(self.tree.common)
            flags[label_start : label_start + len(path)] = False
            sequences.append(sequence)
            contexts.append(len(context))
            learnt.append(flags)
        arrays = _pack(sequences, learnt, contexts, self.tree, self.processor.tokenizer.pad_token_id)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch["pixel_values"] = self._pixels(rows)
        batch["target"] = torch.tensor([row.target for row in rows], dtype=torch.float32)
        return batch

    def _prompt(self, mode: Mode) -> list[int]:
        if mode not in self._prompts:
            text = self.template.instruction(self.taxonomy.labels, mode)
            content = [{"type": "text", "text": text}, {"type": "image"}]
            rendered = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            blank = Image.new("RGB", (8, 8), (128, 128, 128))
            inputs = self.processor(text=[rendered], images=[[blank]], add_special_tokens=False)
            self._prompts[mode] = list(inputs["input_ids"][0])
        return self._prompts[mode]

    def _pixels(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        images = [[Image.fromarray(decode_image(row.image))] for row in rows]
        pixels: torch.Tensor = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return pixels


def _pack(
    sequences: Sequence[Sequence[int]],
    learnt: Sequence[NDArray[np.bool_]],
    contexts: Sequence[int],
    tree: LabelTree,
    pad: int,
) -> dict[str, NDArray[Any]]:
    count, start = len(sequences), max(len(sequence) for sequence in sequences)
    common = len(tree.common)
    branch = np.concatenate([np.array(tree.common, np.int64), tree.tokens])
    length = start + len(branch)
    ids = np.full((count, length), pad, np.int64)
    labels = np.full((count, length), IGNORED, np.int64)
    positions = np.zeros((count, length), np.int64)
    mask = np.broadcast_to(np.eye(length, dtype=np.bool_), (count, length, length)).copy()
    within = np.tril(np.ones((len(branch), len(branch)), np.bool_))
    within[common:, common:] = tree.mask()
    causal = np.tril(np.ones((start, start), np.bool_))
    for i, sequence in enumerate(sequences):
        used, context = len(sequence), contexts[i]
        ids[i, :used] = sequence
        labels[i, :used] = np.where(learnt[i], ids[i, :used], IGNORED)
        positions[i, :used] = np.arange(used)
        mask[i, :used, :used] = causal[:used, :used]
        ids[i, start:] = branch
        positions[i, start : start + common] = context + np.arange(common)
        positions[i, start + common :] = context + common + tree.depths
        mask[i, start:, :context] = True
        mask[i, start:, start:] = within
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "attention_mask": mask[:, None],
        "tree_start": np.array(start, np.int64),
    }


def packed_losses(
    model: Any, batch: Mapping[str, torch.Tensor], tree: LabelTree
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (sequence loss, distribution loss, label scores) of a packed batch.

    The sequence loss is the mean cross-entropy of the response tokens but the label's own, in nats. The distribution
    loss is the batch mean of KL(target ‖ softmax(scores)) in nats, 0 for equal distributions. Scores are (B, K)
    log-likelihoods.

    Args:
        model: Idefics3/SmolVLM model.
        batch: What `PackingCollator` returns.
        tree: The collator's tree.
    """
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        pixel_values=batch["pixel_values"],
        use_cache=False,
    ).last_hidden_state
    wanted = batch["labels"][:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    sequence_loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][wanted])
    anchor = int(batch["tree_start"]) + len(tree.common) - 1
    rows = torch.tensor([anchor, *(anchor + 1 + int(node) for node in tree.inner)], device=hidden.device)
    scores = path_scores(model.lm_head(hidden[:, rows]).float(), tree)
    target = batch["target"]
    log_predicted = torch.log_softmax(scores, dim=-1)
    distribution_loss = torch.nn.functional.kl_div(log_predicted, target, reduction="batchmean")
    return sequence_loss, distribution_loss, scores


def path_scores(logits: torch.Tensor, tree: LabelTree) -> torch.Tensor:
    """Returns (B, K) log-likelihoods of the tree's paths: `LabelTree.scores` with gradients.

    Args:
        logits: (B, 1 + I, V), of the last token before the tree, then of each inner node.
        tree: The tree.
    """
    row_of = {-1: 0, **{int(node): row for row, node in enumerate(tree.inner, 1)}}
    rows = [row_of[int(parent)] for parent in tree.parents]
    nodes = torch.log_softmax(logits, dim=-1)[:, rows, torch.from_numpy(tree.tokens).to(logits.device)]
    return torch.stack([nodes[:, list(path)].sum(dim=-1) for path in tree.paths], dim=-1)
