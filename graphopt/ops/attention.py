"""`graphopt::Attention`: scaled dot-product attention of several heads, over rows of columns.

Inputs, float32: `q` [b, t, m], `k` and `v` [b, s, m']; optional `bias`, broadcast to
[b, heads, t, s]. Each of q, k and v holds the columns of its heads side by side, `heads * dim` from
`columns[0]`, `columns[1]` or `columns[2]` on, so that one product may hold all three. Output:
float32[b, t, heads * dim], `softmax(scale * q k^T + bias) v` of each head side by side. If
`guarded`, shares that are NaN, as where all scores are -inf, count as 0. (Vaswani et al.,
"Attention Is All You Need", 2017.)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.parser

from graphopt.errors import InvalidModelError
from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import TensorType, Type

DOMAIN = "graphopt"
OP_TYPE = "Attention"


@dataclass(frozen=True)
class Attention:
    """The attributes of one node.

    Attributes:
        heads: how many heads there are.
        dim: columns of each.
        scale: factor of the products of queries and keys.
        columns: the first column of the heads in q, k and v.
        guarded: shares that are NaN count as 0.
    """

    heads: int
    dim: int
    scale: float
    columns: tuple[int, int, int] = (0, 0, 0)
    guarded: bool = False

    @staticmethod
    def of(node: Node) -> Attention:
        """The attributes of `node`."""
        q, k, v = node.attr("columns") or (0, 0, 0)
        scale, guarded = node.attr("scale", 1.0), bool(node.attr("guarded", 0))
        return Attention(node.attr("heads"), node.attr("dim"), scale, (q, k, v), guarded)

    @property
    def attrs(self) -> dict[str, Attr]:
        """What a node carries."""
        return {
            "heads": self.heads,
            "dim": self.dim,
            "scale": self.scale,
            "columns": list(self.columns),
            **({"guarded": 1} if self.guarded else {}),
        }

    @property
    def width(self) -> int:
        """Columns of all heads."""
        return self.heads * self.dim


@type_rule(OP_TYPE, domain=DOMAIN)
def _attention(node: Node) -> list[Type | None]:
    def fail(reason: str) -> InvalidModelError:
        where = ", ".join(repr(name) for name in node.where[:3])
        return InvalidModelError(f"{node.op} (node {where}): {reason}")

    types = [None if v is None else v.type for v in node.inputs]
    ranks = [t.rank if isinstance(t, TensorType) and t.dtype == "float32" else None for t in types]
    if ranks[:3] != [3, 3, 3] or None in ranks:
        found = ", ".join(str(t) for t in types)
        raise fail(f"its inputs must be float32 q [b, t, m], k and v [b, s, m], not {found}")
    attention = Attention.of(node)
    for type_, first in zip(types, attention.columns):
        assert isinstance(type_, TensorType)
        width = type_.dims[2]
        if not isinstance(width, int) or not 0 <= first <= width - attention.width:
            raise fail(f"{type_} has no {attention.width} columns from {first} on")
    query = types[0]
    assert isinstance(query, TensorType)
    return [tensor_type("float32", [*query.dims[:2], attention.width])]


def _is_part(node: Node, index: int) -> bool:
    """True if only some columns of the input are read."""
    value = node.inputs[index]
    assert value is not None
    return value.tensor.dims[2] != Attention.of(node).width


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    parts = ["part" if _is_part(node, k) else "whole" for k in range(3)]
    parts += ["bias"] * (node.input(3) is not None) + ["guarded"] * Attention.of(node).guarded
    return f"{OP_TYPE}__{'_'.join(parts)}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    assert node.graph is not None
    biased = node.input(3) is not None
    guard = ["shares = Identity (plain)"]
    if Attention.of(node).guarded:
        guard = [
            "none = Constant <value_float = 0.0> ()",
            "unknown = IsNaN (plain)",
            "shares = Where (unknown, none, plain)",
        ]
    lines = [
        "heads = Constant <value_int: int = @heads> ()",
        "dim = Constant <value_int: int = @dim> ()",
        "scale = Constant <value_float: float = @scale> ()",
        "columns = Constant <value_ints: ints = @columns> ()",
        "first = Constant <value_ints = [0]> ()",
        "last = Constant <value_ints = [2]> ()",
        "minus = Constant <value_ints = [-1]> ()",
        "h = Reshape (heads, minus)",
        "d = Reshape (dim, minus)",
        "width = Mul (h, d)",
        "copied = Concat <axis = 0> (first, first)",
        "apart = Concat <axis = 0> (copied, h, d)",
        "beside = Concat <axis = 0> (copied, width)",
    ]
    perms = {"q": "0, 2, 1, 3", "k": "0, 2, 3, 1", "v": "0, 2, 1, 3"}
    for index, (name, perm) in enumerate(perms.items()):
        rows = name
        if _is_part(node, index):
            lines += [
                f"{name}_at = Constant <value_ints = [{index}]> ()",
                f"{name}_from = Gather (columns, {name}_at)",
                f"{name}_to = Add ({name}_from, width)",
                f"{name}_part = Slice ({name}, {name}_from, {name}_to, last)",
            ]
            rows = f"{name}_part"
        lines += [
            f"{name}_apart = Reshape ({rows}, apart)",
            f"{name}_heads = Transpose <perm = [{perm}]> ({name}_apart)",
        ]
    lines += [
        "products = MatMul (q_heads, k_heads)",
        "scaled = Mul (products, scale)",
        "scores = Add (scaled, bias)" if biased else "scores = Identity (scaled)",
        "plain = Softmax <axis = -1> (scores)",
        *guard,
        "mixed = MatMul (shares, v_heads)",
        "turned = Transpose <perm = [0, 2, 1, 3]> (mixed)",
        "result = Reshape (turned, beside)",
    ]
    body = "\n".join(lines)
    proto = onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {node.graph.opset()}]>\n'
        f"{function_name(node)} <heads, dim> "
        f"(q, k, v{', bias' if biased else ''}) => (result) {{\n{body}\n}}"
    )
    # The parser has no syntax for attributes with defaults.
    defaults = {"scale": 1.0, "columns": [0, 0, 0]}
    proto.attribute_proto.extend(onnx.helper.make_attribute(k, v) for k, v in defaults.items())
    return proto
