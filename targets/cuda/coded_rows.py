"""Layers whose rows have a range each: a kernel makes codes of rows before all that read them."""

from __future__ import annotations

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.row_codes import RowQuantization
from graphopt.targets.cuda.kernels.gemm import coded_width
from graphopt.targets.relax.operands import tensor_input

OP_TYPE = "RowCodes"
_OPERATIONS = 6  # an element: its part in the range, a division, and what becomes of that


def insert(layers: list[Node]) -> None:
    """Dense(x, …; a range for each row of data) -> Dense(RowCodes(x), …)"""
    made: dict[tuple[Graph, Value, int], Value] = {}
    for layer in layers:
        rounding, data, home = layer.attrs.get("data"), tensor_input(layer, 0), layer.graph
        if not isinstance(rounding, RowQuantization) or data.dtype != "float32":
            continue
        assert home is not None
        key = home, data, rounding.levels
        if key not in made:
            attrs, origin = {"levels": rounding.levels}, layer.origin
            node = home.insert(OP_TYPE, [data], attrs, domain=DOMAIN, before=layer, origin=origin)
            made[key] = node.output
        home.set_input(layer, 0, made[key])


@type_rule(OP_TYPE, domain=DOMAIN)
def _type(node: Node) -> list[Type | None]:
    *leading, k = tensor_input(node, 0).tensor.dims
    assert isinstance(k, int)
    return [tensor_type("uint32", [*leading, coded_width(k)])]


@cost_rule(OP_TYPE, domain=DOMAIN)
def _cost(node: Node) -> Cost:
    return streaming(node, _OPERATIONS * product(tensor_input(node, 0).tensor.dims))
