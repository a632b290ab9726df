"""Discrete Fourier transforms of short sequences, as products with a matrix."""

from __future__ import annotations

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x = var("x")

LONGEST = 256
"""Elements of a transform up to which it is a product."""


@rule(op.DFT(x, ...))
def transform_to_product(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """DFT(x) -> x with the axis last, times a matrix"""
    axis, length = _axis_of(node), ints_of(node.input(1))
    result = node.output.tensor
    if x.shape is None or axis is None or x.dtype != "float32":
        return NoMatch("its axis or rank is not known, or it is not float32")
    axis %= len(x.shape)
    size, parts, wanted = x.shape[axis], x.shape[-1], result.dims[axis]
    if not all(isinstance(dim, int) for dim in (size, parts, wanted, result.dims[-1])):
        return NoMatch("its length is not known")
    if node.input(1) is not None and length is None:
        return NoMatch("its length is computed")
    assert isinstance(size, int) and isinstance(parts, int) and isinstance(wanted, int)
    inverse, onesided = bool(node.attr("inverse")), bool(node.attr("onesided"))
    count = length[0] if length else 2 * (size - 1) if inverse and onesided else size
    if not 0 < max(size, count) <= LONGEST:
        return NoMatch("it is long, where a fast transform is faster")
    matrix = _matrix(size, parts, count, inverse, onesided)
    if matrix is None or matrix.shape[1] != wanted * result.dims[-1]:
        return NoMatch("such a transform is not known here")
    kept = [k for k in range(len(x.shape) - 1) if k != axis]
    lead: tuple[Dim, ...] = tuple(x.shape[k] for k in kept)
    order = [*kept, axis, len(x.shape) - 1]
    rows = reshaped(rw, rw.op.Transpose(x, perm=order), (*lead, len(matrix)))
    if isinstance(rows, NoMatch):
        return rows
    product = rw.op.MatMul(rows, rw.const(matrix))
    apart = reshaped(rw, product, (*lead, wanted, matrix.shape[1] // wanted))
    if isinstance(apart, NoMatch):
        return apart
    return rw.op.Transpose(apart, perm=[order.index(k) for k in range(len(order))])


def _axis_of(node: Node) -> int | None:
    """The axis that is transformed, an attribute up to opset 19; None if it is computed."""
    assert node.graph is not None
    if node.graph.opset() < 20:
        axis: int = node.attr("axis", 1)
        return axis
    given = node.input(2)
    known = [-2] if given is None else ints_of(given)
    return known[0] if known else None


def _matrix(size: int, parts: int, count: int, inverse: bool, onesided: bool) -> np.ndarray | None:
    """What a transform makes of each element of its input [size, parts], one a row."""
    basis = np.eye(size * parts).reshape(-1, size, parts)
    numbers = basis[..., 0] + (1j * basis[..., 1] if parts == 2 else 0)
    found: np.ndarray
    if inverse and onesided:
        found = np.fft.irfft(numbers, count)[..., np.newaxis]
    elif onesided and parts == 2:
        return None
    elif onesided:
        found = np.fft.rfft(numbers, count)
    else:
        found = (np.fft.ifft if inverse else np.fft.fft)(numbers, count)
    if np.iscomplexobj(found):
        found = np.stack([found.real, found.imag], -1)
    return np.ascontiguousarray(found.reshape(size * parts, -1), np.float32)


class DecomposeDft(RewritePass):
    """Computes a discrete Fourier transform as a product with the matrix that it is.

    As filters over a history are written in FMLP-Rec. Needs float32 and at most 256 elements, of
    known number. Fidelity: reassociates.

    Before:
        (float[N,5,4,1] x) => (float[N,3,4,2] y) {
            y = DFT<axis=1, onesided=1>(x)
        }

    After:
        (float[N,5,4,1] x) => (float[N,3,4,2] y)
        <float[5,6] m, int64[3] s = {-1, 4, 5}, int64[4] p = {-1, 4, 3, 2}> {
            t = Transpose<perm=[0, 2, 1, 3]>(x)
            r = Reshape(t, s)
            h = MatMul(r, m)
            a = Reshape(h, p)
            y = Transpose<perm=[0, 2, 1, 3]>(a)
        }
    """

    name = "decompose-dft"
    fidelity = Fidelity.REASSOCIATES
    rules = (transform_to_product,)
