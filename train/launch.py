"""Several processes: one command starts them under accelerate's launcher, and each of them finds its place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler

from emocaliber.runtime import errors
from emocaliber.runtime.errors import BackendError, ConfigError

from .recipe import LaunchRecipe

_RANK = "RANK"
"""What every launcher (accelerate, torchrun) sets for each of its processes."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where such a process leaves its error for the launcher to show."""


def processes() -> PartialState:
    """Returns this process's place among those of the run; a process of its own is the main one of one."""
    return PartialState(cpu=not torch.cuda.is_available())


def launched() -> bool:
    """Returns whether this process was started by a launcher."""
    return _RANK in os.environ


def launch(recipe: LaunchRecipe, words: Sequence[str]) -> None:
    """Runs ``emocaliber WORDS`` in as many processes as the recipe says, and waits for them to end.

    Raises:
        ConfigError: If there are fewer GPUs than processes.
        BackendError: If a process fails; the others are ended. The message holds the first error.
    """
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus < recipe.processes:
        raise ConfigError(
            f"launch.processes is {recipe.processes}, but this machine has {gpus} GPUs; say --set launch.processes="
            f"{gpus} (a step still takes the whole batch), or start the command on several machines with "
            f"'accelerate launch' or torchrun"
        )
    options = {
        "num_processes": recipe.processes, "num_machines": 1, "main_process_port": 0,
        "mixed_precision": "no", "dynamo_backend": "no",
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS", "1"),
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    parser = launch_command_parser()
    # Its log repeats for every process what the first error says once.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(parser.parse_args(["--multi_gpu", *flags, "-m", "emocaliber.runtime.cli", *words]))
    except ChildFailedError as error:
        raise BackendError(_first_error(error, recipe.processes)) from None
    except SignalException as error:
        raise KeyboardInterrupt from error


def in_place(work: Callable[[], Any]) -> Any:
    """Returns what ``work`` returns, run as one of a launcher's processes.

    An error is left to the launcher, which ends the other processes and shows it once; the process ends with status 1.
    """
    try:
        result = work()
    except Exception as error:
        if _ERROR_FILE not in os.environ:
            raise
        get_error_handler().record_exception(error)
        raise SystemExit(1) from None
    processes().destroy_process_group()
    return result


def _first_error(error: ChildFailedError, count: int) -> str:
    rank, failure = error.get_first_failure()
    who, message = f"process {rank + 1} of {count}", cast("dict[str, Any] | str", failure.message)
    if isinstance(message, dict):
        # What the program raises on purpose says all in a line; of anything else the trace is needed.
        deliberate = message["message"].partition(":")[0] in vars(errors)
        return f"{who}: {message['message'] if deliberate else message['extraInfo']['py_callstack']}"
    if failure.exitcode < 0:
        return f"{who} was ended by {failure.signal_name()}; SIGKILL means that memory ran out, most of the time"
    return f"{who} ended with status {failure.exitcode}; what it said stands above"
