"""What a label's token attends to is summed in one order, whatever hangs in the tree, with any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from emocaliber.export.fusion import CONTRIB, FUSED_OPSET
from emocaliber.export.tree_attention import DOMAIN, rows_of_node, strip_width, tree_functions
from emocaliber.runtime.onnx_runtime import onnxruntime

KEY_HEADS = 3
SCALE = 0.2
TREE = [f"tree_{place}" for place in range(10)]


def session(groups: int, width: int, threads: int) -> Any:
    """One attention of a decoder, behind what it needs to know of the tree."""
    nodes = [
        helper.make_node(
            "LabelTree", ["mask", "rows", "past_key"], TREE, domain=DOMAIN, groups=rows_of_node(groups)
        ),
        helper.make_node(
            "TreeAttention",
            ["query", "key", "value", "mask", "past_key", "past_value", *TREE], ["y", "keys", "values"],
            domain=DOMAIN, q_num_heads=KEY_HEADS * groups, kv_num_heads=KEY_HEADS, scale=SCALE,
            strip=[strip_width(width)],
        ),
    ]  # fmt: skip
    kinds = {"mask": TensorProto.BOOL, "rows": TensorProto.INT64}
    ports = {"mask": 4, "rows": 1, "query": 3, "key": 3, "value": 3, "past_key": 4, "past_value": 4}
    inputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), [None] * axes)
        for name, axes in ports.items()
    ]
    graph = helper.make_graph(nodes, "attention", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    functions = [ir.serde.serialize_function(function) for function in tree_functions(groups)]
    domains = {"": FUSED_OPSET, CONTRIB: 1, DOMAIN: 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attended(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, seen: np.ndarray, groups: int) -> np.ndarray:
    """The formula, in float64: (S, heads · D) of (S, heads, D), (T, key heads, D) twice, and who sees whom (S, T)."""
    keys, values = (np.repeat(states, groups, axis=1) for states in (keys, values))
    scores = np.einsum("shd,thd->hst", queries, keys) * SCALE
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True)) * seen
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hst,thd->shd", weights, values).reshape(len(queries), -1)


@pytest.mark.parametrize(("groups", "width"), [(1, 64), (3, 64), (2, 128), (1, 72)])
@pytest.mark.parametrize("past", [20, 300])
def test_a_node_is_what_it_is_alone(groups: int, width: int, past: int) -> None:
    """Among 1, 3, 40 and 200 nodes, of which each sees the prompt and itself; with one thread and with four."""
    rng = np.random.default_rng(width)
    most, heads = 200, KEY_HEADS * groups
    sizes = {"query": heads, "key": KEY_HEADS, "value": KEY_HEADS}
    new = {name: rng.normal(size=(1 + most, size, width)) for name, size in sizes.items()}
    old = {name: rng.normal(size=(KEY_HEADS, past, width)) for name in ("past_key", "past_value")}
    found = {}
    for threads in (1, 4):
        runner = session(groups, width, threads)
        for count in (1, 3, 40, most):
            rows = 1 + count
            seen = np.concatenate([np.ones((rows, past + 1)), np.eye(rows)[:, 1:]], axis=1)
            feed = {name: states[None, :rows].reshape(1, rows, -1) for name, states in new.items()}
            feed |= {name: states[None] for name, states in old.items()}
            feed = {name: states.astype(np.float32) for name, states in feed.items()}
            feed |= {"mask": seen[None, None].astype(np.bool_), "rows": np.arange(rows)}
            found[threads, count] = runner.run(["y"], feed)[0][0]
    every = [
        np.concatenate([old[f"past_{name}"].transpose(1, 0, 2), new[name]]).astype(np.float32)
        for name in ("key", "value")
    ]
    expected = attended(new["query"].astype(np.float32), *every, seen, groups)
    np.testing.assert_allclose(found[1, most], expected, atol=2e-5)
    for (threads, count), output in found.items():
        np.testing.assert_array_equal(output[1:], found[1, most][1 : 1 + count], f"{threads} threads, {count} nodes")
