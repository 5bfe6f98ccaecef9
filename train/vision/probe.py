"""What the vision tower learns: an image's labels and words from the mean of its visual tokens, and what teachers see.

Words are weak supervision (Joulin et al. 2016, arXiv 1511.02251).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from .augmentation import Augmentation
from .labels import LabelBlocks
from .teachers import Teachers

_LABELS_PER_WORD = 10.0
"""How much more a label weighs than a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of the parts of the loss."""

    votes: float
    distill: float
    feature: float


class Probe(nn.Module):
    """Tower, connector, and what is thrown away: the head, and projections of the tokens to the teachers' maps."""

    def __init__(
        self,
        model: Any,
        blocks: LabelBlocks,
        words: int,
        augmentation: Augmentation,
        weights: Weights,
        teachers: Sequence[Teachers] = (),
    ) -> None:
        """Takes the tower and the connector of ``model``, an Idefics3 model, and what they learn from."""
        super().__init__()
        self.tower = model.model.vision_model
        self.connector = model.model.connector
        self.head = nn.Linear(model.config.text_config.hidden_size, blocks.total + words)
        width = model.config.vision_config.hidden_size
        drawn = teachers if weights.feature else ()
        self.projections = nn.ModuleList(nn.Linear(width, group.channels) for group in drawn)
        self._blocks, self._weights = blocks, weights
        self.augmentation = augmentation
        """What happens to the images that it is shown."""
        # Not in a module list: they are neither trained nor stored in checkpoints.
        self._teachers = tuple(teachers)

    def forward(
        self, pixel_values: torch.Tensor, sets: torch.Tensor, labels: torch.Tensor, words: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns the loss and its parts.

        Cross-entropy to the label distribution, mean binary cross-entropy of the words, and, of images that have
        teachers, what `_lesson` says of the same altered image.
        """
        images, (labels, words) = self.augmentation(pixel_values, sets, (labels, words))
        tokens = self.tower(images).last_hidden_state
        outputs = self.head(self.connector(tokens).mean(dim=1))
        logits, word_logits = outputs.split([self._blocks.total, words.shape[1]], dim=1)
        logits = self._blocks.own(logits, sets)
        label_loss = nn.functional.cross_entropy(logits, labels)
        word_loss = nn.functional.binary_cross_entropy_with_logits(word_logits, words, reduction="none")
        loss = self._weights.votes * label_loss + word_loss.sum(dim=1).mean() / _LABELS_PER_WORD
        for place, group in enumerate(self._teachers):
            rows = group.taught[sets.cpu()].nonzero()[:, 0].to(images.device)
            if len(rows):
                lesson = self._lesson(place, images[rows], sets[rows], tokens[rows], logits[rows])
                loss = loss + len(rows) / len(images) * lesson
        return {"loss": loss, "label_loss": label_loss}

    def _lesson(
        self,
        place: int,
        images: torch.Tensor,
        sets: torch.Tensor,
        tokens: torch.Tensor,
        logits: torch.Tensor,
    ) -> torch.Tensor:
        """Returns KL(teachers ‖ head) (Hinton et al. 2015, arXiv 1503.02531) plus smooth L1 to the teachers' maps.

        The latter, where it has a weight, compares the tokens, linearly projected (Romero et al. 2015, arXiv
        1412.6550); the image is the same for teachers and tower (Beyer et al. 2022, arXiv 2106.05237).
        """
        probabilities, maps = self._teachers[place](images, sets)
        log_probabilities = nn.functional.log_softmax(logits, dim=1)
        divergence = nn.functional.kl_div(log_probabilities, probabilities, reduction="batchmean")
        lesson = self._weights.distill * divergence
        if self._weights.feature:
            difference = nn.functional.smooth_l1_loss(self.projections[place](tokens), maps)
            lesson = lesson + self._weights.feature * difference
        return lesson


class LastSteps(TrainerCallback):
    """Alters a probe's images otherwise in the last steps of a run.

    Strongly altered images are not those that will be asked about: milder ones at the end, while the learning rate
    falls, fit the tower to what it will see (He et al. 2019, arXiv 1909.09148).
    """

    def __init__(self, probe: Probe, augmentation: Augmentation, share: float) -> None:
        """Takes whose images are altered, how they are in the end, and the share of the steps that are the last."""
        self._probe, self._share = probe, share
        self._first, self._last = probe.augmentation, augmentation

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Chooses by the step that begins, whether or not the run was interrupted before it."""
        first = state.global_step < (1 - self._share) * state.max_steps
        self._probe.augmentation = self._first if first else self._last
