"""Models and processors from a folder that transformers understands, or from the hub where a caller names it.

Processors read images with Pillow: none of them needs torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from emocaliber.runtime.errors import ArtifactError, ConfigError

from .convolutional import register

HUB = "hf://"
"""Starts the name of a hub repository; anything else is a folder, and nothing is downloaded."""

_HINT = f"run the stage that writes it first, or name a hub model as {HUB}owner/name"

QWEN_FAMILIES = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
"""Architecture to the name of its processor; they treat single images alike."""


class QwenImageProcessor(Qwen2_5_VLProcessor):
    """The processor of the Qwen-VL families without its video part, which cannot be made without torchvision.

    Saved, it names the class it stands for, so that other programs load the folder as usual.
    """

    stands_for = QWEN_FAMILIES["qwen2_5_vl"]

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any
    ) -> None:
        """Takes what transformers' own class takes, but no video processor."""
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.video_processor = None
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as they are saved."""
        return {**super().to_dict(), "processor_class": self.stands_for}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Saves the processor, and the image processor's settings once more in the file where older programs look."""
        written = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        return written


def load_model(path: str | Path, dtype: torch.dtype = torch.float32, *, attention: str = "sdpa") -> Any:
    """Returns the image-text-to-text model at ``path``, in eval mode.

    Args:
        path: A folder, or ``hf://owner/name``, which is downloaded where it is not cached.
        dtype: Type its weights are held in.
        attention: Implementation of the attention, as transformers names it.

    Raises:
        ArtifactError: If there is no such model.
    """
    local = is_folder(path)
    if local and not Path(path, "config.json").is_file():
        raise ArtifactError(f"{path} holds no model (config.json is missing); {_HINT}")
    register()
    try:
        return AutoModelForImageTextToText.from_pretrained(
            transformers_name(path), dtype=dtype, local_files_only=local, attn_implementation=attention
        ).eval()
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"cannot load a model from {path}: {error}") from error


def load_processor(path: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """Returns the processor at ``path``, reading images with Pillow.

    Args:
        path: A folder, or ``hf://owner/name``.
        min_pixels: Fewest pixels an image is scaled to, for families that take images of any size (Qwen).
        max_pixels: Most pixels.

    Raises:
        ArtifactError: If there is no processor.
        ConfigError: If the pixels are limited for a family that has one image size.
    """
    local = is_folder(path)
    if local and not Path(path, "tokenizer.json").is_file():
        raise ArtifactError(f"{path} holds no processor (tokenizer.json is missing); {_HINT}")
    options: dict[str, Any] = {"local_files_only": local, "backend": "pil"}
    family = model_type(path)
    qwen = family in QWEN_FAMILIES
    register()
    try:
        processor = (QwenImageProcessor if qwen else AutoProcessor).from_pretrained(transformers_name(path), **options)
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"cannot load a processor from {path}: {error}") from error
    if qwen:
        processor.stands_for = QWEN_FAMILIES[family]
    if min_pixels is not None or max_pixels is not None:
        if not qwen:
            raise ConfigError(f"min_pixels and max_pixels do not apply to {path}, whose images all have one size")
        size = processor.image_processor.size
        size["shortest_edge"] = min_pixels if min_pixels is not None else size["shortest_edge"]
        size["longest_edge"] = max_pixels if max_pixels is not None else size["longest_edge"]
    return processor


def model_type(path: str | Path) -> str:
    """Returns the architecture the model at ``path`` names in its ``config.json``.

    Raises:
        ArtifactError: If there is no such file, or it names none.
    """
    try:
        if not is_folder(path):
            return str(AutoConfig.from_pretrained(transformers_name(path)).model_type)
        return str(json.loads(Path(path, "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds no model (config.json: {error!r}); {_HINT}") from error


def is_folder(path: str | Path) -> bool:
    """Returns whether ``path`` is a folder's, not the name of a hub repository."""
    return not str(path).startswith(HUB)


def transformers_name(path: str | Path) -> str:
    """Returns ``path`` as transformers understands it: a folder, or ``owner/name``."""
    return str(path).removeprefix(HUB)
