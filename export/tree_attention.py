"""Attention over a prompt and the label tree behind it, in which nothing depends on what else hangs in the tree.

Rows of bytes are rounded anew in each layer. Where two sums of the same terms differ in the last bit of a float, a
level falls the other way somewhere, and thirty layers make hundredths of a nat of it. In integer products,
normalisations and activations each row is computed alone, to the bit. A softmax is not: its operator adds terms up in
lanes, by where in the row they stand, and where a label's tokens stand depends on the labels before it.

So the rows of a tree have an attention of their own. What belongs to the prompt and what belongs to the tree are summed
apart, each in a matrix product, which ONNX Runtime computes term by term from the first to the last on a CPU (seen in
1.32, with AVX2 and with AVX-512); the terms of other labels are exact zeros. The sum that a softmax divides by is such
a product too, with a matrix of ones. Of wide products it adds up parts, whose length depends on rows and threads; where
there are sixteen columns at most the parts have 1,024 terms, so values are multiplied in such strips. A product with a
single row has an order of its own, so there is never one (both seen with AVX-512). The prompt's rows, which see nothing
of the tree, keep the operator ``Attention``, and so does a pass without a tree.

Both are functions of the model, which ONNX Runtime inlines when it loads.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import parser

DOMAIN = "emocaliber"
"""Of the two functions."""

_IMPORTS = f'<domain: "{DOMAIN}", opset_import: ["" : 23, "com.microsoft" : 1]>'

_TREE = f"""{_IMPORTS}
LabelTree <groups> (mask, logit_rows, past_key) => (
    found, row_parts, column_parts, prompt_mask, bias, prompt_ones, tree_ones, by_head, by_query, by_node
)
{{
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    columns_axis = Constant <value_ints = [3]> ()
    batch = Shape <start = 0, end = 1> (mask)
    rows = Shape <start = 2, end = 3> (mask)
    columns = Shape <start = 3, end = 4> (mask)

    first = Slice (logit_rows, zero, one)
    prompt_rows = Add (first, one)
    nodes = Sub (rows, prompt_rows)
    prompt_columns = Sub (columns, nodes)
    row_parts = Concat <axis = 0> (prompt_rows, nodes)
    column_parts = Concat <axis = 0> (prompt_columns, nodes)
    any = Greater (nodes, zero)
    found = Squeeze (any)

    prompt_seen, tree_seen = Split <axis = 2> (mask, row_parts)
    prompt_mask = Slice (prompt_seen, zero, prompt_columns, columns_axis)
    shown = Constant <value_float = 0.0> ()
    hidden = Constant <value_float = -3.0e38> ()
    biases = Where (tree_seen, shown, hidden)
    apart = Unsqueeze (biases, columns_axis)
    group = Constant <value_int: int = @groups> ()
    group_size = Reshape (group, one)
    repeats = Concat <axis = 0> (one, one, one, group_size, one)
    repeated = Expand (apart, repeats)
    queries = Mul (nodes, group_size)
    bias_shape = Concat <axis = 0> (batch, one, queries, columns)
    bias = Reshape <allowzero = 1> (repeated, bias_shape)

    wide = Constant <value_ints = [16]> ()
    ones_shape = Concat <axis = 0> (columns, wide)
    ones = ConstantOfShape <value: tensor = float[1] {{1.0}}> (ones_shape)
    prompt_ones, tree_ones = Split <axis = 0> (ones, column_parts)

    same = Constant <value_ints = [0, 0]> ()
    rest = Constant <value_ints = [-1]> ()
    heads = Shape <start = 1, end = 2> (past_key)
    width = Shape <start = 3, end = 4> (past_key)
    by_head = Concat <axis = 0> (same, heads, rest)
    by_query = Concat <axis = 0> (same, rest, width)
    by_node = Concat <axis = 0> (same, nodes, rest)
}}
"""

_ATTENTION = """
TreeAttention <q_num_heads, kv_num_heads, scale, strip> (
    query, key, value, mask, past_key, past_value,
    found, row_parts, column_parts, prompt_mask, bias, prompt_ones, tree_ones, by_head, by_query, by_node
) => (output, present_key, present_value)
{
    output, present_key, present_value = If (found) <
        then_branch = with_tree () => (whole, all_keys, all_values) {
            prompt_query, tree_query = Split <axis = 1> (query, row_parts)
            prompt_key, tree_key = Split <axis = 1> (key, row_parts)
            prompt_value, tree_value = Split <axis = 1> (value, row_parts)
            prompt_output, prompt_keys, prompt_values = Attention <
                q_num_heads: int = @q_num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale
            > (prompt_query, prompt_key, prompt_value, prompt_mask, past_key, past_value)

            query_heads = Reshape (tree_query, by_head)
            query_groups = Transpose <perm = [0, 2, 1, 3]> (query_heads)
            {pair}
            queries = Reshape (paired, by_query)
            key_heads = Reshape (tree_key, by_head)
            tree_keys = Transpose <perm = [0, 2, 1, 3]> (key_heads)
            value_heads = Reshape (tree_value, by_head)
            tree_values = Transpose <perm = [0, 2, 1, 3]> (value_heads)
            all_keys = Concat <axis = 2> (prompt_keys, tree_keys)
            all_values = Concat <axis = 2> (prompt_values, tree_values)

            last = Constant <value_ints = [-1]> ()
            matches = com.microsoft.FusedMatMul <transB = 1, alpha: float = @scale> (queries, all_keys)
            scores = Add (matches, bias)
            peaks = ReduceMax <keepdims = 1> (scores, last)
            below = Sub (scores, peaks)
            weights = Exp (below)
            strip_axis = Constant <value_ints = [2]> ()
            every_strip = Unsqueeze (weights, strip_axis)
            prompt_weights, tree_weights = Split <axis = 4> (every_strip, column_parts)
            kept = Constant <value_ints = [0, 0, 0, -1]> ()
            strip_width = Constant <value_ints: ints = @strip> ()
            by_strip = Concat <axis = 0> (kept, strip_width)
            value_strips = Reshape (all_values, by_strip)
            strips = Transpose <perm = [0, 1, 3, 2, 4]> (value_strips)
            prompt_strips, tree_strips = Split <axis = 3> (strips, column_parts)
            prompt_sums = MatMul (prompt_weights, prompt_strips)
            tree_sums = MatMul (tree_weights, tree_strips)
            sums = Add (prompt_sums, tree_sums)
            prompt_totals = MatMul (prompt_weights, prompt_ones)
            tree_totals = MatMul (tree_weights, tree_ones)
            totals = Add (prompt_totals, tree_totals)
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [1]> ()
            total = Slice (totals, zero, one, last)
            means = Div (sums, total)
            mean_rows = Transpose <perm = [0, 1, 3, 2, 4]> (means)
            mean_pairs = Reshape (mean_rows, by_node)
            {part}
            mean_nodes = Transpose <perm = [0, 2, 1, 3]> (mean_groups)
            flat = Constant <value_ints = [0, 0, -1]> ()
            tree_output = Reshape (mean_nodes, flat)
            whole = Concat <axis = 1> (prompt_output, tree_output)
        },
        else_branch = without_tree () => (plain, plain_keys, plain_values) {
            plain, plain_keys, plain_values = Attention <
                q_num_heads: int = @q_num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale
            > (query, key, value, mask, past_key, past_value)
        }
    >
}
"""


_ALONE = {
    "pair": "paired = Concat <axis = 3> (query_groups, query_groups)",
    "part": "mean_groups, twins = Split <axis = 3, num_outputs = 2> (mean_pairs)",
}
"""Where a key head has one query head, each row has a twin: see `rows_of_node`."""
_GROUPED = {"pair": "paired = Identity (query_groups)", "part": "mean_groups = Identity (mean_pairs)"}


def tree_functions(groups: int) -> list[ir.Function]:
    """Returns the two functions of a fused decoder with so many query heads a key head.

    ``LabelTree`` (mask bool [B, 1, S, P + S], logit_rows [K], past_key [B, kv_heads, P, D]; groups, the rows a node has
    for each key head: `rows_of_node`) takes what stands behind the first of the wanted rows for the tree: n nodes, of
    which there may be none. Returns what the other function needs of it, once for all layers.

    ``TreeAttention`` (query [B, S, heads * D], key and value [B, S, kv_heads * D], mask, past_key and past_value
    [B, kv_heads, P, D], and the outputs of ``LabelTree``) has the attributes and the outputs of ``Attention``, and
    ``strip`` ([w]; w divides D).
    """
    attention = _ATTENTION
    for name, line in (_ALONE if groups == 1 else _GROUPED).items():
        attention = attention.replace(f"{{{name}}}", line)
    protos: list[onnx.FunctionProto] = [parser.parse_function(text) for text in (_TREE, _IMPORTS + attention)]
    for proto in protos:
        onnx.checker.check_function(proto)
    return [ir.serde.deserialize_function(proto) for proto in protos]


def rows_of_node(groups: int) -> int:
    """Returns how many rows a node has for each key head: its query heads, and never one alone."""
    return max(2, groups)


def strip_width(head_dim: int) -> int:
    """Returns how many columns of the values to multiply at once: the most that divide a head's width, up to 16."""
    return next(width for width in range(16, 0, -1) if head_dim % width == 0)
