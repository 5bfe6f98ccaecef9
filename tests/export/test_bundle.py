from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emocaliber.export import bundle as bundle_module
from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.runtime import EmotionModel, sealing
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.calibration import Calibrator
from emocaliber.runtime.cli import main
from emocaliber.runtime.conformal import Conformal
from emocaliber.runtime.errors import ArtifactError, ConfigError, ExportError
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.sealing import replace_calibration

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
CALIBRATOR = Calibrator(
    taxonomy="emotion6-7",
    mode="direct",
    precision="int8",
    engine="cpu",
    labels=LABELS,
    method="temperature",
    temperature=2.0,
    bias=(0.0,) * 7,
    conformal=Conformal(method="aps", coverages=(0.8, 0.9), thresholds=(0.5, 0.6)),
    n=100,
    fitted_on="made up",
    log_loss=1.9,
    candidates={"temperature": 1.9},
)
SPEC = BundleSpec(name="again", version="1.0", license="MIT", taxonomies=("emotion6-7", "sentiment-2"))


@pytest.fixture
def quick(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the float graphs of the session's bundle instead of exporting the same model again."""

    def copy_graphs(_model: Any, folder: Path, *, opset: int) -> None:
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
            shutil.copy2(written / f"{name}.onnx", folder)

    monkeypatch.setattr(bundle_module, "export_graphs", copy_graphs)


def test_bundle_is_valid_and_complete(written: Path) -> None:
    with Bundle.open(written) as bundle:
        manifest = bundle.manifest
    assert {path.name for path in written.iterdir()} == {*manifest.files, "bundle.json"}
    assert set(manifest.precisions) == {"fp32", "int8"}
    assert manifest.image_block.text() == (
        "<fake_token_around_image><global-img><image><image><image><image><fake_token_around_image>"
    )
    assert manifest.prompts.direct.after_image == "<end_of_utterance>\nAssistant: "
    assert manifest.prompts.reason.before_image.startswith("<|im_start|>User: Which emotion")
    assert manifest.end_token_ids == (2,)
    # Padding, start of turn, and the three tokens of the image block; the end of a turn may be generated.
    assert manifest.suppressed_token_ids == (0, 1, 3, 4, 5)
    assert manifest.default_taxonomy == "emotion6-7"
    assert manifest.provenance["training_data"] == ["nothing at all"]
    assert manifest.provenance["quantization"]["graphs"]["decoder_model_merged_int8"]["quantized"] == 15


def test_model_card_says_what_is_recorded(written: Path) -> None:
    card = (written / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.startswith("# tiny 1.2.3\n\nA model for tests.\n")
    for text in ("evoke", "It does not read what a person", "hiring", "policing", "medical", "surveillance"):
        assert text in card
    assert "| float | 0.5 | 0.25 (0.2 to 0.31) |" in card
    assert "None: the probabilities of this bundle are raw" in card
    assert "- nothing at all" in card
    assert "## Limits\n\nNot recorded." in card


@pytest.mark.usefixtures("quick")
def test_one_precision_can_be_shipped_alone(model: Any, processor: Any, tmp_path: Path) -> None:
    target = write_bundle(tmp_path / "small", model, processor, replace(SPEC, precisions=("int8",)))
    with Bundle.open(target) as bundle:
        assert list(bundle.manifest.precisions) == ["int8"]
    assert not list(target.glob("decoder_model_merged.onnx"))
    assert "fp32" in json.loads((target / "parity.json").read_text())["precisions"], "still compared"


@pytest.mark.usefixtures("quick")
def test_a_float_part_of_a_mixture_stays_without_the_rest(model: Any, processor: Any, tmp_path: Path) -> None:
    spec = replace(SPEC, precisions=("int8-fp32",), default_precision="int8-fp32")
    path = write_bundle(tmp_path / "bundle", model, processor, spec)
    with Bundle.open(path) as bundle:
        graphs = bundle.manifest.precisions["int8-fp32"].names()
    assert set(graphs) == {"vision_encoder_int8.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"}
    assert {file.name for file in path.glob("*.onnx")} == set(graphs)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", ["quantize_graphs", "verify_graphs", "model_card"])
@pytest.mark.parametrize("error", [ExportError("broken"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_when_a_step_fails(
    model: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sealing if step == "model_card" else bundle_module, step, fail)
    with pytest.raises(type(error)):
        write_bundle(tmp_path / "target", model, processor, SPEC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_an_existing_bundle_is_replaced_only_when_asked_and_only_as_a_whole(
    model: Any, processor: Any, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(written, target)
    (target / "stale.txt").write_text("old")
    with pytest.raises(ExportError, match="exists; give another place, or ask to overwrite it"):
        write_bundle(target, model, processor, SPEC, verify=False)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "quantize_graphs", lambda *_, **__: (_ for _ in ()).throw(ExportError("broken")))
        with pytest.raises(ExportError, match="broken"):
            write_bundle(target, model, processor, SPEC, verify=False, overwrite=True)
    assert (target / "stale.txt").exists()
    write_bundle(target, model, processor, SPEC, verify=False, overwrite=True)
    assert not (target / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert "They were not compared" in (target / "MODEL_CARD.md").read_text()


def test_a_folder_that_is_no_bundle_is_never_replaced(model: Any, processor: Any, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(ExportError, match=r"not what this command writes \(no bundle.json\)"):
        write_bundle(tmp_path, model, processor, SPEC, overwrite=True)
    assert (tmp_path / "photo.jpg").read_bytes() == b"precious"


def test_replacing_the_calibration(written: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(written, target)
    replace_calibration(target, [CALIBRATOR], metrics={"int8, calibrated": {"acc": 0.75, "auroc": None}})
    with Bundle.open(target) as bundle:
        assert bundle.calibrators == (CALIBRATOR,)
        assert bundle.manifest.provenance["metrics"]["float"] == {"acc": 0.5, "kl": [0.25, 0.2, 0.31]}
    card = (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    row = "| emotion6-7 | direct | int8 | cpu | temperature | none | 100 | 1.900 | aps | 0.8, 0.9 | none | made up |"
    assert row in card
    assert "| int8, calibrated | 0.75 |  | undefined |" in card
    assert "Without a calibrator: sentiment-2." in card
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with Bundle.open(written) as bundle:
        assert bundle.calibrators == (), "the files of the copied bundle are not shared with its source"


def test_a_changed_copy_leaves_the_bundle_as_it_was(written: Path, tmp_path: Path) -> None:
    own = replace(CALIBRATOR, taxonomy="moods", labels=("calm", "tense"), bias=(0.0, 0.0))
    replace_calibration(written, [own], out=tmp_path / "copy", provenance={"refitted": {"n": 100}})
    with Bundle.open(tmp_path / "copy") as bundle:
        assert bundle.manifest.taxonomies["moods"] == ("calm", "tense")
        assert bundle.manifest.provenance["refitted"] == {"n": 100}
    with Bundle.open(written) as bundle:
        assert bundle.calibrators == ()
        assert "moods" not in bundle.manifest.taxonomies
    graph = "vision_encoder.onnx"
    assert (tmp_path / "copy" / graph).stat().st_ino != (written / graph).stat().st_ino
    with pytest.raises(ExportError, match="exists; give another place"):
        replace_calibration(written, [own], out=tmp_path / "copy")


def test_replacing_twice_keeps_one_bundle(written: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(written, target)
    replace_calibration(target, [CALIBRATOR])
    replace_calibration(target, [])
    with Bundle.open(target) as bundle:
        assert bundle.calibrators == ()


def test_a_foreign_calibrator_leaves_the_bundle_as_it_was(written: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(written, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(ArtifactError, match="labels are not those of the bundle's taxonomy"):
        replace_calibration(target, [replace(CALIBRATOR, taxonomy="sentiment-2")])
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taxonomies": ("moods",)}, r"unknown taxonomies \['moods'\]"),
        ({"taxonomies": ()}, "none given"),
        (
            {"precisions": ("int3",), "default_precision": "int3"},
            "no precision 'int3'; there are fp32, fp16, int8, int4",
        ),
        ({"precisions": ("int8-int8",), "default_precision": "int8-int8"}, "no precision 'int8-int8'"),
        ({"precisions": ("fp32",)}, "with default 'int8'"),
        ({"default_taxonomy": "fi-8"}, "default_taxonomy 'fi-8' is not among"),
    ],
)
def test_spec_is_checked(change: dict[str, Any], message: str) -> None:
    fields = {"name": "n", "version": "1", "license": "MIT", "taxonomies": ("sentiment-2",)}
    with pytest.raises(ConfigError, match=message):
        BundleSpec(**{**fields, **change})


def test_smaller_images(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The graphs are proven against the model that sees images of that size, then and later; see `see_smaller`."""
    out = tmp_path / "out"
    words = ["--license", "MIT", "--precision", "fp32", "--image-size", "16"]
    assert main(["export", "bundle", str(model_folder), "--out", str(out), *words]) == 0
    with Bundle.open(out) as bundle:
        assert isinstance(bundle.manifest.preprocessing, Preprocessing)
        assert bundle.manifest.preprocessing.tile_size == 16
        assert bundle.manifest.image_block.count == 1
    assert main(["export", "verify", str(out), "--model", str(model_folder), "--steps", "2"]) == 0
    assert "fp32" in capsys.readouterr().out
    assert EmotionModel.load(out).predict(np.zeros((50, 40, 3), np.uint8)).distribution
