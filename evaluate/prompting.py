"""What a bundle must know of a transformers model and processor: prompts, image block, preprocessing, sizes, ids."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from emocaliber.runtime.errors import ConfigError, ExportError
from emocaliber.runtime.manifest import ImageBlock, Prompts
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.prompts import PromptTemplate, RenderedPrompt

from .responders import conversation


def render_prompts(processor: Any, template: PromptTemplate) -> Prompts:
    """Returns the prompt of each mode after the processor's chat template, cut at the image.

    Raises:
        ExportError: If there is no chat template, or it does not put the instruction before one single image.
    """
    return Prompts(
        reason=_render(processor, template, template.reason), direct=_render(processor, template, template.direct)
    )


def _render(processor: Any, template: PromptTemplate, instruction: str) -> RenderedPrompt:
    turns = conversation(instruction, system=template.system, image_first=template.image_first)
    try:
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except ValueError as error:
        raise ExportError(f"the processor cannot render a prompt: {error}") from error
    parts = text.split(processor.image_token)
    if len(parts) != 2:
        raise ExportError(f"the chat template puts {len(parts) - 1} images into the prompt, expected one: {text!r}")
    try:
        return RenderedPrompt(before_image=parts[0], after_image=parts[1])
    except ConfigError as error:
        raise ExportError(f"the chat template does not put the instruction before the image: {error}") from error


def image_block_of(processor: Any) -> ImageBlock:
    """Returns what the processor puts in place of one image, found by asking it to.

    Raises:
        ExportError: If it cuts the image into several tiles, or the block is not text, image tokens, text.
    """
    image = Image.fromarray(np.full((8, 8, 3), 128, np.uint8))
    inputs = processor(text=[processor.image_token], images=[[image]], do_image_splitting=False, return_tensors="np")
    tokenizer = processor.tokenizer
    ids = [int(token) for token in inputs["input_ids"][0]]
    positions = [place for place, token in enumerate(ids) if token == processor.image_token_id]
    tiles = inputs["pixel_values"].shape[1]
    if tiles != 1 or not positions or positions != list(range(positions[0], positions[-1] + 1)):
        raise ExportError(f"the processor turns one image into {tiles} tiles and the tokens {ids}; expected one run")

    def text(part: list[int]) -> str:
        return cast("str", tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    block = ImageBlock(
        before=text(ids[: positions[0]]),
        token=processor.image_token,
        count=len(positions),
        after=text(ids[positions[-1] + 1 :]),
    )
    again = tokenizer(block.text(), add_special_tokens=False)["input_ids"]
    if again != ids:
        raise ExportError(f"the image block {block} does not tokenise back to {ids} but to {again}")
    return block


def preprocessing_of(image_processor: Any, tile_size: int) -> Preprocessing:
    """Returns the runtime's preprocessing with the settings of a transformers image processor.

    Args:
        image_processor: An Idefics3 image processor.
        tile_size: Edge of the vision encoder's input, which the processor has to produce.

    Raises:
        ExportError: If it does anything that the runtime does not reproduce.
    """
    expected = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    faults = [key for key, value in expected.items() if bool(getattr(image_processor, key, None)) is not value]
    if int(image_processor.resample) != int(Image.Resampling.LANCZOS):
        faults.append(f"resample={image_processor.resample}")
    if not math.isclose(image_processor.rescale_factor, 1 / 255):
        faults.append(f"rescale_factor={image_processor.rescale_factor}")
    edges = [_longest_edge(getattr(image_processor, key)) for key in ("size", "max_image_size")]
    if edges[1] != tile_size:
        faults.append(f"max_image_size={edges[1]} while the vision encoder takes {tile_size}")
    if faults or edges[0] is None:
        raise ExportError(f"this image processor is not supported: {', '.join(faults) or 'size has no longest_edge'}")
    return Preprocessing(
        kind="idefics3",
        longest_edge=edges[0],
        tile_size=tile_size,
        mean=tuple(float(value) for value in image_processor.image_mean),
        std=tuple(float(value) for value in image_processor.image_std),
    )


def _longest_edge(size: Any) -> int | None:
    edge = size.get("longest_edge") if isinstance(size, dict) else getattr(size, "longest_edge", None)
    return None if edge is None else int(edge)


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Returns the ids that end a response, from the tokenizer and the model's generation settings.

    Raises:
        ExportError: If there is none.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    found = tuple(dict.fromkeys(int(token) for token in (tokenizer.eos_token_id, *ids) if token is not None))
    if not found:
        raise ExportError("neither the tokenizer nor the generation settings name a token that ends a response")
    return found


def suppressed_tokens(processor: Any, block: ImageBlock, ends: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the ids that must never be generated: special tokens and those of the image block, but for the ends."""
    tokenizer = processor.tokenizer
    ids = {*tokenizer.all_special_ids, *tokenizer(block.text(), add_special_tokens=False)["input_ids"]}
    return tuple(sorted(int(token) for token in ids if token not in ends))


def tokenizer_json(tokenizer: Any) -> str:
    """Returns the tokenizer as ``tokenizer.json`` holds it, without padding or truncation.

    Raises:
        ExportError: If it is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{type(tokenizer).__name__} has no tokenizer.json form; only fast tokenizers are supported")
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain.to_str()


def decoder_shape(model: Any) -> dict[str, int]:
    """Returns the sizes a runtime needs to feed the decoder, as the bundle's ``decoder`` table names them."""
    text = model.config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {
        "num_layers": text.num_hidden_layers,
        "num_kv_heads": text.num_key_value_heads,
        "head_dim": head_dim,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "max_positions": text.max_position_embeddings,
    }
