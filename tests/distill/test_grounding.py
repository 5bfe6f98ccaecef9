"""Grounding the student's confidence in its own success: the targets by hand, and the stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_recipe

from emocaliber.distill.grounding import grounded, train_grounded, unseen_first
from emocaliber.distill.scored_responder import ScoredResponder
from emocaliber.evaluate.responders import Drawing
from emocaliber.evaluate.transformers_loading import load_model
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import parse_response
from emocaliber.runtime.samples import Sample
from emocaliber.train import run
from emocaliber.train.conversations import request_of
from emocaliber.train.models import build_model, build_processor, corpus
from emocaliber.train.open_responses import DrawnImage, OpenResponse
from emocaliber.train.recipe import Recipe
from emocaliber.train.student_recipes import GroundRecipe
from emocaliber.train.supervised import train_supervised

TABLE = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 4, "images": 6, "samples": 4, "kl": 0.0, "warmup": 0.0}
TAUGHT = tiny_recipe(verbalize={"learning_rate": 1e-2, "batch_size": 6, "epochs": 25, "direct_share": 0.5})
LONGEST = 96
"""Tokens; the scenes' reasoning has about 70."""


def recipe_of(**changes: Any) -> Recipe:
    return tiny_recipe(ground={**TABLE, **changes})


@pytest.fixture(scope="module")
def ours(scenes: list[Sample]) -> Any:
    assert TAUGHT.teacher.build is not None
    return build_processor(TAUGHT.teacher.build, corpus(scenes, TAUGHT.prompt))


@pytest.fixture(scope="module")
def student(scenes: list[Sample], ours: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to reason and to answer, and to be surer of everything than it should be."""
    assert TAUGHT.teacher.build is not None
    samples = [dataclasses.replace(scene, confidence=value) for scene in scenes for value in (0.95, 0.8, 0.35)]
    model = build_model(TAUGHT.teacher.build, ours, seed=0)
    folder = tmp_path_factory.mktemp("student")
    return train_supervised("verbalize", model, ours, samples, TAUGHT, folder).folder


def ground(
    student: Path, processor: Any, scenes: list[Sample], folder: Path, *, resume: bool = False, **table: Any
) -> Path:
    recipe = recipe_of(**table)
    model = load_model(student)
    return train_grounded(model, processor, scenes, recipe, folder, max_new_tokens=LONGEST, resume=resume).folder


def history_of(folder: Path) -> list[dict[str, Any]]:
    """Returns what each step logged."""
    history = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["history"]
    return [entry for entry in history if "loss" in entry]


def response(right: float) -> OpenResponse:
    return OpenResponse(image="x.png", prompt="?", text="<confidence>", right=right)


def test_the_target_is_the_smoothed_success_rate_of_the_image() -> None:
    # Votes gave the four answers 0.6, 0.6 and 0.1; the fourth broke the grammar: (1.3 + 0.5) / (4 + 1).
    image = DrawnImage(mode="reason", responses=(response(0.6), response(0.6), None, response(0.1)))
    table = recipe_of(target="rollouts").stage("ground")
    assert [one.right for one in grounded(image, table)] == pytest.approx([0.36, 0.36, 0.36])
    # With labels a response is right or wrong: (2 + 1) / (4 + 2).
    image = DrawnImage(mode="reason", responses=(response(1.0), response(0.0), response(1.0), response(0.0)))
    assert {one.right for one in grounded(image, dataclasses.replace(table, prior=1.0))} == {0.5}


def test_an_answer_by_itself_keeps_its_own_success() -> None:
    drawn = (response(0.6), None, response(0.1))
    table = recipe_of(target="rollouts").stage("ground")
    assert [one.right for one in grounded(DrawnImage(mode="direct", responses=drawn), table)] == [0.6, 0.1]
    by_answer = recipe_of().stage("ground")
    assert [one.right for one in grounded(DrawnImage(mode="reason", responses=drawn), by_answer)] == [0.6, 0.1]


def test_images_that_the_student_has_not_learnt_from_come_first(scenes: list[Sample]) -> None:
    traced = unseen_first(scenes, (), seed=3)
    assert traced != scenes
    seen = {scene.id for scene in traced[:4]}
    assert unseen_first(scenes, seen, seed=3) == traced[4:] + traced[:4]
    assert unseen_first(scenes, {scene.id for scene in scenes}, seed=3) == traced


def test_the_stated_confidence_moves_to_the_success_rate(
    student: Path, ours: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    folder = ground(student, ours, scenes, tmp_path, epochs=12)
    history = history_of(folder)
    # In both modes it wrote what could be read.
    assert 0.5 < history[0]["parse_rate"] <= 1.0
    for mode in ("direct", "reason"):
        lines = (tmp_path / f"responses-{mode}.journal.jsonl").read_text(encoding="utf-8").splitlines()
        assert [len(json.loads(line)) for line in lines[1:]] == [4, 4, 4]
    first, last = (sum(entry["brier"] for entry in part) / 4 for part in (history[:4], history[-4:]))
    assert last < first - 0.05
    labels = scenes[0].resolve().labels
    images = [scene.image for scene in scenes]
    for mode in ("direct", "reason"):
        stated = []
        for path in (student, folder):
            scored = TransformersModel(load_model(path), ours, TAUGHT.prompt, LONGEST).score(images, labels, mode)
            assert scored.verbalized is not None
            stated.append(scored.verbalized.mean())
        # The scenes' votes give no answer nine tenths.
        assert stated[1] < stated[0] - 0.1


def test_what_is_answered_stays_where_it_is_weighed(
    student: Path, ours: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    labels, images = scenes[0].resolve().labels, [scene.image for scene in scenes]

    def answers(folder: Path) -> torch.Tensor:
        model = TransformersModel(load_model(folder), ours, TAUGHT.prompt, LONGEST)
        return torch.from_numpy(model.score(images, labels, "direct").label_scores[:, 0]).log_softmax(dim=-1)

    before, moved = answers(student), []
    for kl in (0.0, 1.0):
        after = answers(ground(student, ours, scenes, tmp_path / f"{kl}", epochs=6, kl=kl))
        moved.append(float(torch.nn.functional.kl_div(after, before, reduction="batchmean", log_target=True)))
    assert moved[1] < 0.25 * moved[0]


def test_the_tower_stays_as_it_is(student: Path, ours: Any, scenes: list[Sample], tmp_path: Path) -> None:
    folder = ground(student, ours, scenes, tmp_path, epochs=1)
    before, after = load_model(student).state_dict(), load_model(folder).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("text_model" in name for name in changed)
    assert not any("vision_model" in name or "connector" in name for name in changed)
    record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    assert (record["stage"], record["recipe"]["ground"]["samples"]) == ("ground", 4)
    assert not (folder / "checkpoints").exists()


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C after the fifth step, a checkpoint after the step before."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    student: Path, ours: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ground(student, ours, scenes, tmp_path / "whole", save_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            ground(student, ours, scenes, tmp_path / "broken", save_steps=4)
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "broken").glob("*.journal.jsonl")}
    with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
        ground(student, ours, scenes, tmp_path / "broken", save_steps=4)
    broken = ground(student, ours, scenes, tmp_path / "broken", save_steps=4, resume=True)
    assert len(drawn) == 2
    assert drawn == {path.name: path.read_bytes() for path in broken.glob("*.journal.jsonl")}
    weights = load_model(broken).state_dict()
    for name, weight in load_model(whole).state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name
    assert len(history_of(whole)) == len(history_of(broken)) > 5


def test_answers_are_drawn_from_what_the_student_scores(student: Path, ours: Any, scenes: list[Sample]) -> None:
    """Also where it has not learnt to write one: random weights follow the grammar in direct mode."""
    assert TAUGHT.teacher.build is not None
    model = build_model(TAUGHT.teacher.build, ours, seed=3).eval()
    scorer, labels = TransformersModel(model, ours, TAUGHT.prompt, LONGEST), scenes[0].resolve().labels
    responder = ScoredResponder(scorer, TAUGHT.prompt, {labels}, name="untaught", batch_size=4)
    requests = [request_of(scene, TAUGHT.prompt, "direct") for scene in scenes[:2]]
    drawing = Drawing(count=600, temperature=0.5, seed=1)
    drawn = [
        [parse_response(text, labels, "direct").answer for text in texts]
        for texts in responder.respond(requests, drawing)
    ]
    scores = scorer.score([scene.image for scene in scenes[:2]], labels, "direct", verbalize=False).label_scores[:, 0]
    for answers, own in zip(drawn, scores, strict=True):
        weights = np.exp(2.0 * (own - own.max()))
        for label, share in zip(labels, weights / weights.sum(), strict=True):
            # Four standard deviations of 600 draws.
            assert answers.count(label) / 600 == pytest.approx(
                share, abs=4.0 * (share * (1.0 - share) / 600) ** 0.5 + 1e-3
            )
    assert responder.respond(requests, drawing) == responder.respond(requests, drawing)
    # Reasonings that do not end are left as they are.
    (texts,) = responder.respond([request_of(scenes[0], TAUGHT.prompt, "reason")], Drawing(count=2, temperature=1.0))
    assert len(texts) == 2
    assert all(text.endswith("<confidence>0.50</confidence>") and "</answer>" in text for text in texts)


def test_what_cannot_be_grounded_is_named(student: Path, ours: Any, scenes: list[Sample], tmp_path: Path) -> None:
    blank = [dataclasses.replace(scene, answer=None, votes=None) for scene in scenes]
    with pytest.raises(InputError, match="has neither votes nor an answer; nothing can score a confidence"):
        ground(student, ours, blank, tmp_path)
    assert TAUGHT.teacher.build is not None
    untaught = build_model(TAUGHT.teacher.build, ours, seed=0)
    with pytest.raises(InputError, match="none of the 24 responses of the student follows the grammar"):
        train_grounded(untaught, ours, scenes, recipe_of(direct_share=0.0), tmp_path, max_new_tokens=8)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"samples": 0}, "samples is 0, expected a number > 0"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number > 0"),
        ({"direct_share": 1.5}, r"direct_share is 1.5, expected a number in \[0, 1\]"),
        ({"kl": -1.0}, "kl is -1.0, expected a number >= 0"),
        ({"micro_batch": 3}, "batch_size is 8, not a multiple of its parts of 3"),
    ],
)
def test_faulty_settings(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GroundRecipe(**{**TABLE, **fault})
