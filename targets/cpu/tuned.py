"""Gives the kernels of a legalized graph the parameters that a tuner chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from graphopt.ir.dims import product, substitute, symbols
from graphopt.ir.graph import Graph, Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.gemm_family import (
    Bf16GemmFamily,
    GemmFamily,
    GemmProblem,
    Int8GemmFamily,
)
from graphopt.targets.cpu.kernels import dot
from graphopt.targets.cpu.kernels.bfloat16 import Words
from graphopt.targets.cpu.lookup_family import (
    LEAST_BYTES,
    LookupFamily,
    LookupProblem,
    PoolingFamily,
    PoolingProblem,
)
from graphopt.targets.tuning.family import KernelFamily
from graphopt.targets.tuning.tuner import Tuner

_BAG = 20  # ids, where a bag has any number of them


def choose_params(graph: Graph, tuner: Tuner) -> None:
    """Tune what the graph needs and set the attribute `params` of its layers and lookups.

    Raises:
        TuningMissError: the cache had to know them all and does not.
    """
    tasks = dict(_tasks(graph, tuner.tuning.batches))
    tuner.tune_all(tasks.values())
    for node, (family, problem) in tasks.items():
        node.attrs["params"] = tuner.params(family, problem)


def _tasks(graph: Graph, batches: Sequence[int]) -> Iterator[tuple[Node, tuple[KernelFamily, Any]]]:
    """The nodes whose kernels have parameters, with their families and problems."""
    floats, lookups, bags = GemmFamily(), LookupFamily(), PoolingFamily()
    bytes_ = Int8GemmFamily()
    narrow: dict[Words, Bf16GemmFamily] = {}
    for node in graph.walk():
        if node.op == f"{DOMAIN}::Dense":
            words = node.attrs.get("words")
            if node.attrs.get("amx") or (words is not None and words.tiles):
                continue  # tiles have nothing to choose
            if "data" in node.attrs:
                yield node, (bytes_, _layer(node, batches))
            elif words is not None:
                rounded = narrow.setdefault(words, Bf16GemmFamily(words))
                yield node, (rounded, _layer(node, batches))
            elif _is_gemm(node):
                yield node, (floats, _layer(node, batches))
        elif node.op == "Gather" and (lookup := _lookup(node)) is not None:
            yield node, (lookups, lookup)
        elif node.op == "graphopt::EmbeddingBag" and (pooling := _pooling(node)) is not None:
            yield node, (bags, pooling)


def _is_gemm(layer: Node) -> bool:
    """True unless the layer is so narrow that another kernel serves it."""
    weights = layer.const(1)
    assert weights is not None
    k, n = weights.shape
    return not dot.suits(k, n, layer.attrs["lanes"])


def _layer(layer: Node, batches: Sequence[int]) -> GemmProblem:
    data, weights = layer.inputs[0], layer.const(1)
    assert data is not None and weights is not None
    count = product(data.tensor.dims[:-1])
    # Every free size stands for the batch: the lengths of histories are not known either.
    rows = {substitute(count, dict.fromkeys(symbols(count), batch).get) for batch in batches}
    known = tuple(sorted(number for number in rows if isinstance(number, int)))
    k, n = weights.shape
    far = bool(layer.attrs.get("far"))
    return GemmProblem(k, n, layer.attrs["lanes"], known or tuple(batches), far)


def _lookup(node: Node) -> LookupProblem | None:
    """Of whole rows of a table that is larger than a cache."""
    table, ids = node.const(0), node.inputs[1]
    if table is None or ids is None or ids.const is not None or node.attr("axis") % table.ndim:
        return None
    if table.nbytes < LEAST_BYTES or table.ndim < 2:
        return None
    return LookupProblem.of(len(table), table[0].size, str(node.output.dtype), ids.dtype)


def _pooling(node: Node) -> PoolingProblem | None:
    """Of a table that is larger than a cache."""
    table, ids = node.const(0), node.inputs[1]
    if table is None or ids is None or node.output.dtype != "float32":
        return None
    if table.nbytes < LEAST_BYTES:
        return None
    length = ids.tensor.dims[1] if node.input(2) is None else None
    known = length if isinstance(length, int) and length else _BAG
    stands = LookupProblem.of(len(table), table[0].size, "float32", ids.dtype)
    mode = node.attr("mode", "sum")
    return PoolingProblem(stands.rows, stands.width, ids.dtype, known, mode)
