"""Each invariant, broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from graphopt.ir.graph import Graph, Node, Use, Value
from graphopt.ir.types import TensorType
from graphopt.ir.verifier import BrokenGraphError, verify
from graphopt.testing import parse

TEXT = """(float[N] x, bool c) => (float[N] y, float[N] z) {
    a = Exp(x)
    y = If(c) <
        then_branch = t () => (float[N] p) { p = Neg(a) },
        else_branch = e () => (float[N] q) { q = Abs(x) }
    >
    z = Relu(a)
}"""


def parts() -> tuple[Graph, list[Node]]:
    graph = parse(TEXT)
    return graph, list(graph.nodes)


def test_a_sound_graph_passes() -> None:
    verify(parts()[0])


def forgotten_use(graph: Graph, nodes: list[Node]) -> None:
    del nodes[0].output._uses[Use(nodes[2], 0)]


def invented_use(graph: Graph, nodes: list[Node]) -> None:
    graph.inputs[1]._uses[Use(nodes[2], 0)] = None


def read_before_computed(graph: Graph, nodes: list[Node]) -> None:
    graph.move(nodes[0], None)


def read_from_another_graph(graph: Graph, nodes: list[Node]) -> None:
    stranger = Value("stranger", TensorType("float32", ()))
    nodes[2].inputs = (stranger,)


def output_of_a_branch_read_outside(graph: Graph, nodes: list[Node]) -> None:
    (inner,) = nodes[1].attrs["then_branch"].nodes
    graph.set_input(nodes[2], 0, inner.output)


def lost_owner(graph: Graph, nodes: list[Node]) -> None:
    nodes[1].attrs["then_branch"].owner = nodes[0]


def wrong_parent(graph: Graph, nodes: list[Node]) -> None:
    nodes[1].attrs["then_branch"].parent = None


def lost_graph(graph: Graph, nodes: list[Node]) -> None:
    nodes[2].graph = nodes[1].attrs["then_branch"]


def two_producers(graph: Graph, nodes: list[Node]) -> None:
    nodes[2].outputs = nodes[0].outputs


def lost_producer(graph: Graph, nodes: list[Node]) -> None:
    nodes[2].output.producer = nodes[0]


def unknown_op(graph: Graph, nodes: list[Node]) -> None:
    nodes[2].op_type = "Reluu"


def unknown_attribute(graph: Graph, nodes: list[Node]) -> None:
    nodes[2].attrs["alpha"] = 1.0


def too_many_operands(graph: Graph, nodes: list[Node]) -> None:
    value = nodes[0].output
    nodes[2].inputs = (value, value)
    value._uses[Use(nodes[2], 1)] = None


def no_dtype(graph: Graph, nodes: list[Node]) -> None:
    nodes[2].output.type = TensorType("", ())


def two_inputs_of_one_name(graph: Graph, nodes: list[Node]) -> None:
    graph.inputs[1].name = "x"


def two_outputs_of_one_name(graph: Graph, nodes: list[Node]) -> None:
    graph.output_names = ["y", "y"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forgotten_use, "uses are not exact"),
        (invented_use, "uses are not exact"),
        (read_before_computed, "not computed before it"),
        (read_from_another_graph, "not computed before it"),
        (output_of_a_branch_read_outside, "not computed before it"),
        (lost_owner, "does not know its owner"),
        (wrong_parent, "does not know its owner"),
        (lost_graph, "does not know its graph"),
        (two_producers, "exactly one node"),
        (lost_producer, "exactly one node"),
        (unknown_op, "no such op"),
        (unknown_attribute, "unknown attributes"),
        (too_many_operands, "2 inputs"),
        (no_dtype, "no dtype"),
        (two_inputs_of_one_name, "two inputs"),
        (two_outputs_of_one_name, "two outputs"),
    ],
)
def test_damage_is_found(damage: Callable[[Graph, list[Node]], None], message: str) -> None:
    graph, nodes = parts()
    damage(graph, nodes)
    with pytest.raises(BrokenGraphError, match=message):
        verify(graph)
