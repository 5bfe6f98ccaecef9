"""What a machine can do at most, measured, and the least time that a stage can take there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.onnx_runtime import onnxruntime

_SIDE = 2048
_READ_BYTES = 1 << 29


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Best of several tries."""

    fp32_gflops: float
    int8_gops: float
    read_gbs: float
    """Bytes read from memory, 1e9 a second."""


def measured_roofline(threads: int, tries: int = 5) -> Roofline:
    """Returns the peaks of this machine with so many threads: large products, and a sum over half a gigabyte."""
    torch.set_num_threads(threads)
    matrix, out = torch.rand(_SIDE, _SIDE), torch.empty(_SIDE, _SIDE)
    session, feed = _bytes_product(threads)
    numbers = torch.ones(_READ_BYTES // 4)
    operations = 2 * _SIDE**3 / 1e9
    return Roofline(
        fp32_gflops=operations / _best(lambda: torch.mm(matrix, matrix, out=out), tries),
        int8_gops=operations / _best(lambda: session.run(None, feed), tries),
        read_gbs=_READ_BYTES / 1e9 / _best(numbers.sum, tries),
    )


def floors_ms(shape: dict[str, Any], tokens: int, name: str, bundle: Path, roofline: Roofline) -> dict[str, float]:
    """Returns the least ms of vision, prefill and decode: 2 operations a weight and row, or every weight read once.

    Args:
        shape: Sizes of the model.
        tokens: Of the prompt.
        name: Competitor: a precision of the bundle, or torch in a type.
        bundle: Where the decoder's bytes are read off.
        roofline: Of the machine.
    """
    vision, text = shape["vision"], shape["text"]
    patches = (shape["image_size"] // shape["patch_size"]) ** 2
    tower = patches * vision["layers"] * (_weights(vision) + 2 * patches * vision["hidden_size"])
    layers = text["layers"] * _weights(text)
    head = shape["vocabulary"] * text["hidden_size"]
    decoder = tokens * (layers + text["layers"] * tokens * text["hidden_size"]) + head
    kinds = name.split("-")
    peaks = [roofline.int8_gops if kind.startswith("int") else roofline.fp32_gflops for kind in (kinds[0], kinds[-1])]
    stored = {"torch fp32": 4.0, "torch bf16": 2.0}
    read_bytes = stored[name] * (layers + head) if name in stored else _decoder_bytes(bundle, name)
    return {
        "vision": 2 * tower / peaks[0] / 1e6,
        "prefill": 2 * decoder / peaks[1] / 1e6,
        "decode": read_bytes / roofline.read_gbs / 1e6,
    }


def _weights(tower: dict[str, Any]) -> int:
    """Returns the weights of a layer: attention, and two matrices of the feed-forward part, or three where gated."""
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    grouped = tower.get("kv_heads")
    shared = width if grouped is None else width * grouped // tower["heads"]
    return 2 * width * width + 2 * width * shared + (2 if grouped is None else 3) * width * inner


def _decoder_bytes(bundle: Path, precision: str) -> int:
    """Returns the bytes of weights that one token reads: the decoder's file, and the vocabulary where it is shared."""
    with Bundle.open(bundle, verify=False) as opened:
        files, sizes = opened.manifest.precisions[precision], opened.manifest.files
    names = (files.decoder, f"{files.decoder}_data", f"{files.embed_tokens}_data")
    return sum(sizes[name].size_bytes for name in names if name in sizes)


def _bytes_product(threads: int) -> tuple[Any, dict[str, Any]]:
    """Returns a session that multiplies two matrices of bytes, and its inputs."""
    rows = helper.make_tensor_value_info("a", TensorProto.UINT8, [_SIDE, _SIDE])
    weight = helper.make_tensor("b", TensorProto.INT8, [_SIDE, _SIDE], bytes(_SIDE * _SIDE), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "peak",
        [rows],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [_SIDE, _SIDE])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return session, {"a": np.ones((_SIDE, _SIDE), np.uint8)}


def _best(work: Callable[[], Any], tries: int) -> float:
    """Returns the least seconds of several tries, after one that does not count."""
    work()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
