"""Models and processors read from a folder that transformers or peft wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from emocaliber.evaluate.convolutional import register
from emocaliber.evaluate.transformers_loading import load_processor
from emocaliber.runtime.errors import ArtifactError, ConfigError, DependencyError, ExportError

from .families import QWEN_MODEL_TYPES, SUPPORTED_MODEL_TYPES
from .idefics3 import see_smaller

ADAPTER_CONFIG = "adapter_config.json"


def load_source(folder: Path, image_size: int | None = None) -> tuple[Any, Any]:
    """Returns the model, in float32 on the CPU, and the processor stored in a folder; nothing is downloaded.

    Low-rank adapters are merged into the model they were trained on, which must stand in the folder they name.

    Args:
        folder: Where they stand.
        image_size: Side in pixels of the smaller images that the model is to take, see `see_smaller`; None is its own.

    Raises:
        ConfigError: If the model cannot take images of this size.
        ExportError: If the folder holds no such model, or one of an architecture that is not supported.
        DependencyError: If it holds adapters and peft is not installed.
    """
    adapters = not (folder / "config.json").is_file() and (folder / ADAPTER_CONFIG).is_file()
    base = _base_of(folder) if adapters else folder
    kind = _read(base, "config.json").get("model_type")
    if kind not in SUPPORTED_MODEL_TYPES:
        raise ExportError(f"{base} holds a {kind!r} model; supported: {', '.join(SUPPORTED_MODEL_TYPES)}")
    register()
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(base), dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        if adapters:
            model = _merged(model, folder)
        with_tokenizer = folder if (folder / "tokenizer.json").is_file() else base
        processor = _processor(with_tokenizer, kind)
    except DependencyError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, ArtifactError) as error:
        raise ExportError(f"transformers cannot load {folder}: {error}") from error
    if image_size is not None:
        if kind in QWEN_MODEL_TYPES:
            raise ConfigError(
                f"a {kind!r} model takes images of any size; its processor's max_pixels makes them smaller"
            )
        see_smaller(model, processor, image_size)
    return model.eval(), processor


def _processor(folder: Path, kind: str) -> Any:
    if kind in QWEN_MODEL_TYPES:
        return load_processor(folder)
    processors: Any = AutoProcessor
    return processors.from_pretrained(str(folder), local_files_only=True, backend="pil")


def _base_of(folder: Path) -> Path:
    """Returns the folder of the model that adapters were trained on."""
    named = _read(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not Path(named).is_dir():
        raise ExportError(
            f"{folder} holds adapters of {named!r}, which is no folder on this machine; fetch that model, and write "
            f"its folder into {ADAPTER_CONFIG} as base_model_name_or_path"
        )
    return Path(named)


def _merged(model: Any, adapters: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise DependencyError(f"{adapters} holds adapters; to merge them: pip install 'emocaliber[train]'") from error
    return PeftModel.from_pretrained(model, str(adapters)).merge_and_unload()


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder} holds no transformers model: cannot read {name} ({error})") from error
    return content if isinstance(content, dict) else {}
