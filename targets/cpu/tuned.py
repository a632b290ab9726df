"""Gives the dense layers of a legalized graph the parameters that a tuner chooses."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir.dims import product, substitute, symbols
from graphopt.ir.graph import Graph, Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.gemm_family import Bf16GemmFamily, GemmFamily, GemmProblem
from graphopt.targets.cpu.kernels import dot
from graphopt.targets.tuning.tuner import Tuner


def choose_params(graph: Graph, tuner: Tuner) -> None:
    """Tune what the graph needs and set the attribute `params` of its dense layers.

    Raises:
        TuningMissError: the cache had to know them all and does not.
    """
    batches = tuner.tuning.batches
    layers = [node for node in graph.walk() if node.op == f"{DOMAIN}::Dense" and _is_gemm(node)]
    for words in dict.fromkeys(layer.attrs.get("words") for layer in layers):
        family = GemmFamily() if words is None else Bf16GemmFamily(words)
        alike = [layer for layer in layers if layer.attrs.get("words") == words]
        problems = {layer: _problem(layer, batches) for layer in alike}
        tuner.tune(family, problems.values())
        for layer, problem in problems.items():
            layer.attrs["params"] = tuner.params(family, problem)


def _is_gemm(layer: Node) -> bool:
    """True unless the layer is so narrow that another kernel serves it."""
    weights = layer.const(1)
    assert weights is not None
    k, n = weights.shape
    return not dot.suits(k, n, layer.attrs["lanes"])


def _problem(layer: Node, batches: Sequence[int]) -> GemmProblem:
    data, weights = layer.inputs[0], layer.const(1)
    assert data is not None and weights is not None
    count = product(data.tensor.dims[:-1])
    # Every free size stands for the batch: the lengths of histories are not known either.
    rows = {substitute(count, dict.fromkeys(symbols(count), batch).get) for batch in batches}
    known = tuple(sorted(number for number in rows if isinstance(number, int)))
    k, n = weights.shape
    return GemmProblem(k, n, layer.attrs["lanes"], known or tuple(batches))
