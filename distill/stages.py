"""Distillation in a workspace: traces, student, bundle, calibrators."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from emocaliber.evaluate.bundle_fitting import calibrate_bundle
from emocaliber.evaluate.transformers_loading import (
    QWEN_FAMILIES,
    is_folder,
    load_model,
    load_processor,
    model_type,
)
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.export.bundle import spec_from_table, write_bundle
from emocaliber.export.quantize import needs_ranges
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import BundleRecipe
from emocaliber.runtime.errors import ArtifactError, ConfigError, InputError
from emocaliber.runtime.files import sha256_of
from emocaliber.runtime.manifest import MANIFEST_NAME
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.choosing import choose_samples, take_balanced
from emocaliber.train.launch import processes
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import DTYPES, build_model, open_processor, pretrained_student
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import RECORD, Stage, finished, read_stage, stage_taxonomies
from emocaliber.train.stage_recipes import CollectRecipe, StudentRecipe
from emocaliber.train.stages import longest_response, model_after, prepare
from emocaliber.train.student_recipes import GroundRecipe, OnPolicyRecipe
from emocaliber.train.workspace import SCENES, SETS, Workspace, load_samples

from .collect import collect_traces, read_traces
from .grounding import train_grounded, unseen_first
from .on_policy import train_on_policy
from .rows import student_rows
from .student import train_student
from .traces import Teacher
from .vllm_teacher import Engine, choose_engine, open_vllm


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
    path = model_after(recipe, workspace, "calibrate")
    engine = choose_engine(table.engine, built=recipe.teacher.build is not None)
    return collect_traces(
        partial(open_teacher, recipe, path, engine),
        chosen_samples(recipe, workspace),
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


def run_on_policy(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns the student, corrected by the teacher where its own responses lead it."""
    folder = workspace.stage("on_policy")
    if finished(folder):
        return read_stage(folder)
    table: OnPolicyRecipe = recipe.stage("on_policy")
    before = _student_before(recipe, workspace, "on_policy")
    teacher = model_after(recipe, workspace, "calibrate")
    _check_label_sets(teacher, recipe)
    prepare(recipe)
    return train_on_policy(
        (load_model(before), _student_processor(recipe, before)),
        (load_model(teacher), open_processor(recipe.teacher, teacher)),
        chosen_samples(recipe, workspace, table.images),
        recipe,
        folder,
        max_new_tokens=longest_response(recipe),
        resume=resume,
    )


def run_ground(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns the student, its stated confidence grounded in its own success rate."""
    folder = workspace.stage("ground")
    if finished(folder):
        return read_stage(folder)
    table: GroundRecipe = recipe.stage("ground")
    before = _student_before(recipe, workspace, "ground")
    prepare(recipe)
    learnt = recipe.collect is not None and table.split == "train"
    seen = {sample.id for sample in chosen_samples(recipe, workspace)} if learnt else set()
    every = unseen_first(load_samples(recipe, workspace, table.split), seen, recipe.seed + _CHOICE)
    samples = take_balanced(every, table.images, recipe.data.balance)
    known = sum(sample.id in seen for sample in samples)
    if known:
        sys.stderr.write(f"the student has learnt from {known} of the {len(samples)} images it is asked about\n")
    return train_grounded(
        load_model(before),
        _student_processor(recipe, before),
        samples,
        recipe,
        folder,
        max_new_tokens=longest_response(recipe),
        resume=resume,
    )


def student_stages(recipe: Recipe) -> tuple[str, ...]:
    """Returns the stages that train the student, in order; the last one's model is exported."""
    return ("student", *(name for name in ("on_policy", "ground") if getattr(recipe, name) is not None))


def run_bundle(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the exported bundle, verified against the student but not yet calibrated."""
    table: BundleRecipe = recipe.stage("bundle")
    if (workspace.bundle / MANIFEST_NAME).is_file():
        return workspace.bundle
    prepare(recipe)
    folder = _finished(workspace.stage(student_stages(recipe)[-1]))
    spec = spec_from_table(
        table,
        taxonomies=recipe.taxonomies,
        template=recipe.student_prompt,
        provenance={"recipe": _published(recipe)},
        max_new_tokens=longest_response(recipe),
    )
    samples = load_samples(recipe, workspace, "calibration") if needs_ranges(spec.precisions) else ()
    model, processor = load_model(folder), load_processor(folder)
    return write_bundle(workspace.bundle, model, processor, spec, calibration_samples=samples)


def _published(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as a bundle records it: without the folders of the machine it ran on."""
    mapping: dict[str, Any] = to_mapping(recipe)
    if recipe.data.samples.startswith(SETS):
        mapping["data"]["samples"] = f"{SETS}FOLDER"
    elif not recipe.data.samples.startswith(SCENES):
        mapping["data"]["samples"] = Path(recipe.data.samples).name
    return mapping


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


STAGES: dict[str, Callable[..., Stage | Path]] = {
    "collect": run_collect,
    "train": run_student,
    "on-policy": run_on_policy,
    "ground": run_ground,
    "calibrate": run_fit,
}
"""The stages of ``emocaliber distill`` in order; the export of the bundle stands before the last."""

_COMMANDS = {"student": "train", "on_policy": "on-policy", "ground": "ground"}
"""Folder of a student to the command that leaves it."""

_CHOICE = 3
"""Added to the run's seed for the order in which training images are traced."""


def _check_label_sets(path: str | Path, recipe: Recipe) -> None:
    """Refuses a model that was trained by another recipe on other label sets; of others nothing is known.

    Raises:
        ConfigError: With both.
        ArtifactError: If the record of its stage cannot be read.
    """
    if not is_folder(path) or not finished(Path(path)):
        return
    learnt = stage_taxonomies(Path(path))
    missing = [name for name in recipe.taxonomies if name not in learnt]
    if missing:
        raise ConfigError(
            f"{path} has learnt the label sets {', '.join(learnt)}, but recipe {recipe.name} asks for "
            f"{', '.join(missing)} too; teacher and student need the same"
        )


def _finished(folder: Path) -> Path:
    if not finished(folder):
        command = _COMMANDS[folder.name]
        raise ArtifactError(f"{folder} holds no finished stage; run 'emocaliber distill {command}' first")
    return folder


def _student_before(recipe: Recipe, workspace: Workspace, name: str) -> Path:
    """Returns the folder of the student that a stage starts from."""
    stages = student_stages(recipe)
    before = _finished(workspace.stage(stages[stages.index(name) - 1]))
    _check_label_sets(before, recipe)
    return before


def _student_processor(recipe: Recipe, folder: Path) -> Any:
    return load_processor(folder) if recipe.student is None else open_processor(recipe.student.model, folder)


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


def chosen_samples(recipe: Recipe, workspace: Workspace, count: int | None = None) -> list[Sample]:
    """Returns training samples in the order in which they are traced: ``count`` of them, or as many as are traced.

    Raises:
        InputError: If there are none of a taxonomy that the run is to learn.
    """
    wanted = recipe.stage("collect").images if count is None else count
    every = load_samples(recipe, workspace, "train")
    chosen = choose_samples(every, wanted, recipe.data.balance, recipe.seed + _CHOICE)
    untaught = [name for name in recipe.taxonomies if name not in {sample.taxonomy for sample in chosen}]
    if untaught:
        raise InputError(
            f"none of the {len(chosen)} images to be traced has the taxonomy {' or '.join(untaught)}, which the "
            f"student is to learn; raise collect.images ({len(every)} images train), or take it out of taxonomies"
        )
    return chosen
