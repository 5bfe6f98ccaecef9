"""The teacher's stages in a workspace: each reads what the one before left, and leaves its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from emocaliber.evaluate.endpoint import Endpoint, EndpointResponder, default_api_key
from emocaliber.evaluate.responders import Drawing, Responder
from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.evaluate.transformers_responder import TransformersResponder
from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.runtime.samples import read_samples, write_samples

from .annotate import annotate_from_responses, annotate_from_votes
from .launch import processes
from .model_recipe import Precision, TrainedStage
from .models import DTYPES, initial, open_processor
from .recipe import Recipe
from .reinforce import train_reinforce
from .respond import shared_responses, write_responses
from .run import Stage, finished, read_stage
from .stage_recipes import AnnotateRecipe, ReinforceRecipe, RespondRecipe, SupervisedRecipe
from .supervised import train_supervised
from .tokenized_brier import train_tokenized_brier
from .vision import train_vision
from .workspace import Workspace, load_samples

LONGEST_RESPONSE = 512
"""Tokens a sampled response may have where a recipe does not say."""


def run_vision(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns the model built from scratch, its vision tower taught to see; pretrained models skip this stage."""
    folder = workspace.stage("vision")
    if finished(folder):
        return read_stage(folder)
    recipe.stage("vision")
    prepare(recipe)
    samples = load_samples(recipe, workspace, "train")
    model, processor = initial(recipe.teacher, samples, recipe.prompt, recipe.seed, torch.float32)
    return train_vision(model, processor, samples, recipe, folder, resume=resume)


def run_reason(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns stage 1: the recipe's model, taught to reason and answer."""
    folder = _folder(recipe, workspace, "reason")
    if finished(folder):
        return read_stage(folder)
    table: SupervisedRecipe = recipe.stage("reason")
    prepare(recipe)
    samples = load_samples(recipe, workspace, "train", table.samples)
    if recipe.vision is not None:
        before = _finished(workspace.stage("vision"))
        model, processor = load_model(before), load_processor(before)
    else:
        dtype = weights_type(recipe, table.precision)
        model, processor = initial(recipe.teacher, samples, recipe.prompt, recipe.seed, dtype)
    return train_supervised("reason", model, processor, samples, recipe, folder, resume=resume)


def run_annotate(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the samples file with confidences, from the stage-1 model's own success rate or from votes."""
    if workspace.annotated.is_file():
        return workspace.annotated
    table: AnnotateRecipe = recipe.stage("annotate")
    prepare(recipe)
    source = None if recipe.verbalize is None else recipe.verbalize.samples
    if table.source == "votes":
        annotated = annotate_from_votes(load_samples(recipe, workspace, "train", source), recipe)
    else:
        responder = _responder(recipe, model_after(recipe, workspace, "reason"), table)
        samples = load_samples(recipe, workspace, "train", source)
        journal = workspace.annotated.with_suffix(".journal.jsonl")
        annotated = annotate_from_responses(
            responder, samples, recipe, journal, mode="reason", max_new_tokens=longest_response(recipe)
        )
    _write_once(lambda: write_samples(annotated, workspace.annotated))
    return workspace.annotated


def run_verbalize(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns stage 2: the stage-1 model, taught to state its confidence after the answer.

    The confidences are those of stage *annotate*; a recipe without it has them in its samples.
    """
    folder = _folder(recipe, workspace, "verbalize")
    if finished(folder):
        return read_stage(folder)
    table: SupervisedRecipe = recipe.stage("verbalize")
    prepare(recipe)
    before = model_after(recipe, workspace, "reason")
    if recipe.annotate is None:
        samples = load_samples(recipe, workspace, "train", table.samples)
    elif workspace.annotated.is_file():
        samples = read_samples(workspace.annotated)
    else:
        raise ArtifactError(f"{workspace.annotated} is missing; run 'emocaliber train annotate' first")
    model = load_model(before, weights_type(recipe, table.precision))
    processor = open_processor(recipe.teacher, before)
    return train_supervised("verbalize", model, processor, samples, recipe, folder, resume=resume)


def run_calibrate(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns stage 3: the stage-2 model, trained until its confidence means what it says."""
    folder = _folder(recipe, workspace, "calibrate")
    if finished(folder):
        return read_stage(folder)
    table: ReinforceRecipe = recipe.stage("calibrate")
    prepare(recipe)
    before = model_after(recipe, workspace, "verbalize")
    samples = load_samples(recipe, workspace, "train", table.samples)
    processor = open_processor(recipe.teacher, before)
    if table.method == "grpo":
        return train_reinforce(before, processor, samples, recipe, folder, resume=resume)
    model = load_model(before, weights_type(recipe, table.precision))
    return train_tokenized_brier(model, processor, samples, recipe, folder, resume=resume)


def run_respond(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the file of a stage's responses to held-out samples, also of taxonomies that it has not learnt.

    What its journal holds is not asked again; it stays beside the file, as the record of how the responses were made.
    """
    table = recipe.respond
    prepare(recipe)
    samples = load_samples(recipe, workspace, table.split, table.samples, foreign=True)
    responder = _responder(recipe, model_after(recipe, workspace, table.stage), table)
    drawing = Drawing(temperature=table.temperature, max_new_tokens=table.max_new_tokens, seed=recipe.seed)
    path = workspace.responses(table.stage)
    journal = path.with_suffix(".journal.jsonl")
    responses = shared_responses(responder, samples, recipe.prompt, table.mode, drawing, journal)
    _write_once(lambda: write_responses(samples, responses, path))
    return path


STAGES: dict[str, Callable[..., Stage | Path]] = {
    "vision": run_vision,
    "reason": run_reason,
    "annotate": run_annotate,
    "verbalize": run_verbalize,
    "calibrate": run_calibrate,
    "respond": run_respond,
}
"""The teacher's stages in order, and what one of them answers."""


def prepare(recipe: Recipe) -> None:
    """Sets the number of threads and keeps the hub silent, once a stage is about to run."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def longest_response(recipe: Recipe) -> int:
    """Returns how many tokens a sampled response may have: what stage 3 allows, where the recipe has one."""
    return recipe.calibrate.max_new_tokens if recipe.calibrate is not None else LONGEST_RESPONSE


def model_after(recipe: Recipe, workspace: Workspace, name: TrainedStage) -> str | Path:
    """Returns where the model is that has been through a stage: a folder of the run, or the recipe's own path.

    Raises:
        ArtifactError: If the stage has not run.
    """
    path = recipe.teacher.path
    return path if path is not None and _was_run(recipe, name) else _finished(workspace.stage(name))


def weights_type(recipe: Recipe, precision: Precision) -> torch.dtype:
    """Returns the type weights are held in: float32 where they are trained, the arithmetic's where adapters are."""
    return torch.float32 if recipe.lora is None else DTYPES[precision]


def _write_once(write: Callable[[], None]) -> None:
    """Lets the main process write, and the others wait for it."""
    place = processes()
    if place.is_main_process:
        write()
    place.wait_for_everyone()


def _was_run(recipe: Recipe, name: TrainedStage) -> bool:
    """Returns whether the weights that the recipe starts from have been through the stage."""
    stages: tuple[TrainedStage, ...] = get_args(TrainedStage)
    trained = recipe.teacher.trained
    return trained is not None and stages.index(name) <= stages.index(trained)


def _folder(recipe: Recipe, workspace: Workspace, name: TrainedStage) -> Path:
    """Returns the folder of a stage that is to run.

    Raises:
        ConfigError: If the recipe's weights have been through it.
    """
    if _was_run(recipe, name):
        raise ConfigError(
            f"teacher.trained is {recipe.teacher.trained!r}: the weights at {recipe.teacher.path} have been through "
            f"stage {name} already"
        )
    return workspace.stage(name)


def _finished(folder: Path) -> Path:
    if not finished(folder):
        raise ArtifactError(f"{folder} holds no finished stage; run 'emocaliber train {folder.name}' first")
    return folder


def _responder(recipe: Recipe, path: str | Path, table: AnnotateRecipe | RespondRecipe) -> Responder:
    """Returns the model at ``path``, or the server that the table names for it."""
    if table.endpoint is not None:
        assert table.model is not None
        key = default_api_key(table.endpoint)
        return EndpointResponder(Endpoint(url=table.endpoint, model=table.model, api_key=key))
    model = load_model(path, DTYPES[table.precision]).to(processes().device)
    processor = open_processor(recipe.teacher, path)
    return TransformersResponder(model, processor, name=str(path), batch_size=table.batch_size)
