"""Fixtures that several layers share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """Returns the committed bundle of a tiny Idefics3 with random weights; never written to."""
    return Path(__file__).parent / "data" / "tiny_bundle"


@pytest.fixture(scope="session")
def real_sets() -> Path:
    """Returns the folder of real image sets: EMOCALIBER_DATA, or shared/data beside the checkout; skips without one."""
    folder = Path(os.environ.get("EMOCALIBER_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("EMOCALIBER_DATA names no folder of real sets")
    return folder


@pytest.fixture
def loud_again() -> Iterator[None]:
    """Gives the libraries back the voice that commands take from them."""
    import datasets
    import transformers

    verbosity = transformers.logging.get_verbosity()
    with warnings.catch_warnings():
        yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()
