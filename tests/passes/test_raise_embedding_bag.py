"""Embedding bags as exporters write them are raised, and give the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph, Node
from graphopt.ir.printer import to_text
from graphopt.ir.types import dtype_to_numpy
from graphopt.ir.verifier import verify
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.passes import _bag_proof
from graphopt.passes._execution import Execution
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.pipeline import presets
from graphopt.pipeline.base import Fidelity, PassContext
from graphopt.pipeline.manager import PassManager
from graphopt.testing import (
    Compiled,
    random_inputs,
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


# This one adds up in float32 what its table holds in float64.
ROUNDS = "dynamo_float64"
NAMES = sorted(set(exported()) - {ROUNDS})
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


def feeds_of(name: str, graph: Graph) -> Iterator[dict[str, np.ndarray]]:
    """Inputs with bags empty at the start, in the middle and at the end, padding, negative ids."""
    rng = np.random.default_rng(7)
    ids_type = graph.inputs[0].tensor
    for bags, wanted in [(3, 9), (1, 4), (1, 1), (5, 3), (64, 200), (7, 7), (2, 40)]:
        last = ids_type.dims[-1]
        count = last if isinstance(last, int) and ids_type.rank == 1 else wanted
        sizes = {"n": count, "k": 3}
        for kind in ("random", "all first", "all last"):
            feeds = {}
            for value in graph.inputs:
                names = [str(d).partition("@")[0] for d in value.tensor.dims]
                shape = [int(n) if n.isdigit() else sizes.get(n, bags) for n in names]
                array = _array(rng, name, value.name, kind, shape, count)
                feeds[value.name] = array.astype(dtype_to_numpy(value.dtype))
            yield feeds


def _array(
    rng: np.random.Generator, model: str, name: str, kind: str, shape: list[int], count: int
) -> np.ndarray:
    if name == "ids":
        if "quotient" in model:
            return rng.integers(0, 70, shape)
        return np.where(rng.random(shape) < 0.3, PADDING, rng.integers(-ROWS, ROWS, shape))
    if name == "weights":
        return rng.choice([-1.5, 0.0, 0.25, 3.0], shape)
    if name == "lengths":
        return rng.multinomial(count, np.full(shape, 1 / shape[0]))
    cuts = {"random": rng.integers(0, count + 1, shape), "all first": np.full(shape, count)}
    offsets = np.sort(cuts.get(kind, np.zeros(shape, int)), axis=-1)
    offsets[..., 0] = 0
    if "csr" in model:
        offsets[-1] = count
    return offsets


# ----------------------------------------------------------------- what exporters write


def expected_bag(name: str) -> EmbeddingBag:
    """The bag that a fixture's name says it is."""
    exporter, mode, *flags = name.split("_")
    # An empty bag is 0, but for the TorchScript exporter's maximum; bags of two ids never are.
    never_empty = "2d" in flags and "padding" not in flags
    lowest = mode == "max" and (exporter == "script" or never_empty)
    padding = PADDING if "padding" in flags else None
    return EmbeddingBag(mode, "csr" in flags, padding, -INF if lowest else 0.0)  # type: ignore


@pytest.mark.parametrize("name", PLAIN)
def test_recognized(name: str) -> None:
    graph = graph_of(name)
    ctx = raised(graph)
    assert ctx.stats.hits == {"loop_to_embedding_bag": 1}
    PassManager().run(graph, presets.O2)
    (node,) = graph.nodes  # nothing of the exporter's code is left
    assert node.op == "graphopt::EmbeddingBag"
    assert EmbeddingBag.of(node) == expected_bag(name)
    given = {value.name for value in node.inputs[1:] if value is not None}
    assert given == {value.name for value in graph.inputs}


@pytest.mark.parametrize("name", NAMES)
def test_same_answers(name: str) -> None:
    graph = graph_of(name)
    original = Execution(onnx_io.to_proto(graph).SerializeToString())
    raised(graph)
    assert not loops_of(graph)
    model = onnx_io.to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    portable = Execution(model.SerializeToString())
    compared = 0
    for feeds in feeds_of(name, graph):
        wanted = original(feeds)
        if wanted is None:  # the dynamo form has no answer for no bags at all
            assert "csr" in name and len(feeds["offsets"]) == 1
            continue
        found = portable(feeds)
        assert found is not None, portable.complaint
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(found, wanted, RTOL, ATOL)
        compared += 1
    assert compared >= 15
    text = to_text(graph)
    assert not RaiseEmbeddingBag().run(graph, PassContext())
    assert to_text(graph) == text


COMPILED = [
    "script_sum_1d", "script_max_1d", "script_columns", "dynamo_mean_csr_1d", "dynamo_any-size",
    "dynamo_sum_weights_padding_2d", "dynamo_max_padding_csr_1d", "dynamo_static",
]  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_same_answers_compiled(name: str) -> None:
    graph = graph_of(name)
    original = Execution(onnx_io.to_proto(graph).SerializeToString())
    raised(graph)
    compiled = Compiled(graph)
    for feeds in feeds_of(name, graph):
        wanted = original(feeds)
        if wanted is not None:
            np.testing.assert_allclose(compiled(feeds)["out"], wanted, RTOL, ATOL)


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", ["one-hot", "arange"])
def test_bags_of_one_id_are_lookups(exporter: str, name: str) -> None:
    graph = graph_of(f"{exporter}_{name}")
    raised(graph)
    PassManager().run(graph, presets.O2)
    assert [n.op for n in graph.nodes if n.op not in ("Reshape", "Squeeze")] == ["Gather"]


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_what_feeds_the_bag_stays(exporter: str) -> None:
    graph = graph_of(f"{exporter}_quotient-remainder")
    raised(graph)
    assert {"Div", "Mul"} <= {node.op for node in graph.nodes}
    assert [bag.inputs[0].shape[0] for bag in bags_of(graph)] == [10, 7]  # type: ignore


def test_ids_are_taken_as_they_come() -> None:
    graph = graph_of("dynamo_columns")
    raised(graph)
    assert [bag.inputs[1].dtype for bag in bags_of(graph)] == ["int32"] * 3  # type: ignore


def test_equal_loops_are_proved_once() -> None:
    _bag_proof._answer.cache_clear()
    raised(graph_of("script_columns"))
    info = _bag_proof._answer.cache_info()
    assert (info.misses, info.hits) == (1, 2)


def test_rounding_to_another_type_is_noticed() -> None:
    graph = graph_of(ROUNDS)
    text, ctx = to_text(graph), raised(graph)
    assert to_text(graph) == text
    ((_, _, reason),) = ctx.stats.refusals
    assert "no sum, mean or maximum" in reason


# --------------------------------------------------------------------------- real models


@pytest.mark.parametrize(
    ("name", "bags"),
    [
        ("dlrm_fb_cli", 13),
        ("dlrm_fb_dynamo", 13),
        ("public_dlrm_loop", 3),
        ("torchrec_dlrm_mean", 8),
        ("torchrec_dlrm_ml100k", 7),
    ],
)
def test_real_model(models: Path, name: str, bags: int) -> None:
    graph = onnx_io.load(models / name / "model.onnx")
    raised(graph)
    assert (len(bags_of(graph)), len(loops_of(graph))) == (bags, 0)
    model = onnx_io.to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    portable = Execution(model.SerializeToString())
    for batch in (1, 7, 64):
        feeds = dict(np.load(models / name / f"inputs_b{batch}.npz"))
        wanted = np.load(models / name / f"expected_b{batch}.npz")[graph.output_names[0]]
        np.testing.assert_allclose(portable(feeds), wanted, RTOL, ATOL)


def test_example(example: Path) -> None:
    graph = onnx_io.load(example)
    raised(graph)
    assert (len(bags_of(graph)), len(loops_of(graph))) == (1, 0)
    feeds = random_inputs(graph, {"batch": 7})
    original = run_onnxruntime(onnx_io.load(example), feeds)
    for name, array in run_onnxruntime(graph, feeds).items():
        np.testing.assert_allclose(array, original[name], RTOL, ATOL)
