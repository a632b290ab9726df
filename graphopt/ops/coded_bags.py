"""What bags of rows that are stored in few bits have in common, whatever a row is made of.

Inputs: two that describe the table, then `ids` and `offsets` as in `graphopt::EmbeddingBag`, with
its attributes `mode` ("sum" or "mean"), `include_last_offset`, and `padding_idx` together with
`by_id`. Output: float32[b, dim], 0 for a bag in which nothing counts.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import failure, tensor_type
from graphopt.ir.types import TensorType, Type
from graphopt.ops.definition import local_function
from graphopt.ops.embedding_bag_body import NARROW, Body, Variant

DOMAIN = "graphopt"
_KEPT = ("mode", "include_last_offset", "padding_idx", "by_id")


def attributes_of(bag: Node) -> dict[str, Attr]:
    """What of a `graphopt::EmbeddingBag` goes on to a bag of rows in few bits."""
    return {name: bag.attrs[name] for name in _KEPT if name in bag.attrs}


def bag_type(node: Node, dim: Dim) -> list[Type | None]:
    """The result of bags of rows of `dim` elements.

    Raises:
        InvalidModelError: ids, offsets and attributes do not fit each other.
    """
    ids, offsets = node.input(2), node.input(3)
    if node.attr("mode", "sum") not in ("sum", "mean"):
        raise failure(node, "mode is sum or mean")
    assert ids is not None
    padded, by_id = node.attr("padding_idx") is not None, bool(node.attr("by_id", 0))
    if padded != by_id or (padded and offsets is not None):
        raise failure(node, "padding is by id, of ids [b, k]")
    if ids.rank == 2 and offsets is None:
        return [tensor_type("float32", [ids.tensor.dims[0], dim])]
    if ids.rank != 1 or offsets is None or not isinstance(offsets.type, TensorType):
        raise failure(node, "takes ids [b, k], or [n] and offsets")
    bags: Dim = offsets.tensor.dims[0] - (1 if node.attr("include_last_offset", 0) else 0)
    return [tensor_type("float32", [bags, dim])]


def form_name(node: Node) -> str:
    """What tells the bodies of bags of one op apart."""
    return _variant(node).name.partition("__")[2]


def bag_function(
    node: Node, name: str, table: tuple[str, str], found: Callable[[str], str], **more: Attr
) -> onnx.FunctionProto:
    """The body, in standard ONNX, of a bag that is called `name`.

    Args:
        table: what the inputs that describe the table are called.
        found: lines for the rows of some ids as floats, which they call `found`.
        more: further attributes, with their defaults.
    """
    variant = _variant(node)
    body = _Body(variant, found)
    result = body.build()
    signature = f"({', '.join(table)}, ids, offsets) => ({result})"
    defaults = {"mode": variant.mode, "include_last_offset": 0, "by_id": 0, **more}
    return local_function(node, name, signature, body.text, ["padding_idx"], defaults)


class _Body(Body):
    """The body of a bag whose rows become floats as they are looked up."""

    def __init__(self, variant: Variant, found: Callable[[str], str]) -> None:
        super().__init__(variant)
        self.found = found
        self.lines = ["nothing = Identity (nothing_f32)"]

    def rows(self, ids: str, weights: str, rank: int) -> tuple[str, str | None]:
        self.add(self.found(ids))
        return "found", None


def _variant(node: Node) -> Variant:
    fixed, dim = node.input(3) is None, node.output.tensor.dims[1]
    return Variant(
        node.attr("mode", "sum"),
        fixed=fixed,
        wide=not fixed and not (isinstance(dim, int) and dim <= NARROW),
        weighted=False,
        padded=False,
        csr=bool(node.attr("include_last_offset", 0)) and not fixed,
        filled=False,
        half=False,
        by_id=node.attr("padding_idx") is not None,
    )
