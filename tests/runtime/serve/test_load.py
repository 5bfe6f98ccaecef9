"""Four times as many clients as places, for long: nothing is lost, nothing grows."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import pytest
from running_service import command, picture

from emocaliber.runtime import EmotionModel

CAPACITY = 8
CLIENTS = 4 * CAPACITY
REQUESTS = 60
"""Of each client, in each of the two rounds."""


def gauge(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


@pytest.mark.slow
def test_overload_is_refused_cleanly_and_leaves_nothing(tiny_bundle: Path) -> None:
    images = [picture(seed, 400, 300) for seed in range(CLIENTS)]
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as model:
        expected = [model.predict(image).distribution for image in images]
    words = ("--bundle", str(tiny_bundle), "--capacity", str(CAPACITY))
    with command(*words) as (address, _), httpx.Client(base_url=address, timeout=120) as watcher:
        memory: list[float] = []
        for _ in range(2):
            statuses, most_taken = overload(address, watcher, images, expected)
            assert sum(statuses.values()) == CLIENTS * REQUESTS
            assert set(statuses) == {200, 503}
            assert statuses[200] > REQUESTS
            assert most_taken <= CAPACITY
            assert gauge(watcher, "emocaliber_places_taken") == 0
            assert gauge(watcher, "emocaliber_queue_length") == 0
            memory.append(gauge(watcher, "process_resident_memory_bytes"))
        # Between such rounds the allocator alone moves up to some 25 MiB up and down; to keep the images of the
        # accepted requests would add five times this.
        assert memory[1] - memory[0] < 32 * 2**20, memory


def overload(
    address: str, watcher: httpx.Client, images: list[bytes], expected: list[dict[str, float]]
) -> tuple[Counter[int], float]:
    """Returns how often each status came, and the most places that were seen taken."""
    statuses: Counter[int] = Counter()
    wrong: list[str] = []

    def hammer(number: int) -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            for _ in range(REQUESTS):
                answer = client.post("/v1/predict", files={"image": ("photo.png", images[number])})
                statuses[answer.status_code] += 1
                if answer.status_code == 200 and answer.json()["distribution"] != expected[number]:
                    wrong.append(answer.text)
                if answer.status_code == 503 and answer.headers["retry-after"] != "1":
                    wrong.append(str(answer.headers))

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    most_taken = 0.0
    while any(thread.is_alive() for thread in threads):
        most_taken = max(most_taken, gauge(watcher, "emocaliber_places_taken"))
        threading.Event().wait(0.1)
    assert wrong == []
    return statuses, most_taken
