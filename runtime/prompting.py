"""Prompts as tokens: what is constant for a label set is read once, kept, and shared by all its images."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .context import Context, empty_context, read
from .engine import Engine, Floats32
from .errors import ArtifactError, InputError
from .grammar import ANSWER_CLOSE, ANSWER_OPEN, CONFIDENCE_CLOSE, CONFIDENCE_GRID, CONFIDENCE_OPEN, THINK_CLOSE, Mode
from .manifest import Manifest
from .tokenization import PromptTokenizer
from .tree import LabelTree, build_tree

CACHED_PLANS = 16
CACHED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """One label set in one mode, ready to meet images."""

    prefix: Context
    """The constant text before the image, already read."""
    image_tokens: int
    """Most tokens that an image takes."""
    after_embeds: Floats32
    """(S, width): the text between the image and the response."""
    answer_embeds: Floats32
    """(A, width): what stands before the labels (the end of the reasoning, the answer tag), then the tree's nodes."""
    answers: LabelTree
    """The labels."""
    budget: int
    """Most tokens the reasoning may have."""

    @property
    def size_bytes(self) -> int:
        """Memory it holds."""
        return self.prefix.size_bytes + self.after_embeds.nbytes + self.answer_embeds.nbytes

    def response_embeds(self, *, leaves: bool) -> Floats32:
        """Returns ``answer_embeds`` with all of the tree's nodes, or without its leaves; see `context.read`."""
        linear = len(self.answer_embeds) - len(self.answers)
        nodes = linear + self.answers.nodes(leaves=leaves)
        return np.concatenate([self.answer_embeds[:linear], self.answer_embeds[nodes]])


class Planner:
    """Makes plans and keeps the latest ones. Safe to use from several threads."""

    def __init__(self, manifest: Manifest, tokenizer: PromptTokenizer, engine: Engine) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._engine = engine
        self._image_id = tokenizer.token_id(manifest.image_block.token)
        self._plans: OrderedDict[tuple[tuple[str, ...], Mode], Plan] = OrderedDict()
        self._lock = threading.Lock()
        self.think_close = tokenizer.token_id(THINK_CLOSE)
        self.answer_open = tokenizer.token_id(ANSWER_OPEN)
        self._opening = len(tokenizer.encode(ANSWER_OPEN))
        texts = [f"{CONFIDENCE_OPEN}{value:.2f}{CONFIDENCE_CLOSE}" for value in CONFIDENCE_GRID]
        self.confidences = build_tree([tokenizer.encode(text) for text in texts])
        if not self.confidences.common:
            raise ArtifactError(f"the tokenizer splits {CONFIDENCE_OPEN} differently before different numbers")
        nodes = self.confidences.nodes(leaves=False)
        self.confidence_embeds = self._embed([*self.confidences.common, *self.confidences.tokens[nodes]])

    def plan(self, labels: tuple[str, ...], mode: Mode) -> Plan:
        """Returns the plan for these labels, from the cache where it is there.

        Raises:
            InputError: If a label holds a special token, two labels are the same tokens, or the prompt is too long.
        """
        key = (labels, mode)
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        made = self._make(labels, mode)
        with self._lock:
            self._plans[key] = made
            self._plans.move_to_end(key)
            while len(self._plans) > 1 and (
                len(self._plans) > CACHED_PLANS or sum(plan.size_bytes for plan in self._plans.values()) > CACHED_BYTES
            ):
                self._plans.popitem(last=False)
        return made

    def _make(self, labels: tuple[str, ...], mode: Mode) -> Plan:
        self._tokenizer.check_labels(labels)
        before, after = self._prompt(labels, mode)
        answers = self._answers(labels)
        budget = self._room(labels, mode)
        if budget < (mode == "reason"):
            raise InputError(self._too_long(labels, mode))
        closing = [self.think_close] if mode == "reason" else []
        prefix = empty_context(self._manifest.decoder)
        if before:
            _, prefix = read(self._engine, prefix, self._embed(before)[None], [len(before) - 1])
        return Plan(
            prefix=prefix,
            image_tokens=self._manifest.max_image_tokens,
            after_embeds=self._embed(after),
            answer_embeds=self._embed([*closing, *answers.common, *answers.tokens]),
            answers=answers,
            budget=min(budget, self._manifest.max_new_tokens),
        )

    def _prompt(self, labels: Sequence[str], mode: Mode) -> tuple[list[int], list[int]]:
        """Returns the prompt's tokens before the image and behind it."""
        prompt, block = self._manifest.prompts.of(mode), self._manifest.image_block
        ids = self._tokenizer.encode(prompt.prefix(labels) + block.text() + prompt.after_image)
        count = block.count or 1
        start = ids.index(self._image_id) if self._image_id in ids else len(ids)
        if ids[start : start + count] != [self._image_id] * count or ids.count(self._image_id) != count:
            raise ArtifactError(f"the prompt does not hold exactly {count} image tokens {block.token!r} in a row")
        return ids[:start], ids[start + count :]

    def _answers(self, labels: Sequence[str]) -> LabelTree:
        paths = [self._tokenizer.encode(f"{ANSWER_OPEN}{label}{ANSWER_CLOSE}") for label in labels]
        tree = build_tree(paths, self._opening)
        if not tree.common:
            raise ArtifactError(f"the tokenizer splits {ANSWER_OPEN} differently before different labels")
        return tree

    def _room(self, labels: Sequence[str], mode: Mode) -> int:
        """Returns how many positions prompt, answer and confidence leave for a reasoning; negative: too long."""
        before, after = self._prompt(labels, mode)
        answers = self._answers(labels)
        response = (mode == "reason") + len(answers.common) + answers.depth
        response += len(self.confidences.common) + self.confidences.depth
        prompt = len(before) + self._manifest.max_image_tokens + len(after)
        return self._manifest.decoder.max_positions - prompt - response

    def _too_long(self, labels: Sequence[str], mode: Mode) -> str:
        needed = int(mode == "reason")
        counts = range(2, len(labels))
        fitting = bisect.bisect_left(counts, True, key=lambda n: self._room(labels[:n], mode) < needed) + 1
        advice = f"the first {fitting} of them fit" if fitting >= 2 else "not even two of them fit"
        return (
            f"{len(labels)} labels make a prompt longer than the {self._manifest.decoder.max_positions} positions "
            f"of {self._manifest.name} in {mode} mode; {advice}"
        )

    def _embed(self, ids: Sequence[int]) -> Floats32:
        """Returns (S, width) embeddings."""
        embeds: Floats32 = self._engine.embed(np.array([list(ids)], dtype=np.int64))[0]
        return embeds
