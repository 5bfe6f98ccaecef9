"""The shipped recipe for photographs and faces, on handmade sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from emocaliber.train.recipe import load_recipe, shipped_recipe
from emocaliber.train.stages import run_vision
from emocaliber.train.workspace import Workspace

EMOTION6 = "[image_filename]\t[valence]\t[arousal]" + "".join(
    f"\t[prob. {name}]" for name in ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
)
BASS = "file_name,val_mean_us,val_sd_us,val_n_us,val_mean_ch,val_sd_ch,val_n_ch"
OASIS = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N"
FERPLUS = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
LAYOUTS = {
    "emotion6": ("ground_truth.txt", EMOTION6, "images/{0}1.png", "{0}1.png\t5\t5\t0.2\t0\t0\t0.5\t0.3\t0\t0"),
    "oasis": ("OASIS.csv", OASIS, "Images/{0} 1.jpg", "I1,{0} 1,Object,P,5,1,100"),
    "bass": ("BASS_data.csv", BASS, "images/{0}1.png", "{0}1.png,7,2,30,4,2,30"),
    "ferplus": ("fer2013new.csv", FERPLUS, "images/{0}.png", "Training,{0}.png,4,0,0,1,3,2,0,0,0,0"),
}


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Six images of each of the four sets, in their published layouts."""
    for tint, (name, (table, header, image, row)) in enumerate(LAYOUTS.items()):
        rows = [header]
        for number, letter in enumerate("abcdef"):
            rows.append(row.format(letter))
            path = tmp_path / "sets" / name / image.format(letter)
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = 40 * number + 9 * tint
            grey = name == "ferplus"
            Image.new("L" if grey else "RGB", (48, 48), shade if grey else (shade, 60 * tint, 250 - shade)).save(path)
        (tmp_path / "sets" / name / table).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path / "sets"


def test_the_shipped_recipe_trains_its_tower_on_the_four_sets(sets: Path, tmp_path: Path) -> None:
    small = ["batch_size=8", "epochs=1", *(f"groups.{name}.epochs=1" for name in ("photographs", "faces"))]
    overrides = [f"data.samples=sets:{sets}", "data.splits={train=1.0}", *(f"vision.{change}" for change in small)]
    recipe = load_recipe(shipped_recipe("nano"), overrides)
    assert recipe.student is not None
    build, student = recipe.teacher.build, recipe.student.model.build
    assert build is not None
    assert student is not None
    assert build.vision == student.vision, "the student takes the teacher's tower"
    stage = run_vision(recipe, Workspace(tmp_path / "run"))
    assert (stage.folder / "model.safetensors").is_file()
