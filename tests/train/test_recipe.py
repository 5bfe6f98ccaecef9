"""Recipes: the ones that ship load, and every fault of one is named at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_run import recipe_mapping, tiny_recipe

from emocaliber.runtime.errors import ConfigError
from emocaliber.train.recipe import load_recipe, shipped_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.toml"))

MINIMAL = """
name = "small"
[data]
samples = "samples.jsonl"
[teacher]
path = "teacher"
[reason]
learning_rate = 1e-5
batch_size = 8
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert shipped_recipe(path.parent.name).with_name(path.name).read_bytes() == path.read_bytes()
    if recipe.teacher.build is not None:
        assert recipe.vision is not None, "a tower with random weights has to learn to see first"


def test_recipes_ship() -> None:
    assert "quickstart" in [path.parent.name for path in SHIPPED]


def test_what_a_recipe_leaves_out_has_defaults(minimal: Path) -> None:
    recipe = load_recipe(minimal)
    assert (recipe.seed, recipe.taxonomy, recipe.threads) == (0, "emotion6-7", None)
    assert recipe.stage("reason").learning_rate == 1e-5
    assert recipe.stage("reason").precision == "fp32"
    with pytest.raises(ConfigError, match=r"recipe small has no \[calibrate\] table"):
        recipe.stage("calibrate")


def test_all_faults_are_named_at_once(minimal: Path) -> None:
    minimal.write_text(
        MINIMAL.replace("batch_size = 8", 'batch_size = "many"\nlearning_rat = 3')
        + '[calibrate]\nlearning_rate = 1e-6\nsteps = 3\n[bundle]\nname = "b"\ncalibration_images = "all"\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(minimal)
    message = str(caught.value)
    assert str(minimal) in message
    for fault in (
        "unknown key reason.learning_rat (known:",
        "reason.batch_size is 'many', expected int",
        "missing key calibrate.prompts_per_step",
        "bundle.calibration_images is 'all', expected int",
    ):
        assert fault in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reason.learning_rate=0", "learning_rate is 0.0, expected a number > 0"),
        ("reason.learning_rate=nan", "learning_rate is nan, expected a number > 0"),
        ("reason.direct_share=1.5", r"direct_share is 1.5, expected a number in \[0, 1\]"),
        ("reason.batch_size=true", "reason.batch_size is True, expected int"),
        ("seed=1.5", "seed is 1.5, expected int"),
        ('taxonomies=["fi-8", "moods"]', r"taxonomies are \['fi-8', 'moods'\], known: emoset-8"),
        ("taxonomies=[]", r"taxonomies are \[\], known"),
        ("reason.micro_batch=3", "batch_size is 8, not a multiple of its parts of 3"),
        ("launch.shard=true", "shard spreads the weights over processes, but processes is 1"),
        ("launch.processes=0", "processes is 0, expected a number > 0"),
        ("lora.dropout=1.0", r"dropout is 1.0, expected a number in \[0, 1\)"),
        ('annotate.endpoint="http://localhost:8000/v1"', "endpoint and model belong together"),
        ("teacher={ path = 'x', min_pixels = 9, max_pixels = 4 }", "min_pixels 9 is above max_pixels 4"),
        ("calibrate={ learning_rate = 1, steps = 1, prompts_per_step = 4, prompts_per_draw = 6 }", "not a multiple"),
        ("calibrate={ learning_rate = 1, steps = 1, prompts_per_step = 1, micro_batch = 3 }", "is 8, not a multiple"),
        ("prompt.direct=Feel?", r"prompt: prompt direct must hold \{labels\} exactly once"),
        ("name.first=x", "name is not a table"),
        ("reason", "expected key=value"),
        ("=3", "expected key=value"),
        ("raeson.epochs=2", "unknown key raeson"),
    ],
)
def test_faulty_values_are_refused(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(minimal, [override])


def test_overrides_are_toml_or_text(minimal: Path) -> None:
    words = [
        "seed=7",
        "reason.learning_rate=2e-4",
        "data.samples=scenes:200",
        'teacher.path="a path"',
        "vision={ learning_rate = 1.0, batch_size = 2, epochs = 3 }",
        "reason.gradient_checkpointing=true",
        "reason.epochs=1",
        "reason.epochs=2",
    ]
    recipe = load_recipe(minimal, words)
    assert recipe.seed == 7
    assert recipe.stage("reason").learning_rate == 2e-4
    assert recipe.data.samples == "scenes:200"
    assert recipe.teacher.path == "a path"
    assert recipe.stage("vision").batch_size == 2
    assert recipe.stage("reason").gradient_checkpointing is True
    assert recipe.stage("reason").epochs == 2.0


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read recipe .*gone.toml: No such file"):
        load_recipe(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="cannot read recipe"):
        load_recipe(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.toml is not TOML: .*line 1"):
        load_recipe(broken)
    broken.write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"broken.toml is not TOML: .*utf-8"):
        load_recipe(broken)


def test_a_model_comes_from_one_place() -> None:
    with pytest.raises(ConfigError, match=r"either path .* or a build table"):
        tiny_recipe(teacher={})
    with pytest.raises(ConfigError, match="teacher: a model needs either path"):
        tiny_recipe(teacher={"path": "x", "build": tiny_build()})


def tiny_build(**changes: object) -> dict[str, object]:
    tower = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2}
    return {"vision": tower, "text": tower, "image_size": 32, "patch_size": 8, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 40}, "image_size 40 is not a multiple of patch_size × scale_factor = 16"),
        ({"patch_size": 0}, "patch_size is 0, expected a number > 0"),
        (
            {"vision": {"hidden_size": 30, "intermediate_size": 64, "layers": 1, "heads": 4}},
            "hidden_size 30 is not a multiple of heads 4",
        ),
    ],
)
def test_sizes_must_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(teacher={"build": tiny_build(**changes)})


def test_visual_tokens() -> None:
    # 32 px / 8 px = 4 patches a side, shuffled in squares of 2: 2 x 2 tokens.
    built = tiny_recipe(teacher={"build": tiny_build()}).teacher.build
    assert built is not None
    assert built.visual_tokens == 4


def test_a_built_student_sees_as_many_tokens_as_its_teacher() -> None:
    student = {"learning_rate": 1.0, "batch_size": 1, "epochs": 1}
    teacher = {"build": tiny_build()}
    # Patches of half the size, shuffled in squares of twice the side: the same four tokens.
    finer = {"build": tiny_build(patch_size=4, scale_factor=4)}
    assert tiny_recipe(teacher=teacher, student={**student, "model": finer}).student is not None
    for build, found in ((tiny_build(patch_size=4), "(32, 16)"), (tiny_build(image_size=64, patch_size=16), "(64, 4)")):
        with pytest.raises(ConfigError, match=re.escape(f"(32, 4) of the teacher and {found} of the student")):
            tiny_recipe(teacher=teacher, student={**student, "model": {"build": build}})


def test_what_takes_one_taxonomy_says_so() -> None:
    assert tiny_recipe().taxonomy == "emotion6-7"
    with pytest.raises(ConfigError, match="has the taxonomies fi-8, fi-2, expected one here"):
        tiny_recipe(taxonomies=["fi-8", "fi-2"]).taxonomy  # noqa: B018


def test_weights_built_from_scratch_have_been_through_nothing() -> None:
    build = recipe_mapping()["teacher"]["build"]
    with pytest.raises(ConfigError, match="describe a model at a path, but there is a build table"):
        tiny_recipe(teacher={"build": build, "trained": "reason"})
