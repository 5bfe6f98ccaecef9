"""Published sets put together for one run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_run import tiny_recipe

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import REASONING_TAGS
from emocaliber.runtime.samples import read_samples
from emocaliber.train.sets import gather_sets
from emocaliber.train.workspace import Workspace, load_samples

EMOTION6 = "[image_filename]\t[valence]\t[arousal]" + "".join(
    f"\t[prob. {name}]" for name in ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
)
BASS = "file_name,val_mean_us,val_sd_us,val_n_us,val_mean_ch,val_sd_ch,val_n_ch"


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Twelve images of Emotion6 and twelve of BASS, in their published layouts."""
    root = tmp_path / "sets"
    for name, table, header in (("emotion6", "ground_truth.txt", EMOTION6), ("bass", "BASS_data.csv", BASS)):
        (root / name / "images").mkdir(parents=True)
        rows = [header]
        for number in range(12):
            file = f"{'abcdefghijkl'[number]}1.png"
            Image.new("RGB", (8, 8), (20 * number, 90, 250 - 20 * number)).save(root / name / "images" / file)
            votes = ["0.2", "0", "0", "0.5", "0.3", "0", "0"]
            cells = [file, "5", "5", *votes] if name == "emotion6" else [file, "7", "2", "30", "4", "2", "30"]
            rows.append(("\t" if name == "emotion6" else ",").join(cells))
        (root / name / table).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def test_sets_are_imported_with_reasoning_and_put_together_once(sets: Path, tmp_path: Path) -> None:
    data = tiny_recipe(
        data={"samples": f"sets:{sets}", "sets": ["emotion6", "bass"], "splits": {"train": 0.5, "test": 0.5}}
    ).data
    path = gather_sets(data, sets, tmp_path / "data", seed=0)
    samples = read_samples(path)
    assert len(samples) == 24
    assert {sample.taxonomy for sample in samples} == {"emotion6-7", "sentiment-2"}
    assert {sample.split for sample in samples} == {"train", "test"}
    assert all(set(sample.reasoning or {}) == set(REASONING_TAGS) for sample in samples)
    assert all(Path(sample.image).is_file() for sample in samples)
    written = path.stat().st_mtime_ns
    assert gather_sets(data, sets, tmp_path / "data", seed=0) == path
    assert path.stat().st_mtime_ns == written


def test_a_run_works_on_sets(sets: Path, tmp_path: Path) -> None:
    data = {"samples": f"sets:{sets}", "sets": ["emotion6", "bass"], "splits": {"train": 1.0}}
    recipe = tiny_recipe(data=data, taxonomies=["sentiment-2"])
    samples = load_samples(recipe, Workspace(tmp_path), "train")
    assert [sample.taxonomy for sample in samples] == ["sentiment-2"] * 12


def test_sets_that_are_unknown_or_absent_are_named(sets: Path, tmp_path: Path) -> None:
    def gather(*names: str) -> None:
        gather_sets(tiny_recipe(data={"samples": "sets:x", "sets": names}).data, sets, tmp_path / "data", seed=0)

    with pytest.raises(ConfigError, match=r"data.sets is \['emotion7'\], known: scenes, vecbench"):
        gather("emotion7")
    with pytest.raises(ConfigError, match=r"data.sets is \[\]"):
        gather()
    with pytest.raises(InputError, match=r"lacks oasis, ferplus; data.samples must name the folder of the sets"):
        gather("emotion6", "oasis", "ferplus")


def test_single_sets_have_options_of_their_own(sets: Path, tmp_path: Path) -> None:
    own = {"emotion6": {"taxonomies": ["emotion6-7", "sentiment-2"], "splits": {"train": 0.5, "test": 0.5}}}
    data = tiny_recipe(
        data={"samples": f"sets:{sets}", "sets": ["emotion6", "bass"], "splits": {"train": 1.0}, "options": own}
    ).data
    samples = read_samples(gather_sets(data, sets, tmp_path / "data", seed=0))
    bass = [sample for sample in samples if sample.id.startswith("bass/")]
    assert {sample.split for sample in bass} == {"train"}
    emotion6 = [sample for sample in samples if sample not in bass]
    assert len(emotion6) == 24
    places = {
        name: {s.image: s.split for s in emotion6 if s.taxonomy == name} for name in own["emotion6"]["taxonomies"]
    }
    assert places["emotion6-7"] == places["sentiment-2"], "an image was held out of one label set and not of the other"
    assert set(places["emotion6-7"].values()) == {"train", "test"}


def test_options_for_a_set_that_is_not_used_are_refused(sets: Path, tmp_path: Path) -> None:
    data = tiny_recipe(data={"samples": f"sets:{sets}", "sets": ["bass"], "options": {"oasis": {}}}).data
    with pytest.raises(ConfigError, match=r"data\.options names oasis, which data\.sets does not: bass"):
        gather_sets(data, sets, tmp_path / "data", seed=0)
