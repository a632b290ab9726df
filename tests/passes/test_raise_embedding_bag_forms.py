"""Other forms of embedding bags than exporters write today are raised too."""

from __future__ import annotations

import pytest
from bag_loops import ROWS_OF_IDS, WEIGHTED, WEIGHTS, loop

from graphopt.ir.graph import Graph, Node
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_keeps_outputs, assert_rewrites, parse


def bags_of(graph: Graph) -> list[Node]:
    return [node for node in graph.walk() if node.op == "graphopt::EmbeddingBag"]


def bag(attrs: str, inputs: str = "table, ids, offsets", more: str = "") -> str:
    return f"""
        (float[50,4] table, int64[n] ids, int64[b] offsets{more}) => (float[b,4] pooled) {{
            pooled = graphopt.EmbeddingBag<{attrs}>({inputs})
        }}"""


LENGTH = """
    total = ReduceSum<keepdims=0>(rows, zero)
    length = Sub(end, start)
    """


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (loop(), bag('mode="sum", empty=0.0')),
        (
            loop(WEIGHTED + "row = ReduceMean<keepdims=0>(weighted, zero)", inputs=WEIGHTS),
            bag('mode="mean", empty=0.0', "table, ids, offsets, weights", WEIGHTS),
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
                body = bag (int64 i, bool go, float[k,4] had) => (bool goes_on, float[l,4] has) {
                    i_1 = Unsqueeze(i, zero)
                    j_1 = Add(i_1, one)
                    start = Gather(bounds, i_1)
                    end = Gather(bounds, j_1)
                    own = Slice(ids, start, end)
                    rows = Gather(table, own)
                    row = ReduceMax<keepdims=1>(rows, zero)
                    has = Concat<axis=0>(had, row)
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


def test_rows_of_ids() -> None:
    assert_rewrites(
        RaiseEmbeddingBag(),
        ROWS_OF_IDS.replace("FACTOR", "1"),
        """
        (float[50,4] table, int64[b,k] ids) => (float[b,4] pooled) {
            pooled = graphopt.EmbeddingBag<mode="sum", empty=0.0>(table, ids)
        }""",
    )


def test_offsets_that_may_not_cover_the_ids_stay() -> None:
    text = loop(before="m = Size(other) offsets = Range(none, m, step)", inputs=", float[m] other")
    text = text.replace(", int64[b] offsets", "").replace(
        "int64 some", "int64 step = {1}, int64 some"
    )
    graph = parse(text)
    RaiseEmbeddingBag().run(graph, PassContext())
    (node,) = bags_of(graph)
    assert node.inputs[2].producer.op == "Range"  # type: ignore[union-attr]


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
