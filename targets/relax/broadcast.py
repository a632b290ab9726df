"""Reading operands whose shapes broadcast, and literals for scalar constants."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64

Indices = tuple[Any, ...]
Read = Callable[[Indices], Any]


def index_into(
    lower: Lowering, source: Sequence[Dim], target: Sequence[Dim]
) -> tuple[Callable[[Indices], list[Any]], list[Check]]:
    """How an index into shape `target` becomes one into `source`, which broadcasts to it.

    Returns:
        the map of indices, and what must hold of sizes that are known only at run time.
    """
    offset = len(target) - len(source)
    checks: list[Check] = []
    maps: list[Callable[[Any], Any]] = []
    for size, wanted in zip(source, target[offset:]):
        if size == wanted:
            maps.append(lambda i: i)
        elif size == 1:
            maps.append(lambda i: int64(0))
        else:
            actual, expected = int64(lower.dim(size)), int64(lower.dim(wanted))
            single = tirx.EQ(actual, int64(1))
            fits = tirx.any(single, tirx.EQ(actual, expected))
            checks.append((fits, f"sizes {size} and {wanted} do not broadcast"))
            maps.append(functools.partial(operator.mul, tirx.Select(single, int64(0), int64(1))))
    return lambda indices: [m(i) for m, i in zip(maps, indices[offset:])], checks


def elementwise(
    lower: Lowering,
    node: Node,
    function: Callable[..., Any],
    operands: Sequence[Value],
    *,
    literals: bool = True,
) -> relax.Expr:
    """Emit `function` of one element of each operand, broadcast to the node's output.

    `function` takes and returns working dtypes (see `scalar`); scalar constants among the operands
    come to it as literals if `literals`.
    """
    target, dtype = node.output.tensor.dims, lower.checked_dtype(node.output.dtype)
    args: list[relax.Expr] = []
    reads: list[Callable[..., Any]] = []
    checks: list[Check] = []
    for value in operands:
        literal = _literal(value) if literals else None
        if literal is not None:
            reads.append(lambda tensors, indices, literal=literal: literal)
            continue
        to_source, needed = index_into(lower, value.tensor.dims, target)
        expr = lower.expr(value)
        reads.append(_reader(len(args), to_source, repeated=any(expr.same_as(a) for a in args)))
        args.append(expr)
        checks += needed

    def emit(*tensors: te.Tensor) -> te.Tensor:
        def element(*indices: Any) -> Any:
            return scalar.cast(function(*(read(tensors, indices) for read in reads)), dtype)

        return compute(lower.shape(node.output), element, name=node.op_type.lower())

    return lower.te(emit, *args, checks=checks)


def _reader(
    position: int, to_source: Callable[[Indices], list[Any]], repeated: bool
) -> Callable[..., Any]:
    def read(tensors: Sequence[te.Tensor], indices: Indices) -> Any:
        element = tensors[position](*to_source(indices))
        element = scalar.cast(element, scalar.working_dtype(scalar.dtype_of(element)))
        return scalar.disguised(element) if repeated else element

    return read


def _literal(value: Value) -> Any:
    """A one-element constant as a literal; None for others.

    Zero stays a tensor: the compiler folds `x * 0` to 0, which is wrong for NaN and infinity.
    """
    if value.const is None or value.const.size != 1 or value.dtype in ("string", "bool"):
        return None
    number = value.const.reshape(-1)[0].item()
    if number == 0 or (isinstance(number, float) and not math.isfinite(number)):
        return None
    if isinstance(number, int) and number >= 2**63:
        return None
    return scalar.const(number, scalar.working_dtype(value.dtype))
