"""What packed products have in common: blocks of rows over a panel of columns, and their store."""

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.gemm import Step, combined
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.inlining import inlined

Emitted = Callable[..., None]


def by_blocks(heights: Sequence[int], block: Emitted) -> Emitted:
    """For use in a kernel: `visit(tensors, rows, panel)` calls `block` for all rows of a panel.

    Args:
        heights: at most 7 block heights, tallest first, that make up any number of rows.
        block: called with the tensors, the first row, the panel and a height.
    """

    def rest(rows, level):
        """Rows left over by the blocks before `level`."""
        for height in heights[:level]:
            rows = rows % height
        return rows

    @inlined
    def level(tensors, rows, panel, place):
        if place < len(heights):
            for i in range(rest(rows, place) // heights[place]):
                first = rows - rest(rows, place) + i * heights[place]
                block(tensors, first, panel, heights[place])

    @inlined
    def visit(tensors, rows, panel):
        level(tensors, rows, panel, 0)
        level(tensors, rows, panel, 1)
        level(tensors, rows, panel, 2)
        level(tensors, rows, panel, 3)
        level(tensors, rows, panel, 4)
        level(tensors, rows, panel, 5)
        level(tensors, rows, panel, 6)

    return visit


def storing(n: int, lanes: int, activated: Activation, steps: Sequence[Step]) -> Emitted:
    """For use in a kernel: `store(y, row, column, values, at, operands)` writes one vector.

    y[row, column:column + lanes] = values[at:at + lanes] after the activation, and after `steps`
    with the elements of `operands` at the same place; what lies beyond column `n` is left out.
    """

    @inlined
    def store(y, row, column, values, at, operands):
        if column + lanes <= n:
            for lane in T.vectorized(lanes):
                y[row, column + lane] = combined(
                    steps, activated(values[at + lane]), operands, row, column + lane
                )
        else:
            for lane in T.vectorized(lanes):
                values[at + lane] = activated(values[at + lane])
            for lane in range(lanes):
                if column + lane < n:
                    y[row, column + lane] = combined(
                        steps, values[at + lane], operands, row, column + lane
                    )

    return store
