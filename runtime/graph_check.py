"""Whether the graphs of a bundle are what its manifest says, told from their headers before anything runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from .manifest import Manifest
from .onnx_header import OnnxHeader, read_header
from .patches import PatchPreprocessing

Shape = tuple[int | None, ...]
"""Sizes; None is any."""


def graph_headers(folder: Path, names: Iterable[str]) -> dict[str, OnnxHeader]:
    """Returns the header of each graph file; the files it names beside it are named as in the manifest.

    Raises:
        ArtifactError: If a graph cannot be read or is no ONNX file.
    """
    headers = {}
    for name in sorted(names):
        place = PurePosixPath(name)
        header = read_header(folder.joinpath(*place.parts))
        headers[name] = replace(header, external=frozenset(str(place.parent / beside) for beside in header.external))
    return headers


def graph_faults(manifest: Manifest, precisions: Iterable[str], headers: Mapping[str, OnnxHeader]) -> Iterator[str]:
    """Yields what is wrong with the graphs: other ports or sizes than the manifest says, or weights outside of it.

    Weights in files of their own are allowed where the manifest lists these, so that they are checked by hash.

    Args:
        manifest: Of the bundle.
        precisions: Those of its precisions whose graphs are looked at.
        headers: Of their graphs, from `graph_headers`.
    """
    for graphs in (manifest.precisions[each] for each in precisions):
        for name, (inputs, outputs) in zip(graphs.names(), _expected(manifest), strict=True):
            header = headers[name]
            for beside in sorted(header.external - set(manifest.files)):
                yield f"{name} keeps weights in {beside[:80]!r}, which files does not list"
            if len(header.inputs) != len(inputs) + (name == graphs.decoder) * 2 * manifest.decoder.num_layers:
                yield f"{name} has {len(header.inputs)} inputs, which does not fit {manifest.decoder.num_layers} layers"
                continue
            pasts = _past(manifest) if name == graphs.decoder else {}
            presents = {key.replace("past_key_values", "present"): shape for key, shape in pasts.items()}
            yield from _port_faults(f"{name}: input", {**inputs, **pasts}, header.inputs)
            yield from _port_faults(f"{name}: output", {**outputs, **presents}, header.outputs)


def _expected(manifest: Manifest) -> Iterator[tuple[dict[str, Shape], dict[str, Shape]]]:
    """Yields inputs and outputs of the three graphs, keys and values left out."""
    shape = manifest.decoder
    hidden, axes, deep = shape.hidden_size, shape.position_axes, shape.deepstack_layers
    yield _vision(manifest)
    yield {"input_ids": (None, None)}, {"inputs_embeds": (None, None, hidden)}
    inputs: dict[str, Shape] = {
        "inputs_embeds": (None, None, hidden),
        "attention_mask": (None, 1, None, None),
        "position_ids": (None, None) if axes == 1 else (axes, None, None),
        "logit_rows": (None,),
    }
    if deep:
        inputs["deepstack_embeds"] = (deep, None, None, hidden)
    yield inputs, {"logits": (None, None, shape.vocab_size)}


def _vision(manifest: Manifest) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Returns inputs and outputs of the vision encoder."""
    hidden, deep, images = manifest.decoder.hidden_size, manifest.decoder.deepstack_layers, manifest.preprocessing
    if not isinstance(images, PatchPreprocessing):
        pixels = (None, 3, images.tile_size, images.tile_size)
        return {"pixel_values": pixels}, {"image_features": (None, manifest.image_block.count, hidden)}
    inputs: dict[str, Shape] = {"pixel_values": (None, 3 * images.temporal_patch_size * images.patch_size**2)}
    inputs |= {name: (None, *array.shape[1:]) for name, array in images.grid(1, 1).items()}
    outputs: dict[str, Shape] = {"image_features": (None, hidden)}
    return inputs, outputs | ({"deepstack_features": (deep, None, hidden)} if deep else {})


def _past(manifest: Manifest) -> dict[str, Shape]:
    """Returns the inputs of keys and values. Called only for as many layers as the graph has inputs for."""
    shape = (None, manifest.decoder.num_kv_heads, None, manifest.decoder.head_dim)
    layers = range(manifest.decoder.num_layers)
    return {f"past_key_values.{layer}.{part}": shape for layer in layers for part in ("key", "value")}


def _port_faults(where: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> Iterator[str]:
    for port, shape in expected.items():
        if port not in found:
            yield f"{where} {port} is missing"
        elif not _fits(shape, found[port]):
            yield f"{where} {port} is {_text(found[port])}, the manifest says {_text(shape)}"


def _fits(expected: Shape, found: Shape) -> bool:
    """Returns whether no size contradicts another; a graph may leave a shape, or a size of it, open."""
    pairs = zip(expected, found, strict=False)
    return not found or (len(expected) == len(found) and all(None in pair or pair[0] == pair[1] for pair in pairs))


def _text(shape: Shape) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
