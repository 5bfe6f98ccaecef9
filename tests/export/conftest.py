"""One export for all tests of this layer: it takes seconds."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_model import build_model, build_processor

from emocaliber.export.bundle import BundleSpec, write_bundle

SPEC = BundleSpec(
    name="tiny",
    version="1.2.3",
    license="Apache-2.0",
    taxonomies=("emotion6-7", "sentiment-2"),
    provenance={
        "summary": "A model for tests.",
        "training_data": ["nothing at all"],
        "metrics": {"float": {"acc": 0.5, "kl": [0.25, 0.2, 0.31]}},
    },
)


@pytest.fixture(scope="session")
def processor() -> Any:
    return build_processor()


@pytest.fixture(scope="session")
def model(processor: Any) -> Any:
    return build_model(processor)


@dataclass(frozen=True)
class Export:
    """One bundle, and what writing it did besides."""

    folder: Path
    printed: str
    training: bool
    attention: str


@pytest.fixture(scope="session")
def export(model: Any, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a model that is in training mode, as a trainer leaves it."""
    target = tmp_path_factory.mktemp("bundles") / "tiny"
    printed = io.StringIO()
    model.train()
    with contextlib.redirect_stdout(printed):
        write_bundle(target, model, processor, SPEC)
    state = Export(target, printed.getvalue(), model.training, model.config._attn_implementation)
    model.eval()
    return state


@pytest.fixture(scope="session")
def written(export: Export) -> Path:
    """A bundle that tests only read."""
    return export.folder


@pytest.fixture(scope="session")
def model_folder(model: Any, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-source"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
