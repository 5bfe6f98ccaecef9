"""Work shared out by Ray Data among processes, on this machine or several: each opens a worker of its own.

The machines need the same files under the same paths. What a worker makes comes back to the caller, who alone writes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from . import errors
from .errors import BackendError, DependencyError, EmoCaliberError

Worker = Callable[[str], bytes]
"""Makes the result of one task from its text."""


class _Actor:
    """Opens a worker in a process of Ray, and hands it its tasks.

    Our own errors come back as data: of an exception Ray passes on only the text, with its traceback.
    """

    def __init__(self, open_worker: Callable[[], Worker]) -> None:
        self._worker: Worker | EmoCaliberError
        try:
            self._worker = open_worker()
        except EmoCaliberError as error:
            self._worker = error

    def __call__(self, batch: Any) -> Any:
        """Returns a task's number with its result, or with kind and text of an error."""
        import pyarrow

        (number,), (text,) = batch["number"].to_pylist(), batch["text"].to_pylist()
        content, kind, message = b"", "", ""
        try:
            if isinstance(self._worker, EmoCaliberError):
                raise self._worker
            content = self._worker(text)
        except EmoCaliberError as error:
            kind, message = type(error).__name__, str(error)
        return pyarrow.table({"number": [number], "content": [content], "kind": [kind], "message": [message]})


def made_by_workers(
    open_worker: Callable[[], Worker],
    tasks: Mapping[int, str],
    *,
    workers: int,
    threads: int,
    option: str,
    gpus: bool = True,
) -> Iterator[tuple[int, bytes]]:
    """Yields the number and result of each task as a worker has made it, in any order.

    The cluster is the one that ``RAY_ADDRESS`` names or that ``ray start`` has started here; else one of this machine,
    which ends with the work.

    Args:
        open_worker: Called once in each process; it is sent there.
        tasks: Number to text.
        workers: Most processes.
        threads: CPUs a worker takes.
        option: How the user names the number of workers, up to that number, for messages: ``--ray ``.
        gpus: Whether a worker takes a GPU where the cluster has any.

    Raises:
        DependencyError: If Ray is not installed.
        BackendError: If the cluster is too small for the workers, or Ray fails.
        EmoCaliberError: Whatever a worker raises.
    """
    # No reports of usage leave the machine unless a user asks for them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"{option}{workers} needs Ray ({error}); run: pip install 'emocaliber[ray]', or go on without it"
        ) from error
    workers = min(workers, len(tasks))
    rows = [{"number": number, "text": text} for number, text in tasks.items()]
    # Ray prints what its workers complain of on standard output, where only results belong.
    with contextlib.redirect_stdout(sys.stderr), _cluster(ray):
        needs = _needs(ray.cluster_resources(), workers, threads, option, gpus=gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(open_worker,),
            **needs,
        )
        try:
            for row in made.iter_rows():
                if row["kind"]:
                    raise cast("EmoCaliberError", getattr(errors, row["kind"])(row["message"]))
                yield row["number"], row["content"]
        except ray.exceptions.RayError as error:
            raise BackendError(f"Ray failed: {_said(error)}") from error


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connects to a cluster, or starts one, for as long as the block lasts; one that is connected already stays.

    Raises:
        BackendError: If there is none to be had.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        # Bare where a node is too slow to start.
        address = os.environ.get("RAY_ADDRESS", "none is set")
        raise BackendError(f"Ray did not start or answer (RAY_ADDRESS: {address}): {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _needs(cluster: Mapping[str, float], workers: int, threads: int, option: str, *, gpus: bool) -> dict[str, Any]:
    """Returns what Ray reserves for a worker.

    Raises:
        BackendError: If the cluster has not enough of it: Ray would wait for ever.
    """
    needs = {"CPU": threads} | ({"GPU": 1} if gpus and cluster.get("GPU", 0) else {})
    for what, each in needs.items():
        if workers * each > cluster.get(what, 0):
            fitting = int(cluster.get(what, 0) // each)
            raise BackendError(
                f"{workers} workers need {workers * each} {what}s, but the Ray cluster has {cluster.get(what, 0):g}; "
                f"say {option}{max(1, fitting)}, or add machines with 'ray start'"
            )
    return {f"num_{what.lower()}s": each for what, each in needs.items()}


def _said(error: BaseException) -> str:
    """Returns the line of Ray's message that names an error, one of a worker's code rather than one of Ray's."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    foreign = [line for line in named if not line.startswith("ray.")]
    return (foreign or named or lines)[-1]
