"""Qwen-VL students as bundles: images of several uneven grids, both modes, everything against the plain torch model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import tiny_family

from emocaliber.evaluate.qwen_inputs import prompt_ids, read_image, with_image
from emocaliber.export import external_data
from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.export.families import patch_preprocessing_of
from emocaliber.export.qwen import MultimodalRotary, PatchVisionEncoder
from emocaliber.export.sources import load_source
from emocaliber.export.verify import verify_graphs
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ArtifactError, ExportError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.prompts import PromptTemplate

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
TEMPLATE = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
SPEC = BundleSpec(
    name="tiny-qwen", version="1", license="MIT", taxonomies=("emotion6-7",), template=TEMPLATE, max_new_tokens=12
)
SLOW = (pytest.mark.slow, pytest.mark.timeout(900))
EXPORTED = [pytest.param(name, marks=SLOW) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")]


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Returns model, processor and bundle, most of whose weights stand beside the graphs."""
    model, processor = tiny_family(request.param, layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_data, "LARGE_BYTES", 50_000)
        target = write_bundle(tmp_path_factory.mktemp("qwen") / "bundle", model, processor, SPEC)
    return model, processor, target


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Returns images of 4 × 3, 1 × 4 and 2 × 2 visual tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((130, 90, 3), (40, 120, 3), (61, 64, 3))]


class Torch:
    """One image and one prompt in the model itself: its own positions, one whole pass for each answer."""

    def __init__(self, model: Any, processor: Any, image: np.ndarray, mode: Mode) -> None:
        self._model, self._tokenizer = model, processor.tokenizer
        picture, self._token = read_image(processor, image), processor.image_token_id
        self.prompt = with_image(prompt_ids(processor, TEMPLATE, LABELS, mode), self._token, picture)
        self._pixels = {"pixel_values": picture.patches, "image_grid_thw": torch.tensor([picture.grid])}

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def log_probabilities(self, response: list[int]) -> np.ndarray:
        """Returns the log-probability of each token of a response."""
        ids = torch.tensor([[*self.prompt, *response]])
        kinds = (ids == self._token).int()
        with torch.inference_mode():
            logits = self._model(input_ids=ids, mm_token_type_ids=kinds, **self._pixels, use_cache=False).logits[0]
        log_probs = torch.log_softmax(logits[len(self.prompt) - 1 : -1].double(), -1)
        found: np.ndarray = log_probs[range(len(response)), response].numpy()
        return found

    def written(self, banned: list[int], ends: set[int], budget: int) -> list[int]:
        """Returns the tokens that the model writes greedily, up to the first of ``ends``."""
        ids = torch.tensor([self.prompt])
        output = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == self._token).int(),
            **self._pixels, do_sample=False, max_new_tokens=budget, suppress_tokens=banned, eos_token_id=list(ends),
        )[0, len(self.prompt) :].tolist()  # fmt: skip
        return output[: next((place for place, token in enumerate(output) if token in ends), budget)]

    def scores(self, before: list[int]) -> np.ndarray:
        """Returns the log-likelihood of every label behind ``before`` and the answer tag."""
        start = [*before, *self.ids("<answer>")]
        return np.array(
            [self.log_probabilities([*start, *self.ids(f"{label}</answer>")])[len(start) :].sum() for label in LABELS]
        )

    def confidence(self, before: list[int], label: str) -> float:
        """Returns the expected value of the confidence stated behind a label."""
        answer = [*before, *self.ids(f"<answer>{label}</answer><confidence>")]
        values = [f"{0.05 * step:.2f}" for step in range(1, 20)]
        likelihoods = np.array(
            [self.log_probabilities([*answer, *self.ids(f"{v}</confidence>")])[len(answer) :].sum() for v in values]
        )
        shares = np.exp(likelihoods - likelihoods.max())
        return float(shares @ np.array(values, float) / shares.sum())


def test_graphs_equal_the_model_over_many_steps(exported: tuple[Any, Any, Path]) -> None:
    model, processor, bundle = exported
    report = verify_graphs(model, bundle, processor=processor, steps=32)
    exact = report.precisions["fp32"]
    assert report.max_pixel_difference < 1e-6
    assert exact.greedy_tokens == (1 + 2 + 3) * 33
    assert exact.greedy_mismatches == 0
    assert exact.max_logit_difference < 1e-4 < 1.0 < exact.largest_logit
    assert max(exact.max_tree_difference, exact.max_score_drift) < 1e-4


def test_direct_predictions_equal_torch(exported: tuple[Any, Any, Path], images: list[np.ndarray]) -> None:
    model, processor, bundle = exported
    with EmotionModel.load(bundle, precision="fp32", engine="cpu", threads=1) as ours:
        scores = ours.score(images, mode="direct", verbalize=True)
        predicted = [ours.predict(image) for image in images]
    assert scores.verbalized is not None
    for row, image in enumerate(images):
        plain = Torch(model, processor, image, "direct")
        expected = plain.scores([])
        assert scores.label_scores[row] == pytest.approx(expected, abs=1e-4)
        best = LABELS[int(expected.argmax())]
        assert scores.verbalized[row] == pytest.approx(plain.confidence([], best), abs=1e-5)
        shares = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
        assert list(predicted[row].distribution.values()) == pytest.approx(shares, abs=1e-5)
    assert np.ptp(scores.label_scores, axis=0).max() > 1e-2, "images that do not matter would prove nothing"


def test_reasoned_predictions_equal_torch(exported: tuple[Any, Any, Path], images: list[np.ndarray]) -> None:
    model, processor, bundle = exported
    with EmotionModel.load(bundle, precision="fp32", engine="cpu", threads=1) as ours:
        scores = ours.score(images, mode="reason")
        manifest = ours.manifest
    assert scores.texts is not None
    assert scores.verbalized is not None
    for row, image in enumerate(images):
        plain = Torch(model, processor, image, "reason")
        stops = {*plain.ids("</think>"), *plain.ids("<answer>"), *manifest.end_token_ids}
        written = plain.written(list(manifest.suppressed_token_ids), stops, manifest.max_new_tokens)
        assert scores.texts[row] == processor.tokenizer.decode(written) + "</think>"
        reasoning = [*written, *plain.ids("</think>")]
        expected = plain.scores(reasoning)
        assert scores.label_scores[row] == pytest.approx(expected, abs=1e-4)
        stated = plain.confidence(reasoning, LABELS[int(expected.argmax())])
        assert scores.verbalized[row] == pytest.approx(stated, abs=1e-5)


def test_an_image_alone_and_among_others(exported: tuple[Any, Any, Path], images: list[np.ndarray]) -> None:
    with EmotionModel.load(exported[2], precision="fp32", engine="cpu", threads=1) as ours:
        options: dict[str, Any] = {"mode": "reason", "samples": 2, "temperature": 1.5, "seed": 3}
        together = ours.predict_batch(images, **options)
        for image, among in zip(images, together, strict=True):
            alone = ours.predict(image, **options)
            assert list(alone.distribution.values()) == pytest.approx(list(among.distribution.values()), abs=1e-5)


def test_weights_beside_the_graphs_are_part_of_the_bundle(exported: tuple[Any, Any, Path], tmp_path: Path) -> None:
    bundle = exported[2]
    beside = sorted(path.name for path in bundle.glob("*.onnx_data"))
    assert "decoder_model_merged.onnx_data" in beside
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert set(beside) <= set(manifest["files"])
    with Bundle.open(bundle) as opened:
        graphs = [path for path in bundle.glob("*.onnx*") if "_int8" not in path.name]
        assert opened.manifest.graph_bytes("fp32") == sum(path.stat().st_size for path in graphs)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        content = bytearray(path.read_bytes())
        if path.name == "decoder_model_merged.onnx_data":
            content[len(content) // 2] ^= 1
        (copy / path.name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"decoder_model_merged\.onnx_data does not match its SHA-256"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (4, 3), (5, 7), (4, 4)])
def test_the_tower_equals_the_model_s(name: str, rows: int, columns: int) -> None:
    """Attention under a mask against the model's own attention, window by window; windows of 2 × 2, most grids cut."""
    model, _ = tiny_family(name)
    encoder, preprocessing = PatchVisionEncoder(model), patch_preprocessing_of(model.config.vision_config)
    patches = torch.randn(4 * rows * columns, encoder.patches.in_features, generator=torch.Generator().manual_seed(0))
    grid = {key: torch.from_numpy(array) for key, array in preprocessing.grid(rows, columns).items()}
    with torch.inference_mode():
        features, *deep = encoder(patches, **grid)
        expected = model.model.visual(patches, grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]))
        assert features.numpy() == pytest.approx(expected.pooler_output.numpy(), abs=1e-4)
        assert bool(deep) == (name == "qwen3_vl")
        if deep:
            assert deep[0].numpy() == pytest.approx(torch.stack(expected.deepstack_features).numpy(), abs=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_rotary_positions_equal_the_model_s(name: str) -> None:
    text = tiny_family(name)[0].model.language_model
    positions = torch.randint(0, 90, (3, 2, 11), generator=torch.Generator().manual_seed(0))
    embeds = torch.zeros(2, 11, 32)
    found, expected = MultimodalRotary(text.rotary_emb)(embeds, positions), text.rotary_emb(embeds, positions)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-6)


# peft calls it by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, processor = tiny_family("qwen2_5_vl")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    base = type(model).from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapters")
    merged, loaded = load_source(tmp_path / "adapters")
    ids = torch.arange(20, 30)[None]
    with torch.inference_mode():
        expected, found, plain = (each(input_ids=ids).logits.numpy() for each in (adapted, merged, model))
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.abs(found - plain).max() > 0.1
    assert loaded.image_token_id == processor.image_token_id
    settings = tmp_path / "adapters" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "some/where"}))
    with pytest.raises(ExportError, match="adapters of 'some/where', which is no folder on this machine"):
        load_source(tmp_path / "adapters")


def test_another_processor_is_refused() -> None:
    model, processor = tiny_family("qwen2_5_vl")
    processor.image_processor.patch_size = 8
    with pytest.raises(ExportError, match="patch_size=8 while the vision encoder takes 16"):
        patch_preprocessing_of(model.config.vision_config, processor.image_processor)
