"""RNN, GRU and LSTM: one GEMM for the inputs of all steps, one kernel for the recurrence."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import relax, te

from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ops import attentional_gru, gru
from graphopt.targets.cpu.kernels import panels, recurrent
from graphopt.targets.cpu.kernels.bf16_gemm import bf16_gemm, bf16_params, pack_bf16
from graphopt.targets.cpu.kernels.gemm import gemm
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.relax.lowering import Lowering, int64, lowers

_ACTIVATIONS = {
    "affine": "affine",
    "elu": "elu",
    "hardsigmoid": "hard_sigmoid",
    "leakyrelu": "leaky_relu",
    "relu": "relu",
    "scaledtanh": "scaled_tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "softsign": "softsign",
    "tanh": "tanh",
    "thresholdedrelu": "thresholded_relu",
}
_WITH_ALPHA = {"affine", "elu", "hard_sigmoid", "leaky_relu", "scaled_tanh", "thresholded_relu"}
_WITH_BETA = {"affine", "hard_sigmoid", "scaled_tanh"}


def activations(lower: Lowering, node: Node) -> tuple[Activation, ...] | None:
    """The activations that the node names; constants are handed out in order, as ONNX says."""
    names = node.attrs.get("activations")
    if not names:
        return None
    alphas, betas = (list(node.attrs.get(f"activation_{k}") or []) for k in ("alpha", "beta"))
    chosen = []
    for name in names:
        kind = _ACTIVATIONS.get(name.lower())
        if kind is None:
            raise lower.unsupported(f"there is no activation {name!r}")
        alpha = alphas.pop(0) if kind in _WITH_ALPHA and alphas else None
        beta = betas.pop(0) if kind in _WITH_BETA and betas else None
        chosen.append(Activation(kind, alpha, beta))
    return tuple(chosen)


def _times_transposed(rows: Any, columns: int, x: te.Tensor, w: te.Tensor) -> te.Tensor:
    k = te.reduce_axis((0, x.shape[1]), "k")
    return te.compute(
        (rows, columns), lambda i, j: te.sum(x(i, k) * w(j, k), axis=k), name="project"
    )


def _plus_row(x: te.Tensor, row: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda i, j: x(i, j) + row(j), name="biased")


class Layer:
    """The operands of one recurrent node, in the layout of the kernels."""

    last_alone: ClassVar[bool] = False
    """True if the kernels for `last_state` write no states of other steps."""

    def __init__(self, lower: Lowering, node: Node, gates: int) -> None:
        self.lower, self.node, self.gates = lower, node, gates
        self.lanes: int = node.attrs.get("lanes", 16)
        data = node.inputs[0]
        assert data is not None
        if data.dtype != "float32":
            raise lower.unsupported(f"it is {data.dtype}, the kernels are for float32")
        self.batch_first = bool(node.attr("layout", 0))
        dims = data.tensor.dims
        first, second, self.width = dims
        self.steps, self.samples = (second, first) if self.batch_first else (first, second)
        weights = node.inputs[1]
        assert weights is not None
        self.directions: int = weights.tensor.dims[0]  # type: ignore[assignment]
        recurrence = node.inputs[2]
        assert recurrence is not None
        self.hidden: int = recurrence.tensor.dims[2]  # type: ignore[assignment]
        if not isinstance(self.directions, int) or not isinstance(self.hidden, int):
            raise lower.unsupported("its weights have no fixed shape")

    def sizes(self, *dims: Dim) -> list[Any]:
        return [self.lower.dim(dim) for dim in dims]

    def swapped(self, expr: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
        """`expr` with its first two axes exchanged, which gives `shape`."""

        def swap(x: te.Tensor) -> te.Tensor:
            return te.compute(shape, lambda i, j, *k: x(j, i, *k), name="swap")

        return self.lower.te(swap, expr, name="swap")

    def projected(self, separate_bias: bool) -> relax.Expr:
        """X W^T + Wb + Rb of all steps: [t, b, d * g * h]; `separate_bias` leaves Rb of h out."""
        lower, node = self.lower, self.node
        data, weights, bias = node.inputs[0], node.inputs[1], node.input(3)
        assert data is not None and weights is not None
        steps, samples, width = self.sizes(self.steps, self.samples, self.width)
        x = lower.expr(data)
        if self.batch_first:
            x = self.swapped(x, [steps, samples, width])
        rows = lower.dim(product([self.steps, self.samples]))
        flat, columns = lower.reshape(x, [rows, width]), self.directions * self.gates * self.hidden
        added = None if bias is None else self._added(bias, separate_bias)
        if weights.const is not None and not isinstance(added, relax.Expr):
            result = self._packed(flat, weights.const.reshape(columns, -1), added, rows)
        else:
            stacked = lower.reshape(lower.expr(weights), [columns, width])
            result = lower.te(functools.partial(_times_transposed, rows, columns), flat, stacked)
            if added is not None:
                row = added if isinstance(added, relax.Expr) else lower.constant(added)
                result = lower.te(_plus_row, result, row, name="biased")
        return lower.reshape(result, [steps, samples, columns])

    def _added(self, bias: Value, separate_bias: bool) -> np.ndarray | relax.Expr:
        """What is added to each row of X W^T: [d * g * h], known now if the bias is constant."""
        wide = self.gates * self.hidden
        kept = wide - self.hidden if separate_bias else wide
        if bias.const is not None:
            added = bias.const[:, :wide].copy()
            added[:, :kept] += bias.const[:, wide : wide + kept]
            return added.reshape(-1)

        def add(b: te.Tensor) -> te.Tensor:
            def element(column: Any) -> Any:
                d, gate = column // wide, column % wide
                return b(d, gate) + te.if_then_else(gate < kept, b(d, wide + gate), 0.0)

            return te.compute([self.directions * wide], element, name="bias")

        return self.lower.te(add, self.lower.expr(bias), name="bias")

    def _packed(
        self, flat: relax.Expr, weights: np.ndarray, added: np.ndarray | None, rows: Any
    ) -> relax.Expr:
        columns, width = weights.shape
        words = self.node.attrs.get("words")
        if words is None:
            params = panels.default_params(columns, self.lanes, width)
            kernel, packed = gemm(width, columns, params), panels.pack_weights(weights.T, params)
        else:
            params = bf16_params(columns, self.lanes, bool(words.tiles))
            kernel = bf16_gemm(width, columns, params, words)
            packed = pack_bf16(weights.T, params, words)
        constants = map(self.lower.constant, (packed, panels.pack_bias(added, columns, params)))
        outs = [([rows, columns], "float32")]
        (result,) = self.lower.kernel(kernel, [flat, *constants], outs)
        return result

    def recurrence(self) -> relax.Expr:
        """R [d, g * h, h] as [d, h, g * h]."""
        value = self.node.inputs[2]
        assert value is not None
        if value.const is not None:
            return self.lower.constant(recurrent.transpose_recurrence(value.const))
        shape = [self.directions, self.hidden, self.gates * self.hidden]

        def turn(r: te.Tensor) -> te.Tensor:
            return te.compute(shape, lambda d, h, g: r(d, g, h), name="turn")

        return self.lower.te(turn, self.lower.expr(value), name="turn")

    def state(self, index: int) -> relax.Expr | None:
        """An initial state as [d, b, h]."""
        value = self.node.input(index)
        if value is None:
            return None
        expr = self.lower.expr(value)
        if not self.batch_first:
            return expr
        return self.swapped(expr, self.sizes(self.directions, self.samples, self.hidden))

    def options(self) -> dict[str, Any]:
        """What every kernel is told."""
        node = self.node
        return {
            "hidden": self.hidden,
            "direction": node.attr("direction"),
            "activations": activations(self.lower, node),
            "limit": node.attrs.get("clip"),
            "sequence_lens": node.input(4) is not None,
            "initial_h": node.input(5) is not None,
        }

    def run(self, kernel: Any, extra: Sequence[relax.Expr], states: Sequence[int]) -> list[Any]:
        """Call the kernel; the node's outputs, in its own layout."""
        lower, node = self.lower, self.node
        lens = node.input(4)
        optional = [lower.expr(lens)] if lens is not None else []
        optional += [s for s in map(self.state, states) if s is not None]
        steps, samples = self.sizes(self.steps, self.samples)
        final = [self.directions, samples, self.hidden]
        outs = [([steps, *final], "float32"), *[(final, "float32")] * len(states)]
        gates = self.projected(bool(node.attr("linear_before_reset", 0)))
        arguments = [gates, self.recurrence(), *extra, *optional]
        results = list(lower.kernel(kernel, arguments, outs))
        if self.batch_first:
            results = [self._batch_first(r, k == 0) for k, r in enumerate(results)]
        return results[: len(node.outputs)]

    def last_state(
        self, kernel: Any, linear: bool, initial: Sequence[Value | None], *more: relax.Expr
    ) -> relax.Expr:
        """Call the kernel of a GRU in one direction; its state after the last step."""
        lower, final = self.lower, [1, self.lower.dim(self.samples), self.hidden]
        arguments = [self.projected(linear), self.recurrence()]
        arguments += [hidden_bias(lower, self)] if linear else []
        arguments += [lower.expr(state) for state in initial if state is not None]
        others = [] if self.last_alone else [([lower.dim(self.steps), *final], "float32")]
        return lower.kernel(kernel, [*arguments, *more], [*others, (final, "float32")])[-1]

    def attention(self, value: Value | None) -> relax.Expr:
        """What scales the update gate, [t, b, 1], as [t, b]."""
        assert value is not None
        return self.lower.reshape(self.lower.expr(value), self.sizes(self.steps, self.samples))

    def _batch_first(self, expr: relax.Expr, all_steps: bool) -> relax.Expr:
        steps, samples = self.sizes(self.steps, self.samples)
        if not all_steps:
            return self.swapped(expr, [samples, self.directions, self.hidden])
        shape = [samples, steps, self.directions, self.hidden]

        def turn(y: te.Tensor) -> te.Tensor:
            return te.compute(shape, lambda s, t, d, h: y(t, d, s, h), name="batch_first")

        return self.lower.te(turn, expr, name="batch_first")


@lowers("RNN", target="cpu")
def _rnn(lower: Lowering, node: Node) -> list[relax.Expr]:
    layer = Layer(lower, node, gates=1)
    return layer.run(recurrent.rnn(**layer.options(), lanes=layer.lanes), [], [5])


@lowers("GRU", target="cpu")
def _gru(lower: Lowering, node: Node) -> list[relax.Expr]:
    layer = Layer(lower, node, gates=3)
    linear = bool(node.attr("linear_before_reset"))
    kernel = recurrent.gru(**layer.options(), linear_before_reset=linear, lanes=layer.lanes)
    return layer.run(kernel, [hidden_bias(lower, layer)] if linear else [], [5])


@lowers(gru.OP_TYPE, domain=gru.DOMAIN)
def _last_state(lower: Lowering, node: Node) -> relax.Expr:
    layer, linear = Layer(lower, node, gates=3), gru.is_linear(node)
    initial = node.input(4) is not None
    kernel = recurrent.gru(
        layer.hidden, linear_before_reset=linear, initial_h=initial, lanes=layer.lanes
    )
    return layer.last_state(kernel, linear, node.inputs[4:])


@lowers(attentional_gru.OP_TYPE, domain=attentional_gru.DOMAIN)
def _attentional_gru(lower: Lowering, node: Node) -> relax.Expr:
    layer = Layer(lower, node, gates=3)
    kernel = recurrent.gru(
        layer.hidden,
        linear_before_reset=True,
        initial_h=True,
        attention=True,
        lanes=layer.lanes,
    )
    return layer.last_state(kernel, True, node.inputs[4:5], layer.attention(node.inputs[5]))


def hidden_bias(lower: Lowering, layer: Layer) -> relax.Expr:
    """Rb of the hidden gate, [d, h]; zeros where the node has no bias."""
    bias: Value | None = layer.node.input(3)
    shape, start = [layer.directions, layer.hidden], 5 * layer.hidden
    if bias is None:
        return lower.constant(np.zeros(shape, np.float32))
    if bias.const is not None:
        return lower.constant(bias.const[:, start:])
    return lower.te(
        lambda b: te.compute(shape, lambda d, h: b(d, int64(start) + h), name="hidden_bias"),
        lower.expr(bias),
        name="hidden_bias",
    )


@lowers("LSTM", target="cpu")
def _lstm(lower: Lowering, node: Node) -> list[relax.Expr]:
    layer = Layer(lower, node, gates=4)
    peepholes = node.input(7)
    kernel = recurrent.lstm(
        **layer.options(),
        input_forget=bool(node.attr("input_forget")),
        peepholes=peepholes is not None,
        initial_c=node.input(6) is not None,
        lanes=layer.lanes,
    )
    extra = [lower.expr(peepholes)] if peepholes is not None else []
    return layer.run(kernel, extra, [5, 6])
