"""What every training stage leaves behind: a model folder with a record of how it was made."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.records import to_mapping

from .adapters import finished_model
from .curves import Curves
from .launch import processes
from .recipe import Recipe
from .sharding import ShardedModel

RECORD = "stage.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One finished stage on disk."""

    name: str
    folder: Path
    """Model folder: weights, processor and `stage.json`."""
    wall_s: float
    """Seconds the stage took, without imports."""


def finished(folder: Path) -> bool:
    """Returns whether a stage in ``folder`` ran to its end: its record is written last."""
    return (folder / RECORD).is_file()


def read_stage(folder: Path) -> Stage:
    """Returns the stage stored in ``folder``.

    Raises:
        ArtifactError: If there is none.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Stage(name=record["stage"], folder=folder, wall_s=record["wall_s"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} holds no finished stage ({RECORD}: {error!r})") from error


def stage_taxonomies(folder: Path) -> tuple[str, ...]:
    """Returns the label sets that the finished stage in ``folder`` was trained on.

    Raises:
        ArtifactError: If its record names none.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return tuple(record["recipe"]["taxonomies"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} does not say what it was trained on ({RECORD}: {error!r})") from error


def save_stage(
    name: str,
    folder: Path,
    model: Any,
    processor: Any,
    recipe: Recipe,
    *,
    started: float,
    history: list[dict[str, Any]],
) -> Stage:
    """Saves weights, processor and the record of the run; removes the checkpoints, which have served.

    Every process calls it; the main one writes, the others wait.

    Args:
        name: Stage.
        folder: Where to write.
        model: Trained model, sharded or not; adapters are merged into it.
        processor: Its processor.
        recipe: The recipe that was run.
        started: `time.perf_counter` at the start.
        history: The trainer's log, one mapping a logged step.
    """
    plain, weights = finished_model(model)
    stage = Stage(name=name, folder=folder, wall_s=time.perf_counter() - started)
    place = processes()
    if place.is_main_process:
        plain.save_pretrained(folder, state_dict=weights)
        processor.save_pretrained(folder)
        _write_record(stage, recipe, history)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    place.wait_for_everyone()
    return stage


def _write_record(stage: Stage, recipe: Recipe, history: list[dict[str, Any]]) -> None:
    record = {"wall_s": stage.wall_s, **_origin(stage.name, recipe), "history": history}
    atomic_write(stage.folder / RECORD, json.dumps(record, indent=1))


def _origin(name: str, recipe: Recipe) -> dict[str, Any]:
    """Returns what weights come from: stage, versions, seed and recipe."""
    return {
        "stage": name,
        **{package: version(package) for package in ("emocaliber", "torch", "transformers", "trl")},
        "seed": recipe.seed,
        "recipe": to_mapping(recipe),
    }


def last_checkpoint(folder: Path, *, resume: bool) -> str | None:
    """Returns the newest complete checkpoint under ``folder`` when resuming, else None.

    Raises:
        ConfigError: If there are checkpoints of an unfinished run and resuming was not asked for.
    """
    found = sorted((folder / CHECKPOINTS).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    if found and not resume:
        raise ConfigError(f"{folder} holds an unfinished run; continue it with --resume, or remove the folder")
    return str(complete[-1]) if complete else None


def callbacks(name: str, folder: Path, recipe: Recipe) -> list[TrainerCallback]:
    """Returns what shows how a stage goes (a bar on standard error, curves in its folder), records it and shards it."""
    return [ProgressBar(name), Curves(name, folder), CheckpointOrigin(name, recipe), ShardedModel()]


class CheckpointOrigin(TrainerCallback):
    """Writes into every checkpoint what it comes from, as `RECORD` says it of a finished stage."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self._record = json.dumps(_origin(name, recipe), indent=1)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the record."""
        if state.is_world_process_zero:
            atomic_write(Path(args.output_dir) / f"checkpoint-{state.global_step}" / RECORD, self._record)


class ProgressBar(TrainerCallback):
    """One bar on standard error per stage, with the newest loss or reward; nothing on standard output."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._title,
            unit="step",
            file=sys.stderr,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Shows the newest loss and reward."""
        shown = {key: f"{float(logs[key]):.3f}" for key in ("loss", "reward") if logs and key in logs}
        if shown and self._bar is not None:
            self._bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        self._bar.close()
