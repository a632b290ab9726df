"""Other forms of embedding bags are raised; what only resembles one is refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph, Node
from graphopt.passes import _execution
from graphopt.passes._execution import Execution
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse


def bags_of(graph: Graph) -> list[Node]:
    return [node for node in graph.walk() if node.op == "graphopt::EmbeddingBag"]


LOOP = """
(float[50,4] table, int64[n] ids, int64[b] offsets{inputs}) => (float[b,4] pooled)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 none = {{0}}, int64 some = {{20}},
 int64 many = {{100000}}, int64 size = {{50}}, int64[1] far = {{9223372036854775807}},
 bool yes = {{1}}, float two = {{2}}, float tiny = {{1e-6}}, float much = {{10}},
 float[4] zeros = {{0, 0, 0, 0}}>
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


WEIGHTS = ", float[n] weights"
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


ROWS_OF_IDS = """
(float[50,4] table, int64[b,k] ids) => (float[b,4] pooled)
<int64[1] zero = {0}, int64 none = {0}, bool yes = {1}, float factor = {FACTOR}>
{
    sizes = Shape(ids)
    b = Gather(sizes, none)
    pooled = Loop(b, yes) <
        body = bag (int64 i, bool go) => (bool goes_on, float[4] row) {
            own = Gather(ids, i)
            rows = Gather(table, own)
            total = ReduceSum<keepdims=0>(rows, zero)
            row = Mul(total, factor)
            goes_on = Identity(go)
        }
    >
}"""


def test_rows_of_ids() -> None:
    assert_rewrites(
        RaiseEmbeddingBag(),
        ROWS_OF_IDS.replace("FACTOR", "1"),
        """
        (float[50,4] table, int64[b,k] ids) => (float[b,4] pooled) {
            pooled = graphopt.EmbeddingBag<mode="sum", empty=0.0>(table, ids)
        }""",
    )
    text = ROWS_OF_IDS.replace("FACTOR", "2")
    assert_unchanged(
        RaiseEmbeddingBag(), text, f"{OTHER} gives what it gives for ids of shape [3, 6]"
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


# --------------------------------------------------------------- what must be left alone

OTHER = "no sum, mean or maximum of bags"
ALONE = "it is no function of one table"
TOTAL = "t = ReduceSum<keepdims=0>(rows, zero)\n"


def pooling(*lines: str) -> str:
    """A loop that sums what `lines` make of the rows, called `m`."""
    return loop("\n".join([*lines, "row = ReduceSum<keepdims=0>(m, zero)"]))


NOT_BAGS = {
    "adds the index": (loop(TOTAL + "f = Cast<to=1>(i) row = Add(t, f)"), OTHER),
    "scales": (loop(TOTAL + "row = Mul(t, two)"), OTHER),
    "adds a little": (loop(TOTAL + "row = Add(t, tiny)"), OTHER),
    "rounds the sum": (loop(TOTAL + "h = Cast<to=10>(t) row = Cast<to=1>(h)"), OTHER),
    "rounds to bfloat16": (pooling("h = Cast<to=16>(rows)", "m = Cast<to=1>(h)"), OTHER),
    "rounds to integers": (pooling("h = Cast<to=7>(rows)", "m = Cast<to=1>(h)"), OTHER),
    "squares": (pooling("m = Mul(rows, rows)"), OTHER),
    "first id only": (pooling("m = Slice(rows, zero, one)"), OTHER),
    "activation": (pooling("m = Relu(rows)"), "Relu has no place"),
    "minimum": (loop("row = ReduceMin<keepdims=0>(rows, zero)"), OTHER),
    "maximum with 0": (loop("m = Max(rows, zeros) row = ReduceMax<keepdims=0>(m, zero)"), OTHER),
    "all bags so far": (loop(rows="o = Slice(ids, zero, end_1) rows = Gather(table, o)"), OTHER),
    "at most 20 ids": (loop(end="limit = Add(start, some) end = Min(limit, given_end)"), OTHER),
    "at most 100000 ids": (
        loop(end="limit = Add(start, many) end = Min(limit, given_end)"),
        "the number 100000 in it is larger than what is tried",
    ),
    "at most 20 bags": (loop(TOTAL + "late = Greater(i, some) row = Where(late, zeros, t)"), OTHER),
    "drops ids above 20": (
        pooling("l = Greater(own, some)", "k = Unsqueeze(l, one)", "m = Where(k, zeros, rows)"),
        OTHER,
    ),
    "drops id 20 only if positive": (
        pooling("l = Equal(own, some)", "k = Unsqueeze(l, one)", "m = Where(k, zeros, rows)"),
        OTHER,
    ),
    "normalized weights": (
        loop(
            WEIGHTED
            + """
            t = ReduceSum<keepdims=0>(weighted, zero)
            norm = ReduceSum<keepdims=0>(w, zero)
            row = Div(t, norm)""",
            inputs=WEIGHTS,
        ),
        OTHER,
    ),
    "bounded weights": (
        loop(
            """
            w = Slice(weights, start_1, end_1)
            low = Min(w, much)
            w_1 = Unsqueeze(low, one)
            m = Mul(rows, w_1)
            row = ReduceSum<keepdims=0>(m, zero)""",
            inputs=WEIGHTS,
        ),
        OTHER,
    ),
    "weighted maximum": (
        loop(WEIGHTED + "row = ReduceMax<keepdims=0>(weighted, zero)", inputs=WEIGHTS),
        OTHER,
    ),
    "another input": (loop(TOTAL + "row = Mul(t, scale)", inputs=", float scale"), ALONE),
    "two tables": (
        loop(
            "r = Gather(other, own) m = Mul(rows, r) row = ReduceSum<keepdims=0>(m, zero)",
            inputs=", float[50,4] other",
        ),
        ALONE,
    ),
    "hashes ids": (loop(rows="h = Mod(own, size) rows = Gather(table, h)"), ALONE),
    "tolerates unknown ids": (
        loop(
            rows="""
            top = ReduceMax<keepdims=0>(own)
            fits = Less(top, size)
            rows = If(fits) <
                then_branch = known () => (float[k,4] found) { found = Gather(table, own) },
                else_branch = new () => (float[1,4] none_found) {
                    none_found = Unsqueeze(zeros, zero)
                }
            >"""
        ),
        "an answer for ids outside the table",
    ),
}


@pytest.mark.parametrize("name", NOT_BAGS)
def test_left_alone(name: str) -> None:
    assert_unchanged(RaiseEmbeddingBag(), *NOT_BAGS[name])


NUMBERS = ", ".join(str(number) for number in range(45))
REASONS = {
    "does not run": (
        loop(TOTAL + "row = Mul(t, weights)", inputs=WEIGHTS),
        "Runtime does not run it",
    ),
    "seldom runs": (
        loop(rows="ninth = Gather(ids, eight) rows = Gather(table, own)").replace(
            "int64 some", "int64 eight = {8}, int64 some"
        ),
        "cases only",
    ),
    "other shape": (
        loop("row = ReduceSum<keepdims=1>(rows, zero)"),
        "it makes [3, 1, 4] of 3 bags",
    ),
    "not tried": (
        loop().replace("(float[50,4]", "(bfloat16[50,4]").replace("float[b,4]", "bfloat16[b,4]"),
        "tables of bfloat16",
    ),
    "cut out": (
        loop(rows="unused = Mul(table, other) rows = Gather(table, own)").replace(
            "int64 some", "float[50,4] other, int64 some"
        ),
        "cannot be cut out of the graph",
    ),
    "too large": (
        loop(end="o = Mul(some, none) end = Add(given_end, o)").replace(
            "float[50,4]", f"float[{2**45},4]"
        ),
        "large",
    ),
    "ambiguous": (
        loop().replace("int64[n] ids, int64[b]", "int64[1] ids, int64[1]"),
        "it may be any of",
    ),
    "too many numbers": (
        loop(end="x = Gather(numbers, i) o = Mul(x, none) end = Add(given_end, o)").replace(
            "int64 some", f"int64[45] numbers = {{{NUMBERS}}}, int64 some"
        ),
        "any of the 45 integers in it could be padding",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str) -> None:
    assert_unchanged(RaiseEmbeddingBag(), *REASONS[name])


def test_other_uses_of_the_loop() -> None:
    text = (
        loop().replace("Loop(b, yes)", "Loop(b, yes, none)").replace("pooled =", "last, pooled =")
    )
    text = text.replace("bool go)", "bool go, int64 seen)").replace(
        "(bool goes_on,", "(bool goes_on, int64 now,"
    )
    text = text.replace("goes_on =", "now = Identity(i) goes_on =")
    assert_unchanged(
        RaiseEmbeddingBag(),
        text.replace("=> (float[b,4] pooled)", "=> (float[b,4] pooled, int64 last)"),
    )
    assert_keeps_outputs(RaiseEmbeddingBag(), graph := parse(text), sizes={"n": 6, "b": 4})
    assert bags_of(graph)


def test_other_uses_of_the_sequence() -> None:
    collecting = """
    (float[9,4] table, int64[b,k] ids) => (float[b,4] pooled{OUTPUT})
    <int64[1] zero = {0}, int64 none = {0}, bool yes = {1}>
    {
        sizes = Shape(ids)
        b = Gather(sizes, none)
        empty = SequenceEmpty()
        all = Loop(b, yes, empty) <
            body = bag (int64 i, bool go, seq(float[1,4]) had) => (bool on, seq(float[1,4]) has) {
                own = Gather(ids, i)
                rows = Gather(table, own)
                row = ReduceSum(rows, zero)
                has = SequenceInsert(had, row)
                on = Identity(go)
            }
        >
        pooled = ConcatFromSequence<axis=0>(all)
        USE
    }"""
    alone = collecting.replace("{OUTPUT}", "").replace("USE", "")
    assert_keeps_outputs(RaiseEmbeddingBag(), graph := parse(alone))
    assert bags_of(graph)
    counted = collecting.replace("{OUTPUT}", ", int64 count").replace(
        "USE", "count = SequenceLength(all)"
    )
    assert_unchanged(RaiseEmbeddingBag(), counted)


def test_unusable_model() -> None:
    broken = Execution(b"not a model")
    assert broken({}) is None
    assert broken.complaint


def test_loop_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_execution, "SECONDS", 0.2)
    model = parse("""
        (float[2] x) => (float[2] y) <bool yes = {1}> {
            y = Loop(, yes, x) <
                body = b (int64 i, bool go, float[2] u) => (bool on, float[2] v) {
                    on = Identity(go)
                    v = Neg(u)
                }
            >
        }""")
    endless = Execution(onnx_io.to_proto(model).SerializeToString())
    assert endless({"x": np.zeros(2, np.float32)}) is None
    assert "terminate" in endless.complaint
