"""Fewer, larger operators for ONNX Runtime: the same numbers, sooner.

The exported graphs are plain ONNX, for any runtime. What only ONNX Runtime reads (int8, int4) is fused first:

- the decoder's attention becomes the ``Attention`` operator of opset 23, which groups query heads over key/value heads,
  appends the cache and, unlike ``GroupQueryAttention``, has no trouble with batches, with an empty cache or with
  positions of its own; where a label tree is read, `tree_attention` goes around it;
- rotary positions become ``RotaryEmbedding`` of opset 23, over the cosines and sines that the graph computes once;
- the vision tower's attention becomes ``MultiHeadAttention``, which never holds what a thousand patches are to one
  another as a whole: less time with AVX-512 and ONNX Runtime 1.32, and less memory. It took longer with AVX2 alone. A
  layer whose windows are a mask (Qwen2.5-VL) keeps what it has;
- an RMS normalisation becomes one operator, and an activation takes the bias before it along (``FastGelu``).

What ran slower is left alone: normalisations that take the addition before them along, four times as slow over as many
rows (`engine` keeps ONNX Runtime from fusing these too). Everything else is fused or refused by name; what was fused is
counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization

from emocaliber.runtime.errors import ExportError

from .tree_attention import DOMAIN, rows_of_node, strip_width, tree_functions

FUSED_OPSET = 23
"""The first with the operators ``Attention`` and ``RotaryEmbedding``."""
CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusions:
    """What became of one graph."""

    attentions: int
    """Attention layers that are one operator now."""
    rotary: int
    """Query or key projections turned by one operator."""
    normalizations: int
    """RMS normalisations that are one operator now."""
    activations: int
    """Activations that took the bias before them along."""


def fuse_decoder(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Fusions]:
    """Returns a decoder graph fused for ONNX Runtime, and what was fused; the given one stays as it is.

    Args:
        model: A decoder of `export_graphs`, its weights in it.

    Raises:
        ExportError: If an attention or an RMS normalisation has a form that is not known, and would stay as it was.
    """
    fused = _opened(model)
    layers = [_Attention.of(node) for node in fused.graph if node.op_type == "Softmax"]
    if not layers:
        raise ExportError("the decoder graph holds no attention; is it an exported graph?")
    for function in tree_functions(layers[0].groups()):
        fused.functions[function.identifier()] = function
    tree = layers[0].read_tree(fused.graph)
    rotary = sum(layer.fuse(fused.graph, tree) for layer in layers)
    RemoveUnusedNodesPass()(fused)
    CommonSubexpressionEliminationPass()(fused)
    normalizations = fuse_rms_normalization(fused)
    left = sum(node.op_type == "Reciprocal" for node in fused.graph)
    if left:
        raise ExportError(f"{left} RMS normalisations have a form that is not known; they would stay unfused")
    RemoveUnusedNodesPass()(fused)
    counts = Fusions(attentions=len(layers), rotary=rotary, normalizations=normalizations, activations=0)
    return ir.to_proto(fused), counts


def fuse_vision(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Fusions]:
    """Returns a vision graph with its attention and its activations fused for ONNX Runtime, and what was fused.

    Args:
        model: A vision encoder of `export_graphs`, its weights in it. Where it has neither an attention without a mask
            nor a tanh (a convolutional tower), that is nothing.

    Raises:
        ExportError: If an attention without a mask has a form that is not known, and would stay as it was.
    """
    fused = _opened(model)
    attentions = _fuse_unmasked(fused.graph)
    activations = _fuse_activations(fused.graph)
    RemoveUnusedNodesPass()(fused)
    return ir.to_proto(fused), Fusions(attentions=attentions, rotary=0, normalizations=0, activations=activations)


def _opened(model: onnx.ModelProto) -> ir.Model:
    fused = ir.from_proto(model)
    fused.opset_imports[""] = max(FUSED_OPSET, fused.opset_imports[""])
    fused.opset_imports[CONTRIB] = 1
    fused.opset_imports[DOMAIN] = 1
    ShapeInferencePass()(fused)
    return fused


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """One attention as eager code writes it: softmax(query · keyᵀ · scale + bias) · value."""

    query: ir.Value
    """[B, heads, S, D]."""
    key: ir.Value
    """[B, kv_heads, P + S, D]."""
    value: ir.Value
    """[B, kv_heads, P + S, D]."""
    mask: ir.Value
    """Boolean [B, 1, S, P + S]."""
    scale: float
    output: ir.Value
    """[B, heads, S, D]."""

    @classmethod
    def of(cls, softmax: ir.Node) -> _Attention:
        """Returns the attention around a softmax.

        Raises:
            ExportError: If what is around it is no attention of the known form.
        """
        product = _user(softmax.outputs[0], "MatMul")
        if product is None:
            raise ExportError(f"{softmax.name}: a softmax that weights no values; it is no attention of a known form")
        added = _producer(_given(softmax.inputs[0]), "Add")
        scaled = _producer(_given(added.inputs[0]), "Mul")
        matched = _producer(_given(scaled.inputs[0]), "MatMul")
        return cls(
            query=_given(matched.inputs[0]),
            key=_ungrouped(_untransposed(_given(matched.inputs[1]))),
            value=_ungrouped(_given(product.inputs[1])),
            mask=_boolean(_given(added.inputs[1])),
            scale=_scalar(_given(scaled.inputs[1])),
            output=product.outputs[0],
        )

    def read_tree(self, graph: ir.Graph) -> list[ir.Value]:
        """Returns what `tree_functions` want to know of the label tree, found before this attention."""
        rows = next((value for value in graph.inputs if value.name == "logit_rows"), None)
        past, _ = _cached(self.key)
        return self._builder(graph).add(
            "LabelTree",
            [self.mask, _given(rows), past],
            num_outputs=10,
            domain=DOMAIN,
            groups=rows_of_node(self.groups()),
        )

    def groups(self) -> int:
        """Returns how many query heads a key head has."""
        return _heads(self.query) // _heads(_cached(self.key)[1])

    def fuse(self, graph: ir.Graph, tree: list[ir.Value]) -> int:
        """Replaces the nodes of this attention; returns how many rotary embeddings were replaced with it.

        Args:
            graph: That holds them.
            tree: From `read_tree` of the first attention.
        """
        builder = self._builder(graph)
        (past_key, key), (past_value, value) = _cached(self.key), _cached(self.value)
        tail = _merged_heads(self.output)
        if tail is None:
            raise ExportError(f"{self.output.name}: heads are not merged next; the attention would stay unfused")
        (query, turned), (flat_key, key_turned) = builder.turned(self.query), builder.turned(key)
        made = builder.add(
            "TreeAttention",
            [query, flat_key, builder.flat(value), self.mask, past_key, past_value, *tree],
            num_outputs=3,
            domain=DOMAIN,
            q_num_heads=_heads(self.query),
            kv_num_heads=_heads(key),
            scale=self.scale,
            strip=[strip_width(_size(self.value, 3))],
        )
        for old, new in zip((tail, self.key, self.value), made, strict=True):
            _replace(old, new)
        return turned + key_turned

    def _builder(self, graph: ir.Graph) -> _Builder:
        end = self.output.producer()
        assert end is not None
        return _Builder(graph, end)


class _Builder:
    """Adds nodes in front of one node."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph = graph
        self._before = before

    def add(
        self, kind: str, inputs: list[ir.Value | None], *, num_outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Returns the outputs of a new node."""
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=num_outputs)
        self._graph.insert_before(self._before, node)
        for place, output in enumerate(node.outputs):
            output.name = f"{self._before.outputs[0].name}_{kind}_{len(self._graph)}_{place}"
        return list(node.outputs)

    def constant(self, values: list[int]) -> ir.Value:
        """Returns an int64 vector as an initializer, shared where it is there already."""
        name = f"fused_{'_'.join(str(value).replace('-', 'm') for value in values)}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.array(values, np.int64), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]

    def flat(self, states: ir.Value, perm: tuple[int, ...] = (0, 2, 1, 3)) -> ir.Value:
        """Returns [B, S, heads · D] of states [B, heads, S, D], or of others laid out by ``perm``, of a projection."""
        transpose = _producer(states, "Transpose")
        if tuple(_ints(transpose, "perm")) != perm:
            raise ExportError(f"{transpose.name}: heads are not laid out as [B, S, heads, D]; attention stays unfused")
        heads = _given(transpose.inputs[0])
        split = heads.producer()
        if split is not None and split.op_type == "Reshape":
            return _given(split.inputs[0])
        return self.add("Reshape", [heads, self.constant([0, 0, -1])])[0]

    def merged(self, states: ir.Value) -> ir.Value:
        """Returns [B, S, heads · D] of states [B, heads, S, D] that no projection has in that form."""
        (rows,) = self.add("Transpose", [states], perm=[0, 2, 1, 3])
        return self.add("Reshape", [rows, self.constant([0, 0, -1])])[0]

    def turned(self, states: ir.Value) -> tuple[ir.Value, int]:
        """Returns queries or keys [B, S, heads · D], turned by their positions where they were; and if they were."""
        total = states.producer()
        if total is None or total.op_type != "Add":
            return self.flat(states), 0
        straight, crossed = (_producer(_given(value), "Mul") for value in total.inputs)
        source, cosines = (_given(value) for value in straight.inputs)
        halves = [self._half(value) for value in (cosines, _given(crossed.inputs[1]))]
        self._check_half_turn(_given(crossed.inputs[0]), source)
        turned = self.add("RotaryEmbedding", [self.flat(source), *halves], num_heads=_heads(source))
        return turned[0], 1

    def _half(self, angles: ir.Value) -> ir.Value:
        """Returns [B, S, D / 2] of cosines or sines [B, 1, S, D], both of whose halves are the same."""
        whole = _given(_producer(angles, "Unsqueeze").inputs[0])
        width = _size(whole, -1)
        limits = [self.constant([0]), self.constant([width // 2]), self.constant([-1])]
        return self.add("Slice", [whole, *limits])[0]

    def _check_half_turn(self, crossed: ir.Value, source: ir.Value) -> None:
        """Checks that a value is the states with their halves swapped, the second negated."""
        swapped = _producer(crossed, "Concat")
        second, first = (_given(value) for value in swapped.inputs)
        pieces = [_producer(_given(_producer(second, "Neg").inputs[0]), "Slice"), _producer(first, "Slice")]
        if any(piece.inputs[0] is not source for piece in pieces):
            raise ExportError(f"{swapped.name}: positions do not turn halves of a head; the rotary stays unfused")


def _fuse_unmasked(graph: ir.Graph) -> int:
    """Makes each attention that sees everything one operator; returns how many."""
    count = 0
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        weighted = _given(softmax.inputs[0])
        last = weighted.producer()
        if last is not None and last.op_type == "Add":  # a mask
            continue
        scaled, product = _producer(weighted, "Mul"), _user(softmax.outputs[0], "MatMul")
        query, keys = (_given(value) for value in _producer(_given(scaled.inputs[0]), "MatMul").inputs)
        if product is None:
            raise ExportError(f"{softmax.name}: a softmax that weights no values; it is no attention of a known form")
        value, builder = _given(product.inputs[1]), _Builder(graph, product)
        single = _user(product.outputs[0], "Squeeze")  # Qwen's: one image, queries and keys turned by their positions
        tail = _merged_heads(product.outputs[0]) if single is None else _merged_heads(single.outputs[0], (1, 0, 2))
        if tail is None:
            raise ExportError(f"{softmax.name}: heads are not merged next; the attention would stay unfused")
        if single is None:
            states = [builder.flat(query), builder.flat(keys, (0, 2, 3, 1)), builder.flat(value)]
        else:
            states = [builder.merged(query), _untransposed(keys), value]
        (made,) = builder.add(
            "MultiHeadAttention",
            [*states],
            domain=CONTRIB,
            num_heads=_heads(query),
            scale=_scalar(_given(scaled.inputs[1])),
        )
        if single is not None:
            (made,) = builder.add("Squeeze", [made, builder.constant([0])])
        _replace(tail, made)
        count += 1
    return count


def _fuse_activations(graph: ir.Graph) -> int:
    """Joins the tanh form of GELU with the bias before it; returns how many."""
    found = [node for node in graph if node.op_type == "Gelu" and _text(node, "approximate") == "tanh"]
    count = 0
    for node in found:
        total = _given(node.inputs[0]).producer()
        if total is None or total.op_type != "Add" or not _given(total.inputs[1]).is_initializer():
            continue
        (made,) = _Builder(graph, node).add("FastGelu", list(total.inputs), domain=CONTRIB)
        _replace(node.outputs[0], made)
        count += 1
    return count


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Lets a new value stand for an old one, under its name."""
    new.shape, new.type = old.shape, old.type
    name, old.name = old.name, f"{old.name}_unfused"
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name = name


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ExportError("an operator of an attention lacks an input; it would stay unfused")
    return value


def _producer(value: ir.Value, kind: str) -> ir.Node:
    node = value.producer()
    if node is None or node.op_type != kind:
        found = "an input" if node is None else f"{node.op_type} {node.name}"
        raise ExportError(f"{value.name} comes from {found}, expected {kind}; the attention would stay unfused")
    return node


def _user(value: ir.Value, kind: str) -> ir.Node | None:
    """Returns the only user of a value, if it is of this kind."""
    users = value.consumers()
    return users[0] if len(users) == 1 and users[0].op_type == kind else None


def _untransposed(keys: ir.Value) -> ir.Value:
    """Returns keys [B, heads, T, D] of those with the last two axes swapped."""
    node = _producer(keys, "Transpose")
    if _ints(node, "perm") != [0, 1, 3, 2]:
        raise ExportError(f"{node.name}: keys are transposed otherwise; the attention would stay unfused")
    return _given(node.inputs[0])


def _ungrouped(states: ir.Value) -> ir.Value:
    """Returns keys or values before they were repeated for each query head."""
    reshape = states.producer()
    if reshape is None or reshape.op_type != "Reshape":
        return states
    expand = _given(reshape.inputs[0]).producer()
    if expand is None or expand.op_type != "Expand":
        return states
    return _given(_producer(_given(expand.inputs[0]), "Unsqueeze").inputs[0])


def _cached(states: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Returns what the cache held of keys or values, and the new ones."""
    concat = _producer(states, "Concat")
    if not states.is_graph_output():
        raise ExportError(f"{states.name}: keys or values that are not handed on; the attention would stay unfused")
    past, new = (_given(value) for value in concat.inputs)
    return past, new


def _merged_heads(states: ir.Value, perm: tuple[int, ...] = (0, 2, 1, 3)) -> ir.Value | None:
    """Returns [B, S, heads · D] where states [B, heads, S, D] are brought into that form next, else None."""
    transpose = _user(states, "Transpose")
    if transpose is None or tuple(_ints(transpose, "perm")) != perm:
        return None
    reshape = _user(transpose.outputs[0], "Reshape")
    return None if reshape is None else reshape.outputs[0]


def _boolean(bias: ir.Value) -> ir.Value:
    """Returns the mask that a bias of 0 and the lowest number was made of."""
    node = _producer(bias, "Where")
    kept = ir.convenience.get_const_tensor(_given(node.inputs[1]))
    if kept is None or kept.numpy().any():
        raise ExportError(f"{bias.name} is no mask of zeros and the lowest number; the attention would stay unfused")
    return _given(node.inputs[0])


def _heads(states: ir.Value) -> int:
    return _size(states, 1)


def _size(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise ExportError(f"{value.name}: axis {axis} has no fixed size; the attention would stay unfused")
    return size


def _scalar(value: ir.Value) -> float:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        raise ExportError(f"{value.name} is no constant number; the attention would stay unfused")
    return float(tensor.numpy().item())


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes.get_ints(name))


def _text(node: ir.Node, name: str) -> str:
    return node.attributes.get_string(name, "")
