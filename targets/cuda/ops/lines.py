"""CumSum and TopK, parallel along all axes but one, and along that where it is long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.cuda.kernels import lines, sorting
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import Lowering, compute, int64
from graphopt.targets.relax.operands import tensor_input
from graphopt.targets.relax.ops.reduce import around_axis
from graphopt.targets.relax.ops.selection import topk, topk_operands

_SHORT = 256  # elements that one thread adds up
_COUNTED = 512  # elements of a line of which each is compared with all others
_STRETCH = 1 << 14  # elements of a line for each block that looks for the best of them


@lowers("CumSum")
def _cumsum(lower: CudaLowering, node: Node) -> relax.Expr:
    data, dtype = tensor_input(node, 0), lower.checked_dtype(node.output.dtype)
    shape = around_axis(lower, node, data)
    exclusive, reverse = bool(node.attr("exclusive")), bool(node.attr("reverse"))
    kernel = lines.running_sums if _is_short(shape[1], _SHORT) else lines.long_running_sums

    def body(x: Any, out: Any) -> None:
        kernel(x, out, exclusive=exclusive, reverse=reverse)

    (result,) = loops(lower, body, [lower.reshape(lower.expr(data), shape)], [(shape, dtype)])
    return lower.reshape(result, lower.shape(node.output))


def _is_short(size: Any, most: int) -> bool:
    return isinstance(size, int) and size <= most


@lowers("TopK")
def _topk(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    cube, sizes, taken = topk_operands(lower, node)
    dtype, length = node.output.dtype, sizes[1]
    if (
        _is_short(length, _COUNTED)
        or not _is_short(taken, sorting.MOST)
        or not isinstance(length, int)
        or not 0 < taken <= length < 1 << 32
        or sorting.key_bits(dtype) > 32
    ):
        return topk(lower, node, sorted_lines)
    descending, inner = bool(node.attr("largest")), int64(sizes[2])

    def element(x: Any) -> sorting.Key:
        def of(line: Any, k: Any) -> Any:
            value = x[line // inner, k, line % inner]
            return sorting.with_position(sorting.key_of(value, dtype, descending), k)

        return of

    found = _best(lower, cube, sizes, taken, element)
    shape = [sizes[0], taken, sizes[2]]

    def place(by: te.Tensor, o: Any, j: Any, i: Any) -> Any:
        return sorting.position_in(by(o * inner + i, j))

    indices = lower.te(
        lambda by: compute(shape, lambda o, j, i: place(by, o, j, i), "indices"), found
    )
    values = lower.te(
        lambda x, by: compute(shape, lambda o, j, i: x(o, by(o, j, i), i), "values"), cube, indices
    )
    return [
        lower.reshape(part, lower.shape(value))
        for part, value in zip((values, indices), node.outputs)
    ]


def _best(
    lower: CudaLowering,
    cube: relax.Expr,
    sizes: Sequence[Any],
    taken: int,
    element: Callable[[Any], sorting.Key],
) -> relax.Expr:
    """int64 [lines, taken]: the keys and positions of the best of each line, in order.

    Of long lines several blocks have a stretch each, and one more finds the best of theirs.
    """
    outer, length, inner = sizes
    count = int64(outer) * int64(inner)
    parts = -(-length // _STRETCH)
    share = -(-length // parts)

    def in_stretches(x: Any, out: Any) -> None:
        def of(block: Any, k: Any) -> Any:
            at = block % parts * share + k
            key = element(x)(block // parts, tirx.min(at, int64(length - 1)))
            return tirx.Select(at < length, key, sorting.NONE)

        sorting.best(of, count * parts, share, out)

    (found,) = loops(lower, in_stretches, [cube], [([count * parts, taken], "int64")])
    if parts == 1:
        return found
    joined = lower.reshape(found, [count, parts * taken])

    def among_these(x: Any, out: Any) -> None:
        sorting.best(lambda line, k: x[line, k], count, parts * taken, out)

    return loops(lower, among_these, [joined], [([count, taken], "int64")])[0]


def sorted_lines(
    lower: Lowering, cube: relax.Expr, sizes: Sequence[Any], dtype: str, descending: bool
) -> relax.Expr:
    """See `selection.Sort`."""
    outer, length, inner = sizes
    if _is_short(length, _COUNTED):

        def body(x: Any, order: Any) -> None:
            lines.ranks(x, order, descending=descending)

        return loops(lower, body, [cube], [([outer, inner, length], "int64")])[0]
    per = int64(inner)

    def sort(x: Any, order: Any, spare: Any) -> None:
        def key(line: Any, k: Any) -> Any:
            return sorting.key_of(x[line // per, k, line % per], dtype, descending)

        rounds = sorting.key_bits(dtype) // 8
        sorting.sort(key, lambda line: int64(length), rounds, order, spare)

    shape = [int64(outer) * per, length]
    order, _ = loops(lower, sort, [cube], [(shape, "int64"), (shape, "int64")])
    return lower.reshape(order, [outer, inner, length])
