"""Sequences that a recurrent layer reads position by position."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Value
from graphopt.passes._shapes import ints_of
from graphopt.rewrite.rewriter import Rewriter


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
