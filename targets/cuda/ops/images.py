"""RoiAlign and MaxUnpool, whose image numbers and indices are checked as ids are."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from graphopt.ir import dims
from graphopt.ir.graph import Node, Value
from graphopt.targets.cuda.kernels import places
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.loops import loops, row_major
from graphopt.targets.relax.lowering import Lowering, compute, int64
from graphopt.targets.relax.operands import product, tensor_input
from graphopt.targets.relax.ops.pooling import Unpooling
from graphopt.targets.relax.ops.sampling import no_such_image, roi_align
from graphopt.targets.relax.scalar import const


@lowers("RoiAlign")
def _roi_align(lower: CudaLowering, node: Node) -> relax.Expr:
    return roi_align(lower, node, _images)


def _images(lower: Lowering, node: Node, images: Value, batch: Any) -> relax.Expr:
    """See `sampling.Checked`: one that there is not is reported, and taken for the nearest."""
    assert isinstance(lower, CudaLowering)
    count, last, given = lower.shape(images)[0], int64(batch) - 1, lower.expr(images)

    def holds(k: Any, image: te.Tensor) -> Any:
        return tirx.all(image(k) >= 0, image(k).astype("int64") <= last)

    lower.demand(holds, [given], count, no_such_image(node))

    def nearest(image: te.Tensor) -> te.Tensor:
        def at(k: Any) -> Any:
            return tirx.max(tirx.min(image(k).astype("int64"), last), int64(0))

        return compute([count], at, "images")

    return lower.te(nearest, given)


@lowers("MaxUnpool")
def _max_unpool(lower: CudaLowering, node: Node) -> relax.Expr:
    data, indices = tensor_input(node, 0), tensor_input(node, 1)
    to, dtype = Unpooling(lower, node), lower.checked_dtype(data.dtype)
    count = lower.dim(dims.product(data.tensor.dims))
    values, given = (lower.reshape(lower.expr(value), [count]) for value in (data, indices))
    lower.demand(lambda k, at: to.target(at(k))[1], [given], count, to.complaint)

    def write(at: Any, writer: Any) -> None:
        def place(k: Any) -> tuple[Any, Any]:
            index, fits = to.target(at[k])
            return row_major(index, to.shape), fits

        places.last_writers(int64(count), place, writer)

    (writer,) = loops(lower, write, [given], [([product(to.shape)], "int32")])

    def put(x: te.Tensor, by: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            at = by(row_major(i, to.shape))
            return tirx.if_then_else(at >= 0, x(at.astype("int64")), const(0, dtype))

        return compute(to.shape, element, "unpooled")

    return lower.te(put, values, writer)
