"""This package's engine in each precision, and torch on the same weights; `rivals.py` has the other engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.context import Context, empty_context, read
from emocaliber.runtime.engine import Engine, EngineName
from emocaliber.runtime.engines import load_engine
from emocaliber.runtime.model import EmotionModel

Stage = Callable[[], Any]
SCORES = "scores"
"""Not timed: log-likelihoods of the eight labels up to a constant, which tell whether two compute the same."""


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
    tree_tokens: dict[int, int]
    """Tokens that the labels add to a pass, by their number."""
    past: int
    """Tokens behind which a token is decoded."""


def ours(bundle: Path, precision: str, work: Work, threads: int, engine: EngineName = "cpu") -> dict[str, Stage]:
    """Returns the stages of this package in one precision."""
    opened = Bundle.open(bundle, verify=False)
    return engine_stages(opened, precision, load_engine(opened, precision, engine, threads=threads), work)


def engine_stages(opened: Bundle, precision: str, engine: Engine, work: Work) -> dict[str, Stage]:
    """Returns the stages of this package on an engine."""
    model = EmotionModel(opened, precision=precision, engine=engine)
    nothing = empty_context(opened.manifest.decoder)
    prompt = engine.embed(np.array([work.prompt]))
    prompt[np.array([work.prompt]) == work.image_token] = engine.encode_images(work.pixels)[0]
    long = np.resize(np.array(work.prompt), work.past)[None]
    _, context = read(engine, nothing, engine.embed(long), [work.past - 1])
    token = np.array([[work.prompt[-1]]])

    def decode() -> tuple[Any, Context]:
        return read(engine, context, engine.embed(token), [0])

    def text_side(labels: tuple[str, ...]) -> Stage:
        # The decoder's side of a prediction; the round that is not counted reads the prefix of these labels.
        return lambda: model.predict(work.image, labels=labels).timing_ms["text"]

    return {
        "vision": lambda: engine.encode_images(work.pixels),
        "prefill": lambda: read(engine, nothing, prompt, [prompt.shape[1] - 1]),
        "decode": decode,
        **{f"labels_{count}": text_side(labels) for count, labels in work.label_sets.items()},
        "image": lambda: model.predict(work.image, labels=work.label_sets[8]),
        SCORES: lambda: np.log(list(model.predict(work.image, labels=work.label_sets[8]).distribution.values())),
    }


def torch_model(model: Any, work: Work, *, compiled: bool = False) -> dict[str, Stage]:
    """Returns the stages of transformers in the model's own type, on its own device.

    Label scores are one forward pass a label; on a GPU, which these leave idle, one pass of all labels.

    Args:
        model: In evaluation mode; compiling changes it.
        work: What to do.
        compiled: Whether `torch.compile` takes both towers; its label scores are left out, as it compiles each length.
    """
    if compiled:
        for tower in (model.model.vision_model, model.model.text_model):
            tower.forward = torch.compile(tower.forward)
    device = model.device
    pixels = torch.from_numpy(work.pixels)[:, None].to(device, model.dtype)
    prompt = torch.tensor([work.prompt], device=device)
    long = torch.from_numpy(np.resize(np.array(work.prompt), work.past)[None]).to(device)
    text = model.model.text_model
    token = prompt[:, -1:]

    def embedded(ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        embeds = model.get_input_embeddings()(ids).clone()
        embeds[ids == work.image_token] = features.repeat(len(ids), 1)
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
        ids = [torch.tensor([[*work.prompt, *answer]], device=device) for answer in work.answers]
        return [last_logits(embedded(row, features)) for row in ids]

    def scores() -> torch.Tensor:
        rows = [torch.tensor([*work.prompt, *answer]) for answer in work.answers]
        ids = pad_sequence(rows, batch_first=True).to(device)  # on the right, where nothing that counts looks
        start = len(work.prompt)
        hidden = text(inputs_embeds=embedded(ids, features), use_cache=False).last_hidden_state
        log_probs = model.lm_head(hidden[:, start - 1 : -1]).float().log_softmax(-1)
        steps = log_probs.gather(-1, ids[:, start:, None])[..., 0]
        lengths = torch.tensor([[len(answer)] for answer in work.answers], device=device)
        return (steps * (torch.arange(steps.shape[1], device=device) < lengths)).sum(-1).cpu()

    stages: dict[str, Stage] = {
        "vision": vision,
        "prefill": lambda: last_logits(embedded(prompt, features)),
        "decode": decode,
        "image": lambda: last_logits(embedded(prompt, vision())),
    }
    if not compiled:
        stages |= {"labels_8": labels if device.type == "cpu" else scores, SCORES: scores}
    return {name: _finished(stage, device) for name, stage in stages.items()}


def _finished(stage: Stage, device: torch.device) -> Stage:
    """Returns a stage without gradients that ends when the device is done."""

    def run() -> Any:
        with torch.inference_mode():
            result = stage()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return run
