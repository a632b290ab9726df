"""What kernel calls cost, as a manifest holds it."""

from __future__ import annotations

import json

import pytest

from graphopt.analysis.cost import Cost, fused_cost, node_cost
from graphopt.analysis.program import describe, evaluate, to_json
from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym
from graphopt.testing import parse

N, M = Sym.named("N"), Sym.named("M")


@pytest.mark.parametrize(
    ("dim", "value"),
    [
        (7, 7),
        (N * 3 + 2, 17),
        (N * N * M, 50),
        (dims.floordiv(N, M) + 1, 3),
        (dims.maximum(N, M * 4), 8),
        (dims.minimum(dims.floordiv(N * 2, 3), M), 2),
    ],
)
def test_sizes_survive_json(dim: Dim, value: int) -> None:
    assert evaluate(json.loads(json.dumps(to_json(dim))), {"N": 5, "M": 2}) == value


def test_a_size_that_nobody_knows() -> None:
    assert evaluate(to_json(N + M), {"N": 5}) is None
    assert evaluate(to_json(dims.floordiv(N, M)), {"N": 5}) is None
    assert evaluate(None, {}) is None


def test_what_passes_between_fused_nodes_is_not_moved() -> None:
    graph = parse("(float[N] x) => (float[N] y) { a = Exp(x)  y = Neg(a) }")
    exp, neg = graph.nodes
    assert fused_cost([exp, neg]) == Cost(2 * N, 4 * N, 4 * N)
    assert fused_cost([exp]) == node_cost(exp)


def test_what_others_read_too_is_written() -> None:
    graph = parse("(float[N] x) => (float[N] y, float[N] a) { a = Exp(x)  y = Neg(a) }")
    assert fused_cost(list(graph.nodes)) == Cost(2 * N, 8 * N, 8 * N)


def test_entries() -> None:
    graph = parse("(float[N] x) => (float[N] y) { a = Exp(x)  y = Neg(a) }")
    (entry,) = describe(graph, [("fused_exp_neg", list(graph.nodes))])
    assert entry["kernel"] == "fused_exp_neg"
    assert entry["ops"] == ["Exp", "Neg"]
    assert evaluate(entry["flops"], {"N": 3}) == 6
    assert evaluate(entry["bytes"], {"N": 3}) == 24


def test_costs_known_at_run_time_only() -> None:
    graph = parse("(float[N] x, int64[K] s) => (y) { a = Reshape(x, s)  y = Exp(a) }")
    (entry,) = describe(graph, [("exp", [list(graph.nodes)[-1]])])
    assert entry["flops"] is None
