"""Graphs on disk: weights inside the file, or beside it where they are large.

``NAME.onnx_data`` beside ``NAME.onnx`` is where transformers.js looks for it too.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data

LARGE_BYTES = 16 << 20
"""Weights from this size on stand beside their graph. ONNX Runtime maps them from there, and lets go of each when it
has packed it; out of a graph's own file it reads all of them first. Another graph can share them. And a graph's own
file, a protocol buffer, holds at most 2 GiB."""

_SMALLEST_BYTES = 1024


def data_path(graph: Path) -> Path:
    """Returns where the weights of a graph stand that are not in its file."""
    return graph.with_name(f"{graph.name}_data")


def save_graph(model: onnx.ModelProto, path: Path, *, shared: Path | None = None) -> None:
    """Writes a graph, its weights beside it from `LARGE_BYTES` on; they are then taken out of ``model``.

    Args:
        model: The graph, all weights in it.
        path: The graph's file.
        shared: A graph in the same folder, written before; of weights that stand beside it too, none is written again.
    """
    if shared is not None:
        _point_to(model, shared)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LARGE_BYTES:
        onnx.save_model(model, path)
        return
    data_path(path).unlink(missing_ok=True)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data_path(path).name,
        size_threshold=_SMALLEST_BYTES,
    )
    # onnx lets nobody but the writer read them; a bundle is for others too.
    data_path(path).chmod(0o644)


def graph_bytes(path: Path) -> int:
    """Returns the size of a graph with the weights beside it."""
    beside = data_path(path)
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def remove_graph(path: Path) -> None:
    """Removes a graph and the weights beside it."""
    path.unlink()
    data_path(path).unlink(missing_ok=True)


def _point_to(model: onnx.ModelProto, graph: Path) -> None:
    """Lets weights of ``model`` that stand beside another graph, byte for byte, be read from there."""
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if not uses_external_data(tensor):
            continue
        place = ExternalDataInfo(tensor)
        with (graph.parent / place.location).open("rb") as stream:
            stream.seek(place.offset or 0)
            content = stream.read(place.length or -1)
        for own in model.graph.initializer:
            if own.raw_data == content and not uses_external_data(own):
                set_external_data(own, location=place.location, offset=place.offset, length=place.length)
                own.ClearField("raw_data")
