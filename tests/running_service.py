"""A real service on a free port: in a thread of the test process, or as the command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from emocaliber.runtime import EmotionModel, Prediction, StreamEvent
from emocaliber.runtime.serve.app import create_app
from emocaliber.runtime.serve.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


def picture(seed: int, width: int = 60, height: int = 40) -> bytes:
    """Returns a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class GatedModel(EmotionModel):
    """The model behind a gate: it answers while the gate is open, and notes the sizes of its batches."""

    def __init__(self, model: EmotionModel) -> None:
        self.__dict__ = model.__dict__
        self.gate = threading.Event()
        self.reached = threading.Semaphore(0)
        self.batch_sizes: list[int] = []

    def predict_batch(self, images: Any, **question: Any) -> list[Prediction]:
        self._wait()
        predictions = super().predict_batch(images, **question)
        self.batch_sizes.append(len(predictions))
        return predictions

    def stream(self, image: Any, **question: Any) -> Iterator[StreamEvent]:
        for event in super().stream(image, **question):
            yield event
            self._wait()

    def _wait(self) -> None:
        self.reached.release()
        assert self.gate.wait(timeout=60)


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread brings about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def service(model: EmotionModel, settings: Settings) -> Iterator[tuple[str, uvicorn.Server]]:
    """Yields the address and the server; at the end it is asked to end, and has to."""
    config = uvicorn.Config(
        create_app(model, settings), port=0, http="h11", ws="none", lifespan="on", log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}", server
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


@contextmanager
def command(*words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yields the address and the process of ``emocaliber serve``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".dev")}
    line = [sys.executable, "-m", "emocaliber.runtime.cli", "serve", "--port", "0", "--threads", "1", *words]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert " at http://" in said, said + process.stderr.read()
            yield said.split(" at ")[1].split(",")[0], process
        finally:
            process.terminate()
