"""Scenes and a processor that the tests of this layer only read."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_run import scene_samples, tiny_recipe

from emocaliber.runtime.samples import Sample
from emocaliber.train.models import build_processor, corpus
from emocaliber.train.recipe import Recipe


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return tiny_recipe()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return scene_samples(tmp_path_factory.mktemp("scenes"), 8)


@pytest.fixture(scope="session")
def processor(recipe: Recipe, scenes: list[Sample]) -> Any:
    assert recipe.teacher.build is not None
    return build_processor(recipe.teacher.build, corpus(scenes, recipe.prompt))
