"""Normalizations: by the moments of some axes, or by given ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.broadcast import index_into
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.reduction import Region
from graphopt.targets.relax.scalar import const

Scalar = Any


@dataclass(frozen=True)
class _Moments:
    """Mean and reciprocal deviation over the axes of a region, as stages of one TE computation.

    Attributes:
        work: the dtype that they are computed in.
        centred: False to leave the mean out (root mean square).
    """

    region: Region
    work: str
    epsilon: float
    centred: bool = True

    def of(self, x: te.Tensor) -> tuple[te.Tensor | None, te.Tensor]:
        region, work = self.region, self.work
        count = scalar.cast(region.count, work)
        mean = None
        if self.centred:
            sums = region.reduce(lambda *i: scalar.cast(x(*i), work), reduction.total, "sums")
            mean = compute(region.kept, lambda *i: sums(*i) / count, "mean")

        def square(*i: Any) -> Scalar:
            value = self.shifted(x, mean, i)
            return value * value

        squares = region.reduce(square, reduction.total, "squares")
        one, epsilon = const(1, work), const(self.epsilon, work)
        inverse = compute(
            region.kept, lambda *i: one / tirx.sqrt(squares(*i) / count + epsilon), "inverse"
        )
        return mean, inverse

    def shifted(self, x: te.Tensor, mean: te.Tensor | None, i: Sequence[Any]) -> Scalar:
        """An element less its mean."""
        value = scalar.cast(x(*i), self.work)
        return value if mean is None else value - self.region.at(mean, i)


def _normalized(
    lower: Lowering,
    node: Node,
    moments: _Moments,
    parameters: Sequence[Callable[[tuple[Any, ...]], list[Any]]],
) -> relax.Expr:
    """(x - mean) / deviation * scale + shift; each of `parameters` finds its element."""
    values, dtype = node.operands, lower.checked_dtype(node.output.dtype)

    def emit(x: te.Tensor, *given: te.Tensor) -> te.Tensor:
        mean, inverse = moments.of(x)

        def element(*i: Any) -> Scalar:
            value = moments.shifted(x, mean, i) * moments.region.at(inverse, i)
            found = [
                scalar.cast(tensor(*at(i)), moments.work) for tensor, at in zip(given, parameters)
            ]
            value = value * found[0] if found else value
            return scalar.cast(value + found[1] if len(found) > 1 else value, dtype)

        return compute(x.shape, element, "normalized")

    return lower.te(emit, *map(lower.expr, values))


@lowers("LayerNormalization", "RMSNormalization")
def _layer_normalization(lower: Lowering, node: Node) -> list[relax.Expr]:
    x, *parameters = node.operands
    shape = x.tensor.dims
    first = node.attr("axis", -1) % len(shape)
    moments = _Moments(
        Region.over(lower.shape(x), range(first, len(shape))),
        scalar.working_dtype(lower.checked_dtype(x.dtype)),
        node.attr("epsilon", 1e-5),
        centred=node.op_type == "LayerNormalization",
    )
    maps = [index_into(lower, p.tensor.dims, shape)[0] for p in parameters]
    results = [_normalized(lower, node, moments, maps)]
    if len(node.outputs) > 1:
        results += _moment_outputs(lower, node, moments)
    return results


def _moment_outputs(lower: Lowering, node: Node, moments: _Moments) -> list[relax.Expr]:
    (x, *_), wanted = node.operands, node.outputs[1:]

    def emit(data: te.Tensor) -> list[te.Tensor]:
        return [
            compute(moment.shape, _cast_of(moment, value.dtype), "moment")
            for moment, value in zip(moments.of(data), wanted)
            if moment is not None
        ]

    return lower.untuple(lower.te(emit, lower.expr(x)), len(wanted))


def _cast_of(tensor: te.Tensor, dtype: str) -> Callable[..., Scalar]:
    return lambda *i: scalar.cast(tensor(*i), dtype)


@lowers("InstanceNormalization")
def _instance_normalization(lower: Lowering, node: Node) -> relax.Expr:
    x = node.operands[0]
    shape = lower.shape(x)
    work = scalar.working_dtype(lower.checked_dtype(x.dtype))
    moments = _Moments(Region.over(shape, range(2, len(shape))), work, node.attr("epsilon"))

    def channel(i: Sequence[Any]) -> list[Any]:
        return [i[1]]

    return _normalized(lower, node, moments, [channel, channel])


@lowers("BatchNormalization")
def _batch_normalization(lower: Lowering, node: Node) -> relax.Expr:
    if node.attr("training_mode") or len(node.outputs) > 1:
        raise lower.unsupported("it is in training mode; export the model for inference")
    x, *parameters = node.operands
    dtype = lower.checked_dtype(x.dtype)
    epsilon = node.attr("epsilon")

    def emit(data: te.Tensor, *given: te.Tensor) -> te.Tensor:
        work = scalar.working_dtype(dtype)

        def element(*i: Any) -> Scalar:
            channel = i[1] if len(i) > 1 else int64(0)
            scale, shift, mean, variance = (scalar.cast(t(channel), work) for t in given)
            deviation = tirx.sqrt(variance + const(epsilon, work))
            value = (scalar.cast(data(*i), work) - mean) * (scale / deviation) + shift
            return scalar.cast(value, dtype)

        return compute(data.shape, element, "batch_norm")

    return lower.te(emit, *map(lower.expr, [x, *parameters]))


@lowers("LpNormalization")
def _lp_normalization(lower: Lowering, node: Node) -> relax.Expr:
    (x,) = node.operands
    shape, dtype = lower.shape(x), lower.checked_dtype(x.dtype)
    region = Region.over(shape, [node.attr("axis", -1)])
    squared = node.attr("p", 2) == 2

    def emit(data: te.Tensor) -> te.Tensor:
        read = reduction.working(data)

        def size(*i: Any) -> Scalar:
            return read(*i) * read(*i) if squared else tirx.abs(read(*i))

        sums = region.reduce(size, reduction.total, "sums")
        norm = compute(region.kept, lambda *i: tirx.sqrt(sums(*i)) if squared else sums(*i), "norm")

        def element(*i: Any) -> Scalar:
            length = region.at(norm, i)
            zero = const(0, scalar.dtype_of(length))
            return scalar.cast(tirx.Select(tirx.EQ(length, zero), zero, read(*i) / length), dtype)

        return compute(shape, element, "normalized")

    return lower.te(emit, lower.expr(x))
