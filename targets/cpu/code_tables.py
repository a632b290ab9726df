"""Codes of 8 bits that a table of 256 gives for others, as `tabulate-codes` writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.codes import MIDDLE, sign, signed
from graphopt.targets.cpu.kernels.code_table import CODES, code_table
from graphopt.targets.relax.lowering import Lowering, lowers

OP_TYPE = "CodeTable"

q, table = var("q"), const("table")
# (codes of 8 bits, table uint8[256] by their bits) -> uint8, shaped like the codes
_mine = Pattern(OP_TYPE, (signed, table), domain=DOMAIN)


@type_rule(OP_TYPE, domain=DOMAIN)
def _type(node: Node) -> list[Type | None]:
    assert node.inputs[0] is not None
    return [tensor_type("uint8", node.inputs[0].tensor.shape)]


@cost_rule(OP_TYPE, domain=DOMAIN)
def _cost(node: Node) -> Cost:
    return streaming(node, product(node.output.tensor.dims))


@rule(op.Gather(table, op.Cast(q)))
def gather_to_table(rw: Rewriter, node: Node, q: Value, table: Value) -> Value | NoMatch:
    """Gather(table, Cast(q)) -> CodeTable(q, table), signed if the table is"""
    assert table.const is not None
    rows, ids = table.const, node.inputs[1]
    if rows.shape != (CODES,) or rows.dtype not in (np.int8, np.uint8) or node.attr("axis") != 0:
        return NoMatch(f"it is not a table of {CODES} codes")
    if q.dtype not in ("int8", "uint8") or ids is None or ids.dtype not in ("int32", "int64"):
        return NoMatch("it is not looked up by codes of 8 bits")
    if rows.dtype == np.uint8:
        return rw.insert(OP_TYPE, [q, table], {}, domain=DOMAIN).output
    shifted = rw.const(rows.view(np.uint8) ^ np.uint8(MIDDLE))
    return sign(rw, rw.insert(OP_TYPE, [q, shifted], {}, domain=DOMAIN).output)


@rule(_mine)
def table_of_unsigned(rw: Rewriter, q: Value, table: Value) -> Value:
    """CodeTable(Signed(q), table) -> CodeTable(q, the table in another order)"""
    assert table.const is not None
    turned = rw.const(np.roll(table.const, MIDDLE))
    return rw.insert(OP_TYPE, [q, turned], {}, domain=DOMAIN).output


@lowers(OP_TYPE, domain=DOMAIN)
def _lower(lower: Lowering, node: Node) -> Any:
    (codes, _), rows = node.inputs, node.const(1)
    assert codes is not None and rows is not None
    count = lower.dim(product(codes.tensor.dims))
    flat = lower.reshape(lower.expr(codes), [count])
    kernel = code_table(bool(node.attrs.get("permutes")), codes.dtype)
    (result,) = lower.kernel(kernel, [flat, lower.constant(rows)], [([count], "uint8")])
    return lower.reshape(result, lower.shape(node.output))
