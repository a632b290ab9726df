"""Steps of a GRU, as frameworks write them out, and those that follow one another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import dtype_to_onnx
from graphopt.passes._linear_terms import Terms
from graphopt.passes._step_reader import StepReader, both_ways, computes, same_state
from graphopt.rewrite.rewriter import Rewriter

_SATURATED = 1e6
"""A sigmoid of anything plus this is 1, whatever activations a trained net has."""


@dataclass
class Step:
    """A step: `new = (1 - z) * n + z * h`, with `z = 1 - gate * u` where there is a gate.

    z (or u) and r are sigmoids and n is a tanh of x and h; ONNX's GRU says how. With a mask,
    h stays h where it is false.

    Attributes:
        w, r: float32[3 * hidden, inputs or hidden], in the order z (or u), r, n.
        bias: float32[6 * hidden], that of x and that of h.
        linear_before_reset: r multiplies what comes of h; else it multiplies h.
        nodes: what computes `new` from x and h.
    """

    new: Value
    x: Value
    h: Value
    w: np.ndarray
    r: np.ndarray
    bias: np.ndarray
    linear_before_reset: bool
    gate: Value | None = None
    mask: Value | None = None
    nodes: set[Node] = field(default_factory=set)

    def continues(self, first: Step) -> bool:
        """True if it has the same weights as `first`, and follows the same plan."""
        plans = [
            (step.linear_before_reset, step.gate is None, step.mask is None)
            for step in (self, first)
        ]
        arrays = zip((self.w, self.r, self.bias), (first.w, first.r, first.bias))
        return plans[0] == plans[1] and all(np.array_equal(a, b) for a, b in arrays)


def gru_chains(graph: Graph) -> list[list[Step]]:
    """The steps of each GRU, in order of time."""
    steps: dict[Value, Step] = {}
    for node in graph.walk():
        step = gru_step(node.output) if node.op in ("Add", "Where") else None
        if step is not None:
            inner = {n.output for n in step.nodes if n is not node}
            steps = {new: other for new, other in steps.items() if new not in inner}
            steps[node.output] = step
    followed = {step.h for step in steps.values()}
    found = []
    for new in (new for new in steps if new not in followed):
        chain = [steps[new]]
        while chain[-1].h in steps:
            chain.append(steps[chain[-1].h])
        found.append(chain[::-1])
    return [chain for chain in found if len(chain) > 1]


def with_mask(rw: Rewriter, x: Value, w: np.ndarray, mask: Value) -> tuple[Value, np.ndarray]:
    """A sequence and its weights with one more column, which holds the state at padded steps.

    `x` is [t, b, i], `mask` [t, b, 1]. ONNX's GRU has no mask; the column saturates its update
    gate, so that it gives back the state.
    """
    padded = rw.op.Cast(rw.op.Not(mask), to=dtype_to_onnx("float32"))
    column = np.zeros((len(w), 1), np.float32)
    column[: len(w) // 3] = _SATURATED
    return rw.op.Concat(x, padded, axis=2), np.concatenate([w, column], axis=1)


def gru_step(new: Value) -> Step | None:
    """The step that computes `new`, None if it does not look like one."""
    return _Reader(new).step()


class _Reader(StepReader):
    """Takes a step of a GRU apart."""

    def step(self) -> Step | None:
        masked = self._unmasked()
        new, kept, mask = masked if masked is not None else (self.new, None, None)
        blend = self._blend(new)
        if blend is None or (kept is not None and not same_state(kept, blend.old)):
            return None
        if not new.rank:
            return None
        found = self._gates(blend, new.tensor.dims[-1])
        if found is None or not same_state(blend.old, found.h):
            return None
        found.mask, found.new, found.nodes = mask, self.new, self.nodes
        return found

    def _unmasked(self) -> tuple[Value, Value, Value] | None:
        """(new, old, mask) of m * new + (1 - m) * old, or of Where(m, new, old)."""
        node = self.new.producer
        if node is not None and node.op == "Where":
            mask, new, old = node.inputs
            assert mask is not None and new is not None and old is not None
            self.nodes.add(node)
            return new, old, mask
        for one, other in both_ways(self.operands(self.new, "Add")):
            for flag, new in both_ways(self.operands(one, "Mul")):
                mask = self.argument(flag, "Cast")
                for opposite, old in both_ways(self.operands(other, "Mul")):
                    inverse = self.argument(opposite, "Cast")
                    negated = None if inverse is None else self.argument(inverse, "Not")
                    if mask is not None and mask.dtype == "bool" and negated is mask:
                        return new, old, mask
        return None

    def _blend(self, new: Value) -> _Blend | None:
        summands = self.operands(new, "Add")
        for one, other in both_ways(summands):
            if computes("Tanh", one):  # n + z * (h - n)
                for z, change in both_ways(self.operands(other, "Mul")):
                    difference = self.operands(change, "Sub")
                    if difference is not None and difference[1] is one:
                        return _Blend(z, one, difference[0], keeps=True)
            for n, share in both_ways(self.operands(one, "Mul")):
                for h, rest in both_ways(self.operands(other, "Mul")):
                    if computes("Tanh", n) and self._is_rest(share, rest):
                        return _Blend(rest, n, h, keeps=True)
                    if computes("Tanh", n) and self._is_rest(rest, share):
                        return _Blend(share, n, h, keeps=False)
        return None

    def _is_rest(self, value: Value, of: Value) -> bool:
        """True if `value` is 1 - `of`."""
        operands = self.operands(value, "Sub")
        if operands is None or operands[1] is not of or operands[0].const is None:
            return False
        return bool(operands[0].const.size == 1 and operands[0].const.item() == 1)

    def _gates(self, blend: _Blend, width: object) -> Step | None:
        gate, attention = blend.gate, None
        for factor, sigmoid in both_ways(self.operands(gate, "Mul")):
            per_row = bool(factor.rank) and factor.tensor.dims[-1] == 1
            if computes("Sigmoid", sigmoid) and per_row and not blend.keeps:
                gate, attention = sigmoid, factor
        if not isinstance(width, int):
            return None
        update = self.terms(self.argument(gate, "Sigmoid"), width)
        new = self.terms(self.argument(blend.candidate, "Tanh"), width)
        found = None if new is None else self._candidate(new)
        if update is None or update.others or new is None or found is None:
            return None
        x, h, reset, state, linear = found
        if any(set(terms.weights) != {x, h} or terms.others for terms in (update, reset)):
            return None
        if not blend.keeps and attention is None:
            update = update.negated()
        gates = (update, reset, new)
        w = np.concatenate([terms.weights[x].T for terms in gates])
        r = np.concatenate([update.weights[h].T, reset.weights[h].T, state.weights[h].T])
        none = np.zeros(2 * width, np.float32)
        bias = np.concatenate([*(terms.bias for terms in gates), none, state.bias])
        return Step(self.new, x, h, w, r, bias, linear, gate=attention)

    def _candidate(self, new: Terms) -> tuple[Value, Value, Terms, Terms, bool] | None:
        """(x, h, the terms of r, those of h in n, whether r multiplies these) of what n sums up."""
        if len(new.others) == 1 and len(new.weights) == 1:
            (x,), width = new.weights, new.width
            for sigmoid, product in both_ways(self.operands(new.others[0], "Mul")):
                reset = self.terms(self.argument(sigmoid, "Sigmoid"), width)
                state = self.terms(product, width)
                if reset is not None and state is not None and len(state.weights) == 1:
                    (h,) = state.weights
                    return None if state.others else (x, h, reset, state, True)
        if new.others or len(new.weights) != 2:
            return None
        for x, scaled in both_ways(tuple(new.weights)):  # type: ignore[arg-type]
            for sigmoid, h in both_ways(self.operands(scaled, "Mul")):
                reset = self.terms(self.argument(sigmoid, "Sigmoid"), new.width)
                if reset is not None:
                    weight, none = new.weights[scaled], np.zeros(new.width, np.float32)
                    return x, h, reset, Terms(new.width, none, {h: weight}), False
        return None


@dataclass(frozen=True)
class _Blend:
    """`gate * old + (1 - gate) * candidate` if it `keeps`, else the other way round."""

    gate: Value
    candidate: Value
    old: Value
    keeps: bool
