"""A tiny random model and a few scenes that the tests of this layer only read."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_model import build_model, build_processor
from tiny_run import scene_samples

from emocaliber.runtime.samples import Sample


@pytest.fixture(scope="session")
def processor() -> Any:
    return build_processor()


@pytest.fixture(scope="session")
def model(processor: Any) -> Any:
    return build_model(processor)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return scene_samples(tmp_path_factory.mktemp("scenes"), 6)
