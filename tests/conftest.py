"""Fixtures that several layers share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """Returns the committed bundle of a tiny Idefics3 with random weights; never written to."""
    return Path(__file__).parent / "data" / "tiny_bundle"
