"""Cues put into words: true to the cues, blind to the answer until the last part."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime.grammar import REASONING_TAGS, parse_response, render_response
from emocaliber.runtime.samples import Sample
from emocaliber.train.cot import CueWriter
from emocaliber.train.cot.cues import measure_cues
from emocaliber.train.cot.words import conclude, describe, names_candidate


def sunset():
    """Returns an orange sky above a black ground, the sun a little left of the middle."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:40] = (250, 140, 30)
    pixels[24:34, 30:42] = (255, 240, 120)
    return pixels


@pytest.fixture
def cues():
    return measure_cues(sunset())


def sample(path, **fields):
    return Sample(image=str(path), taxonomy="emotion6-7", **fields)


def texts(path, **fields):
    return CueWriter().write([sample(path, **fields)])[0].reasoning


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "sunset.png"
    Image.fromarray(sunset()).save(path)
    return path


def test_the_text_tells_what_is_there(cues):
    assert describe(cues, {}) == {
        "element": "dim, vivid, warm, high contrast; mostly orange, some black, a touch of yellow; smooth",
        "human": "people not judged",
        "context": "orange above, black below, lighter above",
        "interaction": "detail gathers in the middle; the middle is lighter than the edges; left and right alike",
    }


def test_a_vivid_colour_that_is_not_among_the_named_ones_is_a_touch(cues):
    shares = {"grey": 0.3, "black": 0.25, "brown": 0.2, "red": 0.15, "orange": 0.1}
    parts = describe(replace(cues, shares=shares, vivid={"red": 0.05, "orange": 0.03}), {})
    assert "; grey, black and brown, a touch of red; " in parts["element"]
    parts = describe(replace(cues, shares={"grey": 0.98, "red": 0.02}, vivid={"red": 0.02}), {})
    assert "; all grey, a touch of red; " in parts["element"]
    parts = describe(replace(cues, shares={"grey": 0.985, "red": 0.015}, vivid={"red": 0.015}), {})
    assert "; all grey; " in parts["element"]


def test_where_the_detail_is(cues):
    def told(**fields):
        return describe(replace(cues, **{"detail_in_centre": 0.3, "detail_x": 0.5, "detail_y": 0.5, **fields}), {})

    assert told()["interaction"].startswith("detail is spread evenly; ")
    assert told(detail_in_centre=0.1)["interaction"].startswith("more detail at the edges; ")
    assert told(detail_y=0.3)["interaction"].startswith("more detail at the top; ")
    assert told(detail_x=0.3)["interaction"].startswith("more detail at the left; ")
    assert told(detail_x=0.7)["interaction"].startswith("more detail at the right; ")
    quiet = told(symmetry=0.1, centre_lightness=0.5, border_lightness=0.5)
    assert quiet["interaction"] == "detail is spread evenly"


def test_annotations_are_told_as_such(cues):
    parts = describe(cues, {"category": "scenery", "theme": "sunset"})
    assert parts["human"] == "subject: scenery"
    assert parts["context"] == "theme sunset; orange above, black below, lighter above"
    parts = describe(cues, {"object": "dog, ball", "facial expression": "happy", "human action": "playing"})
    assert parts["human"] == "facial expression happy; action playing"
    assert parts["context"] == "object dog, ball; orange above, black below, lighter above"


@pytest.mark.parametrize(
    ("field", "value", "part", "words"),
    [
        ("lightness", 0.2, "element", "dark, vivid"),
        ("lightness", 0.45, "element", "dim, vivid"),
        ("lightness", 0.55, "element", "light, vivid"),
        ("lightness", 0.9, "element", "bright, vivid"),
        ("chroma", 0.02, "element", "dim, muted, warm"),
        ("chroma", 0.005, "element", "dim, colourless, high"),
        ("warmth", -0.5, "element", "vivid, cool"),
        ("warmth", 0.1, "element", "vivid, high contrast"),
        ("contrast", 0.05, "element", "low contrast"),
        ("detail", 0.09, "element", "busy detail"),
        ("shares", {"blue": 0.95, "red": 0.05}, "element", "all blue"),
        ("shares", {"blue": 0.4, "red": 0.35, "green": 0.2}, "element", "blue, red and green"),
        ("detail_in_centre", 0.1, "interaction", "more detail at the bottom"),
    ],
)
def test_each_cue_has_its_words(cues, field, value, part, words):
    changed = describe(replace(cues, **{"vivid": {}, field: value}), {})
    assert words in changed[part]


def test_the_first_four_parts_do_not_know_the_answer(picture):
    first = texts(picture, answer="joy", votes={"joy": 9, "surprise": 1})
    others = [
        texts(picture, answer="fear", votes={"fear": 5, "sadness": 5}),
        texts(picture, answer="neutral"),
        CueWriter().write([Sample(image=str(picture), taxonomy="sentiment-2", answer="negative")])[0].reasoning,
    ]
    for other in others:
        assert {tag: other[tag] for tag in REASONING_TAGS[:-1]} == {tag: first[tag] for tag in REASONING_TAGS[:-1]}
        assert other["analysis"] != first["analysis"]
    told = " ".join(first[tag] for tag in REASONING_TAGS[:-1]).split()
    assert not any(names_candidate(word, sample(picture).resolve().labels) for word in told)


def test_an_annotation_akin_to_a_candidate_is_not_told(picture):
    noted = {"theme": "Sad face", "place": "beach"}
    assert "sad" not in str(texts(picture, answer="joy", annotations=noted)).casefold()
    assert "place beach" in texts(picture, answer="joy", annotations=noted)["context"]
    polar = Sample(image=str(picture), taxonomy="sentiment-2", answer="negative", annotations=noted)
    assert "theme Sad face" in CueWriter().write([polar])[0].reasoning["context"]
    assert "face" not in CueWriter(["place"]).write([polar])[0].reasoning["context"]


@pytest.mark.parametrize("word", ["sad", "Sadly", "sadness", "angry", "fearful", "joyful", "surprised", "surprising"])
def test_words_akin_to_a_candidate(word):
    assert names_candidate(word, ("sadness", "anger", "fear", "joy", "surprise"))


@pytest.mark.parametrize("word", ["a", "as", "pose", "surface", "salad", "sandy", "face", "happy", "an"])
def test_words_of_their_own(word):
    assert not names_candidate(word, ("sadness", "anger", "fear", "joy", "surprise", "positive"))


@pytest.mark.parametrize(
    ("answer", "shares", "verdict"),
    [
        ("joy", {"joy": 0.9, "fear": 0.1}, "and viewers agree on joy"),
        ("joy", {"joy": 0.7, "fear": 0.3}, "and some viewers say fear, most joy"),
        ("joy", {"joy": 0.7, "fear": 0.1, "anger": 0.1, "sadness": 0.1}, "and most viewers say joy"),
        ("joy", {"joy": 0.5, "fear": 0.5}, "and viewers divide evenly between fear and joy, the answer is joy"),
        ("joy", {"joy": 0.4, "fear": 0.3, "anger": 0.3}, "and viewers divide between anger and joy, leaning to joy"),
        ("joy", {"joy": 0.4, "fear": 0.2, "anger": 0.2}, "and viewers differ, the largest group says joy"),
        ("joy", {"joy": 0.4, "fear": 0.6}, "and most viewers say fear, the answer is joy"),
        ("fear", {"fear": 1.0}, "yet viewers agree on fear"),
        ("neutral", {"neutral": 1.0}, "and viewers agree on neutral"),
        ("joy", None, "and the feeling is joy"),
        ("fear", None, "yet the feeling is fear"),
    ],
)  # fmt: skip
def test_the_analysis_weighs_the_votes_and_ends_at_the_answer(cues, answer, shares, verdict):
    text = conclude(cues, answer, shares)
    assert text == f"light and colour suggest pleasant and lively, {verdict}"
    assert text.endswith(answer)


def test_what_colours_suggest_follows_valdez_and_mehrabian(cues):
    # Bright raises pleasure and lowers arousal, saturated raises both: 0.69 b + 0.22 s and -0.31 b + 0.60 s.
    for lightness, chroma, feeling in (
        (0.8, 0.036, "pleasant and calm"),
        (0.2, 0.036, "unpleasant and lively"),
        (0.51, 0.09, "pleasant and lively"),
        (0.51, 0.036, "nothing clear"),
        (0.3, 0.0, "unpleasant"),
    ):
        text = conclude(replace(cues, lightness=lightness, chroma=chroma), "neutral", None)
        assert text.startswith(f"light and colour suggest {feeling}, and ")


def test_other_images_get_other_texts_within_the_budget(tmp_path):
    rng = np.random.default_rng(3)
    seen = set()
    for number in range(24):
        colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        noise = rng.integers(0, 1 + 20 * (number % 4), (60, 80, 1))
        Image.fromarray(np.clip(colours + noise, 0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        parts = texts(tmp_path / f"{number}.png", answer="joy", votes={"joy": 1, "fear": 1})
        text = render_response("joy", None, parts)
        assert parse_response(text, ("joy", "fear"), "reason", needs_confidence=False).reasoning == parts
        assert len(" ".join(parts.values()).split()) < 60
        seen.add(text)
    assert len(seen) == 24
