"""Stage *ground*: the confidence that the student states is trained towards how often the student itself is right.

A student that copies its teacher's confidence inherits the teacher's accuracy in it, which is not its own, and is
overconfident. So K responses are drawn from the student for each image, and how often they are right becomes the target
of the tokens of the confidence, alone: see `emocaliber.train.tokenized_brier`.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from emocaliber.evaluate.responders import Drawing
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample
from emocaliber.train.annotate import smoothed_rate
from emocaliber.train.arguments import epoch_arguments
from emocaliber.train.launch import processes
from emocaliber.train.models import freeze_vision
from emocaliber.train.open_responses import DrawnImage, OpenResponse, draw_open_responses
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import Stage, last_checkpoint
from emocaliber.train.student_recipes import GroundRecipe
from emocaliber.train.tokenized_brier import train_confidences

from .scored_responder import ScoredResponder


def train_grounded(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: Path,
    *,
    max_new_tokens: int,
    resume: bool = False,
) -> Stage:
    """Returns the finished stage: the student, its confidence grounded in its own success, saved to ``folder``.

    The vision tower stays as it is.

    Args:
        model: The student, trained in place.
        processor: Its processor.
        samples: With votes or answers; the student is asked about all of them.
        recipe: The run; its ``ground`` table holds the hyper-parameters.
        folder: Where the model goes; the drawn responses are kept there too.
        max_new_tokens: Longest response.
        resume: Continue from the newest checkpoint in ``folder``, and with the responses that are there.

    Raises:
        InputError: If a sample has neither votes nor an answer, or no response follows the grammar.
        ConfigError: If an unfinished run is in the way.
    """
    table: GroundRecipe = recipe.stage("ground")
    started = time.perf_counter()
    checkpoint = last_checkpoint(folder, resume=resume)
    model = model.to(processes().device).eval()
    drawn = draw_open_responses(
        ScoredResponder(
            TransformersModel(model, processor, recipe.student_prompt, max_new_tokens),
            recipe.student_prompt,
            {sample.resolve().labels for sample in samples},
            name=model.name_or_path or "student",
            batch_size=table.draw_batch,
        ),
        processor,
        samples,
        recipe.student_prompt,
        Drawing(count=table.samples, temperature=table.temperature, max_new_tokens=max_new_tokens, seed=recipe.seed),
        folder,
        direct_share=table.direct_share,
        half=table.precision == "bf16",
    )
    responses = [response for image in drawn for response in grounded(image, table)]
    if not responses:
        raise InputError(
            f"none of the {len(drawn) * table.samples} responses of the student follows the grammar, so there is no "
            f"confidence to train; train the student for longer, or lower ground.temperature ({table.temperature})"
        )
    reference = copy.deepcopy(model).requires_grad_(requires_grad=False) if table.kl else None
    freeze_vision(model)
    return train_confidences(
        "ground",
        model,
        processor,
        responses,
        recipe,
        folder,
        arguments=TrainingArguments(
            **epoch_arguments(table, recipe, folder), bf16=table.precision == "bf16", remove_unused_columns=False
        ),
        kl=table.kl,
        reference=reference,
        log_weight=table.log_weight,
        parse_rate=len(responses) / (len(drawn) * table.samples),
        started=started,
        checkpoint=checkpoint,
    )


def grounded(image: DrawnImage, table: GroundRecipe) -> list[OpenResponse]:
    """Returns the responses for one image that follow the grammar, ``right`` being what each is to state.

    With reasoning and the target ``rollouts``, that is ``(sum_k r_k + a) / (K + 2a)``, where r_k is the probability
    that the k-th of K responses is right: its answer's share of the votes, or whether it is the sample's; 0 for a
    response that breaks the grammar. Otherwise it is r_k.

    Args:
        image: The responses, with r_k in ``right``.
        table: Which target, and a of its Beta(a, a) prior.
    """
    follow = [response for response in image.responses if response is not None]
    if table.target == "answer" or image.mode == "direct":
        return follow
    rate = smoothed_rate(sum(response.right for response in follow), len(image.responses), table.prior)
    return [dataclasses.replace(response, right=rate) for response in follow]


def unseen_first(samples: Sequence[Sample], seen: Collection[str], seed: int) -> list[Sample]:
    """Returns the samples in an order that the seed fixes, but those that the student has learnt from last.

    Args:
        samples: All of a split.
        seen: Ids of what the student has learnt from.
        seed: Of the order.
    """
    order = list(samples)
    random.Random(seed).shuffle(order)  # noqa: S311 - reproducible choice, not secrecy
    return sorted(order, key=lambda sample: sample.id in seen)
