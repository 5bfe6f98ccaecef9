"""Prompts and responses that training shows, and that they are the very tokens the runtime scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emocaliber.evaluate.prompting import image_block_of, render_prompts, tokenizer_json
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import MODES, REASONING_TAGS, Mode
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.tokenization import PromptTokenizer
from emocaliber.train.conversations import (
    choose_modes,
    passes,
    prompt_dataset,
    prompt_of,
    response_of,
    supervised_dataset,
    with_drawn_answers,
)
from emocaliber.train.recipe import Recipe

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
REASONING = {tag: f"about {tag}" for tag in REASONING_TAGS}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture
def sample(picture: str) -> Sample:
    return Sample(image=picture, taxonomy="emotion6-7", answer="joy", reasoning=REASONING, confidence=0.8, id="red")


@pytest.mark.parametrize("mode", MODES)
def test_the_prompt_that_training_reads_is_the_one_the_runtime_reads(
    recipe: Recipe, processor: Any, sample: Sample, mode: Mode, tmp_path: Path
) -> None:
    text = processor.apply_chat_template(
        prompt_of(sample, recipe.prompt, mode), add_generation_prompt=True, tokenize=False
    )
    trained = processor(text=[text], images=[[Image.open(sample.image)]], add_special_tokens=False)["input_ids"][0]
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json(processor.tokenizer), encoding="utf-8")
    prompt, block = render_prompts(processor, recipe.prompt).of(mode), image_block_of(processor)
    ours = PromptTokenizer(path).encode(prompt.prefix(LABELS) + block.text() + prompt.after_image)
    assert ours == list(trained)
    # And neither is empty nonsense: the instruction, all candidates, four visual tokens, where the response starts.
    instruction = "Feel? [anger, disgust, fear, joy, sadness, surprise, neutral]" + " Think." * (mode == "reason")
    image = "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>"
    assert processor.tokenizer.decode(trained) == (
        f"<|im_start|>User: {instruction}{image}<end_of_utterance>\nAssistant: "
    )


def test_responses(sample: Sample) -> None:
    assert response_of(sample, "direct", None) == "<answer>joy</answer>"
    assert response_of(sample, "direct", 0.8) == "<answer>joy</answer><confidence>0.80</confidence>"
    assert response_of(sample, "reason", None) == (
        "<think><element>about element</element><human>about human</human><context>about context</context>"
        "<interaction>about interaction</interaction><analysis>about analysis</analysis></think><answer>joy</answer>"
    )


def test_answers_are_taught_as_the_candidates_spell_them(sample: Sample) -> None:
    assert response_of(dataclasses.replace(sample, answer="JOY "), "direct", None) == "<answer>joy</answer>"


def test_what_a_sample_lacks_is_named(sample: Sample) -> None:
    template = PromptTemplate()
    with pytest.raises(InputError, match="sample red has no answer; training in direct mode needs it"):
        response_of(dataclasses.replace(sample, answer=None), "direct", None)
    unexplained = dataclasses.replace(sample, reasoning=None)
    assert response_of(unexplained, "direct", None)
    with pytest.raises(InputError, match="sample red has no reasoning; training in reason mode needs it"):
        supervised_dataset([unexplained], template, ["reason"], with_confidence=False)
    unsure = dataclasses.replace(sample, confidence=None)
    with pytest.raises(InputError, match="sample red has no confidence; run 'emocaliber train annotate' first"):
        supervised_dataset([unsure], template, ["direct"], with_confidence=True)
    lost = dataclasses.replace(sample, image="/nowhere/red.png")
    with pytest.raises(InputError, match=r"image /nowhere/red.png does not exist"):
        supervised_dataset([lost], template, ["direct"], with_confidence=False)
    with pytest.raises(InputError, match="sample red has neither votes nor an answer; nothing can reward"):
        prompt_dataset([dataclasses.replace(sample, answer=None)], template, ["direct"])


def test_supervised_rows(sample: Sample) -> None:
    rows = supervised_dataset([sample, sample], PromptTemplate(), ["direct", "reason"], with_confidence=True)
    assert rows.column_names == ["prompt", "completion", "images"]
    first, second = rows[0], rows[1]
    assert first["completion"][0]["content"][0]["text"] == "<answer>joy</answer><confidence>0.80</confidence>"
    assert second["completion"][0]["content"][0]["text"].startswith("<think><element>about element")
    assert [part["type"] for part in first["prompt"][0]["content"]] == ["text", "image"]
    assert first["images"][0].size == (20, 10)
    unsaid = supervised_dataset([sample], PromptTemplate(), ["direct"], with_confidence=False)[0]
    assert unsaid["completion"][0]["content"][0]["text"] == "<answer>joy</answer>"


def test_rows_for_reinforcement_hold_the_truth(sample: Sample) -> None:
    voted = dataclasses.replace(sample, votes={"joy": 1.0, "fear": 3.0})
    rows = prompt_dataset([sample, voted], PromptTemplate(), ["direct", "reason"])
    assert rows["candidates"][0] == list(LABELS)
    assert rows["truth"][0] == [0, 0, 0, 1, 0, 0, 0]
    assert rows["truth"][1] == [0, 0, 0.75, 0.25, 0, 0, 0]
    assert rows["mode"][:] == ["direct", "reason"]


def test_modes_have_their_share_in_an_order_the_seed_fixes() -> None:
    modes = choose_modes(100, 0.3, seed=1)
    assert modes.count("direct") == 30
    assert modes == choose_modes(100, 0.3, seed=1)
    assert modes != choose_modes(100, 0.3, seed=2)
    assert 0 < modes[:50].count("direct") < 30
    assert choose_modes(3, 0.0, seed=1) == ["reason"] * 3
    assert choose_modes(3, 1.0, seed=1) == ["direct"] * 3


def test_passes_take_every_item_before_any_again() -> None:
    ordered = passes("abcde", 12, seed=3)
    assert sorted(ordered[:5]) == sorted(ordered[5:10]) == list("abcde")
    assert ordered[:5] != ordered[5:10]
    assert ordered == passes("abcde", 14, seed=3)[:12] != passes("abcde", 12, seed=4)
    assert set(passes("ab", 1, seed=0)) < {"a", "b"}


def test_answers_drawn_from_the_votes_follow_them_in_direct_mode_alone(sample: Sample) -> None:
    voted = dataclasses.replace(sample, votes={"joy": 3, "fear": 1})
    drawn = with_drawn_answers([voted] * 4000, ["direct"] * 4000, seed=1)
    shares = [sum(each.answer == label for each in drawn) / 4000 for label in ("joy", "fear")]
    # Three deviations of a share of 0.75 among 4000: 0.021.
    assert abs(shares[0] - 0.75) < 0.021
    assert sum(shares) == 1.0
    assert with_drawn_answers([voted] * 50, ["reason"] * 50, seed=1) == [voted] * 50
    assert with_drawn_answers([sample] * 50, ["direct"] * 50, seed=1) == [sample] * 50
    assert with_drawn_answers([voted] * 50, ["direct"] * 50, seed=1) == drawn[:50]
