from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emocaliber.export import bundle as bundle_module
from emocaliber.export import graphs
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.parity import CPU, parity_of
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample, write_samples


@pytest.fixture(autouse=True)
def quick(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the float graphs of the session's bundle instead of exporting the same model again."""

    def copy_graphs(_model: Any, folder: Path, *, opset: int) -> None:
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
            shutil.copy2(written / f"{name}.onnx", folder)

    monkeypatch.setattr(bundle_module, "export_graphs", copy_graphs)
    monkeypatch.setattr(graphs, "export_graphs", copy_graphs)


@pytest.mark.parametrize(
    "asked",
    [
        '[prompt]\ndirect = "Choose from {labels}."\n',
        '[prompt]\ndirect = "Choose from {labels}."\nimage_first = true\n[student]\nflip = false\n',
        '[prompt]\ndirect = "Any {labels}?"\nimage_first = true\n[student.prompt]\ndirect = "Choose from {labels}."\n',
    ],
    ids=["one model", "a student", "a student with a prompt of its own"],
)
def test_bundle_from_a_folder_and_a_recipe(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'taxonomies = ["sentiment-2", "fi-2"]\n{asked}[bundle]\nname = "from-recipe"\nlicense = "CC-BY-4.0"\n'
    )
    facts = tmp_path / "facts.json"
    facts.write_text('{"training_data": "photographs"}')
    out = tmp_path / "out"
    options = ["--recipe", str(recipe), "--provenance", str(facts), "--precision", "int8"]
    assert main(["export", "bundle", str(model_folder), "--out", str(out), *options]) == 0
    with Bundle.open(out) as bundle:
        manifest = bundle.manifest
    assert (manifest.name, manifest.license, manifest.default_precision) == ("from-recipe", "CC-BY-4.0", "int8")
    assert list(manifest.taxonomies) == ["sentiment-2", "fi-2"]
    assert manifest.prompts.direct.before_image == "<|im_start|>User: Choose from {labels}."
    assert manifest.provenance["training_data"] == "photographs"
    assert capsys.readouterr().out.startswith(f"{out}: from-recipe 0.1.0, ")


def samples_of(folder: Path) -> Path:
    """Returns labelled images: votes for ``sentiment-2`` in one split, answers for ``emotion6-7`` in the other."""
    rng = np.random.default_rng(0)
    samples = []
    for place in range(10):
        image = folder / f"{place}.png"
        Image.fromarray(rng.integers(0, 256, (30 + place, 44, 3), dtype=np.uint8)).save(image)
        told: dict[str, Any] = {"taxonomy": "sentiment-2", "votes": {"negative": 1.0 + place, "positive": 4.0}}
        if place % 2:
            told = {"taxonomy": "emotion6-7", "answer": "joy"}
        samples.append(Sample(image=image.name, split="odd" if place % 2 else "even", **told))
    write_samples(samples, folder / "samples.jsonl")
    return folder / "samples.jsonl"


def test_verify_writes_the_proof_and_prints_it(
    model_folder: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(written, tmp_path / "bundle"))
    words = ["export", "verify", str(bundle), "--model", str(model_folder), "--steps", "2"]
    assert main([*words, "--json", "--data", str(samples_of(tmp_path)), "--split", "even", "--limit", "4"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["precisions"]["fp32"]["greedy_mismatches"] == 0
    rows = [(row["engine"], row["taxonomy"], row["precision"], row["n"]) for row in printed["labelled"]]
    assert rows[:2] == [(CPU, "sentiment-2", precision, 4) for precision in ("fp32", "int8")]
    assert rows[2:] == [("openvino", "sentiment-2", "fp32", 4)] * (find_spec("openvino") is not None)
    with Bundle.open(bundle) as opened:
        assert to_mapping(parity_of(opened)) == printed
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert main([*words, "--max-kl-drift", "1e-8"]) == 1
    assert "int8 KL drift is" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert main([*words, "--max-kl-drift", "1e-8", "--force"]) == 0
    assert "FORCED, beyond the accepted drift: int8 KL drift is" in capsys.readouterr().out
    assert main(words) == 1, "the bound that the bundle was last held to still holds"
    assert main(["export", "verify", str(bundle / "bundle.json"), "--model", str(model_folder)]) == 1
    assert "writes into a bundle folder" in capsys.readouterr().err


def test_a_drift_beyond_the_recipe_s_bound_is_not_written(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text('[bundle]\nname = "n"\nlicense = "MIT"\nmax_kl_drift = 1e-8\n')
    words = ["export", "bundle", str(model_folder), "--out", str(out), "--recipe", str(recipe)]
    assert main(words) == 1
    assert "int8 KL drift is" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    assert main([*words, "--force"]) == 0
    assert "and forced:** int8 KL drift" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_onnx_writes_six_graphs(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graphs"
    assert main(["export", "onnx", str(model_folder), "--out", str(out)]) == 0
    assert len(list(out.glob("*.onnx"))) == 6
    assert (
        "14 weights in fewer bits, kept in float: 1 Add; fused: 2 attentions, 2 activations" in capsys.readouterr().out
    )
    assert main(["export", "onnx", str(model_folder), "--out", str(out)]) == 1
    assert main(["export", "onnx", str(model_folder), "--out", str(out), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no transformers model: cannot read config.json"),
        ("{", "holds no transformers model: cannot read config.json"),
        ('{"model_type": "llama"}', "holds a 'llama' model; supported: idefics3, smolvlm"),
        ('{"model_type": "idefics3"}', "transformers cannot load"),
    ],
)
def test_folder_without_a_usable_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None, message: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if config is not None:
        (source / "config.json").write_text(config)
    out = tmp_path / "out"
    assert main(["export", "bundle", str(source), "--out", str(out), "--license", "MIT"]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no licence for the weights"),
        (["--license", "MIT", "--taxonomy", "moods"], "unknown taxonomies ['moods']"),
        (["--recipe", "missing.toml"], "cannot read recipe missing.toml"),
        (["--license", "MIT", "--recipe", "RECIPE"], "unknown key style"),
        (["--license", "MIT", "--max-kl-drift", "0"], "max_kl_drift is 0.0, expected a positive number"),
        (["--license", "MIT", "--provenance", "FACTS"], "must hold a table, found list"),
        (["--license", "MIT", "--image-size", "24"], "image size is 24, expected a multiple of 16 up to the 32"),
        (["--license", "MIT", "--image-size", "48"], "image size is 48, expected a multiple of 16 up to the 32"),
    ],
)
def test_bad_options(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    recipe, facts = tmp_path / "recipe.toml", tmp_path / "facts.json"
    recipe.write_text('[prompt]\nstyle = "plain"\n')
    facts.write_text("[1]")
    words = [{"RECIPE": str(recipe), "FACTS": str(facts)}.get(word, word) for word in options]
    assert main(["export", "bundle", str(model_folder), "--out", str(tmp_path / "out"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["export"], ["export", "tensorrt"], ["export", "bundle", "somewhere"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    assert capsys.readouterr().out == ""
