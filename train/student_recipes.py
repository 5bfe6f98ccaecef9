"""Recipes of the stages that refine a distilled student: on its own responses, which no trace holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emocaliber.runtime.errors import ConfigError

from .model_recipe import Precision, positive, whole_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyRecipe:
    """Stage *on-policy*: the student writes, and the teacher says how probable it finds every token of that."""

    learning_rate: float
    steps: int
    batch_size: int
    """Responses in one optimiser step, one an image."""
    micro_batch: int | None = None
    """Responses taken at once; None takes the whole batch."""
    images: int = 1000
    """How many training images are asked about."""
    loss: Literal["auto", "jsd", "uld"] = "auto"
    """``jsd`` compares the distributions of the next token by the generalised Jensen-Shannon divergence (Agarwal et al.
    2023, arXiv 2306.13649) and needs one vocabulary and one processor; ``uld`` aligns two tokenizers by the bytes of
    the text (Boizard et al. 2024, arXiv 2402.12030). ``auto`` takes the first where it can."""
    beta: float = 0.5
    """0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher), and between them are Jensen-Shannon divergences."""
    temperature: float = 1.0
    direct_share: float = 0.5
    """Share of the images asked about in direct mode."""
    warmup: float = 0.05
    weight_decay: float = 0.01
    precision: Precision = "fp32"
    save_steps: int = 100

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "steps", "batch_size", "images", "temperature", "save_steps")
        _shares(self, "beta", "direct_share")
        whole_batches("batch_size", self.batch_size, self.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundRecipe:
    """Stage *ground*: the stated confidence is trained towards how often the student itself is right."""

    learning_rate: float
    batch_size: int
    """Responses in one optimiser step."""
    micro_batch: int | None = None
    """Responses taken at once; None takes the whole batch."""
    epochs: float = 1.0
    """Passes over the responses."""
    split: str = "train"
    """Of which samples. Those that the student learnt from come last: of them it is right too often."""
    images: int = 1000
    samples: int = 8
    """K responses drawn for each image."""
    target: Literal["answer", "rollouts"] = "answer"
    """What a response with reasoning is to state: how probable its own answer is to be right, or how often the K
    responses to its image are. The latter is less than what the answer that is returned deserves, the most probable
    one. In direct mode it is always the former: nothing is drawn before the answer."""
    prior: float = 0.5
    """Pseudo-counts a = b of the Beta prior that smooths the rate over K responses."""
    temperature: float = 1.0
    """At which the responses are drawn."""
    draw_batch: int = 32
    """Images whose responses are drawn together."""
    direct_share: float = 0.5
    """Share of the images asked about in direct mode."""
    kl: float = 1.0
    """Weight of the KL divergence, summed over a response, from the student before: it keeps all but the confidence as
    it was."""
    log_weight: float = 0.1
    """Weight of a log score beside the Brier score: it teaches confidences that the student has never stated."""
    warmup: float = 0.05
    weight_decay: float = 0.0
    precision: Precision = "fp32"
    save_steps: int = 200

    def __post_init__(self) -> None:
        positive(
            self, "learning_rate", "batch_size", "epochs", "images", "samples", "prior", "temperature", "draw_batch",
            "save_steps",
        )  # fmt: skip
        _shares(self, "direct_share")
        for name in ("kl", "log_weight"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a number >= 0")
        whole_batches("batch_size", self.batch_size, self.micro_batch)


def _shares(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"{name} is {value!r}, expected a number in [0, 1]")
