"""The tokenised Brier score: by hand, against whole passes, and as a stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_qwen import tiny_qwen
from tiny_run import tiny_recipe

from emocaliber.evaluate.transformers_loading import load_model
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import CONFIDENCE_GRID
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample
from emocaliber.train import run, tokenized_brier
from emocaliber.train.model_recipe import LoraRecipe
from emocaliber.train.models import build_model
from emocaliber.train.stage_recipes import AlarmRecipe
from emocaliber.train.supervised import train_supervised
from emocaliber.train.tokenized_brier import confidence_scores, confidence_tree, open_responses, train_tokenized_brier

# peft 0.21 still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
GRID = torch.tensor([0.05 * step for step in range(1, 20)])
RECIPE = tiny_recipe(
    verbalize={"learning_rate": 1e-2, "batch_size": 4, "epochs": 12, "direct_share": 1.0},
    calibrate={
        "method": "tokenized-brier",
        "kl": 0.0,
        "learning_rate": 3e-3,
        "steps": 8,
        "prompts_per_step": 4,
        "max_new_tokens": 16,
        "direct_share": 1.0,
        "save_steps": 1,
    },
)


def point(place: int) -> torch.Tensor:
    """Scores that put all probability on one confidence of the grid."""
    return torch.full((1, 19), -1e4).index_fill(1, torch.tensor([place]), 0.0)


def test_the_loss_by_hand() -> None:
    # All on 0.80, right with 0.6: 0.6 · 0.04 + 0.4 · 0.64.
    assert tokenized_brier.tokenized_brier(point(15), torch.tensor([0.6])).item() == pytest.approx(0.28)
    # Half on 0.20 and half on 0.80, surely right: (0.64 + 0.04) / 2.
    halves = torch.maximum(point(3), point(15))
    assert tokenized_brier.tokenized_brier(halves, torch.tensor([1.0])).item() == pytest.approx(0.34)


def test_the_log_loss_by_hand() -> None:
    # 0.62 lies between 0.60 and 0.65, six tenths of it on the nearer; of nineteen alike each has log 19.
    assert tokenized_brier.grid_log_loss(torch.zeros(1, 19), torch.tensor([0.62])).item() == pytest.approx(2.944439)
    quarter = torch.zeros(1, 19).index_fill(1, torch.tensor([11]), float(torch.tensor(18.0 / 3.0).log()))
    # p(0.60) = 6 / 24, p(0.65) = 1 / 24: 0.6 log 4 + 0.4 log 24.
    assert tokenized_brier.grid_log_loss(quarter, torch.tensor([0.62])).item() == pytest.approx(2.102998, rel=1e-5)
    # Beyond the grid its end.
    for place, right in ((0, 0.0), (18, 1.0)):
        assert tokenized_brier.grid_log_loss(point(place), torch.tensor([right])).item() == pytest.approx(0.0, abs=1e-5)


def test_the_log_loss_reaches_what_the_model_never_states() -> None:
    """All on 0.95, where the truth is 0.30: the Brier score has no gradient there."""
    gradients = []
    for loss in (tokenized_brier.tokenized_brier, tokenized_brier.grid_log_loss):
        scores = torch.full((1, 19), -30.0).index_fill(1, torch.tensor([18]), 0.0).requires_grad_()
        loss(scores, torch.tensor([0.3])).sum().backward()
        assert scores.grad is not None
        gradients.append(scores.grad[0, 5].item())
    assert gradients[0] == pytest.approx(0.0, abs=1e-6)
    assert gradients[1] == pytest.approx(-1.0, abs=1e-4)


@pytest.mark.parametrize("right", [0.0, 0.05, 0.37, 0.5, 0.81, 1.0])
def test_nothing_beats_the_confidence_nearest_to_the_truth(right: float) -> None:
    truth = torch.tensor([right])
    pure = [tokenized_brier.tokenized_brier(point(place), truth).item() for place in range(19)]
    nearest = int((GRID - right).abs().argmin())
    assert min(range(19), key=pure.__getitem__) == nearest
    # The loss is linear in the distribution, so that no mixture is better than its best part.
    mixed = torch.randn(64, 19, generator=torch.Generator().manual_seed(0))
    assert (tokenized_brier.tokenized_brier(mixed, truth.expand(64)) > pure[nearest]).all()


def test_descent_finds_the_truth() -> None:
    scores = torch.zeros(3, 19, dtype=torch.float64, requires_grad=True)
    right = torch.tensor([0.1, 0.45, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: tokenized_brier.tokenized_brier(x, right), scores)
    optimizer = torch.optim.Adam([scores], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        tokenized_brier.tokenized_brier(scores, right).sum().backward()
        optimizer.step()
    assert GRID[scores.argmax(dim=1)].tolist() == pytest.approx([0.1, 0.45, 0.9])


def idefics(scenes: list[Sample], processor: Any) -> tuple[Any, Any]:
    assert RECIPE.teacher.build is not None
    return build_model(RECIPE.teacher.build, processor, seed=0), processor


def qwen(scenes: list[Sample], processor: Any) -> tuple[Any, Any]:
    return tiny_qwen(scenes, RECIPE.prompt)


@pytest.mark.parametrize("family", [idefics, qwen])
def test_one_pass_scores_as_whole_passes_do(
    scenes: list[Sample], processor: Any, family: Callable[..., tuple[Any, Any]]
) -> None:
    model, processor = family(scenes, processor)
    model = model.eval()
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": words}, {"type": "image"}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        + f"<answer>{label}</answer><confidence>"
        for words, label in (("Feel?", "joy"), ("Feel? Choose from joy, fear.", "sadness"))
    ]
    # Uneven images: Qwen's take different numbers of tokens.
    images = [
        Image.fromarray(decode_image(scenes[0].image)),
        Image.fromarray(decode_image(scenes[1].image)).resize((90, 60)),
    ]

    def inputs_of(rows: list[int], ending: str) -> dict[str, torch.Tensor]:
        return dict(
            processor(
                text=[texts[row] + ending for row in rows], images=[[images[row]] for row in rows],
                return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
            )
        )  # fmt: skip

    tree = confidence_tree(processor.tokenizer)
    scores, told = confidence_scores(model, inputs_of([0, 1], ""), tree, told=4)
    assert scores.shape == (2, 19)
    for row in (0, 1):
        alone = inputs_of([row], "")
        log_probs = model(**alone).logits[0, -5:-1].log_softmax(dim=-1)
        assert torch.allclose(told[row], log_probs, atol=1e-4)
    right = torch.tensor([0.3, 0.9])
    tokenized_brier.tokenized_brier(scores, right).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    whole = []
    for row in (0, 1):
        length = inputs_of([row], "")["input_ids"].shape[1]
        paths = []
        for confidence in CONFIDENCE_GRID:
            inputs = inputs_of([row], f"{confidence:.2f}</confidence>")
            log_probs = model(**inputs).logits[0].log_softmax(dim=-1)
            told = inputs["input_ids"][0, length:]
            paths.append(log_probs[length - 1 : -1].gather(1, told[:, None]).sum())
        whole.append(torch.stack(paths))
    expected = torch.stack(whole)
    assert expected.std() > 0.05
    assert torch.allclose(scores, expected, atol=1e-4)
    tokenized_brier.tokenized_brier(expected, right).sum().backward()
    # Through the row and the image before it, as far as the vision tower.
    assert any("vis" in name and gradient.abs().max() > 1e-4 for name, gradient in gradients.items())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, model.get_parameter(name).grad, atol=1e-4), name


@pytest.fixture(scope="module")
def policy(scenes: list[Sample], processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to answer at once, and confidences that mean nothing."""
    samples = [dataclasses.replace(sample, confidence=0.2 * (1 + i % 4)) for i, sample in enumerate(scenes)]
    model, _ = idefics(scenes, processor)
    folder = tmp_path_factory.mktemp("policy")
    return train_supervised("verbalize", model, processor, samples, RECIPE, folder).folder


def table_of(**changes: Any) -> Any:
    return dataclasses.replace(RECIPE, calibrate=dataclasses.replace(RECIPE.stage("calibrate"), **changes))


def history_of(folder: Path) -> list[dict[str, Any]]:
    """Returns what each step logged."""
    history = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["history"]
    return [entry for entry in history if "loss" in entry]


def test_only_responses_that_parse_are_cut_and_kept(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    found = open_responses(load_model(policy), processor, scenes, RECIPE, tmp_path)
    journal = (tmp_path / "responses-direct.journal.jsonl").read_text(encoding="utf-8")
    assert 0 < len(found) <= len(scenes)
    by_image = {sample.image: sample for sample in scenes}
    for response in found:
        assert response.text.endswith("</answer><confidence>")
        assert json.dumps(response.text)[1:-1] in journal
        answer = response.text.removeprefix("<answer>").removesuffix("</answer><confidence>")
        votes = by_image[response.image].votes or {}
        assert response.right == pytest.approx(votes.get(answer, 0) / sum(votes.values()))
        assert response.prompt.count("<image>") == 1


def test_the_brier_score_of_the_stated_confidence_improves(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    # Few scenes, of much the same difficulty: one value for all of them is the best there is.
    recipe = table_of(steps=24, alarm=AlarmRecipe(action="warn"))
    stage = train_tokenized_brier(load_model(policy), processor, scenes, recipe, tmp_path)
    history = history_of(stage.folder)
    assert len(history) == 24
    first, last = (sum(entry["brier"] for entry in part) / 6 for part in (history[:6], history[-6:]))
    assert last < first - 0.02
    for entry in history:
        assert entry["loss"] > entry["brier"]
        assert 0.0 < entry["parse_rate"] <= 1.0
        assert sum(entry["stated"]["count"]) == pytest.approx(4.0, abs=1e-2)
    assert not torch.equal(load_model(policy).lm_head.weight, load_model(stage.folder).lm_head.weight)


def test_what_was_answered_is_not_forgotten(policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path) -> None:
    """The cross-entropy of the response is part of the loss, so that the rest of it stays as probable as it was."""
    lost = []
    for kl in (0.0, 1.0):
        folder = tmp_path / str(kl)
        train_tokenized_brier(load_model(policy), processor, scenes, table_of(steps=16, kl=kl), folder)
        # Told of each step: the Brier score alone, and the loss.
        history = history_of(folder)
        lost.append([entry["loss"] - entry["brier"] for entry in history])
        responses = open_responses(
            load_model(folder), processor, scenes * 4, table_of(temperature=0.5), folder / "again"
        )
        lost[-1].append(len(responses))
    # Without it there is only the cost of stating no confidence of the grid, which falls.
    assert 0.0 < lost[0][-2] < lost[0][0]
    assert all(more > less for more, less in zip(lost[1][:16], lost[0][:16], strict=True))
    assert lost[1][-1] >= lost[0][-1]


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C after the fifth step, a checkpoint after the step before."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenized_brier(load_model(policy), processor, scenes, RECIPE, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_tokenized_brier(load_model(policy), processor, scenes, RECIPE, tmp_path / "broken")
    model = load_model(policy)
    with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
        train_tokenized_brier(model, processor, scenes, RECIPE, tmp_path / "broken")
    train_tokenized_brier(model, processor, scenes, RECIPE, tmp_path / "broken", resume=True)
    whole, broken = history_of(tmp_path / "whole"), history_of(tmp_path / "broken")
    assert len(whole) == 8
    for ours, theirs in zip(whole, broken, strict=True):
        assert ours.pop("stated") == {name: pytest.approx(sums) for name, sums in theirs.pop("stated").items()}
        assert ours == pytest.approx(theirs)


def test_one_by_one_or_all_at_once_gives_the_same_losses(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = open_responses(load_model(policy), processor, scenes, RECIPE, tmp_path)
    # How many are sampled together decides what is sampled.
    monkeypatch.setattr(tokenized_brier, "open_responses", lambda *_: responses)
    losses = []
    for size in (4, 1):
        folder = tmp_path / str(size)
        train_tokenized_brier(load_model(policy), processor, scenes, table_of(micro_batch=size), folder)
        losses.append([entry["loss"] for entry in history_of(folder)])
    assert losses[0][-1] != pytest.approx(losses[0][0], abs=1e-3)
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_adapters_are_trained_alone_and_merged(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(table_of(steps=4, gradient_checkpointing=True), lora=LoraRecipe(rank=4))
    stage = train_tokenized_brier(load_model(policy), processor, scenes, recipe, tmp_path)
    before, after = load_model(policy).state_dict(), load_model(stage.folder).state_dict()
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("embed_tokens" in name or "norm" in name for name in changed)


def test_what_cannot_be_trained_is_named(policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path) -> None:
    blank = [dataclasses.replace(sample, answer=None, votes=None) for sample in scenes]
    with pytest.raises(InputError, match="has neither votes nor an answer; nothing can score a confidence"):
        train_tokenized_brier(load_model(policy), processor, blank, RECIPE, tmp_path)
    untaught, _ = idefics(scenes, processor)
    with pytest.raises(InputError, match="none of the 8 responses of the stage-2 model follows the grammar"):
        train_tokenized_brier(untaught, processor, scenes, RECIPE, tmp_path)


def test_a_tokenizer_that_joins_the_tag_with_the_number_is_refused() -> None:
    class Joining:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [hash(text)]

    with pytest.raises(ConfigError, match="joins <confidence> with the number after it"):
        confidence_tree(Joining())
