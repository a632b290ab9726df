"""Operands that say what an op does (sizes, axes, positions), known now or only at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64


def tensor_input(node: Node, index: int) -> Value:
    """Input `index`, which the op's schema demands."""
    value = node.inputs[index]
    assert value is not None
    return value


def static_ints(value: Value | None) -> list[int] | None:
    """The elements of an operand if all of them are numbers known now."""
    return None if value is None or value.content is None else known_ints(value.content)


def elements(lower: Lowering, value: Value) -> list[Any]:
    """The elements of a small operand as ints and int64 expressions; fractions are cut off.

    Those of an operand that is computed at run time become sizes of the program.

    Raises:
        UnsupportedOpError: how many elements it has is known only at run time.
    """
    if value.content is not None:
        return [lower.dim(element) for element in value.content.flat]
    if value.const is not None and value.const.dtype.kind != "O":
        return [int(element) for element in value.const.flat]
    count = value.tensor.elements
    if not isinstance(count, int):
        raise lower.unsupported(f"how many elements {value.name!r} has is known only at run time")
    if count == 0:
        return []
    flat = lower.reshape(lower.expr(value), [count])
    if value.dtype != "int64":
        flat = lower.te(lambda x: compute([count], lambda i: scalar.cast(x(i), "int64")), flat)
    names = [lower.fresh_size(f"element{k}_") for k in range(count)]
    return lower.bind_sizes(names, flat)


def bind_shape(
    lower: Lowering, value: Value, shape: Sequence[Any], checks: Sequence[Check] = ()
) -> list[Any]:
    """Let the sizes of `value` that nothing has bound yet be those of `shape`.

    Args:
        shape: a size per axis, in terms of sizes that are bound.
        checks: what must hold of them at run time.

    Returns:
        the shape of `value`.
    """
    dims = value.tensor.dims
    open_axes = {str(dim): k for k, dim in enumerate(dims) if not lower.knows(dim)}
    if open_axes:
        assert value.producer is not None
        text = f"{describe(value.producer)}: more elements than any memory holds"
        checks = [*checks, (_countable(shape), text)]
    if open_axes or checks:
        names = list(open_axes) or [lower.fresh_size("checked")]
        sizes = [int64(shape[k]) for k in open_axes.values()] or [int64(0)]

        def emit() -> te.Tensor:
            return compute([len(sizes)], lambda i: chosen(sizes, i), "sizes")

        lower.bind_sizes(names, lower.te(emit, name="sizes", checks=checks))
    return lower.shape(value)


def _countable(shape: Sequence[Any]) -> Any:
    """Whether so many elements have places that 64 bits can count; floats do not wrap around."""
    count = tirx.const(1.0, "float64")
    for size in shape:
        count = count * int64(size).astype("float64")
    return count < tirx.const(float(1 << 48), "float64")


def chosen(options: Sequence[Any], index: Any) -> Any:
    """Element `index` of a short list, by comparisons."""
    result = options[-1]
    for k in reversed(range(len(options) - 1)):
        result = tirx.Select(tirx.EQ(index, int64(k)), options[k], result)
    return result


def is_static(*sizes: Any) -> bool:
    """True if all sizes are numbers known now."""
    return all(isinstance(size, int) for size in sizes)


def product(sizes: Sequence[Any]) -> Any:
    """The product of ints and expressions; 1 for none."""
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def same_sizes(lower: Lowering, a: Sequence[Dim], b: Sequence[Dim]) -> Any:
    """The condition that sizes are equal one by one."""
    if len(a) != len(b):
        return tirx.const(False, "bool")
    differing = [(x, y) for x, y in zip(a, b) if x != y]
    pairs = [(int64(lower.dim(x)), int64(lower.dim(y))) for x, y in differing]
    return tirx.all(tirx.const(True, "bool"), *(tirx.EQ(x, y) for x, y in pairs))


def describe(node: Node) -> str:
    """`Op 'node'`, for the run-time errors of generated code."""
    return f"{node.op} {node.where[0]!r}"


def describe_stack(node: Node) -> str:
    """As `describe`, of an op of ours that stands for lookups in several tables."""
    first, *more = node.where
    return f"{node.op.partition('::')[2]} {first!r}" + (f" and {len(more)} more" if more else "")
