"""The small world: its truth by hand, its pictures by what they must show, its files by what must survive."""

import io
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import REASONING_TAGS, render_reasoning
from emocaliber.runtime.samples import read_samples
from emocaliber.runtime.taxonomy import resolve_taxonomy
from emocaliber.train.scenes import Attributes, generate_scene, write_scenes
from emocaliber.train.scenes.affect import COORDINATES, pad, posterior
from emocaliber.train.scenes.attributes import EXPRESSIONS, PAIRINGS, POSTURES, SETTINGS, THINGS, WEATHERS
from emocaliber.train.scenes.drawing import draw_scene
from emocaliber.train.scenes.generator import split_of

LABELS = resolve_taxonomy("emotion6-7").labels

CALM = Attributes(
    setting="room",
    weather="clear",
    time="day",
    tint="none",
    saturation=0,
    brightness=0,
    subject="person",
    expression="neutral",
    posture="upright",
)


def thing(subject, distance="near", **changes):
    return replace(CALM, subject=subject, expression=None, posture=None, distance=distance, **changes)


def couple(pairing, expression):
    return replace(CALM, subject="couple", posture=None, pairing=pairing, expression=expression)


@pytest.fixture(scope="module")
def world():
    return [generate_scene(11, index, size=32) for index in range(3000)]


def test_coordinates_are_the_published_ones():
    assert COORDINATES["emotion6-7"] == {
        "anger": (-0.51, 0.59, 0.25),
        "disgust": (-0.60, 0.35, 0.11),
        "fear": (-0.64, 0.60, -0.43),
        "joy": (0.76, 0.48, 0.35),
        "sadness": (-0.63, -0.27, -0.33),
        "surprise": (0.40, 0.67, -0.13),
        "neutral": (0.0, 0.0, 0.0),
    }


@pytest.mark.parametrize(
    ("brightness", "saturation", "expected"),
    # Valdez & Mehrabian's weights times 0.2 units per standard deviation.
    [(1, 0, (0.138, -0.062, -0.152)), (0, 1, (0.044, 0.12, 0.064)), (-1, 1, (-0.094, 0.182, 0.216))],
)
def test_colour_moves_pad_by_the_published_weights(brightness, saturation, expected):
    moved = pad(replace(CALM, brightness=brightness, saturation=saturation))
    assert np.subtract(moved, pad(CALM)) == pytest.approx(expected, abs=1e-12)


def test_posterior_of_one_scene_worked_by_hand():
    # pad: room (0, -.04, .03) + clear (.08, 0, .03) + day 0 + neutral face (0, -.1, 0) + upright (0, 0, .1).
    point = (0.08, -0.14, 0.16)
    assert pad(CALM) == pytest.approx(point)
    bias = {"anger": -0.1, "disgust": -0.1, "surprise": -0.1, "neutral": -0.1 + 0.7}  # 0.7: a neutral face
    centres = COORDINATES["emotion6-7"]
    weights = []
    for label in LABELS:
        squared = sum((a - b) ** 2 for a, b in zip(point, centres[label], strict=True))
        weights.append(math.exp(-squared / (2 * 0.45**2) + bias.get(label, 0.0)))
    assert posterior(CALM) == pytest.approx([weight / sum(weights) for weight in weights])


def test_polarity_is_a_logistic_of_pleasure():
    # Two points 0.6 apart: log odds = 0.6 * pleasure / tau^2, with the pleasure 0.08 of the scene above.
    expected = 1 / (1 + math.exp(-0.6 * 0.08 / 0.45**2))
    assert posterior(CALM, "sentiment-2") == pytest.approx((1 - expected, expected))


@pytest.mark.parametrize(
    ("attributes", "label"),
    [
        (replace(CALM, expression="smile", posture="raised"), "joy"),
        (replace(CALM, expression="scowl", posture="aggressive"), "anger"),
        (replace(CALM, expression="frown", posture="slumped"), "sadness"),
        (replace(CALM, expression="terror", posture="cowering"), "fear"),
        (replace(CALM, expression="gasp"), "surprise"),
        (replace(CALM, expression="disgust"), "disgust"),
        (CALM, "neutral"),
        (couple("hugging", "smile"), "joy"),
        (couple("quarrelling", "scowl"), "anger"),
        (thing("snake"), "fear"),
        (thing("rotten food"), "disgust"),
        (thing("grave"), "sadness"),
        (thing("gift"), "surprise"),
        (thing("chair"), "neutral"),
    ],
)
def test_plain_cases_evoke_what_anyone_would_say(attributes, label):
    assert LABELS[int(np.argmax(posterior(attributes)))] == label


def test_a_far_threat_frightens_less_and_a_storm_at_night_more():
    fear = LABELS.index("fear")
    near, far = posterior(thing("wolf")), posterior(thing("wolf", "far"))
    assert far[fear] < near[fear] < posterior(thing("wolf", weather="storm", time="night"))[fear]


def test_the_world_is_balanced_ambiguous_and_worth_learning(world):
    truth = np.array([scene.posterior for scene in world])
    mean = truth.mean(axis=0)
    assert np.all((mean > 0.08) & (mean < 0.22))
    assert 0.60 < truth.max(axis=1).mean() < 0.68
    assert (truth * np.log(truth / mean)).sum(axis=1).mean() > 0.55
    assert np.mean(truth.max(axis=1) < 0.45) > 0.1  # ambiguous scenes exist


def test_labels_and_votes_follow_the_posterior(world):
    truth = np.array([scene.posterior for scene in world])
    votes = np.array([[scene.votes.get(label, 0) for label in LABELS] for scene in world])
    assert np.all(votes.sum(axis=1) == 10)
    # Standard errors: about 0.009 for answers, 0.003 for votes; four of each are allowed.
    hit = np.mean([scene.posterior[LABELS.index(scene.answer)] for scene in world])
    assert hit == pytest.approx((truth**2).sum(axis=1).mean(), abs=0.036)
    assert votes.mean(axis=0) / 10 == pytest.approx(truth.mean(axis=0), abs=0.012)
    # Brier-like check of the votes' spread: E|v/n - p|^2 = (1 - |p|^2) / n.
    spread = ((votes / 10 - truth) ** 2).sum(axis=1).mean()
    assert spread == pytest.approx((1 - (truth**2).sum(axis=1)).mean() / 10, rel=0.1)


def test_scenes_depend_on_seed_and_index_only():
    scene = generate_scene(3, 17, size=64)
    assert generate_scene(3, 17, size=64) == scene
    assert np.array_equal(generate_scene(3, 17, size=64).image, scene.image)
    assert generate_scene(3, 17, size=96).attributes == scene.attributes
    other = generate_scene(3, 17, size=64, taxonomy="sentiment-2")
    assert other.attributes == scene.attributes
    assert other.answer in ("negative", "positive")
    assert np.array_equal(other.image, scene.image)
    assert generate_scene(3, 18, size=64).attributes != scene.attributes
    assert generate_scene(4, 17, size=64).attributes != scene.attributes


def visible_variants():
    """Pairs of scenes that differ in one attribute that bears on the truth."""
    smile = replace(CALM, expression="smile")
    pairs = [(CALM, replace(CALM, expression=other)) for other in EXPRESSIONS if other != "neutral"]
    pairs += [(CALM, replace(CALM, posture=other)) for other in POSTURES if other != "upright"]
    pairs += [(CALM, replace(CALM, setting=other)) for other in SETTINGS if other != "room"]
    pairs += [(smile, replace(smile, weather=other)) for other in WEATHERS if other != "clear"]
    pairs += [(CALM, replace(CALM, time=other)) for other in ("dawn", "dusk", "night")]
    pairs += [(CALM, replace(CALM, **{axis: level})) for axis in ("saturation", "brightness") for level in (-1, 1)]
    pairs += [(couple("talking", "smile"), couple(other, "smile")) for other in PAIRINGS if other != "talking"]
    pairs += [(thing("cup"), thing(other)) for other in THINGS if other != "cup"]
    pairs += [(thing(other), thing(other, "far")) for other in THINGS]
    return pairs


@pytest.mark.parametrize(("first", "second"), visible_variants())
def test_every_attribute_that_counts_is_visible(first, second):
    a, b = (draw_scene(each, np.random.default_rng(5), 64).astype(int) for each in (first, second))
    # At least 0.5 % of the 4,096 pixels differ plainly: 20 pixels.
    assert np.count_nonzero(np.abs(a - b).max(axis=2) > 24) >= 20


def test_brightness_and_saturation_do_what_they_say():
    def measures(attributes):
        hsv = np.asarray(Image.fromarray(draw_scene(attributes, np.random.default_rng(5), 64)).convert("HSV"))
        return hsv[..., 2].mean(), hsv[..., 1].mean()

    plain = thing("dog", setting="meadow")
    values = [measures(replace(plain, brightness=level))[0] for level in (-1, 0, 1)]
    saturations = [measures(replace(plain, saturation=level))[1] for level in (-1, 0, 1)]
    assert values[0] + 20 < values[1] < values[2] - 10
    assert saturations[0] + 20 < saturations[1] < saturations[2] - 10


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_pictures_have_the_size_asked_for(size):
    scene = generate_scene(0, 1, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    with Image.open(io.BytesIO(scene.png())) as image:
        assert np.array_equal(np.asarray(image), scene.image)


WORDS = {
    # Attribute value: what the reasoning says of it. A scene without the value must not say so.
    "smile": "smiling", "frown": "crying", "scowl": "scowling", "gasp": "gasping", "terror": "terrified",
    "disgust": "sickened", "cowering": "hands at the face", "aggressive": "fists", "slumped": "slumped",
    "hugging": "hug each", "holding hands": "hold hands", "quarrelling": "quarrel", "turned away": "turn away",
    "snake": "snake", "spider": "spider", "wolf": "wolf", "dog": "dog", "cat": "a cat", "grave": "grave",
    "gift": "gift",
    "fireworks": "fireworks", "flowers": "flowers", "fire": "a fire", "rubbish": "rubbish", "rotten food": "rotten",
    "meadow": "meadow", "beach": "beach", "city": "city", "forest": "forest", "room": "room",
    "rain": "rain", "snow": "snow", "storm": "storm", "clear": "clear sky", "cloudy": "cloudy sky",
    "dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "at night", "near": "near", "far": "far",
}  # fmt: skip


def test_reasoning_tells_the_attributes_and_nothing_else(world):
    for scene in world[:1000]:
        parts = scene.reasoning
        told = " | ".join(parts[tag] for tag in REASONING_TAGS if tag != "analysis")
        values = {str(getattr(scene.attributes, name)) for name in Attributes.__slots__}
        for value, words in WORDS.items():
            said = re.search(rf"\b{words}\b", told) is not None
            assert said == (value in values), (told, value)
        assert ("person" in told and "no person" not in told) == (scene.attributes.subject == "person")
        assert ("two" in told) == (scene.attributes.subject == "couple")


def test_the_analysis_agrees_with_pad_and_posterior(world):
    for scene in world[:1000]:
        feeling, verdict = scene.reasoning["analysis"].split("; ")
        pleasure, arousal, dominance = pad(scene.attributes)
        assert ("unpleasant" in feeling) == (pleasure <= -0.15)
        assert ("tense" in feeling or "excited" in feeling) == (arousal > 0.2)
        assert ("weak" in feeling) == (dominance <= -0.2)
        ranked = sorted(zip(scene.posterior, LABELS, strict=True), reverse=True)
        named = [word for word in re.findall(r"\w+", verdict) if word in LABELS]
        assert named == [label for _, label in ranked[: len(named)]]
        assert verdict.startswith("clearly") == (ranked[0][0] >= 0.8)
        assert (len(named) == 1) == (ranked[0][0] >= 0.6)


def test_reasoning_is_short_and_plain(world):
    words = Counter(word for scene in world for text in scene.reasoning.values() for word in re.findall(r"\w+", text))
    assert len(words) < 160
    for scene in world:
        lengths = [len(text.split()) for text in scene.reasoning.values()]
        assert min(lengths) >= 3
        assert max(lengths) <= 9
        assert sum(lengths) <= 40
        render_reasoning(scene.reasoning)  # holds no tag, lacks no part


def test_splits_keep_their_shares_and_never_move():
    splits = {"train": 0.7, "calibration": 0.15, "test": 0.15}
    first = [split_of(index, splits) for index in range(200)]
    assert [split_of(index, splits) for index in range(400)][:200] == first
    assert Counter(first)["train"] == pytest.approx(140, abs=2)
    assert Counter(first)["test"] == pytest.approx(30, abs=2)


def test_written_scenes_read_back_as_they_are(tmp_path):
    path = write_scenes(tmp_path, 12, 5, size=32, taxonomies=("emotion6-7", "sentiment-2"))
    assert path == tmp_path / "samples.jsonl"
    samples = read_samples(path)
    assert len(samples) == 24
    assert len({sample.id for sample in samples}) == 24
    assert len({sample.image for sample in samples}) == 12
    scene = generate_scene(5, 3, size=32)
    sample = next(each for each in samples if each.id == "scene-5-3-emotion6-7")
    assert sample.true_posterior() == pytest.approx(scene.posterior, abs=1e-5)
    assert (sample.answer, sample.votes, sample.reasoning) == (scene.answer, scene.votes, scene.reasoning)
    with Image.open(sample.image) as image:
        assert np.array_equal(np.asarray(image), scene.image)


def test_an_interrupted_run_is_taken_up_and_ends_the_same(tmp_path):
    class StoppedError(Exception):
        pass

    def stop_at_five(done, total):
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_scenes(tmp_path / "a", 9, 5, size=32, progress=stop_at_five)
    assert not (tmp_path / "a" / "samples.jsonl").exists()
    kept = sorted((tmp_path / "a").rglob("*.png"))
    assert len(kept) == 5
    times = [path.stat().st_mtime_ns for path in kept]
    write_scenes(tmp_path / "a", 9, 5, size=32)
    assert [path.stat().st_mtime_ns for path in kept] == times
    write_scenes(tmp_path / "b", 9, 5, size=32)

    def content(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_another_size_or_seed_never_takes_over_old_pictures(tmp_path):
    write_scenes(tmp_path, 3, 5, size=32)
    for seed, size in ((5, 48), (6, 32)):
        for sample in read_samples(write_scenes(tmp_path, 3, seed, size=size)):
            index = int(sample.id.split("-")[2])
            with Image.open(sample.image) as image:
                assert np.array_equal(np.asarray(image), generate_scene(seed, index, size=size).image)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ConfigError, "number of scenes is 0"),
        ({"size": 8}, ConfigError, "size is 8"),
        ({"seed": -1}, ConfigError, "seed -1"),
        ({"splits": {}}, ConfigError, "at least one"),
        ({"splits": {"train": -1.0}}, ConfigError, "share above 0"),
        ({"taxonomies": ()}, ConfigError, "taxonomies are"),
        ({"taxonomies": ("emotion6-7", "fi-8")}, InputError, "no posterior over 'fi-8'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        write_scenes(tmp_path, **{"count": 2, "seed": 0, "size": 32, **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weather": "fog"}, "weather is 'fog'"),
        ({"posture": None}, "posture is None"),
        ({"subject": "dog"}, "expression is 'neutral'"),
        ({"brightness": 2}, "brightness is 2"),
    ],
)
def test_impossible_attributes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(CALM, **changes)
