from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from emocaliber.export import transformers_js
from emocaliber.export.quantized_nodes import BYTES_PRODUCTS
from emocaliber.export.transformers_js import PROMPTS_NAME, write_transformers_js
from emocaliber.runtime.bundle import TOKENIZER_NAME, Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.context import read
from emocaliber.runtime.decoding import GREEDY, generate
from emocaliber.runtime.engine import OnnxEngine
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.prompting import Planner
from emocaliber.runtime.tokenization import PromptTokenizer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "transformers-js"
PHOTO = ROOT / "docs" / "photo.jpg"
TOKENS = 100
STATES = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]


@pytest.fixture(scope="module")
def exported(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Bundle.open(tiny_bundle) as bundle:
        return write_transformers_js(bundle, tmp_path_factory.mktemp("js") / "tiny")


def pixels_of(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(1, 3, 32, 32)).astype(np.float32)


def engine_of(bundle: Bundle, precision: str) -> OnnxEngine:
    graphs = bundle.manifest.precisions[precision]
    return OnnxEngine(
        vision_encoder=bundle.path(graphs.vision_encoder),
        embed_tokens=bundle.path(graphs.embed_tokens),
        decoder=bundle.path(graphs.decoder),
        shape=bundle.manifest.decoder,
        engine="cpu",
    )


def written_by_the_runtime(bundle: Bundle, precision: str, pixels: Any, taxonomy: str) -> tuple[list[int], Any]:
    """The tokens the runtime writes greedily after the reason prompt, past every tag, and the logits before them."""
    engine = engine_of(bundle, precision)
    planner = Planner(bundle.manifest, PromptTokenizer(bundle.path(TOKENIZER_NAME)), engine)
    plan = planner.plan(bundle.manifest.taxonomies[taxonomy], "reason")
    features = engine.encode_images(pixels)
    embeds = np.concatenate([features, plan.after_embeds[None]], axis=1)
    logits, context = read(engine, plan.prefix, embeds, [embeds.shape[1] - 1])
    steps = generate(
        engine,
        context,
        logits[:, 0],
        sampling=GREEDY,
        generators=GREEDY.generators(1),
        stop_ids=bundle.manifest.end_token_ids,
        banned_ids=bundle.manifest.suppressed_token_ids,
        budget=TOKENS,
    )
    *_, ([tokens], _) = steps
    return tokens, logits[0, 0]


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def decode(decoder: Any, embeds: Any, mask: Sequence[Sequence[int]], past: Any, keep: int) -> list[Any]:
    """One call as transformers.js makes it: positions counted by the mask."""
    shown = np.array(mask, np.int64)
    positions = np.where(shown == 0, 1, shown.cumsum(-1) - 1)[:, -embeds.shape[1] :]
    feed = {"inputs_embeds": embeds, "attention_mask": shown, "position_ids": positions}
    feed["num_logits_to_keep"] = np.array(keep, np.int64)
    feed |= {f"past_key_values.{name}": state for name, state in zip(STATES, past, strict=True)}
    outputs: list[Any] = decoder.run(["logits", *(f"present.{name}" for name in STATES)], feed)
    return outputs


def test_graphs_have_the_ports_that_transformers_js_feeds(exported: Path) -> None:
    """Names, types and shapes as read from the sources of transformers.js; an unnamed past would get a batch of 0."""

    def ports(values: Any) -> dict[str, tuple[str, list[Any]]]:
        return {value.name: (value.type, value.shape) for value in values}

    for suffix in ("", "_int8"):
        vision = session(exported / "onnx" / f"vision_encoder{suffix}.onnx")
        assert ports(vision.get_inputs()) == {
            "pixel_values": ("tensor(float)", ["batch_size", "images", 3, 32, 32]),
            "pixel_attention_mask": ("tensor(bool)", ["batch_size", "images", 32, 32]),
        }
        assert [value.name for value in vision.get_outputs()] == ["image_features"]
        embed = session(exported / "onnx" / f"embed_tokens{suffix}.onnx")
        assert [value.name for value in embed.get_inputs()] == ["input_ids"]
        assert [value.name for value in embed.get_outputs()] == ["inputs_embeds"]
        decoder = session(exported / "onnx" / f"decoder_model_merged{suffix}.onnx")
        found = ports(decoder.get_inputs())
        assert found.pop("inputs_embeds") == ("tensor(float)", ["batch_size", "sequence", 32])
        assert found.pop("attention_mask") == ("tensor(int64)", ["batch_size", "total"])
        assert found.pop("position_ids") == ("tensor(int64)", ["batch_size", "sequence"])
        assert found.pop("num_logits_to_keep") == ("tensor(int64)", [])
        assert found == {f"past_key_values.{n}": ("tensor(float)", ["batch_size", 1, "past", 16]) for n in STATES}
        assert [value.name for value in decoder.get_outputs()] == ["logits", *(f"present.{n}" for n in STATES)]


def test_several_images_come_out_one_after_the_other(exported: Path, tiny_bundle: Path) -> None:
    vision = session(exported / "onnx" / "vision_encoder.onnx")
    pixels = np.concatenate([pixels_of(1), pixels_of(2), pixels_of(3), pixels_of(4)])
    feed = {"pixel_values": pixels.reshape(2, 2, 3, 32, 32), "pixel_attention_mask": np.ones((2, 2, 32, 32), bool)}
    with Bundle.open(tiny_bundle) as bundle:
        expected = engine_of(bundle, "fp32").encode_images(pixels)
    np.testing.assert_allclose(vision.run(None, feed)[0], expected, atol=1e-5)


def test_a_padded_batch_is_read_as_its_rows_are_alone(exported: Path) -> None:
    decoder = session(exported / "onnx" / "decoder_model_merged.onnx")
    embeds = np.random.default_rng(0).normal(size=(2, 6, 32)).astype(np.float32)
    empty = [np.zeros((2, 1, 0, 16), np.float32)] * 4
    logits, *past = decode(decoder, embeds, [[1] * 6, [0, 0, 1, 1, 1, 1]], empty, 0)
    assert logits.shape[:2] == (2, 6)
    one = [np.zeros((1, 1, 0, 16), np.float32)] * 4
    alone, *past_alone = decode(decoder, embeds[1:, 2:], [[1] * 4], one, 0)
    np.testing.assert_allclose(logits[1, 2:], alone[0], atol=1e-5)
    new = np.random.default_rng(1).normal(size=(2, 2, 32)).astype(np.float32)
    later, *_ = decode(decoder, new, [[1] * 8, [0, 0, *[1] * 6]], past, 1)
    assert later.shape[:2] == (2, 1), "num_logits_to_keep 1 gives the last row only"
    later_alone, *_ = decode(decoder, new[1:], [[1] * 6], past_alone, 0)
    np.testing.assert_allclose(later[1, 0], later_alone[0, 1], atol=1e-5)


def test_prompts_hold_one_image_token_and_the_labels(exported: Path) -> None:
    prompts = json.loads((exported / PROMPTS_NAME).read_text())
    assert set(prompts) == {"direct", "reason"}
    text = prompts["direct"]["sentiment-2"]
    assert text.count("<image>") == 1
    assert "negative, positive" in text
    assert text.endswith("Assistant: ")


def test_a_bundle_whose_images_stand_otherwise_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["image_block"]["before"] = "<fake_token_around_image>"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with Bundle.open(folder) as bundle, pytest.raises(ExportError, match="only Idefics3 bundles"):
        write_transformers_js(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_graph_of_the_embedded_bundle_loads(tmp_path: Path) -> None:
    with Bundle.open() as bundle:
        folder = write_transformers_js(bundle, tmp_path / "embedded")
        graphs = {name for files in bundle.manifest.precisions.values() for name in files.names()}
    written = sorted((folder / "onnx").glob("*.onnx"))
    assert {path.name for path in written} == graphs
    for path in written:
        assert session(path).get_inputs()


def test_bytes_do_not_overflow_where_nobody_sees_to_it(tmp_path: Path) -> None:
    """A plain session would add products of signed bytes up in 16 bits on some processors."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 1, 3, 96, 96)).astype(np.float32)
    with Bundle.open() as bundle:
        folder = write_transformers_js(bundle, tmp_path / "embedded")
        expected = engine_of(bundle, "int8").encode_images(pixels[0])
    seen = session(folder / "onnx" / "vision_encoder_int8.onnx")
    feed = {"pixel_values": pixels, "pixel_attention_mask": np.ones((1, 1, 96, 96), bool)}
    np.testing.assert_allclose(seen.run(None, feed)[0], expected, atol=1e-5)
    model = onnx.load(folder / "onnx" / "vision_encoder_int8.onnx")
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in BYTES_PRODUCTS]
    assert [weights[node.input[1]] for node in products] == [onnx.TensorProto.UINT8]


def test_a_graph_that_is_too_large_for_one_file_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_js, "_MOST_BYTES", 1000)
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(ExportError, match="one file of at most 2 GB a graph"):
        write_transformers_js(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_command(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "transformers-js", str(tiny_bundle), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "fp32, int8; prompts to give it in prompts.json" in capsys.readouterr().out
    assert main(command) == 1
    assert "exists; give another place" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


GENERATE = """
import { readFileSync, writeFileSync } from 'node:fs';
import { AutoModelForImageTextToText, AutoProcessor, env, full, Tensor } from '@huggingface/transformers';
const [root, name, dtype, pixels, size, count, answer] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = root;
const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name, dtype === 'default' ? {} : { dtype });
const prompts = JSON.parse(readFileSync(`${root}/${name}/prompts.json`, 'utf8'));
const edge = Number(size);
const data = readFileSync(pixels);
const tile = new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
const pixel_values = new Tensor('float32', tile, [1, 1, 3, edge, edge]);
const pixel_attention_mask = full([1, 1, edge, edge], true);
processor.components.image_processor = async () => ({ pixel_values, pixel_attention_mask, rows: [[0]], cols: [[0]] });
const inputs = await processor(prompts.reason['emotion6-7'], {});
const forward = await model(inputs);
const written = await model.generate({ ...inputs, max_new_tokens: Number(count) });
writeFileSync(answer, JSON.stringify({
  dims: forward.logits.dims,
  last: Array.from(forward.logits.data.slice(-forward.logits.dims[2])),
  prompt: inputs.input_ids.tolist()[0].map(Number),
  tokens: written.slice(null, [inputs.input_ids.dims[1], null]).tolist()[0].map(Number),
}));
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("tiny", "fp32"), ("tiny", "int8"), ("embedded", "default")])
def test_transformers_js_writes_the_tokens_of_the_runtime(
    exported: Path, tiny_bundle: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    """The library itself loads the folder; the pixels are given, as its own resampling is another."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (EXAMPLE / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip("transformers.js is not installed; run: npm --prefix examples/transformers-js ci --ignore-scripts")
    with Bundle.open(tiny_bundle if name == "tiny" else None) as bundle:
        folder = exported if name == "tiny" else write_transformers_js(bundle, tmp_path / "embedded")
        manifest = bundle.manifest
        edge = manifest.preprocessing.tile_size
        pixels = manifest.preprocessing.apply(np.asarray(Image.open(PHOTO)))
        precision = manifest.precision(None if dtype == "default" else dtype)
        tokens, logits = written_by_the_runtime(bundle, precision, pixels, "emotion6-7")
        prompt = manifest.prompts.reason
        text = prompt.prefix(manifest.taxonomies["emotion6-7"]) + manifest.image_block.text() + prompt.after_image
        ids = PromptTokenizer(bundle.path(TOKENIZER_NAME)).encode(text)
    (tmp_path / "generate.mjs").write_text(GENERATE)
    (tmp_path / "node_modules").symlink_to(EXAMPLE / "node_modules")
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    words = [folder.parent, folder.name, dtype, tmp_path / "pixels", edge, TOKENS, tmp_path / "answer.json"]
    command = ["node", str(tmp_path / "generate.mjs"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["prompt"] == ids
    assert answer["dims"] == [1, len(ids), manifest.decoder.vocab_size]
    np.testing.assert_allclose(answer["last"], logits, atol=1e-3)
    ended = answer["tokens"][len(tokens) :]
    assert answer["tokens"][: len(tokens)] == tokens
    assert len(tokens) == TOKENS or ended[0] in manifest.end_token_ids
    assert name == "tiny" or len(set(tokens)) > 20, "a constant output would prove little"
