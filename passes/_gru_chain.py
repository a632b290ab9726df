"""Steps of a GRU that follow one another."""

from __future__ import annotations

from graphopt.ir.graph import Graph, Value
from graphopt.passes._gru_step import Step, gru_step


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
