"""A bundle as a folder that transformers.js loads: its file names, its configuration files, its graph inputs.

What transformers.js 4.3 feeds an Idefics3 model (``src/models/modeling_utils.js`` and ``src/models/idefics3`` there):

- ``vision_encoder``: ``pixel_values`` float [batch_size, images, 3, T, T] and ``pixel_attention_mask`` bool
  [batch_size, images, T, T]; it reads ``image_features`` and takes their last axis as the width.
- ``embed_tokens``: ``input_ids`` int64 [batch_size, S] -> ``inputs_embeds``, as in a bundle.
- ``decoder_model_merged``: ``inputs_embeds``, ``attention_mask`` int64 [batch_size, P + S], ``position_ids`` int64
  [batch_size, S], ``num_logits_to_keep`` int64 scalar (0: all), ``past_key_values.*``, of which the dimension called
  ``batch_size`` gets that size and every other named one 0; it reads ``logits`` and ``present.*``.

A bundle's decoder takes a mask of its own for every token, which label trees need, and the rows that are wanted. A few
nodes in front of the same graph make those from what transformers.js has.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, parser

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.files import atomic_write, staged
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.manifest import MODEL_CARD_NAME, TOKENIZER_NAME, GraphFiles, ImageBlock, Manifest
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.tokenization import PromptTokenizer

from .graphs import DECODER, EMBED, VISION
from .quantized_nodes import make_unsigned

PROMPTS_NAME = "prompts.json"
"""``{mode: {label set: text}}``, with one image token where the image goes: what a processor is given."""

_DTYPES = {"": "fp32", "_fp16": "fp16", "_int8": "int8", "_uint8": "uint8", "_quantized": "q8", "_q4": "q4"}
"""What transformers.js calls the graphs whose names end so."""
_EXPANDED = ("<fake_token_around_image><global-img>", "<image>", "<fake_token_around_image>")
"""What its Idefics3 processor makes of an image token, for an image that is not split: before, token, after."""
_MOST_BYTES = 2_000_000_000
"""Weights of a graph file: a protocol buffer holds at most 2 GiB."""
_BATCH = "batch_size"

_TILES = """
tiles (float[batch_size, images, channels, height, width] pixel_values) => (float[tiles, c, h, w] js_tiles) {
  js_shape = Constant <value_ints = [-1, 3, SIZE, SIZE]> ()
  js_tiles = Reshape (pixel_values, js_shape)
}
"""
_CAUSAL = """
causal (
  float[batch_size, sequence, hidden] inputs_embeds, int64[batch_size, total] attention_mask, int64 num_logits_to_keep
) => (bool[batch_size, one, sequence, total] js_mask, int64[rows] js_rows) {
  js_zero = Constant <value_int = 0> ()
  js_one = Constant <value_int = 1> ()
  js_batch_axis = Constant <value_ints = [0]> ()
  js_column_axis = Constant <value_ints = [1]> ()
  js_middle_axes = Constant <value_ints = [1, 2]> ()
  js_new_1 = Shape <start = 1, end = 2> (inputs_embeds)
  js_total_1 = Shape <start = 1, end = 2> (attention_mask)
  js_new = Squeeze (js_new_1, js_batch_axis)
  js_total = Squeeze (js_total_1, js_batch_axis)
  js_past = Sub (js_total, js_new)
  js_places = Range (js_past, js_total, js_one)
  js_column = Unsqueeze (js_places, js_column_axis)
  js_keys = Range (js_zero, js_total, js_one)
  js_before = LessOrEqual (js_keys, js_column)
  js_kept = Cast <to = 9> (attention_mask)
  js_shown = Unsqueeze (js_kept, js_middle_axes)
  js_mask = And (js_shown, js_before)
  js_some = Greater (num_logits_to_keep, js_zero)
  js_last = Sub (js_new, num_logits_to_keep)
  js_wanted = Where (js_some, js_last, js_zero)
  js_first = Max (js_wanted, js_zero)
  js_rows = Range (js_first, js_new, js_one)
}
"""


def write_transformers_js(bundle: Bundle, target: Path) -> Path:
    """Returns ``target`` after writing the folder that transformers.js loads there, all precisions of the bundle in it.

    It holds no calibrators: what transformers.js runs is text generation. ``prompts.json`` has the texts to give it.

    Args:
        bundle: The opened bundle.
        target: Folder to make; nothing stands there if a step fails.

    Raises:
        ExportError: If the bundle is of a family, or has graphs, that transformers.js would run in another way.
    """
    manifest = bundle.manifest
    family, preprocessing = manifest.family, manifest.preprocessing
    if not isinstance(preprocessing, Preprocessing) or _surroundings(manifest.image_block) != _EXPANDED:
        raise ExportError(
            f"{manifest.name} is a {family} bundle with images between {_surroundings(manifest.image_block)}; "
            f"only Idefics3 bundles with {_EXPANDED} can be written for transformers.js"
        )
    tokenizer = PromptTokenizer(bundle.path(TOKENIZER_NAME))
    with staged(target) as folder:
        for graphs in manifest.precisions.values():
            for stem, name in _graphs(graphs):
                _write_graph(bundle.path(name), folder / "onnx" / name, stem, preprocessing.tile_size)
        shutil.copyfile(bundle.path(TOKENIZER_NAME), folder / TOKENIZER_NAME)
        shutil.copyfile(bundle.path(MODEL_CARD_NAME), folder / "README.md")
        for name, content in _configuration(manifest, preprocessing, tokenizer).items():
            atomic_write(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return target


def _surroundings(block: ImageBlock) -> tuple[str, str, str]:
    return block.before, block.token, block.after


def _graphs(files: GraphFiles) -> Iterator[tuple[str, str]]:
    """Yields the name transformers.js asks for, without what its precision adds, and the file's name."""
    for stem, name in zip((VISION, EMBED, DECODER), files.names(), strict=True):
        if _suffix(stem, name) not in _DTYPES:
            raise ExportError(f"transformers.js has no name for {name}; it knows {stem} + {', '.join(_DTYPES)} + .onnx")
        yield stem, name


def _suffix(stem: str, name: str) -> str:
    return name.removeprefix(stem).removesuffix(".onnx")


def _write_graph(source: Path, target: Path, stem: str, tile_size: int) -> None:
    """Writes one graph with the inputs that transformers.js gives it."""
    proto = onnx.load(source)
    make_unsigned(proto)  # its sessions cannot be told to
    if stem == VISION:
        seen = _value("pixel_attention_mask", TensorProto.BOOL, [_BATCH, "images", tile_size, tile_size])
        pixels = _value("pixel_values", TensorProto.FLOAT, [_BATCH, "images", 3, tile_size, tile_size])
        _prepend(proto, _TILES.replace("SIZE", str(tile_size)), {"pixel_values": "js_tiles"}, [pixels, seen])
    elif stem == DECODER:
        mask = _value("attention_mask", TensorProto.INT64, [_BATCH, "total"])
        kept = _value("num_logits_to_keep", TensorProto.INT64, [])
        _prepend(proto, _CAUSAL, {"attention_mask": "js_mask", "logit_rows": "js_rows"}, [mask, kept])
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim[: 0 if stem == VISION else 1]:
            size.dim_param = _BATCH
    target.parent.mkdir(exist_ok=True)
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if size > _MOST_BYTES:
        raise ExportError(
            f"{target.name} has {size:,} bytes of weights, and this format has one file of at most 2 GB a graph; "
            "choose a precision of fewer bits"
        )
    onnx.save(proto, target)


def _prepend(
    proto: onnx.ModelProto, text: str, replaced: dict[str, str], inputs: Sequence[onnx.ValueInfoProto]
) -> None:
    """Puts nodes in front of a graph: what read the replaced inputs reads their results; others are inputs instead."""
    graph = proto.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = replaced.get(name, name)
    nodes = [*parser.parse_graph(text).node, *graph.node]
    kept = [value for value in graph.input if value.name not in replaced]
    for field, values in ((graph.node, nodes), (graph.input, [*kept, *inputs])):
        copies = [copy.deepcopy(value) for value in values]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]  # inferred sizes carry the old names


def _value(name: str, kind: int, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _configuration(manifest: Manifest, processing: Preprocessing, tokenizer: PromptTokenizer) -> dict[str, Any]:
    """Returns the configuration files by name."""
    shape, block = manifest.decoder, manifest.image_block
    default = manifest.precisions[manifest.default_precision]
    ends = list(manifest.end_token_ids)
    text = {
        "model_type": "llama",
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
    }
    model = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": tokenizer.token_id(block.token),
        "eos_token_id": ends,
        "text_config": text,
        "transformers.js_config": {"dtype": {stem: _DTYPES[_suffix(stem, name)] for stem, name in _graphs(default)}},
    }
    images = {
        "processor_class": "Idefics3Processor",
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": False,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": processing.longest_edge},
        "max_image_size": {"longest_edge": processing.tile_size},
        "resample": 1,  # Lanczos
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processing.mean),
        "image_std": list(processing.std),
        "do_pad": False,
    }
    generation = {
        "do_sample": False,
        "eos_token_id": ends,
        "suppress_tokens": list(manifest.suppressed_token_ids),
        "max_new_tokens": manifest.max_new_tokens,
    }
    prompts = {
        mode: {
            name: manifest.prompts.of(mode).prefix(labels) + block.token + manifest.prompts.of(mode).after_image
            for name, labels in manifest.taxonomies.items()
        }
        for mode in MODES
    }
    return {
        "config.json": model,
        "generation_config.json": generation,
        "preprocessor_config.json": images,
        "processor_config.json": {"processor_class": "Idefics3Processor", "image_seq_len": block.count},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizer", "model_max_length": shape.max_positions},
        PROMPTS_NAME: prompts,
    }
