"""Distillation in a workspace: traces, student, bundle, calibrators."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from emocaliber.evaluate.bundle_fitting import calibrate_bundle
from emocaliber.evaluate.transformers_loading import is_folder, load_model, load_processor
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.export.bundle import spec_from_table, write_bundle
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import BundleRecipe
from emocaliber.runtime.errors import ArtifactError, InputError
from emocaliber.runtime.files import sha256_of
from emocaliber.runtime.manifest import MANIFEST_NAME
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.launch import processes
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import DTYPES, build_model, open_processor
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import RECORD, Stage, finished, read_stage
from emocaliber.train.stage_recipes import CollectRecipe, StudentRecipe
from emocaliber.train.stages import longest_response, model_after, prepare
from emocaliber.train.workspace import SCENES, Workspace, load_samples

from .collect import collect_traces, read_traces
from .rows import student_rows
from .student import train_student
from .traces import Teacher
from .vllm_teacher import Engine, choose_engine, open_vllm


def open_model(recipe: Recipe, path: str | Path) -> TransformersModel:
    """Returns the model at ``path``, ready to be scored.

    Raises:
        ArtifactError: If there is none.
        ExportError: If the runtime cannot score its family.
    """
    return TransformersModel(
        load_model(path),
        open_processor(recipe.teacher, path),
        recipe.prompt,
        longest_response(recipe),
    )


def run_collect(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the folder of the teacher's traces; complete shards are kept."""
    table: CollectRecipe = recipe.stage("collect")
    path = model_after(recipe, workspace, "calibrate")
    engine = choose_engine(table.engine, built=recipe.teacher.build is not None)
    return collect_traces(
        partial(open_teacher, recipe, path, engine),
        _chosen(recipe, workspace),
        table,
        workspace.traces,
        teacher=f"{recipe.name}/calibrate",
        seed=recipe.seed,
        settings={
            "weights": _weights(path),
            "engine": engine,
            "prompt": to_mapping(recipe.prompt),
            "longest": longest_response(recipe),
            "pixels": [recipe.teacher.min_pixels, recipe.teacher.max_pixels],
        },
        threads=recipe.threads,
    )


def open_teacher(recipe: Recipe, path: str | Path, engine: Engine) -> Teacher:
    """Returns the teacher at ``path`` as traces are collected from it, on a GPU where there is one.

    Raises:
        ArtifactError: If there is none.
        ExportError: If the runtime cannot score its family.
        BackendError: If vLLM cannot load it.
    """
    table: CollectRecipe = recipe.stage("collect")
    prepare(recipe)
    processor = open_processor(recipe.teacher, path)
    if engine == "vllm":
        asked = {"min_pixels": recipe.teacher.min_pixels, "max_pixels": recipe.teacher.max_pixels}
        limits = {name: pixels for name, pixels in asked.items() if pixels is not None}
        return open_vllm(path, processor, recipe.prompt, longest_response(recipe), table.precision, limits)
    model = load_model(path, DTYPES[table.precision]).to(processes().device)
    return TransformersModel(model, processor, recipe.prompt, longest_response(recipe))


def _weights(path: str | Path) -> str:
    """Returns what tells the weights at ``path`` from others: hashes of its record and settings, and the files' sizes.

    The record of a stage holds how long it ran, so that no two runs have the same.
    """
    if not is_folder(path):
        return str(path)
    known = [f"{name} {sha256_of(file)}" for name in (RECORD, "config.json") if (file := Path(path, name)).is_file()]
    sizes = [f"{file.name} {file.stat().st_size}" for file in sorted(Path(path).glob("*.safetensors"))]
    return hashlib.sha256("\n".join([*known, *sizes]).encode()).hexdigest()


def run_student(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns the student, trained on traces and votes."""
    folder = workspace.stage("student")
    if finished(folder):
        return read_stage(folder)
    table: StudentRecipe = recipe.stage("student")
    prepare(recipe)
    traces = read_traces(workspace.traces)
    rows, skipped = student_rows(traces, _chosen(recipe, workspace), votes_share=table.votes_share)
    if skipped:
        sys.stderr.write(f"{skipped} of {len(traces)} traces do not follow the grammar and are left out\n")
    teacher = model_after(recipe, workspace, "calibrate")
    if table.model.build is not None:
        processor = load_processor(teacher)
        model = build_model(table.model.build, processor, recipe.seed)
        if recipe.teacher.build is not None and _same_sight(recipe.teacher.build, table.model.build):
            # The student starts from what the teacher sees; only its decoder is new.
            model.model.vision_model.load_state_dict(load_model(teacher).model.vision_model.state_dict())
    else:
        assert table.model.path is not None
        model, processor = load_model(table.model.path), load_processor(table.model.path)
    return train_student(model, processor, rows, recipe, folder, resume=resume)


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
        template=recipe.prompt,
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


def _chosen(recipe: Recipe, workspace: Workspace) -> list[Sample]:
    """Returns the training samples that are traced: the same ones whenever it is asked.

    Raises:
        InputError: If there are none of a taxonomy that the run is to learn.
    """
    table: CollectRecipe = recipe.stage("collect")
    samples = load_samples(recipe, workspace, "train")
    random.Random(recipe.seed + 3).shuffle(samples)  # noqa: S311 - reproducible choice, not secrecy
    chosen = samples[: table.images]
    untaught = [name for name in recipe.taxonomies if name not in {sample.taxonomy for sample in chosen}]
    if untaught:
        raise InputError(
            f"none of the {len(chosen)} images to be traced has the taxonomy {' or '.join(untaught)}, which the "
            f"student is to learn; raise collect.images ({len(samples)} images train), or take it out of taxonomies"
        )
    return chosen
