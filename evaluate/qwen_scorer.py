"""Label scores of the Qwen-VL families, for teachers and students that are not exported.

The runtime scores images of one size through graphs that pass keys and values as arrays, and wants a token for every
tag. A Qwen teacher has images of all sizes, prompts with the image in front, a vocabulary without the tags, and
billions of weights whose keys and values had better stay where they are. So this module reads prompts with the model's
own forward pass and has transformers write the reasonings. The tree, its mask and its scores are the runtime's, and a
figure means the same: ``s_y = sum_t log p(token_t(y) | image, prompt, [reasoning], "<answer>")``, closing tag included,
without the tokens that all labels start with.

A response is split into tokens as a whole, as training splits it, wherever its tokens run across the tags.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.decoding import Sampling
from emocaliber.runtime.errors import ExportError, InputError
from emocaliber.runtime.grammar import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CONFIDENCE_CLOSE,
    CONFIDENCE_GRID,
    CONFIDENCE_OPEN,
    THINK_CLOSE,
    Mode,
)
from emocaliber.runtime.images import ImageSource
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.scoring import Scored
from emocaliber.runtime.tokenization import PromptTokenizer
from emocaliber.runtime.tree import LabelTree, build_tree

from .prompting import end_tokens
from .qwen_inputs import Ints, QwenImage, prompt_ids, read_image, rotary_positions, with_image
from .transformers_responder import visual_token_ids

Labels = tuple[str, ...]

_TOKENS_AT_ONCE = 1 << 14
"""Tokens of the prompts that are read at once, padding included: of a 7B model about a gigabyte of keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prompt:
    ids: list[int]
    positions: Ints
    """(3, S)."""
    image: QwenImage

    def followed_by(self, ids: Sequence[int]) -> tuple[list[int], Ints]:
        """Returns the tokens of prompt and response, and their (3, S + R) positions."""
        after = self.positions[:, -1:] + 1 + np.arange(len(ids), dtype=np.int64)
        return [*self.ids, *ids], np.concatenate([self.positions, after], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Row:
    """What one sequence of a batch reads in one pass: tokens in a line, then a tree."""

    seen: int
    """How many of the first columns of the cache it goes on from."""
    ids: list[int]
    positions: Ints
    """(3, S) of `ids`."""
    tree: LabelTree


class QwenScorer:
    """Scores images with a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model in memory."""

    def __init__(
        self, model: Any, processor: Any, tokenizer: PromptTokenizer, template: PromptTemplate, max_new_tokens: int
    ) -> None:
        """Prepares ``model``, which must be in eval mode and is not copied.

        Args:
            model: Model of one of the families.
            processor: Its processor.
            tokenizer: The processor's tokenizer.
            template: Instructions.
            max_new_tokens: Longest reasoning.

        Raises:
            ExportError: If the model's attention reaches over a window only, or nothing ends a response.
        """
        text = model.config.text_config
        windowed = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
        if windowed:
            raise ExportError(f"the language model uses {', '.join(sorted(windowed))}; only full attention is scored")
        self._model = model
        self._processor = processor
        self._tokenizer = tokenizer
        self._template = template
        self._max_new_tokens = max_new_tokens
        self._max_positions = int(text.max_position_embeddings)
        self._ends = end_tokens(model, processor.tokenizer)
        special = {*processor.tokenizer.all_special_ids, *(visual_token_ids(model.config) or ())}
        self._banned = sorted(special - set(self._ends))

    def score(
        self, images: Sequence[ImageSource], labels: Labels, mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> Scored:
        """Returns the raw scores of N images; see `emocaliber.evaluate.transformers_model.TransformersModel.score`.

        Raises:
            InputError: If an image cannot be read, or the labels cannot be used.
        """
        started = time.perf_counter()
        self._tokenizer.check_labels(labels)
        with torch.inference_mode():
            parts = [
                self._score(batch, labels, mode, sampling, verbalize=verbalize)
                for batch in self._batches(images, labels, mode)
            ]
        stated = [stated for _, stated, _ in parts if stated is not None]
        return Scored(
            label_scores=np.concatenate([scores for scores, _, _ in parts]),
            verbalized=np.concatenate(stated) if verbalize else None,
            texts=tuple(texts for _, _, batch in parts for texts in batch) if mode == "reason" else None,
            vision_ms=0.0,
            text_ms=1e3 * (time.perf_counter() - started),
        )

    def _batches(self, images: Sequence[ImageSource], labels: Labels, mode: Mode) -> Iterator[list[_Prompt]]:
        """Yields the images' prompts in their order, as many at once as `_TOKENS_AT_ONCE` allows."""
        ids, token = prompt_ids(self._processor, self._template, labels, mode), self._processor.image_token_id
        batch: list[_Prompt] = []
        for source in images:
            image = read_image(self._processor, source)
            whole = with_image(ids, token, image)
            prompt = _Prompt(ids=whole, positions=rotary_positions(whole, token, image), image=image)
            longest = max(len(other.ids) for other in (*batch, prompt))
            if batch and longest * (len(batch) + 1) > _TOKENS_AT_ONCE:
                yield batch
                batch = []
            batch.append(prompt)
        if batch:
            yield batch

    def _score(
        self, prompts: Sequence[_Prompt], labels: Labels, mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, list[tuple[str, ...]]]:
        """Returns (N, R, K) label scores, (N,) stated confidences, and the N × R reasonings, empty in direct mode."""
        draws = self._draws(prompts, labels, mode, sampling)
        trees = [[self._labels(text, labels) for text in texts] for texts in draws]
        read = [self._read_labels(prompts, of_draw) for of_draw in trees]
        scores = np.stack([scores for scores, _ in read], axis=1)
        stated = None
        if verbalize:
            best = [labels[int(k)] for k in softmax(scores).mean(axis=1).argmax(axis=1)]
            each = [
                self._read_confidences(prompts, of_draw, texts, best, cache)
                for of_draw, texts, (_, cache) in zip(trees, draws, read, strict=True)
            ]
            stated = np.mean(each, axis=0)
        return scores, stated, list(zip(*draws, strict=True))

    def _draws(self, prompts: Sequence[_Prompt], labels: Labels, mode: Mode, sampling: Sampling) -> list[list[str]]:
        """Returns R draws of N reasonings each; in direct mode one draw, empty."""
        if mode == "direct":
            return [[""] * len(prompts)]
        answers = [f"{THINK_CLOSE}{ANSWER_OPEN}{label}{ANSWER_CLOSE}{_stated(0.5)}" for label in labels]
        longest = max(len(self._tokenizer.encode(answer)) for answer in answers)
        room = self._max_positions - max(len(prompt.ids) for prompt in prompts) - longest
        if room < 1:
            raise InputError(
                f"{len(labels)} labels and the largest image make a prompt longer than the {self._max_positions} "
                "positions of the model; give fewer labels, or lower max_pixels"
            )
        budget = min(room, self._max_new_tokens)
        return [self._write(prompts, sampling, draw, budget) for draw in range(sampling.samples)]

    def _write(self, prompts: Sequence[_Prompt], sampling: Sampling, draw: int, budget: int) -> list[str]:
        """Returns a reasoning for each prompt, cut where it ends and closed with ``</think>``."""
        device, pad = self._model.device, self._processor.tokenizer.pad_token_id
        longest = max(len(prompt.ids) for prompt in prompts)
        padded = [[pad] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts]
        ids = torch.tensor(padded, device=device)
        read = [[False] * (longest - len(prompt.ids)) + [True] * len(prompt.ids) for prompt in prompts]
        temperature, choosers = sampling.effective_temperature, LogitsProcessorList()
        if temperature:
            seed = int(np.random.SeedSequence([sampling.seed, draw]).generate_state(1)[0])
            choosers.append(_Draws(temperature, sampling.top_p, seed, len(prompts), device))
        written = self._model.generate(
            input_ids=ids,
            attention_mask=torch.tensor(read, device=device).long(),
            mm_token_type_ids=(ids == self._processor.image_token_id).int(),
            **self._pictures(prompts),
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=budget,
            suppress_tokens=self._banned,
            eos_token_id=list(self._ends),
            pad_token_id=pad,
            stop_strings=[THINK_CLOSE, ANSWER_OPEN],
            tokenizer=self._processor.tokenizer,
            logits_processor=choosers,
            disable_compile=True,
        )[:, longest:]
        return [self._reasoning(row, {pad, *self._ends}) for row in written.tolist()]

    def _reasoning(self, written: Sequence[int], ends: set[int]) -> str:
        end = next((place for place, token in enumerate(written) if token in ends), len(written))
        text = self._tokenizer.decode(written[:end])
        return text.partition(THINK_CLOSE)[0].partition(ANSWER_OPEN)[0] + THINK_CLOSE

    def _labels(self, reasoning: str, labels: Labels) -> LabelTree:
        """Returns the tree of a reasoning with each label behind it; what they share is its common part."""
        return build_tree(
            [self._tokenizer.encode(f"{reasoning}{ANSWER_OPEN}{label}{ANSWER_CLOSE}") for label in labels]
        )

    def _read_labels(self, prompts: Sequence[_Prompt], trees: Sequence[LabelTree]) -> tuple[NDArray[np.float64], Any]:
        """Returns (N, K) label scores, and the cache to go on from."""
        rows = []
        for prompt, tree in zip(prompts, trees, strict=True):
            ids, positions = prompt.followed_by(tree.common)
            rows.append(_Row(seen=0, ids=ids, positions=positions, tree=tree))
        return self._read(rows, None, self._pictures(prompts))

    def _read_confidences(
        self,
        prompts: Sequence[_Prompt],
        answered: Sequence[LabelTree],
        reasonings: Sequence[str],
        best: Sequence[str],
        cache: Any,
    ) -> NDArray[np.float64]:
        """Returns (N,) the expected value of the confidence that follows each image's best label.

        Args:
            prompts: The images.
            answered: The label trees that the cache holds.
            reasonings: What stands before the answers.
            best: The answers.
            cache: What `_read_labels` returned.
        """
        rows = []
        for prompt, before, reasoning, label in zip(prompts, answered, reasonings, best, strict=True):
            answer = f"{reasoning}{ANSWER_OPEN}{label}{ANSWER_CLOSE}"
            tree = build_tree([self._tokenizer.encode(answer + _stated(value)) for value in CONFIDENCE_GRID])
            ids, positions = prompt.followed_by(tree.common)
            # Of the label's own tokens the last may be another one now that a confidence follows: they are read again.
            shared = zip(before.common, tree.common[:-1], strict=False)
            same = next((n for n, (old, new) in enumerate(shared) if old != new), None)
            seen = len(prompt.ids) + (min(len(before.common), len(tree.common) - 1) if same is None else same)
            rows.append(_Row(seen=seen, ids=ids[seen:], positions=positions[:, seen:], tree=tree))
        scores, _ = self._read(rows, cache, {})
        stated: NDArray[np.float64] = softmax(scores) @ np.array(CONFIDENCE_GRID)
        return stated

    def _read(
        self, rows: Sequence[_Row], cache: Any, pictures: dict[str, torch.Tensor]
    ) -> tuple[NDArray[np.float64], Any]:
        """Returns (B, K) log-likelihoods of the rows' trees, and the cache with what was read."""
        device, cached = self._model.device, 0 if cache is None else cache.get_seq_length()
        ids, positions, mask = _layout(rows, cached, self._processor.tokenizer.pad_token_id)
        output = self._model.model(
            input_ids=torch.from_numpy(ids).to(device),
            position_ids=torch.from_numpy(positions).to(device),
            attention_mask=torch.from_numpy(mask).to(device)[:, None],
            past_key_values=cache,
            use_cache=True,
            **pictures,
        )
        start, scores = max(len(row.ids) for row in rows), []
        for hidden, row in zip(output.last_hidden_state, rows, strict=True):
            wanted = [len(row.ids) - 1, *(start + int(node) for node in row.tree.inner)]
            scores.append(row.tree.scores(self._model.lm_head(hidden[wanted]).float().cpu().numpy()))
        return np.stack(scores), output.past_key_values

    def _pictures(self, prompts: Sequence[_Prompt]) -> dict[str, torch.Tensor]:
        device = self._model.device
        return {
            "pixel_values": torch.cat([prompt.image.patches for prompt in prompts]).to(device),
            "image_grid_thw": torch.tensor([prompt.image.grid for prompt in prompts], device=device),
        }


def _layout(rows: Sequence[_Row], cached: int, pad: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Returns ids (B, L), positions (3, B, L) and mask (B, L, P + L): each row's tokens, padded, then its tree, padded.

    Args:
        rows: What each row reads.
        cached: P, columns of the cache.
        pad: Token of padding, which attends to itself and to which nothing attends.
    """
    start, nodes = max(len(row.ids) for row in rows), max(len(row.tree) for row in rows)
    count, length = len(rows), start + nodes
    ids, positions = np.full((count, length), pad, np.int64), np.zeros((3, count, length), np.int64)
    mask = np.zeros((count, length, cached + length), np.bool_)
    mask[:, :, cached:] = np.eye(length, dtype=np.bool_)
    for i, row in enumerate(rows):
        used, end = len(row.ids), start + len(row.tree)
        ids[i, :used], ids[i, start:end] = row.ids, row.tree.tokens
        positions[:, i, :used] = row.positions
        positions[:, i, start:end] = row.positions[:, -1:] + 1 + row.tree.depths
        for reading in (slice(used), slice(start, end)):
            mask[i, reading, : row.seen] = True
        mask[i, :used, cached : cached + used] = np.tril(np.ones((used, used), np.bool_))
        mask[i, start:end, cached : cached + used] = True
        mask[i, start:end, cached + start : cached + end] = row.tree.mask()
    return ids, positions, mask


def _stated(value: float) -> str:
    return f"{CONFIDENCE_OPEN}{value:.2f}{CONFIDENCE_CLOSE}"


class _Draws(LogitsProcessor):
    """Turns the choice of the highest score into a draw, by Gumbel noise from a generator for each sequence.

    So an image's draws depend on the seed and the number of the sample, not on its neighbours in the batch.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, count: int, device: Any) -> None:
        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1.0 else None
        self._generators = [torch.Generator(device).manual_seed(seed) for _ in range(count)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns (B, vocab) noisy scores, of which the highest is a draw."""
        scores = scores.float() / self._temperature
        if self._nucleus is not None:
            scores = self._nucleus(input_ids, scores)
        waits = [
            torch.empty_like(row).exponential_(generator=g) for row, g in zip(scores, self._generators, strict=True)
        ]
        return scores - torch.stack(waits).log()
