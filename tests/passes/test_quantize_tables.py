"""Tables in few bits: which ones, and what becomes of their lookups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from graphopt.ir.graph import Graph, Value
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.ops.product_lookup import product_lookup
from graphopt.passes._bands import bands_of
from graphopt.passes._codebooks import Codebooks
from graphopt.passes.dce import Dce
from graphopt.passes.quantize_tables import QuantizeTables, _into
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    Compiled,
    Lavish,
    assert_keeps_outputs,
    assert_rewrites,
    assert_unchanged,
    dump,
    parse,
    random_inputs,
    run_onnxruntime,
)


def test_every_lookup_of_a_table_reads_the_same_codes() -> None:
    assert_rewrites(
        QuantizeTables(),
        """(int64[N] a, int64[N,3] b) => (float[N,8] y, float[N,3,8] z) <float[100,8] t> {
            y = Gather<axis=0>(t, a)
            z = Gather<axis=0>(t, b)
        }""",
        """(int64[N] a, int64[N,3] b) => (float[N,8] y, float[N,3,8] z)
        <uint8[100,4] codes, float16[100] scales> {
            y = graphopt.QuantizedLookup<bits=4>(codes, scales, a)
            z = graphopt.QuantizedLookup<bits=4>(codes, scales, b)
        }""",
    )


BAG = """(int64[n] ids, int64[b] starts) => (float[b,8] y) <float[100,8] t> {
    y = graphopt.EmbeddingBag<mode="mean">(t, ids, starts)
}"""


def test_embedding_bags() -> None:
    after = """(int64[n] ids, int64[b] starts) => (float[b,8] y)
    <uint8[100,4] codes, float16[100] scales> {
        y = graphopt.QuantizedEmbeddingBag<bits=4, mode="mean">(codes, scales, ids, starts)
    }"""
    assert_rewrites(QuantizeTables(), BAG, after)
    assert_rewrites(QuantizeTables(lookups=False), BAG, after)


def test_bags_with_padding() -> None:
    attrs = 'mode="sum", padding_idx=0, by_id=1'
    assert_rewrites(
        QuantizeTables(),
        f"""(int64[n,5] ids) => (float[n,8] y) <float[100,8] t> {{
            y = graphopt.EmbeddingBag<{attrs}, empty=0.0>(t, ids)
        }}""",
        f"""(int64[n,5] ids) => (float[n,8] y) <uint8[100,4] codes, float16[100] scales> {{
            y = graphopt.QuantizedEmbeddingBag<bits=4, {attrs}>(codes, scales, ids)
        }}""",
    )


def test_bags_only() -> None:
    text = "(int64[N] ids) => (float[N,8] y) <float[100,8] t> { y = Gather(t, ids) }"
    assert_unchanged(QuantizeTables(lookups=False), text)


@pytest.mark.parametrize(
    "attrs", ['mode="max"', 'mode="sum", padding_idx=0', 'mode="sum", empty=1.0']
)
def test_bags_that_have_no_form_in_few_bits(attrs: str) -> None:
    assert_unchanged(QuantizeTables(), BAG.replace('mode="mean"', attrs))


def test_narrow_rows_become_half_precision() -> None:
    assert_rewrites(
        QuantizeTables(),
        """(int64[N] ids) => (float[N,1] y) <float[1000,1] t> { y = Gather<axis=0>(t, ids) }""",
        """(int64[N] ids) => (float[N,1] y) <float16[1000,1] t> {
            rows = Gather<axis=0>(t, ids)
            y = Cast<to=1>(rows)
        }""",
    )


@pytest.mark.parametrize(("scale", "what"), [(1, "float16"), (1e6, "bfloat16"), (1e-7, "bfloat16")])
def test_half_precision_has_the_range_of_the_table(scale: float, what: str) -> None:
    graph, copies = parse(LARGE), dict[Value, Value]()
    (table,) = graph.constants()
    assert table.const is not None
    table.const = table.const * np.float32(scale)
    feeds = random_inputs(graph, {"N": 50})
    wanted = run_onnxruntime(graph, feeds)["y"]
    offered = {p.what: p for p in QuantizeTables().propose(graph, context())}
    assert {"float16", "bfloat16"} & set(offered) == {what}
    copy = graph.clone(copies)
    offered[what].apply(copy, copies)
    found = run_onnxruntime(copy, feeds)["y"]
    half_step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[what]
    np.testing.assert_allclose(found, wanted, rtol=half_step, atol=2.0**-24 * scale)
    np.testing.assert_array_equal(Compiled(copy)(feeds)["y"], found)


def test_bags_are_pooled_in_bfloat16() -> None:
    graph = parse(BAG)
    for table in graph.constants():
        assert table.const is not None
        table.const = table.const * np.float32(1e6)
    offered = {proposal.what for proposal in QuantizeTables().propose(graph, context())}
    assert {"float16", "bfloat16"} & offered == {"bfloat16"}


def context() -> PassContext:
    return PassContext(budget=Lavish())


def test_rows_of_odd_length_have_8_bits() -> None:
    assert_rewrites(
        QuantizeTables(),
        """(int64[N] ids) => (float[N,7] y) <float[100,7] t> { y = Gather<axis=0>(t, ids) }""",
        """(int64[N] ids) => (float[N,7] y) <int8[100,7] codes, float16[100] scales> {
            y = graphopt.QuantizedLookup<bits=8>(codes, scales, ids)
        }""",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            """(int64[N] ids, float[N,8] x) => (float[N,8] y, float[N,100] z)
            <float[100,8] t> {
                y = Gather(t, ids)
                tt = Transpose<perm=[1,0]>(t)
                z = MatMul(x, tt)
            }""",
            "not only looked up",
        ),
        ("(int64[N] ids) => (float[N,8] y) <float[9,8] t> { y = Gather(t, ids) }", "small"),
        (
            "(int64[N] ids) => (float[100,N] y) <float[100,8] t> {y = Gather<axis=1>(t, ids)}",
            None,
        ),
        ("(int64[N] ids) => (double[N,8] y) <double[100,8] t> { y = Gather(t, ids) }", None),
        ("(float[N,100] x) => (float[N,8] y) <float[100,8] t> { y = MatMul(x, t) }", None),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(QuantizeTables(), text, reason)


def test_tables_that_are_not_all_numbers() -> None:
    graph = parse("(int64[N] ids) => (float[N,8] y) <float[100,8] t> { y = Gather(t, ids) }")
    (table,) = graph.constants()
    table.const = np.full((100, 8), np.inf, np.float32)
    ctx = PassContext(budget=Lavish())
    assert not QuantizeTables().run(graph, ctx)
    assert any("NaN or infinity" in why for _, _, why in ctx.stats.refusals)


def test_numbers_beyond_half_precision_are_never_made_infinite() -> None:
    graph = parse("(int64[N] ids) => (float[N,1] y) <float[1000,1] t> { y = Gather(t, ids) }")
    (table,) = graph.constants()
    table.const = np.full((1000, 1), 1e5, np.float32)
    assert [p.what for p in QuantizeTables().propose(graph, context())] == ["bfloat16"]
    table.const = np.full((1000, 1), np.finfo(np.float32).max, np.float32)
    assert not list(QuantizeTables().propose(graph, context()))


def test_without_a_budget_nothing_happens() -> None:
    graph = parse("(int64[N] ids) => (float[N,8] y) <float[100,8] t> { y = Gather(t, ids) }")
    before = dump(graph)
    assert not QuantizeTables().run(graph, PassContext())
    assert dump(graph) == before


# ------------------------------------------------------------------------ codebooks


LARGE = "(int64[N] ids) => (float[N,16] y) <float[5000,16] t> { y = Gather(t, ids) }"


def clustered() -> np.ndarray:
    """Rows out of 40 different ones, a little apart, and some of zeros."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 16))[rng.integers(0, 40, 5000)]
    rows += rng.normal(size=rows.shape) * 0.01
    rows[7:11] = 0
    return rows.astype(np.float32)


def test_rows_of_large_tables_are_parts_out_of_codebooks() -> None:
    pytest.importorskip("faiss")
    graph = parse(LARGE)
    (table,) = graph.constants()
    table.const = clustered()
    ids = np.arange(0, 5000, 7)
    assert_keeps_outputs(QuantizeTables(), graph)
    (node,) = graph.nodes
    assert node.op == "graphopt::ProductLookup"
    assert node.inputs[0].shape == (5000, 2)  # type: ignore[union-attr]
    found = run_onnxruntime(graph, {"ids": ids})["y"]
    np.testing.assert_allclose(found, clustered()[ids], atol=0.08)
    np.testing.assert_array_equal(Compiled(graph)({"ids": ids})["y"], found)
    assert not run_onnxruntime(graph, {"ids": np.arange(7, 11)})["y"].any()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_parts_out_of_codebooks(mode: str) -> None:
    pytest.importorskip("faiss")
    graph = parse(
        f"""(int64[n] ids, int64[b] starts) => (float[b,16] y) <float[5000,16] t> {{
            y = graphopt.EmbeddingBag<mode="{mode}">(t, ids, starts)
        }}"""
    )
    (table,) = graph.constants()
    table.const = clustered()
    assert QuantizeTables().run(graph, PassContext(budget=Lavish()))
    assert [node.op for node in graph.nodes] == ["graphopt::ProductEmbeddingBag"]
    feeds = {"ids": np.arange(0, 5000, 7), "starts": np.array([0, 3, 3, 50])}
    wanted = EmbeddingBag(mode).pool(clustered(), feeds["ids"], feeds["starts"])  # type: ignore
    found = run_onnxruntime(graph, feeds)["y"]
    # As far off as rows are; a sum has 665 of them.
    np.testing.assert_allclose(found[:3], wanted[:3], atol=0.08 * (47 if mode == "sum" else 1))
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], found, rtol=1e-4, atol=1e-4)


def test_codebooks_are_the_same_on_every_run(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    first, second = (Codebooks.of(clustered(), 4) for _ in range(2))
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.books, second.books)
    rows = product_lookup(first.codes, first.books, np.arange(5000))
    lost = np.sqrt(np.square(rows - clustered()).mean())
    assert first.error == pytest.approx(lost, rel=1e-3)


def test_codebooks_can_be_left_out() -> None:
    ctx = PassContext(budget=Lavish())
    offered = [p.what for p in QuantizeTables(codebooks=False).propose(parse(LARGE), ctx)]
    assert {"int8", "int4", "float16"} <= set(offered)
    assert not any("codebooks" in what for what in offered)


def test_without_faiss_there_are_no_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes._codebooks.find_spec", lambda name: None)
    graph, ctx = parse(LARGE), PassContext(budget=Lavish())
    assert QuantizeTables().run(graph, ctx)
    assert [n.op for n in graph.nodes] == ["graphopt::QuantizedLookup"]
    assert any("graphopt[pq]" in why for _, _, why in ctx.stats.refusals)


# ---------------------------------------------------------------------------- bands


def skewed(rows: int = 3000) -> np.ndarray:
    """Ids of which few are read often, and not the first ones."""
    return np.random.default_rng(2).permutation(rows)[
        np.minimum(np.random.default_rng(1).geometric(0.01, 20000), rows) - 1
    ]


def test_rows_that_are_read_often_have_more_bits() -> None:
    graph = parse("(int64[N] ids) => (float[N,32] y) <float[3000,32] t> { y = Gather(t, ids) }")
    (table,) = graph.constants()
    assert table.const is not None
    counts = np.bincount(skewed(), minlength=3000)
    largest, *_, smallest = bands_of(table.const, counts)
    assert smallest.nbytes < largest.nbytes < 0.9 * table.const.size
    array = table.const
    change = _into(table, smallest)
    change(graph, {table: table})
    ids = np.append(np.arange(3000), [-1, -3000])
    found = run_onnxruntime(graph, {"ids": ids})["y"]
    np.testing.assert_array_equal(Compiled(graph)({"ids": ids})["y"], found)
    lost = np.abs(found - array[ids]).max(axis=1) / np.abs(array[ids]).max(axis=1)
    often = np.argsort(-counts)[:20]
    assert lost[often].max() < 0.005  # half a step of 8 bits
    assert 0.03 < np.median(lost) < 0.1  # of 4 bits
    outside = Compiled(graph, "zero")({"ids": np.array([3000, -3001, 2**40])})["y"]
    assert not outside.any()


@pytest.mark.parametrize(
    ("ids", "inputs", "attrs"),
    [
        ("int64[n] ids, int64[b] starts", "ids, starts", 'mode="mean"'),
        ("int64[b,4] ids", "ids", 'mode="sum"'),
        ("int64[b,4] ids", "ids", 'mode="mean"'),
    ],
)
def test_bags_of_rows_that_have_more_bits_the_more_they_are_read(
    ids: str, inputs: str, attrs: str
) -> None:
    graph = parse(
        f"""({ids}) => (float[b,32] y) <float[3000,32] t> {{
            y = graphopt.EmbeddingBag<{attrs}>(t, {inputs})
        }}"""
    )
    (table,) = graph.constants()
    array = table.const
    assert array is not None
    *_, smallest = bands_of(array, np.bincount(skewed(), minlength=3000))
    _into(table, smallest)(graph, {table: table})
    assert sum(n.op == "graphopt::QuantizedEmbeddingBag" for n in graph.nodes) == 2
    feeds = {"ids": skewed()[:200].reshape(50, 4)}
    if "starts" in inputs:
        feeds = {"ids": feeds["ids"].reshape(-1), "starts": np.array([0, 0, 30, 199])}
    mode = "sum" if "sum" in attrs else "mean"
    wanted = EmbeddingBag(mode).pool(array, feeds["ids"], feeds.get("starts"))  # type: ignore
    found = run_onnxruntime(graph, feeds)["y"]
    # Half a step of 4 bits at most, of rows whose largest element is 4.
    np.testing.assert_allclose(found, wanted, atol=4 / 14 * (4 if mode == "sum" else 1))
    assert np.abs(found - wanted).mean() < 0.1
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], found, rtol=1e-5, atol=1e-5)


def test_bands_and_padding_by_id_do_not_go_together() -> None:
    class Traced(Lavish):
        def traced(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
            return [[skewed()] for _ in values]

    text = """(int64[b,4] ids) => (float[b,32] y) <float[3000,32] t> {
        y = graphopt.EmbeddingBag<mode="sum"PADDED>(t, ids)
    }"""
    for padded, banded in (("", True), (", padding_idx=0, by_id=1", False)):
        graph = parse(text.replace("PADDED", padded))
        offered = [p.what for p in QuantizeTables().propose(graph, PassContext(budget=Traced()))]
        assert any("%" in what for what in offered) == banded
        assert "int4" in offered


def test_bands_are_proposed_with_a_trace_only() -> None:
    class Traced(Lavish):
        def traced(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
            return [[skewed()] for _ in values]

    class Untraced(Lavish):
        def traced(self, graph: Graph, values: Sequence[Value]) -> None:  # type: ignore[override]
            return None

    text = "(int64[N] ids) => (float[N,32] y) <float[3000,32] t> { y = Gather(t, ids) }"
    proposals = list(QuantizeTables().propose(parse(text), PassContext(budget=Traced())))
    kinds = {p.what: p.saves for p in proposals}
    assert kinds["int8"] < kinds["int8 for 95%, int4"] < kinds["int8 for 50%, int4"] < kinds["int4"]
    without = QuantizeTables().propose(parse(text), PassContext(budget=Untraced()))
    assert not any("for" in p.what for p in without)


def test_one_map_of_ids_is_enough() -> None:
    """Rows that were pruned or deduplicated have a map already."""
    graph = parse(
        """(int64[N] ids) => (float[N,32] y) <int32[5000] numbers, float[3000,32] t> {
            n = Gather(numbers, ids)
            y = Gather(t, n)
        }"""
    )
    numbers, table = graph.constants()
    numbers.const = np.random.default_rng(0).integers(0, 3000, 5000).astype(np.int32)
    assert table.const is not None
    (bands, *_) = bands_of(table.const, np.bincount(skewed(), minlength=3000))
    wanted = run_onnxruntime(graph, {"ids": np.arange(5000)})["y"]
    _into(table, bands)(graph, {table: table})
    Dce().run(graph, PassContext())
    assert sum(n.op == "Gather" for n in graph.nodes) == 1
    found = run_onnxruntime(graph, {"ids": np.arange(5000)})["y"]
    # 4 bits clip at 0.7 of a row's largest element at the least; other rows are far off on average.
    assert np.abs(found - wanted).max() < 0.3 * np.abs(wanted).max()
    assert np.abs(found - wanted).mean() < 0.1
