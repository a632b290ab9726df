"""Exported embedding bags are raised; what only resembles one is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph, Node
from graphopt.ir.verifier import verify
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.passes import _bag_proof, _execution
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.pipeline.base import Fidelity, PassContext
from graphopt.testing import (
    Compiled,
    assert_rewrites,
    assert_unchanged,
    parse,
    run_onnxruntime,
)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "bags.npz"
ROWS, PADDING = 11, 2
INF = float("inf")
RTOL, ATOL = Fidelity.REASSOCIATES.tolerance


@cache
def exported() -> dict[str, bytes]:
    with np.load(FIXTURES) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


NAMES = sorted(exported())
PLAIN = [name for name in NAMES if name.endswith("d") and name[-2].isdigit()]


def graph_of(name: str) -> Graph:
    return onnx_io.from_proto(onnx.load_from_string(exported()[name]))


def raised(graph: Graph) -> PassContext:
    ctx = PassContext()
    RaiseEmbeddingBag().run(graph, ctx)
    verify(graph)
    return ctx


def bags_of(graph: Graph) -> list[Node]:
    return [node for node in graph.walk() if node.op == "graphopt::EmbeddingBag"]


def loops_of(graph: Graph) -> list[Node]:
    return [node for node in graph.walk() if node.op in ("Loop", "Scan")]


def feeds_of(graph: Graph, rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
    """Inputs with bags empty at the start, in the middle and at the end, padding, negative ids."""
    rng = np.random.default_rng(7)
    for bags, count in [(3, 9), (1, 4), (1, 1), (5, 3), (64, 200), (7, 7), (2, 40)]:
        for kind in ("random", "all first", "all last"):
            feeds = {}
            for value in graph.inputs:
                sizes = [d if isinstance(d, int) else {"n": count, "k": 3}.get(d.text, bags) for d in value.tensor.dims]
                if value.name == "ids":
                    ids = rng.integers(-rows, rows, sizes)
                    array = np.where(rng.random(sizes) < 0.3, PADDING, ids)
                elif value.name == "weights":
                    array = rng.choice([-1.5, 0.0, 0.25, 3.0], sizes)
                elif value.name == "lengths":
                    array = rng.multinomial(count, np.ones(sizes[0]) / sizes[0])
                else:
                    array = offsets_of(rng, kind, sizes, count)
                feeds[value.name] = array.astype(value.dtype)
            static = {v.name: v.tensor.dims for v in graph.inputs}
            if "offsets" in feeds and isinstance(static["ids"][-1], int):
                feeds["offsets"] = np.minimum(feeds["offsets"], static["ids"][-1])
            yield feeds


def offsets_of(rng: np.random.Generator, kind: str, sizes: list[int], count: int) -> np.ndarray:
    ends = {"random": rng.integers(0, count + 1, sizes), "all first": np.full(sizes, count)}
    array = np.sort(ends.get(kind, np.zeros(sizes, int)), axis=-1)
    array[..., 0] = 0
    return array


def closed(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds with an offset more, that says where the last bag ends."""
    ends = np.append(feeds["offsets"], len(feeds["ids"])).astype(np.int64)
    return {**feeds, "offsets": ends}
