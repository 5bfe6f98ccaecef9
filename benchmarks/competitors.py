"""What `runtime.py` compares: this package's engine in each precision, and torch on the same weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.context import Context, empty_context, read
from emocaliber.runtime.engine import OnnxEngine
from emocaliber.runtime.model import EmotionModel

Stage = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every competitor is given."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    pixels: NDArray[np.float32]
    """(1, 3, T, T), the same, preprocessed."""
    prompt: tuple[int, ...]
    """Token ids, image tokens included."""
    image_token: int
    answers: tuple[tuple[int, ...], ...]
    """Token ids of the eight labels."""
    label_sets: dict[int, tuple[str, ...]]
    """Labels by their number."""
    past: int
    """Tokens behind which a token is decoded."""


def ours(bundle: Path, precision: str, work: Work, threads: int) -> dict[str, Stage]:
    """Returns the stages of this package in one precision."""
    model = EmotionModel.load(bundle, precision=precision, engine="cpu", threads=threads)
    opened = Bundle.open(bundle, verify=False)
    files = opened.manifest.precisions[precision]
    engine = OnnxEngine(
        vision_encoder=opened.path(files.vision_encoder),
        embed_tokens=opened.path(files.embed_tokens),
        decoder=opened.path(files.decoder),
        shape=opened.manifest.decoder,
        engine="cpu",
        threads=threads,
    )
    nothing = empty_context(opened.manifest.decoder)
    prompt = engine.embed(np.array([work.prompt]))
    prompt[np.array([work.prompt]) == work.image_token] = engine.encode_images(work.pixels)[0]
    long = np.resize(np.array(work.prompt), work.past)[None]
    _, context = read(engine, nothing, engine.embed(long), [work.past - 1])
    token = np.array([[work.prompt[-1]]])

    def decode() -> tuple[Any, Context]:
        return read(engine, context, engine.embed(token), [0])

    def text_side(labels: tuple[str, ...]) -> Stage:
        # The decoder's side of a prediction, with the prefix of these labels cached; `own_ms` reads its time.
        return lambda: model.predict(work.image, labels=labels).timing_ms["text"]

    return {
        "vision": lambda: engine.encode_images(work.pixels),
        "prefill": lambda: read(engine, nothing, prompt, [prompt.shape[1] - 1]),
        "decode": decode,
        **{f"labels_{count}": text_side(labels) for count, labels in work.label_sets.items()},
        "image": lambda: model.predict(work.image, labels=work.label_sets[8]),
    }


def torch_eager(model: Any, work: Work) -> dict[str, Stage]:
    """Returns the stages of transformers in the model's own type; label scores are one forward pass a label."""
    kind = next(model.parameters()).dtype
    pixels = torch.from_numpy(work.pixels)[:, None].to(kind)
    prompt = torch.tensor([work.prompt])
    long = torch.from_numpy(np.resize(np.array(work.prompt), work.past)[None])
    long = torch.where(long == work.image_token, work.prompt[0], long)
    text = model.model.text_model
    token = prompt[:, -1:]

    def embedded(ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        embeds = model.get_input_embeddings()(ids).clone()
        embeds[ids == work.image_token] = features
        return embeds

    def vision() -> torch.Tensor:
        return torch.cat(list(model.model.get_image_features(pixels).pooler_output))

    def last_logits(embeds: torch.Tensor) -> torch.Tensor:
        hidden = text(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return model.lm_head(hidden[:, -1])

    with torch.inference_mode():
        features = vision()
        cache = text(input_ids=long, use_cache=True, past_key_values=DynamicCache()).past_key_values

    def decode() -> torch.Tensor:
        logits = model.lm_head(text(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state)
        cache.crop(-1)
        return logits

    def labels() -> list[torch.Tensor]:
        ids = [torch.tensor([[*work.prompt, *answer]]) for answer in work.answers]
        return [last_logits(embedded(row, features)) for row in ids]

    stages: dict[str, Stage] = {
        "vision": vision,
        "prefill": lambda: last_logits(embedded(prompt, features)),
        "decode": decode,
        "labels_8": labels,
        "image": lambda: last_logits(embedded(prompt, vision())),
    }
    return {name: _without_gradients(stage) for name, stage in stages.items()}


def not_run(flags: Sequence[str]) -> dict[str, str]:
    """Returns who is not compared here, and why."""
    why = {}
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        why["torch bf16"] = "this processor has no bf16 arithmetic; torch imitates it, hundreds of times slower"
    for name, module in (
        ("onnxruntime-genai", "onnxruntime_genai"),
        ("OpenVINO", "openvino"),
        ("llama.cpp", "llama_cpp"),
    ):
        installed = "installed, but no" if importlib.util.find_spec(module) else "not installed, and no"
        why[name] = f"{installed} conversion of these weights is part of this benchmark"
    return why


def _without_gradients(stage: Stage) -> Stage:
    def run() -> Any:
        with torch.inference_mode():
            return stage()

    return run
