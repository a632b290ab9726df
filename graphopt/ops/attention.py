"""`graphopt::Attention`: scaled dot-product attention of several heads, over rows of columns.

Inputs, float32: `q` [b, t, m], `k` and `v` [b, s, m']; optional `bias` and `factor`, broadcast to
[b, heads, t, s]. Each of q, k and v holds the columns of its heads side by side, `heads * dim` from
`columns[0]`, `columns[1]` or `columns[2]` on, so that one product may hold all three. Output:
float32[b, t, heads * dim], `softmax(scale * q k^T + bias) v` of each head side by side. If
`guarded`, shares that are NaN, as where all scores are -inf, count as 0. (Vaswani et al.,
"Attention Is All You Need", 2017.)

With another `activation`, which takes scores one by one, the shares are `activation(scale * q k^T +
bias) * factor`. (HSTU: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential
Transducers for Generative Recommendations", 2024.)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type
from graphopt.ops.attention_body import ONE_BY_ONE, POINTWISE, SOFTMAX, Beside, Variant
from graphopt.ops.definition import local_function

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
        guarded: shares that are NaN count as 0; of softmax only.
        activation: what makes shares of scores: softmax, or one of `POINTWISE`.
    """

    heads: int
    dim: int
    scale: float
    columns: tuple[int, int, int] = (0, 0, 0)
    guarded: bool = False
    activation: str = SOFTMAX

    @staticmethod
    def of(node: Node) -> Attention:
        """The attributes of `node`."""
        q, k, v = node.attr("columns") or (0, 0, 0)
        scale, guarded = node.attr("scale", 1.0), bool(node.attr("guarded", 0))
        activation = node.attr("activation", SOFTMAX)
        return Attention(
            node.attr("heads"), node.attr("dim"), scale, (q, k, v), guarded, activation
        )

    @property
    def attrs(self) -> dict[str, Attr]:
        """What a node carries."""
        return {
            "heads": self.heads,
            "dim": self.dim,
            "scale": self.scale,
            "columns": list(self.columns),
            **({"guarded": 1} if self.guarded else {}),
            **({} if self.activation == SOFTMAX else {"activation": self.activation}),
        }

    @property
    def width(self) -> int:
        """Columns of all heads."""
        return self.heads * self.dim


@type_rule(OP_TYPE, domain=DOMAIN)
def _attention(node: Node) -> list[Type | None]:
    types = [None if v is None else v.type for v in node.inputs]
    given = [t for t in types if t is not None]
    ranks = [t.rank if isinstance(t, TensorType) and t.dtype == "float32" else None for t in given]
    if ranks[:3] != [3, 3, 3] or None in (*ranks, *types[:3]):
        found = ", ".join(str(t) for t in types)
        raise failure(
            node, f"its inputs must be float32 q [b, t, m], k and v [b, s, m], not {found}"
        )
    attention = Attention.of(node)
    if attention.activation == SOFTMAX and node.input(4) is not None:
        raise failure(node, "shares of a softmax have no factor")
    known = (SOFTMAX,) if attention.guarded else (SOFTMAX, *POINTWISE)
    if attention.activation not in known:
        raise failure(node, f"its activation is {attention.activation!r}, not {' or '.join(known)}")
    for type_, first in zip(types, attention.columns):
        assert isinstance(type_, TensorType)
        width = type_.dims[2]
        if not isinstance(width, int) or not 0 <= first <= width - attention.width:
            raise failure(node, f"{type_} has no {attention.width} columns from {first} on")
    query = types[0]
    assert isinstance(query, TensorType)
    return [tensor_type("float32", [*query.dims[:2], attention.width])]


def _is_part(node: Node, index: int) -> bool:
    """True if only some columns of the input are read."""
    value = node.inputs[index]
    assert value is not None
    return value.tensor.dims[2] != Attention.of(node).width


def _beside(node: Node, slot: int) -> Beside:
    """Whether an input that is broadcast to scores tells heads apart."""
    value = node.input(slot)
    if value is None:
        return ""
    dims = value.tensor.dims
    return "flat" if len(dims) < 3 else "shared" if dims[-3] == 1 else "each"


def _variant(node: Node) -> Variant:
    attention = Attention.of(node)
    return Variant(
        (_is_part(node, 0), _is_part(node, 1), _is_part(node, 2)),
        attention.heads if attention.heads <= ONE_BY_ONE else 0,
        _beside(node, 3),
        _beside(node, 4),
        attention.guarded,
        attention.activation,
    )


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return _variant(node).name


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    variant = _variant(node)
    signature, attributes = f"({variant.inputs}) => (result)", ("heads", "dim")
    defaults = {"scale": 1.0, "columns": [0, 0, 0], "activation": SOFTMAX}
    return local_function(node, variant.name, signature, variant.text, attributes, defaults)
