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
from graphopt.ir.printer import to_text
from graphopt.ir.types import dtype_to_numpy
from graphopt.ir.verifier import verify
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.passes import _bag_proof, _execution
from graphopt.passes._execution import Execution
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.pipeline.base import Fidelity, PassContext
from graphopt.testing import (
    Compiled,
    assert_keeps_outputs,
    assert_rewrites,
    assert_unchanged,
    parse,
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
                shape = [d if isinstance(d, int) else sizes.get(d.text, bags) for d in value.tensor.dims]
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
    # An empty bag is 0, but for the TorchScript exporter's maximum; a bag of two ids is never empty.
    never_empty = "2d" in flags and "padding" not in flags
    lowest = mode == "max" and (exporter == "script" or never_empty)
    padding = PADDING if "padding" in flags else None
    return EmbeddingBag(mode, "csr" in flags, padding, -INF if lowest else 0.0)  # type: ignore


@pytest.mark.parametrize("name", PLAIN)
def test_recognized(name: str) -> None:
    graph = graph_of(name)
    ctx = raised(graph)
    assert ctx.stats.hits == {"loop_to_embedding_bag": 1}
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


# ----------------------------------------------------- other forms, written by hand

LOOP = """
(float[50,4] table, int64[n] ids, int64[b] offsets{inputs}) => (float[b,4] pooled)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 none = {{0}}, int64 some = {{20}},
 int64 many = {{100000}}, int64 size = {{50}}, int64[1] far = {{9223372036854775807}},
 bool yes = {{1}}, float two = {{2}}, float tiny = {{1e-6}}, float[4] zeros = {{0, 0, 0, 0}}>
{{
    {before}
    n = Shape(ids)
    bounds = Concat<axis=0>(offsets, n)
    ends = Slice(bounds, one, far)
    b = Size(ends)
    pooled = Loop(b, yes) <
        body = bag (int64 i, bool go) => (bool goes_on, float[4] row) {{
            start = Gather(bounds, i)
            given_end = Gather(ends, i)
            {end}
            start_1 = Unsqueeze(start, zero)
            end_1 = Unsqueeze(end, zero)
            own = Slice({ids}, start_1, end_1)
            {rows}
            {row}
            goes_on = Identity(go)
        }}
    >
}}"""
SUM = "row = ReduceSum<keepdims=0>(rows, zero)"


def loop(
    row: str = SUM,
    rows: str = "rows = Gather(table, own)",
    end: str = "end = Identity(given_end)",
    before: str = "",
    ids: str = "ids",
    inputs: str = "",
) -> str:
    return LOOP.format(row=row, rows=rows, end=end, before=before, ids=ids, inputs=inputs)


def bag(attrs: str, inputs: str = "table, ids, offsets", more: str = "") -> str:
    return f"""
        (float[50,4] table, int64[n] ids, int64[b] offsets{more}) => (float[b,4] pooled) {{
            pooled = graphopt.EmbeddingBag<{attrs}>({inputs})
        }}"""


WEIGHTED = """
    w = Slice(weights, start_1, end_1)
    w_1 = Unsqueeze(w, one)
    weighted = Mul(rows, w_1)
    """
LENGTH = """
    total = ReduceSum<keepdims=0>(rows, zero)
    length = Sub(end, start)
    """


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (loop(), bag('mode="sum", empty=0.0')),
        (
            loop(WEIGHTED + "row = ReduceMean<keepdims=0>(weighted, zero)", inputs=", float[n] weights"),
            bag('mode="mean", empty=0.0', "table, ids, offsets, weights", ", float[n] weights"),
        ),
        (
            loop(LENGTH + """
                at_least_1 = Max(length, one)
                count = Cast<to=1>(at_least_1)
                row = Div(total, count)"""),
            bag('mode="mean", empty=0.0'),
        ),
        (
            loop(rows="""
                all_rows = Gather(table, own)
                row_numbers = Mod(own, size)
                is_padding = Equal(row_numbers, some)
                mask = Unsqueeze(is_padding, one)
                rows = Where(mask, zeros, all_rows)"""),
            bag('mode="sum", empty=0.0, padding_idx=20'),
        ),
    ],
    ids=["sum", "weighted mean", "mean by division", "padding by a mask"],
)  # fmt: skip
def test_forms_of_the_row(text: str, wanted: str) -> None:
    assert_rewrites(RaiseEmbeddingBag(), text, wanted, sizes={"n": 6, "b": 4})


def test_rows_collected_in_a_tensor() -> None:
    assert_rewrites(
        RaiseEmbeddingBag(),
        """
        (float[9,4] table, int64[n] ids, int64[b] offsets) => (float[b,4] pooled)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[2] shape = {0, 4}, bool yes = {1}>
        {
            n = Shape(ids)
            bounds = Concat<axis=0>(offsets, n)
            b = Size(offsets)
            nothing = ConstantOfShape(shape)
            pooled = Loop(b, yes, nothing) <
                body = bag (int64 i, bool go, float[k,4] before) => (bool goes_on, float[l,4] after) {
                    i_1 = Unsqueeze(i, zero)
                    j_1 = Add(i_1, one)
                    start = Gather(bounds, i_1)
                    end = Gather(bounds, j_1)
                    own = Slice(ids, start, end)
                    rows = Gather(table, own)
                    row = ReduceMax<keepdims=1>(rows, zero)
                    after = Concat<axis=0>(before, row)
                    goes_on = Identity(go)
                }
            >
        }""",
        """
        (float[9,4] table, int64[n] ids, int64[b] offsets) => (float[b,4] pooled) {
            pooled = graphopt.EmbeddingBag<mode="max", empty=-inf>(table, ids, offsets)
        }""",
        sizes={"n": 6, "b": 4},
    )


def test_scan() -> None:
    assert_rewrites(
        RaiseEmbeddingBag(),
        """
        (float[9,4] table, int64[n] ids, int64[m] offsets) => (float[b,4] pooled)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1}, int64[1] far = {2147483647}>
        {
            starts = Slice(offsets, zero, last)
            ends = Slice(offsets, one, far)
            pooled = Scan<num_scan_inputs=2, body = bag (int64 start, int64 end) => (float[4] row) {
                start_1 = Unsqueeze(start, zero)
                end_1 = Unsqueeze(end, zero)
                own = Slice(ids, start_1, end_1)
                rows = Gather(table, own)
                row = ReduceSum<keepdims=0>(rows, zero)
            }>(starts, ends)
        }""",
        """
        (float[9,4] table, int64[n] ids, int64[m] offsets) => (float[b,4] pooled) {
            pooled = graphopt.EmbeddingBag<mode="sum", empty=0.0, include_last_offset=1>
                (table, ids, offsets)
        }""",
        sizes={"n": 6, "m": 4},
    )


def test_inside_a_branch() -> None:
    ctx = assert_keeps_outputs(RaiseEmbeddingBag(), graph := parse(BRANCH), sizes={"n": 6, "b": 4})
    assert ctx.stats.hits == {"loop_to_embedding_bag": 1}
    assert [node.graph.owner.op for node in bags_of(graph)] == ["If"]  # type: ignore[union-attr]


BRANCH = """
(float[9,4] table, int64[n] ids, int64[b] offsets, bool wanted) => (float[b,4] result)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] far = {2147483647}, bool yes = {1},
 int64[1] four = {4}>
{
    n = Shape(ids)
    bounds = Concat<axis=0>(offsets, n)
    result = If(wanted) <
        then_branch = yes_branch () => (float[b,4] pooled) {
            ends = Slice(bounds, one, far)
            b = Size(ends)
            pooled = Loop(b, yes) <
                body = bag (int64 i, bool go) => (bool goes_on, float[4] row) {
                    start = Gather(bounds, i)
                    end = Gather(ends, i)
                    start_1 = Unsqueeze(start, zero)
                    end_1 = Unsqueeze(end, zero)
                    own = Slice(ids, start_1, end_1)
                    rows = Gather(table, own)
                    row = ReduceSum<keepdims=0>(rows, zero)
                    goes_on = Identity(go)
                }
            >
        },
        else_branch = no_branch () => (float[b,4] nothing) {
            m = Shape(offsets)
            shape = Concat<axis=0>(m, four)
            nothing = ConstantOfShape(shape)
        }
    >
}"""


# --------------------------------------------------------------- what must be left alone

OTHER = "no sum, mean or maximum of bags"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (loop("total = ReduceSum<keepdims=0>(rows, zero) f = Cast<to=1>(i) row = Add(total, f)"), OTHER),
        (loop("total = ReduceSum<keepdims=0>(rows, zero) row = Mul(total, two)"), OTHER),
        (loop("total = ReduceSum<keepdims=0>(rows, zero) row = Add(total, tiny)"), OTHER),
        (loop("row = ReduceMin<keepdims=0>(rows, zero)"), OTHER),
        (loop("m = Max(rows, zeros) row = ReduceMax<keepdims=0>(m, zero)"), OTHER),
        (loop("m = Mul(rows, rows) row = ReduceSum<keepdims=0>(m, zero)"), OTHER),
        (loop("m = Slice(rows, zero, one) row = ReduceSum<keepdims=0>(m, zero)"), OTHER),
        (loop("h = Cast<to=16>(rows) m = Cast<to=1>(h) row = ReduceSum<keepdims=0>(m, zero)"), OTHER),
        (loop("h = Cast<to=7>(rows) m = Cast<to=1>(h) row = ReduceSum<keepdims=0>(m, zero)"), OTHER),
        (loop("m = Relu(rows) row = ReduceSum<keepdims=0>(m, zero)"), "Relu has no place"),
        (loop(rows="own_1 = Slice(ids, zero, end_1) rows = Gather(table, own_1)"), OTHER),
        (loop(end="limit = Add(start, some) end = Min(limit, given_end)"), OTHER),
        (loop(end="limit = Add(start, many) end = Min(limit, given_end)"), "larger than what is tried"),
        (loop("t = ReduceSum<keepdims=0>(rows, zero) late = Greater(i, some) row = Where(late, zeros, t)"), OTHER),
        (loop(rows="r = Gather(table, own) late = Greater(own, some) m = Unsqueeze(late, one) rows = Where(m, zeros, r)"), OTHER),
        (loop(WEIGHTED + "t = ReduceSum<keepdims=0>(weighted, zero) norm = ReduceSum<keepdims=0>(w, zero) row = Div(t, norm)", inputs=", float[n] weights"), OTHER),
        (loop(WEIGHTED + "row = ReduceMax<keepdims=0>(weighted, zero)", inputs=", float[n] weights"), OTHER),
        (loop("t = ReduceSum<keepdims=0>(rows, zero) row = Mul(t, scale)", inputs=", float scale"), "no function of one table"),
        (loop("r = Gather(other, own) m = Mul(rows, r) row = ReduceSum<keepdims=0>(m, zero)", inputs=", float[50,4] other"), "no function of one table"),
        (loop("row = ReduceSum<keepdims=0>(rows, zero)", ids="clipped", before="low = Max(ids, none) clipped = Min(low, size)"), "ids outside the table"),
    ],
    ids=[
        "adds the index", "scales", "adds a little", "minimum", "maximum with 0", "squares",
        "first id only", "rounds to bfloat16", "rounds to integers", "relu", "prefix of all bags",
        "at most 20 ids", "at most 100000 ids", "at most 20 bags", "drops ids above 20",
        "normalized weights", "weighted maximum", "another input", "two tables", "clips ids",
    ],
)  # fmt: skip
def test_left_alone(text: str, reason: str) -> None:
    assert_unchanged(RaiseEmbeddingBag(), text, reason)
