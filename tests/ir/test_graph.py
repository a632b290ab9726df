"""Edges are exact, order is kept, and nothing in use can be removed."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Node, Use, Value
from graphopt.ir.printer import to_text
from graphopt.ir.types import TensorType
from graphopt.ir.verifier import verify

N = Sym.named("N")


def chain(*ops: str) -> tuple[Graph, Value, list[Node]]:
    """x → op → op → … → output."""
    graph = Graph("g", {"": 18})
    value = x = graph.add_input("x", TensorType("float32", (N, 4)))
    nodes = []
    for op in ops:
        nodes.append(graph.insert(op, [value], origin=[f"source {op}"]))
        value = nodes[-1].output
    graph.set_outputs([value], ["y"])
    return graph, x, nodes


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_every_use_is_known() -> None:
    graph, x, (relu, neg) = chain("Relu", "Neg")
    assert x.uses == (Use(relu, 0),) and x.users == (relu,)
    assert relu.output.uses == (Use(neg, 0),)
    assert neg.output.uses == (Use(graph, 0),) and neg.output.is_graph_output
    total = graph.insert("Add", [x, x])
    assert x.uses == (Use(relu, 0), Use(total, 0), Use(total, 1)) and x.users == (relu, total)


def test_nodes_go_where_they_are_put() -> None:
    graph, x, (relu, neg) = chain("Relu", "Neg")
    graph.insert("Abs", [x], before=relu)
    graph.insert("Exp", [x], before=neg)
    graph.insert("Log", [x])
    assert ops(graph) == ["Abs", "Relu", "Exp", "Neg", "Log"] and len(graph) == 5


@pytest.mark.parametrize(
    ("moved", "before", "wanted"),
    [
        (0, None, ["Neg", "Exp", "Relu"]),
        (2, 0, ["Exp", "Relu", "Neg"]),
        (1, 2, ["Relu", "Neg", "Exp"]),
        (1, 1, ["Relu", "Neg", "Exp"]),
        (2, None, ["Relu", "Neg", "Exp"]),
    ],
)
def test_nodes_can_be_moved(moved: int, before: int | None, wanted: list[str]) -> None:
    graph = Graph("g", {"": 18})
    x = graph.add_input("x", TensorType("float32", (N,)))
    nodes = [graph.insert(op, [x]) for op in ("Relu", "Neg", "Exp")]
    graph.move(nodes[moved], None if before is None else nodes[before])
    assert ops(graph) == wanted
    assert [node.op for node in list(graph.nodes)[::-1]] == wanted[::-1]


def test_what_is_in_use_cannot_be_erased() -> None:
    graph, x, (relu, neg) = chain("Relu", "Neg")
    with pytest.raises(AssertionError, match="still in use"):
        graph.erase(relu)
    with pytest.raises(AssertionError, match="still in use"):
        graph.erase(neg)
    graph.set_outputs([x])
    graph.erase(neg)
    graph.erase(relu)
    assert len(graph) == 0 and x.uses == (Use(graph, 0),) and relu.graph is None
    with pytest.raises(AssertionError, match="not in this graph"):
        graph.erase(relu)


def test_uses_are_replaced_and_output_names_stay() -> None:
    graph, x, (relu, neg) = chain("Relu", "Neg")
    graph.replace_uses(neg.output, x)
    assert graph.outputs == (x,) and graph.output_names == ["y"] and not neg.output.uses
    graph.replace_uses(relu.output, relu.output)
    assert relu.output.uses == (Use(neg, 0),)


def test_types_follow_what_is_rewired() -> None:
    graph, _, (relu, neg) = chain("Relu", "Neg")
    other = graph.add_input("z", TensorType("float32", (7, 3)))
    graph.set_input(relu, 0, other)
    assert str(neg.output.type) == "f32[7, 3]"
    graph.set_attr(cast := graph.insert("Cast", [neg.output], {"to": 7}), "to", 11)
    assert cast.output.dtype == "float64"
    graph.set_attr(softmax := graph.insert("Softmax", [neg.output], {"axis": 0}), "axis", None)
    assert softmax.attrs == {} and softmax.attr("axis") == -1


def test_nodes_may_come_and_go_while_iterating() -> None:
    graph = Graph("g", {"": 18})
    x = graph.add_input("x", TensorType("float32", (N,)))
    nodes = [graph.insert("Relu", [x]) for _ in range(5)]
    seen = []
    for node in graph.nodes:
        seen.append(node)
        if node is nodes[1]:
            graph.insert("Neg", [x], before=nodes[2])
            graph.erase(nodes[1])
            graph.erase(nodes[3])
        if node is nodes[4]:
            graph.insert("Exp", [x])
    # What took the place of an erased node is not visited; what was appended is.
    assert seen[:4] == [nodes[0], nodes[1], nodes[2], nodes[4]]
    assert [node.op for node in seen[4:]] == ["Exp"]


def test_iteration_goes_on_behind_a_run_of_erased_nodes() -> None:
    graph = Graph("g", {"": 18})
    x = graph.add_input("x", TensorType("float32", (N,)))
    nodes = [graph.insert("Relu", [x]) for _ in range(5)]
    seen = []
    for node in graph.nodes:
        seen.append(node)
        if node is nodes[1]:
            for victim in nodes[1:4]:
                graph.erase(victim)
    assert seen == [nodes[0], nodes[1], nodes[4]]


def with_branch() -> tuple[Graph, Value, Value, Node]:
    """y = If(c): Relu(h) else: Neg(x), where h = Exp(x)."""
    graph = Graph("g", {"": 18})
    x = graph.add_input("x", TensorType("float32", (N,)))
    condition = graph.add_input("c", TensorType("bool", ()))
    hidden = graph.insert("Exp", [x]).output
    branches = {}
    for name, op, value in (("then_branch", "Relu", hidden), ("else_branch", "Neg", x)):
        branches[name] = Graph(name, parent=graph)
        made = branches[name].insert(op, [value])
        branches[name].set_outputs([made.output], ["out"])
    node = graph.insert("If", [condition], branches)
    graph.set_outputs([node.output], ["y"])
    return graph, x, hidden, node


def test_a_subgraph_uses_what_it_captures() -> None:
    graph, x, hidden, node = with_branch()
    verify(graph)
    branch = node.attrs["then_branch"]
    (relu,) = branch.nodes
    assert hidden.uses == (Use(relu, 0),)
    assert branch.opsets is graph.opsets and branch.owner is node
    assert [n.op for n in graph.walk()] == ["Exp", "If", "Relu", "Neg"]
    assert str(node.output.type) == "f32[N]"
    graph.set_outputs([x])
    graph.erase(node)
    assert hidden.uses == () and Use(graph, 0) in x.uses


def test_types_propagate_through_subgraphs() -> None:
    graph, x, hidden, node = with_branch()
    other = graph.add_input("z", TensorType("float32", (3,)))
    graph.replace_uses(x, other)
    assert str(hidden.type) == "f32[3]" and str(node.output.type) == "f32[3]"


def test_constants_are_listed_once_in_order_of_use() -> None:
    graph, x, _ = chain("Relu")
    b, a = (graph.constant(np.float32([k])) for k in (1, 2))
    total = graph.insert("Add", [graph.insert("Add", [x, a]).output, b]).output
    doubled = graph.insert("Mul", [total, a]).output
    graph.set_outputs([doubled, b], ["y", "z"])
    assert graph.constants() == [a, b]


def test_a_copy_is_equal_and_apart() -> None:
    graph, _, hidden, node = with_branch()
    weight = graph.constant(np.arange(3, dtype=np.float32))
    graph.set_outputs([graph.insert("Add", [node.output, weight]).output])
    copy = graph.clone()
    verify(copy)
    assert to_text(copy) == to_text(graph)
    assert copy.constants()[0].const is weight.const
    for original, twin in zip(graph.walk(), copy.walk()):
        assert original is not twin and original.origin == twin.origin
        assert [v.name for v in original.outputs] == [v.name for v in twin.outputs]
    before = to_text(graph)
    copy.set_outputs([copy.inputs[0]])
    while len(copy):
        copy.erase(list(copy.nodes)[-1])
    assert to_text(graph) == before and hidden.uses


def test_a_copy_keeps_what_was_known_beyond_inference() -> None:
    graph, _, (relu,) = chain("Relu")
    relu.output.type = TensorType("float32", (5, 4))
    assert str(graph.clone().outputs[0].type) == "f32[5, 4]"


def test_made_up_names_and_sizes_are_new() -> None:
    graph = Graph("g", {"": 18})
    graph.add_input("x", TensorType("float32", (Sym.named("d0"), Sym.named("d1") * 2)))
    assert [str(graph.fresh_dim()) for _ in range(2)] == ["d2", "d3"]
    copy = graph.clone()
    assert str(copy.fresh_dim()) == "d4" and str(graph.fresh_dim()) == "d4"
    assert graph.fresh_name("a") != graph.fresh_name("a")


def test_what_a_node_is_called_in_front_of_the_user() -> None:
    graph, x, (relu,) = chain("Relu")
    assert relu.where == ("source Relu",)
    assert graph.insert("Neg", [x], outputs=["n"]).where == ("n",)
    assert graph.insert("Neg", [x], origin=["a", "b", "a"]).origin == ("a", "b")


def test_omitted_operands_read_as_none() -> None:
    graph, x, _ = chain("Relu")
    clip = graph.insert("Clip", [x, None, graph.constant(np.float32(6))])
    assert clip.input(1) is None and clip.input(5) is None and clip.const(1) is None
    assert clip.const(2) == 6 and clip.const(0) is None
