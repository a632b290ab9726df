"""Steps of an LSTM, as frameworks write them out, and those that follow one another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._linear_terms import Terms
from graphopt.passes._step_reader import StepReader, both_ways, computes


@dataclass
class LstmStep:
    """A step: `c = f * old_c + i * g` and `h = o * Tanh(c)`.

    i, o and f are sigmoids and g is a tanh of sums of products of what is read with constant
    matrices.

    Attributes:
        gates: what is summed up for i, o, f and g, in ONNX's order.
        nodes: what computes h and c.
    """

    h: Value
    c: Value
    old_c: Value
    gates: tuple[Terms, ...]
    nodes: set[Node] = field(default_factory=set)

    @property
    def read(self) -> tuple[Value, ...]:
        """The input and the old state, or the input alone, in any order."""
        return tuple(self.gates[0].weights)

    @property
    def bias(self) -> np.ndarray:
        """float32[4 * hidden]."""
        return np.concatenate([terms.bias for terms in self.gates])

    def weights(self, value: Value) -> np.ndarray:
        """What multiplies one of those read: float32[4 * hidden, width]."""
        return np.concatenate([terms.weights[value].T for terms in self.gates])


def lstm_chains(graph: Graph) -> list[list[LstmStep]]:
    """The steps of each LSTM, in order of time."""
    found = [s for node in graph.walk() if node.op == "Mul" if (s := lstm_step(node.output))]
    by_cell = {step.c: step for step in found}
    followed = {step.old_c for step in found if _before(step, by_cell) is not None}
    chains = []
    for last in (step for step in found if step.c not in followed):
        chain = [last]
        while (before := _before(chain[-1], by_cell)) is not None:
            chain.append(before)
        chains.append(chain[::-1])
    return [chain for chain in chains if len(chain) > 1]


def _before(step: LstmStep, by_cell: dict[Value, LstmStep]) -> LstmStep | None:
    before = by_cell.get(step.old_c)
    return before if before is not None and before.h in step.read else None


def lstm_step(new: Value) -> LstmStep | None:
    """The step that computes the state `new`, None if it does not look like one."""
    reader = StepReader(new)
    for output, active in both_ways(reader.operands(new, "Mul")):
        if not (computes("Sigmoid", output) and computes("Tanh", active)):
            continue
        c = reader.argument(active, "Tanh")
        for kept, added in both_ways(reader.operands(c, "Add")):
            found = _gates(reader, kept, added)
            if c is not None and found is not None:
                forget, old_c, fresh, candidate = found
                terms = _terms(reader, (fresh, output, forget, candidate))
                return None if terms is None else LstmStep(new, c, old_c, terms, reader.nodes)
    return None


def _gates(
    reader: StepReader, kept: Value, added: Value
) -> tuple[Value, Value, Value, Value] | None:
    """(f, old_c, i, g) of `kept` = f * old_c and `added` = i * g."""
    for fresh, candidate in both_ways(reader.operands(added, "Mul")):
        if not (computes("Sigmoid", fresh) and computes("Tanh", candidate)):
            continue
        for forget, old_c in both_ways(reader.operands(kept, "Mul")):
            if computes("Sigmoid", forget):
                return forget, old_c, fresh, candidate
    return None


def _terms(reader: StepReader, gates: tuple[Value, ...]) -> tuple[Terms, ...] | None:
    """What the gates are sums of, if all are of the same one or two values."""
    width = reader.new.tensor.dims[-1] if reader.new.rank == 2 else None
    if not isinstance(width, int):
        return None
    ops = ("Sigmoid", "Sigmoid", "Sigmoid", "Tanh")
    found = [reader.terms(reader.argument(gate, op), width) for gate, op in zip(gates, ops)]
    known = tuple(terms for terms in found if terms is not None and not terms.others)
    if len(known) < len(found) or not known[0].weights or len(known[0].weights) > 2:
        return None
    return known if all(set(t.weights) == set(known[0].weights) for t in known) else None
