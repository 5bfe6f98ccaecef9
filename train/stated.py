"""The confidences that a policy states in stage *calibrate*: tallied, scored, and watched for collapse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from tqdm import tqdm
from transformers import TrainerCallback

from emocaliber.evaluate.metrics import bin_positions
from emocaliber.runtime.errors import ConfigError

from .stage_recipes import AlarmRecipe

Floats = NDArray[np.float64]

BINS = 20
"""Bins of a tally: one for each value of the grid that confidences are stated on, which is its upper end."""
ECE_RESPONSES = 1000
"""A step is too small for an ECE; it is taken over the newest steps that hold at least so many responses together."""
TALLY = "stated"
"""Key of a step's tally in the trainer's log."""

Tally = dict[str, list[float]]
"""For each bin the ``count`` of responses, and the sums of their ``confidence`` and of the probability of being
``right``: what is needed to draw a histogram or to compute an ECE over any number of steps."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stated:
    """The confidences stated in one step, by all processes; N of them, N may be 0."""

    confidence: Floats
    """(N,) in [0, 1]."""
    right: Floats
    """(N,) in [0, 1], how probable the answer is to be right."""
    weight: Floats
    """(N,) how many responses each stands for."""

    def figures(self) -> dict[str, float]:
        """Returns the expected Brier score, the mean confidence, and the entropy of the confidences in nats.

        An entropy of 0 is one confidence for everything.
        """
        brier = self.right * (1.0 - self.confidence) ** 2 + (1.0 - self.right) * self.confidence**2
        _, places = np.unique(self.confidence, return_inverse=True)
        shares = np.bincount(places, weights=self.weight) / self.weight.sum()
        return {
            "brier": float(np.average(brier, weights=self.weight)),
            "confidence": float(np.average(self.confidence, weights=self.weight)),
            "confidence_entropy": float(entr(shares).sum()),
        }

    def tally(self) -> Tally:
        """Returns the tally of the step."""
        bins, _ = bin_positions(self.confidence, n_bins=BINS)
        sums = {"count": self.weight, "confidence": self.weight * self.confidence, "right": self.weight * self.right}
        return {
            name: [round(total, 4) for total in np.bincount(bins, weights=values, minlength=BINS).tolist()]
            for name, values in sums.items()
        }


def pooled(tallies: Sequence[Tally]) -> Tally:
    """Returns the tally of several steps together."""
    return {name: np.sum([one[name] for one in tallies], axis=0).tolist() for name in tallies[0]}


def calibration_error(stated: Tally) -> float:
    """Returns the ECE, in [0, 1]: ``sum_b |right_b − confidence_b| / N`` over the ten closed bins of equal width.

    Naeini et al. 2015. Right is a probability, so that votes count as votes.
    """
    gaps = (np.array(stated["right"]) - np.array(stated["confidence"])).reshape(-1, 2).sum(axis=1)
    return float(np.abs(gaps).sum() / np.sum(stated["count"]))


def newest(history: Sequence[dict[str, Any]], responses: int) -> Tally | None:
    """Returns the tally of the newest logged steps that hold at least so many responses, or of all there are."""
    found: list[Tally] = []
    count = 0.0
    for entry in reversed(history):
        if count >= responses:
            break
        if TALLY in entry:
            found.append(entry[TALLY])
            count += sum(entry[TALLY]["count"])
    return pooled(found) if found else None


class StatedConfidences:
    """What both trainers of stage *calibrate* add to a transformers `Trainer`, of which this is a part.

    They log what the policy states, and a resumed run takes the learning rate of its recipe, not of its checkpoint: a
    run that the alarm stopped goes on with other settings.
    """

    args: Any
    state: Any
    optimizer: Any
    lr_scheduler: Any

    def newly_stated(self) -> Stated:
        """Returns what was stated since the last call; all processes call it."""
        raise NotImplementedError

    def log(self, logs: dict[str, Any], *arguments: Any, **named: Any) -> None:
        """Logs, with the figures and the tally of the step's confidences, and their ECE over the newest steps."""
        stated = self.newly_stated()
        if len(stated.confidence):
            logs |= {**stated.figures(), TALLY: stated.tally()}
            recent = newest([*self.state.log_history, logs], ECE_RESPONSES)
            assert recent is not None
            logs["ece"] = calibration_error(recent)
        super().log(logs, *arguments, **named)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        schedule = self.lr_scheduler
        schedule.base_lrs = [self.args.learning_rate] * len(schedule.base_lrs)
        rates = [
            rate * part(schedule.last_epoch) for rate, part in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"], group["lr"] = self.args.learning_rate, rate
        schedule._last_lr = rates


class CollapseAlarm(TrainerCallback):
    """Goes off when the policy states one confidence for everything, step after step.

    A reward that is proper in the confidence does not prevent it: one value for all images is a local optimum (Damani
    et al. 2025, arXiv 2507.16806, report it). While the entropy is low and the alarm may stop the run, no checkpoint is
    written, so that the newest one is from before.
    """

    def __init__(self, recipe: AlarmRecipe) -> None:
        self._recipe = recipe
        self._collapsed = 0
        self._message = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Counts collapsed steps in a row; steps in which nothing was stated do not count."""
        entropy = (logs or {}).get("confidence_entropy")
        if entropy is not None:
            self._collapsed = self._collapsed + 1 if entropy < self._recipe.entropy else 0
            if self._collapsed == self._recipe.patience:
                self._go_off(state, control, entropy)
        if self._collapsed and self._recipe.action == "stop":
            control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises what the alarm has to say.

        Raises:
            ConfigError: If it went off and was to stop the run.
        """
        if self._message:
            raise ConfigError(self._message)

    def _go_off(self, state: Any, control: Any, entropy: float) -> None:
        recipe = self._recipe
        seen = (
            f"stage calibrate has collapsed to one confidence: at step {state.global_step} of {state.max_steps} the "
            f"entropy of the stated confidences is {entropy:.3f} nats, and has been below {recipe.entropy} "
            f"(calibrate.alarm.entropy) for {recipe.patience} logged steps in a row"
        )
        if recipe.action == "warn":
            if state.is_world_process_zero:
                tqdm.write(f"warning: {seen}", file=sys.stderr)
            return
        self._message = (
            f"{seen}. Continue from the last checkpoint before with --resume and a higher calibrate.kl, a lower "
            f"calibrate.learning_rate or a higher calibrate.temperature; or set calibrate.alarm.action to 'warn'"
        )
        control.should_training_stop = True
