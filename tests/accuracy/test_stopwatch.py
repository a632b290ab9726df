"""Changes that make their own layer slower on the target are told apart from those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphopt.accuracy.budget import Speed, Spending
from graphopt.accuracy.datasets import in_batches
from graphopt.accuracy.judge import Judge
from graphopt.accuracy.metrics import find
from graphopt.accuracy.stopwatch import Stopwatch, Timed, multiply_bytes
from graphopt.accuracy.workbench import Workbench
from graphopt.checking.verification import signature_of
from graphopt.deployment.writing import temporary_artifact
from graphopt.errors import UnsupportedOpError
from graphopt.ir.graph import Graph, Value
from graphopt.pipeline.base import Proposal
from graphopt.serving.signature import Signature
from graphopt.targets.base import find as target
from graphopt.testing import parse

TWO_LAYERS = """(int64[N] ids, float[N,8] x) => (float[N,4] y)
<float[1000,8] table, float[8,8] a, float[8,4] b> {
    rows = Gather(table, ids)
    s = Add(rows, x)
    u = MatMul(s, a)
    y = MatMul(u, b)
}"""


class Machine:
    """Compiles nothing; a MatMul takes as many nanoseconds as `cost` says of its weight."""

    def __init__(self, cost: Any) -> None:
        self.cost, self.graphs = cost, list[Graph]()

    def build(self, graph: Graph) -> _Program:
        self.graphs.append(graph)
        return _Program(graph, self.cost)


class _Program:
    def __init__(self, graph: Graph, cost: Any) -> None:
        self.signature: Signature = signature_of(graph)
        layers = [node for node in graph.nodes if node.op == "MatMul"]
        self.manifest = {"program": [{"sources": node.where} for node in layers]}
        self.took = np.array([cost(node.const(1)) for node in layers])
        self.seen = list[int]()

    def profile(self, feeds: Mapping[str, Any]) -> np.ndarray:
        assert feeds.keys() == {spec.name for spec in self.signature.inputs}
        self.seen.append(len(next(iter(feeds.values()))))
        return self.took


def doubled(graph: Graph, site: str, **flags: bool) -> Proposal:
    """The layer `site` with its weight times two."""

    def apply(copy: Graph, values: Mapping[Value, Value]) -> None:
        layer = next(n for n in copy.nodes if values[_named(graph, site)] in n.outputs)
        weight = layer.const(1)
        assert weight is not None
        copy.set_input(layer, 1, copy.constant(2 * weight))

    return Proposal(site, "double", 1, 0.0, apply, **flags)


def _named(graph: Graph, name: str) -> Value:
    return next(v for node in graph.nodes for v in node.outputs if v.name == name)


def data(rows: int = 600) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 8)).astype(np.float32)
    return in_batches({"ids": rng.integers(0, 1000, rows), "x": x})


def slower(machine: Machine, graph: Graph, **flags: bool) -> set[str]:
    tried = [doubled(graph, site, may_slow=True, **flags) for site in ("u", "y")]
    watch = Stopwatch(machine.build)
    return {p.site for p in watch.slower(graph, [], tried, data(), Workbench())}


@pytest.fixture
def graph() -> Graph:
    graph = parse(TWO_LAYERS)
    for node in graph.nodes:
        if node.op == "MatMul":
            weight = node.const(1)
            assert weight is not None
            graph.set_input(node, 1, graph.constant(np.ones_like(weight)))
    return graph


def test_each_layer_is_timed_by_itself(graph: Graph) -> None:
    """Twice the weight costs the narrow layer more, and the other one less."""
    costs = {(8, 2.0): 100.0, (8, 1.0): 200.0, (4, 1.0): 100.0, (4, 2.0): 120.0}
    machine = Machine(lambda weight: costs[weight.shape[1], float(weight[0, 0])])
    assert slower(machine, graph) == {"y"}


def test_a_small_difference_decides_nothing(graph: Graph) -> None:
    assert not slower(Machine(lambda weight: 100.0 + 5 * float(weight[0, 0])), graph)


def test_tables_are_left_out(graph: Graph) -> None:
    machine = Machine(lambda weight: 1.0)
    slower(machine, graph)
    assert len(machine.graphs) == 2
    for built in machine.graphs:
        assert [n.op for n in built.nodes] == ["Add", "MatMul", "MatMul"]
        assert {v.name for v in built.inputs} == {"rows", "x"}
    assert any(node.op == "Gather" for node in graph.nodes)


def test_what_is_known_is_not_timed_again(graph: Graph) -> None:
    machine = Machine(lambda weight: float(weight[0, 0]))
    watch, tried = Stopwatch(machine.build), [doubled(graph, "u", may_slow=True)]
    for _ in range(2):
        assert watch.slower(graph, [], tried, data(), Workbench()) == tried
    assert len(machine.graphs) == 2


def test_what_cannot_be_compiled_is_not_called_slower(graph: Graph) -> None:
    def refuse(graph: Graph) -> _Program:
        raise UnsupportedOpError("MatMul", "no kernel")

    tried = [doubled(graph, "u", may_slow=True)]
    assert not Stopwatch(refuse).slower(graph, [], tried, data(), Workbench())


def test_the_driver_leaves_what_is_slower(graph: Graph) -> None:
    machine = Machine(lambda weight: float(weight[0, 0]))
    original = Workbench().load(graph)
    speed = Speed(stopwatch=Stopwatch(machine.build))
    spending = Spending(Judge(original, data(), find("max-error")), 1e9, speed=speed)
    changes = [doubled(graph, "u", may_slow=True), doubled(graph, "y")]
    assert spending.choose(graph, changes) == changes[1:]
    assert spending.taken == 1
    assert replace(spending, speed=Speed()).choose(graph, changes) == changes


@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gemm(x, w)", "Gemm<transB=1>(x, w)"])
def test_a_stand_in_multiplies_bytes(op: str) -> None:
    """Compiled like a layer that was quantized: one kernel, of which only the time is right."""
    graph = parse(f"(float[N,64] x) => (float[N,64] y) <float[64,64] w> {{ y = {op} }}")
    for node in list(graph.nodes):
        multiply_bytes(node)
    lowered = target("cpu:icelake-server").legalize(graph)
    (dense,) = [node for node in lowered.nodes if node.op_type == "Dense"]
    assert "data" in dense.attrs
    assert [node.op_type for node in lowered.nodes] == ["Dense"]


@pytest.mark.parametrize(
    "text",
    [
        "(float[64,N] x) => (float[N,64] y) <float[64,64] w> { y = Gemm<transA=1>(x, w) }",
        "(float[N,2,8] x) => (float[N,2,8] y) <float[2,8,8] w> { y = MatMul(x, w) }",
        "(double[N,8] x) => (double[N,8] y) <double[8,8] w> { y = MatMul(x, w) }",
        "(float[N,8] x, float[8,8] w) => (float[N,8] y) { y = MatMul(x, w) }",
    ],
)
def test_no_stand_in_for_other_products(text: str) -> None:
    graph = parse(text)
    for node in list(graph.nodes):
        multiply_bytes(node)
    assert len(list(graph.nodes)) == 1


def test_artifacts_tell_the_kernels_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel takes as long as any other here, so two factors take longer than their layer."""
    graph = parse(TWO_LAYERS)

    def build(graph: Graph) -> Timed:
        artifact = temporary_artifact(graph, target("cpu"))
        profile = artifact.profile
        monkeypatch.setattr(artifact, "profile", lambda feeds: np.full_like(profile(feeds), 100))
        return artifact

    def factors(copy: Graph, values: dict[Value, Value]) -> None:
        layer = values[_named(graph, "u")].producer
        assert layer is not None
        first = copy.constant(np.eye(8, 4, dtype=np.float32))
        second = copy.constant(np.eye(4, 8, dtype=np.float32))
        thin = copy.insert("MatMul", [layer.inputs[0], first], before=layer, origin=layer.origin)
        both = copy.insert("MatMul", [thin.output, second], before=layer, origin=layer.origin)
        copy.replace_uses(layer.output, both.output)
        copy.erase(layer)

    tried = [
        Proposal("u", "rank 4", 1, 0.0, factors, may_slow=True),
        doubled(graph, "y", may_slow=True),
    ]
    watch = Stopwatch(build, multiplies_bytes=True)
    assert watch.slower(graph, [], tried, data(), Workbench()) == tried[:1]
