"""Steps of a GRU that follow one another, and the sequences that they read."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Graph, Value
from graphopt.passes._gru_step import Step, gru_step
from graphopt.passes._shapes import ints_of
from graphopt.rewrite.rewriter import Rewriter


def chains(graph: Graph) -> list[list[Step]]:
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


@dataclass(frozen=True)
class Positions:
    """Positions 0 to `steps` - 1 along `axis` (0 or 1) of `source`; the other one is the batch."""

    source: Value
    axis: int
    steps: int

    @staticmethod
    def of(values: list[Value | None]) -> Positions | None:
        """The sequence that `values` are the positions of; None if they are not."""
        gathers = [v.producer for v in values if v is not None and v.producer is not None]
        if len(gathers) < len(values) or any(node.op != "Gather" for node in gathers):
            return None
        source, axis = gathers[0].inputs[0], gathers[0].attr("axis")
        for position, node in enumerate(gathers):
            place = node.inputs[1]
            if node.inputs[0] is not source or node.attr("axis") != axis:
                return None
            if place is None or place.rank != 0 or ints_of(place) != [position]:
                return None
        if source is None or source.rank != 3 or axis not in (0, 1):
            return None
        return Positions(source, axis, len(values))

    def time_first(self, rw: Rewriter) -> Value:
        """It as [steps, batch, …]."""
        value = self.source
        if value.tensor.dims[self.axis] != self.steps:
            value = rw.op.Gather(value, rw.ints(*range(self.steps)), axis=self.axis)
        return value if self.axis == 0 else rw.op.Transpose(value, perm=[1, 0, 2])
