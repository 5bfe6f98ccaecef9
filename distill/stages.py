"""Distillation in a workspace: traces, student, bundle, calibrators."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emocaliber.evaluate.bundle_fitting import calibrate_bundle
from emocaliber.evaluate.transformers_loading import QWEN_FAMILIES, load_model, load_processor, model_type
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.export.bundle import spec_from_table, write_bundle
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import BundleRecipe
from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.runtime.manifest import MANIFEST_NAME
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.choosing import choose_samples
from emocaliber.train.launch import processes
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_model, open_processor, pretrained_student
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import Stage, finished, read_stage
from emocaliber.train.stage_recipes import CollectRecipe, StudentRecipe
from emocaliber.train.stages import longest_response, model_after, prepare
from emocaliber.train.workspace import SCENES, Workspace, load_samples

from .collect import collect_traces, read_traces
from .rows import student_rows
from .student import train_student


def open_model(recipe: Recipe, path: str | Path, *, student: bool = False) -> TransformersModel:
    """Returns the model at ``path``, ready to be scored, on the GPU where there is one.

    Args:
        recipe: The run.
        path: Where the model is.
        student: Whether it is the student, which has a processor and a prompt of its own.

    Raises:
        ArtifactError: If there is none.
        ExportError: If the runtime cannot score its family.
    """
    return TransformersModel(
        load_model(path).to(processes().device),
        load_processor(path) if student else open_processor(recipe.teacher, path),
        recipe.student_prompt if student else recipe.prompt,
        longest_response(recipe),
    )


def run_collect(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the folder of the teacher's traces; complete shards are kept."""
    table: CollectRecipe = recipe.stage("collect")
    prepare(recipe)
    samples = chosen_samples(recipe, workspace)
    model = open_model(recipe, model_after(recipe, workspace, "calibrate"))
    return collect_traces(model, samples, table, workspace.traces, teacher=f"{recipe.name}/calibrate", seed=recipe.seed)


def run_student(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns the student, trained on traces and votes."""
    folder = workspace.stage("student")
    if finished(folder):
        return read_stage(folder)
    table: StudentRecipe = recipe.stage("student")
    prepare(recipe)
    traces = read_traces(workspace.traces)
    rows, skipped = student_rows(traces, chosen_samples(recipe, workspace), votes_share=table.votes_share)
    if skipped:
        sys.stderr.write(f"{skipped} of {len(traces)} traces do not follow the grammar and are left out\n")
    model, processor = new_student(recipe, workspace)
    return train_student(model, processor, rows, recipe, folder, resume=resume)


def new_student(recipe: Recipe, workspace: Workspace) -> tuple[Any, Any]:
    """Returns the student before its training, and its processor.

    Raises:
        ArtifactError: If the teacher has not been through its stages, or a published student cannot be loaded.
        ConfigError: If a student built from scratch is of another family than its teacher.
    """
    build = recipe.stage("student").model.build
    if build is None:
        return pretrained_student(recipe.stage("student").model)
    teacher = model_after(recipe, workspace, "calibrate")
    _check_family(build, teacher)
    processor = load_processor(teacher)
    model = build_model(build, processor, recipe.seed)
    if recipe.teacher.build is not None and _same_sight(recipe.teacher.build, build):
        # The student starts from what the teacher sees; only its decoder is new.
        model.model.vision_model.load_state_dict(load_model(teacher).model.vision_model.state_dict())
    return model, processor


def run_bundle(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the exported bundle, verified against the student but not yet calibrated."""
    table: BundleRecipe = recipe.stage("bundle")
    if (workspace.bundle / MANIFEST_NAME).is_file():
        return workspace.bundle
    prepare(recipe)
    folder = workspace.stage("student")
    if not finished(folder):
        raise ArtifactError(f"{folder} holds no finished stage; run 'emocaliber distill train' first")
    spec = spec_from_table(
        table,
        taxonomies=recipe.taxonomies,
        template=recipe.student_prompt,
        provenance={"recipe": to_mapping(recipe)},
        max_new_tokens=longest_response(recipe),
    )
    return write_bundle(workspace.bundle, load_model(folder), load_processor(folder), spec)


def run_fit(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the bundle with calibrators and conformal thresholds fitted on its own graphs."""
    table: BundleRecipe = recipe.stage("bundle")
    with Bundle.open(workspace.bundle) as bundle:
        if bundle.calibrators:
            return workspace.bundle
    every = load_samples(recipe, workspace, "calibration")
    samples = [
        sample
        for name in recipe.taxonomies
        for sample in [sample for sample in every if sample.taxonomy == name][: table.calibration_images]
    ]
    source = recipe.data.samples
    described = "procedural scenes" if source.startswith(SCENES) else ", ".join(recipe.data.sets) or Path(source).name
    calibrate_bundle(workspace.bundle, samples, fitted_on=f"{described}, calibration split", seed=recipe.seed)
    return workspace.bundle


STAGES: dict[str, Callable[..., Stage | Path]] = {"collect": run_collect, "train": run_student, "calibrate": run_fit}
"""The stages of ``emocaliber distill`` in order; the export of the bundle stands before the last."""


def _same_sight(teacher: BuildRecipe, student: BuildRecipe) -> bool:
    """Returns whether the vision towers of both have the same shape."""
    return (teacher.vision, teacher.image_size, teacher.patch_size) == (
        student.vision,
        student.image_size,
        student.patch_size,
    )


def _check_family(student: BuildRecipe, teacher: str | Path) -> None:
    """Refuses to build a student whose family cannot read the teacher's tokens and images."""
    found = model_type(teacher)
    if (found in QWEN_FAMILIES) != (student.family in QWEN_FAMILIES):
        raise ConfigError(
            f"student.model.build is of family {student.family}, and would read images and text with the processor of "
            f"its teacher, which is a {found} model; give student.model.path, whose model brings its own"
        )


def chosen_samples(recipe: Recipe, workspace: Workspace) -> list[Sample]:
    """Returns the training samples that are traced: the same ones whenever it is asked."""
    table: CollectRecipe = recipe.stage("collect")
    samples = load_samples(recipe, workspace, "train")
    return choose_samples(samples, table.images, recipe.data.balance, recipe.seed + 3)
