"""A proper score on the tokens of the confidence alone: stage *calibrate* by ``tokenized-brier``, and stage *ground*.

Responses are sampled from the model as it is (for *calibrate* one an image, from the stage-2 model) and cut before
their confidence. For one that is right with probability q, the loss is the Brier score that the model is to expect from
its own choice of a confidence, ``sum_k p_k (q (1 − c_k)² + (1 − q) c_k²)``, where p is the softmax of the
log-likelihoods of all confidences c_k of the grid. It is least where p is all on the c_k nearest to q. After ConfTuner
(Li et al. 2025, arXiv 2508.18847). Nothing is sampled while training, so that it costs minutes where GRPO costs hours.

p says nothing of what the model writes beside the grid, nor of the response before it, and a model trained on that
alone forgets both. So two terms are added: ``-log sum_k P(c_k)``, the cost of stating no confidence of the grid, and,
weighted by ``kl``, the KL divergence from the model before over the responses that follow the grammar: estimated by
the cross-entropy of the drawn tokens, a mean over each response, or, where a copy of that model is at hand, as in
*ground*, summed over all that it might have written at each of them. The estimate alone let a student's label
distribution sharpen towards the answers that were drawn. Stage *ground* adds a log score too (`grid_log_loss`): where
p is near 0 the Brier score has no gradient, and a student's own success may lie where its teacher never stated a
confidence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel as unwrap_model
from peft import PeftModel, get_peft_model
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from emocaliber.evaluate.responders import Drawing
from emocaliber.evaluate.transformers_responder import TransformersResponder
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import CONFIDENCE_CLOSE, CONFIDENCE_GRID, CONFIDENCE_OPEN
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.tree import LabelTree, build_tree

from .adapters import adapters
from .arguments import common_arguments, cut_batch, teacher_arguments
from .choosing import prompt_samples
from .conversations import passes
from .launch import processes
from .models import freeze_vision
from .open_responses import OpenResponse, draw_open_responses
from .recipe import Recipe
from .run import Stage, callbacks, last_checkpoint, save_stage
from .stage_recipes import ReinforceRecipe
from .stated import CollapseAlarm, Stated, StatedConfidences

SAMPLED_AT_ONCE = 32
"""Images whose responses are sampled together where a recipe has no ``micro_batch``."""


def tokenized_brier(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns (B,) the expected Brier score of a confidence drawn from the model's own distribution, in [0, 1].

    Args:
        scores: (B, G) log-likelihood of each confidence of `CONFIDENCE_GRID`, up to a constant a row.
        right: (B,) probability that the answer is right.
    """
    grid, q = scores.new_tensor(CONFIDENCE_GRID), right[:, None]
    return (scores.softmax(dim=-1) * (q * (1.0 - grid) ** 2 + (1.0 - q) * grid**2)).sum(dim=-1)


def grid_log_loss(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns (B,) the cross-entropy to the two confidences of the grid next to the truth, in nats.

    They are weighted so that their mean is the truth, kept within the grid. Least where the mean of p is; where p is
    near 0 this still has a gradient, and the Brier score has none.

    Args:
        scores: (B, G) log-likelihood of each confidence of `CONFIDENCE_GRID`, up to a constant a row.
        right: (B,) probability that the answer is right.
    """
    grid = scores.new_tensor(CONFIDENCE_GRID)
    # 1 at a confidence, falling to 0 at its neighbours.
    distance = (grid - right[:, None].clamp(grid[0], grid[-1])).abs()
    weights = (1.0 - distance / (grid[1] - grid[0])).clamp(min=0.0)
    return -(weights * scores.log_softmax(dim=-1)).sum(dim=-1)


def confidence_tree(tokenizer: Any) -> LabelTree:
    """Returns the tree of the tokens that may follow ``<confidence>``: each confidence of the grid and its closing tag.

    Raises:
        ConfigError: If the tokenizer joins the tag with what follows it, so that a response cannot be cut there.
    """
    head = tokenizer.encode(CONFIDENCE_OPEN, add_special_tokens=False)
    paths = []
    for confidence in CONFIDENCE_GRID:
        text = f"{CONFIDENCE_OPEN}{confidence:.2f}{CONFIDENCE_CLOSE}"
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids[: len(head)] != head:
            raise ConfigError(f"the tokenizer joins {CONFIDENCE_OPEN} with the number after it in {text!r}; use 'grpo'")
        paths.append(ids[len(head) :])
    return build_tree(paths)


def confidence_scores(
    model: Any, inputs: Mapping[str, torch.Tensor], tree: LabelTree, told: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what follows each row, and what might have stood in place of its last tokens, from a single pass.

    That is the log-likelihoods of the tree's paths (B, G), the tokens included that all of them begin with, and the
    log-probabilities (B, ``told``, V) of every token where the last ``told`` tokens of a row stand; float32, with
    gradients.

    The nodes stand behind the row and attend to it and to the nodes above them, so that nothing is computed twice;
    unlike a key/value cache that is repeated for each path, this lets activations be computed again (gradient
    checkpointing) and the model be wrapped for several processes.

    Args:
        model: Image-text-to-text model, adapted or wrapped or not.
        inputs: What the processor returns for B rows, padded on the left; ``input_ids`` (B, L).
        tree: What may follow.
        told: How many tokens at the end of the rows are scored too.
    """
    inputs = _extended(inputs, tree.common)
    ends = inputs["input_ids"][:, inputs["input_ids"].shape[1] - told - len(tree.common) :]
    plain = _plain(model)
    positions = plain._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    depths = torch.as_tensor(tree.depths, device=positions.device)
    logits = model(
        **{**_extended(inputs, tree.tokens.tolist()), "attention_mask": _mask(inputs["attention_mask"].bool(), tree)},
        position_ids=torch.cat([positions, positions[..., -1:] + 1 + depths], dim=-1),
        use_cache=False,
        logits_to_keep=told + 1 + len(tree.common) + len(tree),
    ).logits
    log_probs = logits.float().log_softmax(dim=-1)
    # What is kept begins before the tokens told; the last token before the tree is the parent -1.
    own = log_probs[:, : ends.shape[1]].gather(2, ends[..., None])[..., 0]
    rows = torch.as_tensor(ends.shape[1] + 1 + tree.parents, device=logits.device)
    nodes = log_probs[:, rows, torch.as_tensor(tree.tokens, device=logits.device)]
    scores = torch.stack([nodes[:, list(path)].sum(dim=-1) for path in tree.paths], dim=-1)
    return scores + own[:, told:].sum(dim=1, keepdim=True), log_probs[:, :told]


def _extended(inputs: Mapping[str, torch.Tensor], tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    """Returns the inputs with text tokens behind each row, in all that there is one of for each token."""
    ids = inputs["input_ids"]
    behind = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
    return {
        name: torch.cat([tensor, tensor.new_tensor(behind.get(name, [0] * len(tokens))).expand(len(ids), -1)], dim=1)
        if tensor.shape == ids.shape
        else tensor
        for name, tensor in inputs.items()
    }


def _mask(known: torch.Tensor, tree: LabelTree) -> torch.Tensor:
    """Returns (B, 1, L + M, L + M) bool, who attends to whom: rows causally, the tree's M nodes as the tree has it.

    Args:
        known: (B, L), False where a row is padded; there a token attends to itself alone.
        tree: What stands behind the rows.
    """
    length, nodes = known.shape[1], len(tree)
    causal = torch.ones(length + nodes, length, dtype=torch.bool, device=known.device).tril()
    mask = torch.eye(length + nodes, dtype=torch.bool, device=known.device).repeat(len(known), 1, 1)
    mask[:, :, :length] |= causal & known[:, None, :]
    mask[:, length:, length:] = torch.as_tensor(tree.mask(), device=known.device)
    return mask[:, None]


def _plain(model: Any) -> Any:
    """Returns the transformers model inside its wrappers."""
    model = unwrap_model(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def train_tokenized_brier(
    model: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path, *, resume: bool = False
) -> Stage:
    """Returns the finished stage: the stage-2 model, its confidence trained by a proper score, saved to ``folder``.

    Args:
        model: The stage-2 model, trained in place.
        processor: Its processor.
        samples: Training samples with votes or answers.
        recipe: The run; its ``calibrate`` table holds the hyper-parameters.
        folder: Where the model goes; the sampled responses are kept there too.
        resume: Continue from the newest checkpoint in ``folder``, and with the responses that are there.

    Raises:
        InputError: If a sample has neither votes nor an answer, or no response follows the grammar.
        ConfigError: If an unfinished run is in the way.
    """
    table: ReinforceRecipe = recipe.stage("calibrate")
    started = time.perf_counter()
    checkpoint = last_checkpoint(folder, resume=resume)
    needed = table.steps * table.prompts_per_step
    chosen = prompt_samples(samples, min(needed, len(samples)), recipe.data.balance, recipe.seed + 2)
    responses = open_responses(model, processor, chosen, recipe, folder)
    if not responses:
        raise InputError(
            f"none of the {len(chosen)} responses of the stage-2 model follows the grammar, so there is no confidence "
            f"to train; train stage verbalize for longer, or raise calibrate.max_new_tokens ({table.max_new_tokens})"
        )
    if table.freeze_vision:
        freeze_vision(model)
    peft = adapters(recipe.lora)
    return train_confidences(
        "calibrate",
        model if peft is None else get_peft_model(model, peft),
        processor,
        passes(responses, needed, recipe.seed + 3),
        recipe,
        folder,
        arguments=_arguments(table, recipe, folder),
        kl=table.kl,
        parse_rate=len(responses) / len(chosen),
        watching=[CollapseAlarm(table.alarm)],
        started=started,
        checkpoint=checkpoint,
    )


def train_confidences(
    name: str,
    model: Any,
    processor: Any,
    responses: Sequence[OpenResponse],
    recipe: Recipe,
    folder: Path,
    *,
    arguments: TrainingArguments,
    kl: float,
    reference: Any = None,
    log_weight: float = 0.0,
    parse_rate: float,
    watching: Sequence[TrainerCallback] = (),
    started: float,
    checkpoint: str | None,
) -> Stage:
    """Returns the finished stage: ``model`` trained on the confidences of the responses, and saved to ``folder``.

    Args:
        name: Of the stage.
        model: The model that wrote the responses, trained in place, with adapters or without.
        processor: Its processor.
        responses: At least one.
        recipe: The run.
        folder: Where the model goes.
        arguments: Of the trainer.
        kl: Weight of what keeps the responses as they were.
        reference: A copy of the model, which is not trained; None keeps the responses by their cross-entropy alone.
        log_weight: Weight of `grid_log_loss`.
        parse_rate: Share of the sampled responses that can be trained on, for the record.
        watching: More callbacks.
        started: `time.perf_counter` at the start of the stage.
        checkpoint: Where to go on from.

    Raises:
        ConfigError: If the tokenizer joins ``<confidence>`` with what follows it.
    """
    trainer = _BrierTrainer(
        confidence_tree(processor.tokenizer),
        kl=kl,
        reference=reference,
        log_weight=log_weight,
        parse_rate=parse_rate,
        model=model.train(),
        args=arguments,
        data_collator=_Collator(processor),
        train_dataset=_Responses(responses),
        callbacks=[*callbacks(name, folder, recipe), *watching],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage(
        name, folder, trainer.model, processor, recipe, started=started, history=trainer.state.log_history
    )


def open_responses(
    model: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path
) -> list[OpenResponse]:
    """Returns a sampled response for each sample that gets one which follows the grammar, cut before its confidence.

    What the journals in ``folder`` hold is not sampled again; all processes share the work.

    Raises:
        InputError: If a sample has neither votes nor an answer.
    """
    table: ReinforceRecipe = recipe.stage("calibrate")
    model = model.to(processes().device).eval()
    name = model.name_or_path or "stage-2 model"
    drawn = draw_open_responses(
        TransformersResponder(model, processor, name=name, batch_size=table.micro_batch or SAMPLED_AT_ONCE),
        processor,
        samples,
        recipe.prompt,
        Drawing(temperature=table.temperature, max_new_tokens=table.max_new_tokens, seed=recipe.seed),
        folder,
        direct_share=table.direct_share,
        half=table.precision == "bf16",
    )
    return [response for image in drawn for response in image.responses if response is not None]


class _Responses(Dataset[OpenResponse]):
    def __init__(self, responses: Sequence[OpenResponse]) -> None:
        self._responses = responses

    def __len__(self) -> int:
        return len(self._responses)

    def __getitem__(self, index: int) -> OpenResponse:
        return self._responses[index]


@dataclass(frozen=True, slots=True)
class _Collator:
    """Turns responses into the tensors of a training step."""

    processor: Any

    def __call__(self, responses: Sequence[OpenResponse]) -> dict[str, torch.Tensor]:
        inputs = self.processor(
            text=[response.prompt + response.text for response in responses],
            images=[[Image.fromarray(decode_image(response.image))] for response in responses],
            return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
        )  # fmt: skip
        encode = self.processor.tokenizer.encode
        lengths = [len(encode(response.text, add_special_tokens=False)) for response in responses]
        return {
            **inputs,
            "right": torch.tensor([response.right for response in responses]),
            "length": torch.tensor(lengths),
        }


class _BrierTrainer(StatedConfidences, Trainer):
    """`Trainer` whose loss is `tokenized_brier`, and what keeps the rest of a response as it was."""

    def __init__(
        self, tree: LabelTree, *, kl: float, reference: Any, log_weight: float, parse_rate: float, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._tree = tree
        self._kl = kl
        self._reference = reference
        self._log_weight = log_weight
        self._parse_rate = parse_rate
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Returns the mean loss of one batch."""
        right, length = inputs.pop("right"), inputs.pop("length")
        told = int(length.max())
        scores, log_probs = confidence_scores(model, inputs, self._tree, told)
        self._seen.append((scores.detach().softmax(dim=-1), right))
        losses = tokenized_brier(scores, right) - scores.logsumexp(dim=1)
        if self._kl:
            losses = losses + self._kl * self._moved(inputs, log_probs, length)
        if self._log_weight:
            losses = losses + self._log_weight * grid_log_loss(scores, right)
        loss: torch.Tensor = losses.mean()
        return loss

    def _moved(self, inputs: Any, log_probs: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Returns (B,) how far each response's distribution has moved, in nats, for the cross-entropy less a constant.

        Args:
            inputs: The rows.
            log_probs: (B, T, V) of the model in training.
            length: (B,) tokens of each response; they stand last.
        """
        told = log_probs.shape[1]
        own = torch.arange(told, device=length.device) >= told - length[:, None]
        if self._reference is None:
            tokens = inputs["input_ids"][:, -told:]
            return -(log_probs.gather(2, tokens[..., None])[..., 0] * own).sum(dim=1) / length
        with torch.no_grad():
            _, before = confidence_scores(self._reference, inputs, self._tree, told)
        divergence = nn.functional.kl_div(log_probs, before, reduction="none", log_target=True).sum(dim=2)
        return (divergence * own).sum(dim=1)

    def newly_stated(self) -> Stated:
        """Returns every confidence of the grid for each response, weighted by how probable the model is to state it."""
        if not self._seen:
            return Stated(confidence=np.empty(0), right=np.empty(0), weight=np.empty(0))
        probs, right = (
            self.accelerator.gather(torch.cat(parts)).double().cpu().numpy() for parts in zip(*self._seen, strict=True)
        )
        self._seen.clear()
        return Stated(
            confidence=np.tile(CONFIDENCE_GRID, len(probs)),
            right=np.repeat(right, len(CONFIDENCE_GRID)),
            weight=probs.ravel(),
        )

    def log(self, logs: dict[str, Any], *arguments: Any, **named: Any) -> None:
        """Logs, with the share of the sampled responses that could be trained on."""
        super().log({**logs, "parse_rate": self._parse_rate} if "loss" in logs else logs, *arguments, **named)


def _arguments(table: ReinforceRecipe, recipe: Recipe, folder: Path) -> TrainingArguments:
    size, accumulation = cut_batch(table.prompts_per_step, table.micro_batch)
    return TrainingArguments(
        **common_arguments(table, recipe, folder),
        **teacher_arguments(table, recipe),
        max_steps=table.steps,
        lr_scheduler_type=table.schedule,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        remove_unused_columns=False,
    )
