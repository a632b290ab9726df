"""Loops over bags of ids, written as text: each is an embedding bag but for what is asked of it."""

from __future__ import annotations

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


WEIGHTS = ", float[n] weights"
WEIGHTED = """
    w = Slice(weights, start_1, end_1)
    w_1 = Unsqueeze(w, one)
    weighted = Mul(rows, w_1)
    """
TOTAL = "t = ReduceSum<keepdims=0>(rows, zero)\n"


def pooling(*lines: str) -> str:
    """A loop that sums what `lines` make of the rows, called `m`."""
    return loop("\n".join([*lines, "row = ReduceSum<keepdims=0>(m, zero)"]))


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
