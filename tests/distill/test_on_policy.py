"""On-policy distillation: one vocabulary or two, several architectures, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen import tiny_qwen
from tiny_run import tiny_recipe

from emocaliber.distill.on_policy import train_on_policy
from emocaliber.evaluate.responders import Drawing
from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.evaluate.transformers_responder import TransformersResponder
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import parse_response
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train import run
from emocaliber.train.conversations import request_of
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_model, build_processor, corpus
from emocaliber.train.recipe import Recipe
from emocaliber.train.student_recipes import OnPolicyRecipe
from emocaliber.train.supervised import train_supervised

# TRL 1.16 still asks transformers by the old names.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_.*` is deprecated:FutureWarning"),
]

TABLE = {"learning_rate": 1e-2, "steps": 24, "batch_size": 6, "direct_share": 1.0, "weight_decay": 0.0}
LONGEST = 12
"""Tokens; a direct response has about eight."""
CONVOLUTIONS = {
    "image_size": 32, "patch_size": 16, "scale_factor": 1, "max_positions": 256, "vocab_size": 500,
    "vision": {"stem": 8, "widths": [16, 16, 32], "depths": [1, 1, 1]},
    "text": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 1},
}  # fmt: skip


def recipe_of(**changes: Any) -> Recipe:
    return tiny_recipe(
        verbalize={"learning_rate": 1e-2, "batch_size": 6, "epochs": 20, "direct_share": 1.0},
        on_policy={**TABLE, **changes},
    )


def taught(model: Any, processor: Any, samples: list[Sample], answers: list[str], folder: Path) -> tuple[Any, Any]:
    """Returns the model and its processor, read from a folder, once it has learnt these answers."""
    told = [
        dataclasses.replace(sample, answer=answer, confidence=0.8)
        for sample, answer in zip(samples, answers, strict=True)
    ]
    saved = train_supervised("verbalize", model, processor, told, recipe_of(), folder).folder
    return load_model(saved), load_processor(saved)


@pytest.fixture(scope="module")
def ours(scenes: list[Sample]) -> Any:
    recipe = recipe_of()
    assert recipe.teacher.build is not None
    return build_processor(recipe.teacher.build, corpus(scenes, recipe.prompt))


@pytest.fixture(scope="module")
def student(ours: Any, scenes: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A student that answers fear or joy, whatever it sees."""
    recipe = recipe_of()
    assert recipe.teacher.build is not None
    model = build_model(recipe.teacher.build, ours, seed=0)
    answers = ["fear", "joy"] * (len(scenes) // 2)
    return taught(model, ours, scenes, answers, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def convolutional(ours: Any, scenes: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Such a student with a convolutional tower."""
    model = build_model(from_mapping(BuildRecipe, CONVOLUTIONS, "convolutions"), ours, seed=0)
    answers = ["fear", "joy"] * (len(scenes) // 2)
    return taught(model, ours, scenes, answers, tmp_path_factory.mktemp("convolutional"))


@pytest.fixture(scope="module")
def teacher(ours: Any, scenes: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A teacher that reads and writes the student's tokens, and answers joy."""
    recipe = recipe_of()
    assert recipe.teacher.build is not None
    model = build_model(recipe.teacher.build, ours, seed=1)
    return taught(model, ours, scenes, ["joy"] * len(scenes), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def foreigner(scenes: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Such a teacher of another architecture, with tokens and an image processor of its own."""
    model, processor = tiny_qwen(scenes, recipe_of().prompt)
    return taught(model, processor, scenes, ["joy"] * len(scenes), tmp_path_factory.mktemp("foreigner"))


def distilled(
    student: tuple[Any, Any],
    teacher: tuple[Any, Any],
    scenes: list[Sample],
    folder: Path,
    *,
    resume: bool = False,
    **table: Any,
) -> Path:
    recipe = recipe_of(**table)
    own = copy.deepcopy(student[0]), student[1]
    return train_on_policy(own, teacher, scenes, recipe, folder, max_new_tokens=LONGEST, resume=resume).folder


def share_of(model: Any, processor: Any, label: str, scenes: list[Sample]) -> float:
    """Returns the probability of the label, on average over the scenes."""
    labels = scenes[0].resolve().labels
    scorer = TransformersModel(model, processor, recipe_of().prompt, LONGEST)
    scores = scorer.score([scene.image for scene in scenes], labels, "direct", verbalize=False).label_scores
    return float(softmax(scores)[:, 0, labels.index(label)].mean())


def losses_of(folder: Path) -> list[float]:
    history = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("whose", ["student", "convolutional"])
@pytest.mark.parametrize("who", ["teacher", "foreigner"])
def test_the_student_moves_to_the_teacher(
    whose: str, who: str, scenes: list[Sample], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    student, teacher = request.getfixturevalue(whose), request.getfixturevalue(who)
    before = share_of(*student, "joy", scenes)
    folder = distilled(student, teacher, scenes, tmp_path)
    after = load_model(folder)
    losses = losses_of(folder)
    assert len(losses) == 24
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    assert before < 0.7
    assert share_of(after, student[1], "joy", scenes) > before + 0.5 * (1.0 - before)
    ours, theirs = student[0].state_dict(), after.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert any("text_model" in name for name in changed)
    assert not any("vision_model" in name or "connector" in name for name in changed)
    # It has not forgotten how a response ends.
    responder = TransformersResponder(after, student[1], name="student", batch_size=8)
    requests = [request_of(scene, recipe_of().prompt, "direct") for scene in scenes]
    for text in responder.respond(requests, Drawing(max_new_tokens=2 * LONGEST)):
        assert parse_response(text[0], scenes[0].resolve().labels, "direct").answer == "joy"


def test_one_by_one_or_all_at_once_takes_as_many_steps(
    student: Any, teacher: Any, foreigner: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    for name, other in (("same", teacher), ("other", foreigner)):
        folder = distilled(student, other, scenes, tmp_path / name, steps=2, micro_batch=2)
        assert len(losses_of(folder)) == 2


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C after the third step, a checkpoint after the step before."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("who", ["teacher", "foreigner"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    student: Any, who: str, scenes: list[Sample], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    teacher = request.getfixturevalue(who)
    settings = {"steps": 5, "save_steps": 2, "learning_rate": 1e-3}
    whole = distilled(student, teacher, scenes, tmp_path / "whole", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            distilled(student, teacher, scenes, tmp_path / "broken", **settings)
    with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
        distilled(student, teacher, scenes, tmp_path / "broken", **settings)
    broken = distilled(student, teacher, scenes, tmp_path / "broken", resume=True, **settings)
    assert losses_of(broken) == pytest.approx(losses_of(whole))
    weights = load_model(broken).state_dict()
    for name, weight in load_model(whole).state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name


def test_two_vocabularies_cannot_be_compared_token_by_token(
    student: Any, foreigner: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'jsd'.*differ in their vocabularies.*--set on_policy.loss=uld"):
        distilled(student, foreigner, scenes, tmp_path, loss="jsd")
    assert not list(tmp_path.iterdir())


def test_two_ways_to_read_an_image_cannot_either(
    student: Any, teacher: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    other = copy.deepcopy(teacher[1])
    other.image_seq_len += 1
    with pytest.raises(ConfigError, match="differ in how their processors read a prompt and its image"):
        distilled(student, (teacher[0], other), scenes, tmp_path, loss="jsd")


def test_a_missing_image_is_named(student: Any, teacher: Any, scenes: list[Sample], tmp_path: Path) -> None:
    lost = [dataclasses.replace(scene, image=str(tmp_path / "lost.png")) for scene in scenes]
    with pytest.raises(InputError, match=r"lost\.png"):
        distilled(student, teacher, lost, tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"steps": 0}, "steps is 0, expected a number > 0"),
        ({"beta": 2.0}, r"beta is 2.0, expected a number in \[0, 1\]"),
        ({"micro_batch": 4}, "batch_size is 6, not a multiple of its parts of 4"),
    ],
)
def test_faulty_settings(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnPolicyRecipe(**{**TABLE, **fault})
