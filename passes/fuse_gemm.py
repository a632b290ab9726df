"""A product of matrices and the bias that follows it as one Gemm."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import is_float
from graphopt.passes._linear import is_per_column
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, w, b, product = var("x"), var("w"), const("b"), var("product")


@rule(op.Add(op.MatMul(x, w).named("product"), b), op.Add(op.Gemm(x, w).named("product"), b))
def bias_into_product(
    rw: Rewriter, x: Value, w: Value, b: Value, product: Value, node: Node
) -> Value | NoMatch:
    """Add(MatMul(x, w), b) -> Gemm(x, w, b)"""
    before = product.producer
    assert before is not None
    if (x.rank, w.rank) != (2, 2) or not is_float(x.dtype):
        return NoMatch("it is not a product of two matrices of floats")
    if not is_per_column(b) or node.output.type != product.type:
        return NoMatch("what it adds is not one number per column")
    attrs = {name: attr for name, attr in before.attrs.items() if name != "beta"}  # of no bias
    return rw.insert("Gemm", [x, w, b], attrs).output


class FuseGemm(RewritePass):
    """Adds the bias of a layer while the layer is computed.

    Needs a product of two matrices and a constant per column. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,8] y) <float[4,8] w, float[8] b> {
            h = MatMul(x, w)
            y = Add(h, b)
        }

    After:
        (float[N,4] x) => (float[N,8] y) <float[4,8] w, float[8] b> {
            y = Gemm(x, w, b)
        }
    """

    name = "fuse-gemm"
    fidelity = Fidelity.REASSOCIATES
    rules = (bias_into_product,)
