"""Keeps the libraries' own bars and notices out of the way of ours; called by commands, never on import."""

from __future__ import annotations

import warnings

import datasets
import transformers


def quiet_libraries() -> None:
    """Silences progress bars and advice of transformers and datasets; errors still come through."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|torch|datasets)\..*")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|trl|torch|datasets)\..*")
