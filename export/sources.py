"""Models and processors read from a folder that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from emocaliber.runtime.errors import ExportError

from .graphs import SUPPORTED_MODEL_TYPES


def load_source(folder: Path) -> tuple[Any, Any]:
    """Returns the model, in float32 on the CPU, and the processor stored in a folder; nothing is downloaded.

    Raises:
        ExportError: If the folder holds no such model, or one of an architecture that is not supported.
    """
    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ExportError(f"{folder} holds no transformers model: cannot read config.json ({error})") from error
    if kind not in SUPPORTED_MODEL_TYPES:
        raise ExportError(f"{folder} holds a {kind!r} model; supported: {', '.join(SUPPORTED_MODEL_TYPES)}")
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True
        )
        processors: Any = AutoProcessor
        processor = processors.from_pretrained(str(folder), local_files_only=True, backend="pil")
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ExportError(f"transformers cannot load {folder}: {error}") from error
    return model.eval(), processor
