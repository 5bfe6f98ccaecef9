"""A start for models built from scratch: the vision tower learns to see before the decoder learns to speak.

A pretrained model brings a vision tower that already sees. One with random weights spends most of its training learning
to, through a decoder that can guess the text without looking. So its tower and connector are first trained alone, and
cheaply: from the mean of the visual tokens, a throw-away linear head predicts the label distribution and which words
the reasoning uses (words as weak supervision: Joulin et al. 2016, arXiv 1511.02251).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample

from .arguments import epoch_arguments
from .recipe import Recipe
from .run import Stage, callbacks, last_checkpoint, save_stage
from .stage_recipes import VisionRecipe

_WORD = re.compile(r"[a-z]+")
MIN_WORD_COUNT = 20
"""A word that fewer images have teaches nothing."""

Example = dict[str, torch.Tensor]


class _Images(Dataset[Example]):
    """Preprocessed images in memory as bytes, with their targets."""

    def __init__(self, samples: Sequence[Sample], processor: Any, words: Sequence[str]) -> None:
        self._pixels: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._words: list[torch.Tensor] = []
        images = processor.image_processor
        for sample in samples:
            distribution = sample.distribution()
            if distribution is None:
                raise InputError(
                    f"sample {sample.id} has neither votes nor an answer; the vision tower learns from them"
                )
            picture = [[Image.fromarray(decode_image(sample.image))]]
            self._pixels.append(images(picture, return_tensors="pt")["pixel_values"][0, 0].half())
            self._labels.append(torch.tensor(distribution))
            used = _words_of(sample)
            self._words.append(torch.tensor([float(word in used) for word in words]))

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Example:
        return {
            "pixel_values": self._pixels[index].float(),
            "labels": self._labels[index],
            "words": self._words[index],
        }


class _Probe(nn.Module):
    """Tower, connector, and the throw-away head."""

    def __init__(self, model: Any, labels: int, words: int) -> None:
        super().__init__()
        self.tower = model.model.vision_model
        self.connector = model.model.connector
        self.head = nn.Linear(model.config.text_config.hidden_size, labels + words)
        self._labels = labels

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, words: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the loss: cross-entropy to the label distribution plus mean binary cross-entropy of the words."""
        tokens = self.connector(self.tower(mirror_half(pixel_values)).last_hidden_state)
        logits = self.head(tokens.mean(dim=1))
        label_loss = nn.functional.cross_entropy(logits[:, : self._labels], labels)
        word_loss = nn.functional.binary_cross_entropy_with_logits(logits[:, self._labels :], words, reduction="none")
        return {"loss": label_loss + word_loss.sum(dim=1).mean() / 10.0, "label_loss": label_loss}


def mirror_half(pixel_values: torch.Tensor) -> torch.Tensor:
    """Returns (N, ..., width) images, each mirrored left to right with probability one half.

    To be called in a training step, not while data are loaded: a loader is a batch ahead of the step it serves, so that
    a resumed run would draw otherwise than one that was never interrupted.
    """
    mirrored = torch.rand(len(pixel_values)) < 0.5
    shape = (-1, *(1,) * (pixel_values.ndim - 1))
    return torch.where(mirrored.view(shape).to(pixel_values.device), pixel_values.flip(-1), pixel_values)


def train_vision(
    model: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path, *, resume: bool = False
) -> Stage:
    """Returns the finished stage: ``model`` with a vision tower that sees, saved to ``folder``.

    Args:
        model: Idefics3 model with random weights; tower and connector are trained in place.
        processor: Its processor.
        samples: Training samples of one taxonomy with votes or answers, and reasoning where there is any.
        recipe: The run; its ``vision`` table holds the hyper-parameters.
        folder: Where the model goes.
        resume: Continue from the newest checkpoint in ``folder``.

    Raises:
        InputError: If a sample has neither votes nor an answer.
        ConfigError: If an unfinished run is in the way.
    """
    table: VisionRecipe = recipe.stage("vision")
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    counts = Counter(word for sample in samples for word in _words_of(sample))
    words = sorted(word for word, count in counts.items() if MIN_WORD_COUNT <= count <= len(samples) - MIN_WORD_COUNT)
    checkpoint = last_checkpoint(folder, resume=resume)
    probe = _Probe(model, len(samples[0].resolve()), len(words))
    trainer = Trainer(
        model=probe.train(),
        args=TrainingArguments(**epoch_arguments(table, recipe, folder), remove_unused_columns=False),
        train_dataset=_Images(samples, processor, words),
        callbacks=callbacks("vision", folder, recipe),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage("vision", folder, model, processor, recipe, started=started, history=trainer.state.log_history)


def _words_of(sample: Sample) -> set[str]:
    return set(_WORD.findall(" ".join((sample.reasoning or {}).values()).lower()))
