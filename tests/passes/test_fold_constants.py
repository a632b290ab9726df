"""Constants are folded with ONNX Runtime's own bits, within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.passes import fold_constants
from graphopt.passes.fold_constants import FoldConstants
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.spec import Pipeline
from graphopt.testing import (
    assert_keeps_outputs,
    assert_rewrites,
    assert_unchanged,
    parse,
)


def test_chains_fold_in_one_run() -> None:
    before = """(float[N,4] x) => (float[N,8] y) <float[8,4] w, float[8] s> {
        t = Transpose(w)
        e = Exp(s)
        v = Mul(t, e)
        y = MatMul(x, v)
    }"""
    after = "(float[N,4] x) => (float[N,8] y) <float[4,8] v> { y = MatMul(x, v) }"
    assert_rewrites(FoldConstants(), before, after)


def test_several_outputs_fold() -> None:
    before = """(float[N,4] x) => (float[N,2] y) <float[4,4] w, int64[2] s = {2, 2}> {
        a, b = Split<axis=1>(w, s)
        c = Sub(a, b)
        y = MatMul(x, c)
    }"""
    after = "(float[N,4] x) => (float[N,2] y) <float[4,2] c> { y = MatMul(x, c) }"
    assert_rewrites(FoldConstants(), before, after)


GROWS = """(float[N,{n}] x) => (float[N,{n}] y) <int64[1] s = {{{n}}}, float one = {{1}}> {{
    e = Expand(one, s)
    y = Mul(x, e)
}}"""


def test_growth_is_bounded() -> None:
    assert_unchanged(FoldConstants(), GROWS.format(n=300_000), "would add 1199988 bytes")
    step = FoldConstants(max_growth=2_000_000)
    assert step.run(parse(GROWS.format(n=300_000)), PassContext())
    assert FoldConstants().run(parse(GROWS.format(n=1000)), PassContext())


def test_what_a_fold_frees_counts() -> None:
    text = """(float[N,600] x) => (float[N,600] y) <float[600,600] w> {
        t = Transpose(w)
        y = MatMul(x, t)
    }"""
    assert_keeps_outputs(FoldConstants(), parse(text))
    shared = text.replace("y = MatMul(x, t)", "h = MatMul(x, t) y = MatMul(h, w)")
    assert_unchanged(FoldConstants(), shared, "would add 1440000 bytes")


def test_an_option_is_part_of_the_pipeline_text() -> None:
    text = "fold-constants{max_growth=64}"
    assert Pipeline.parse(text) == Pipeline((FoldConstants(64),))
    assert str(Pipeline.parse(text)) == text


def test_an_id_out_of_range_is_left_to_fail_at_run_time() -> None:
    text = """(float[N,4] x) => (float[N,4] y) <float[3,4] t, int64 i = {3}> {
        r = Gather(t, i)
        y = Add(x, r)
    }"""
    assert_unchanged(FoldConstants(), text, "out of data bounds")


def test_random_numbers_stay_random() -> None:
    text = """(float[3] x) => (float[3] y) {
        r = RandomNormal<shape=[3]>()
        y = Add(x, r)
    }"""
    assert_unchanged(FoldConstants(), text)


def test_sequences_stay() -> None:
    text = """(float[3] x, int64 i) => (float[3] y) <float[3] a, float[3] b> {
        s = SequenceConstruct(a, b)
        e = SequenceAt(s, i)
        y = Add(x, e)
    }"""
    assert_unchanged(FoldConstants(), text, "cannot be evaluated")


def test_reshaping_a_table_is_free(tmp_path: Path) -> None:
    """A table in a file is viewed, not read: the fold of 8 TiB must not touch them."""
    path = tmp_path / "table.bin"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    table = np.memmap(path, np.float32, "r", shape=(1 << 35, 64))
    graph = Graph("g", {"": 18})
    weight = graph.constant(table, "table")
    shape = graph.constant(np.array([1 << 36, 32]), "shape")
    node = graph.insert("Reshape", [weight, shape])
    graph.set_outputs([node.output], ["y"])
    assert FoldConstants().run(graph, PassContext())
    (folded,) = graph.outputs
    assert folded.const is not None and folded.const.shape == (1 << 36, 32)
    assert np.shares_memory(folded.const[:1], table[:1])


def test_large_constants_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_constants, "MAX_READ", 1000)
    text = """(float[N,4] x) => (float[N,4] y) <float[100,4] t, int64 i = {3}> {
        r = Gather(t, i)
        y = Add(x, r)
    }"""
    assert_unchanged(FoldConstants(), text, "would read more than 1000 bytes")


def test_constants_inside_of_branches_fold() -> None:
    template = """(float[4] x, bool c) => (float[4] y) <float[4] w, float[4] v> {{
        y = If(c) <
            then_branch = a () => (float[4] p) {{ {} }},
            else_branch = b () => (float[4] q) {{ q = Neg(x) }}
        >
    }}"""
    before = template.format("n = Neg(w) p = Add(x, n)")
    assert_rewrites(FoldConstants(), before, template.format("p = Add(x, v)"))


def test_a_constant_output_folds() -> None:
    graph = parse("(float[4] x) => (float[4] y) <float[4] w> { y = Neg(w) }")
    assert_keeps_outputs(FoldConstants(), graph)
    assert len(graph) == 0 and graph.outputs[0].const is not None


def test_weights_of_a_quantized_layer_stay_codes() -> None:
    """ONNX Runtime would round what it finds in full to codes of its own."""
    weights = "<int8[2,3] c, float s = {0.1}>"
    assert_unchanged(
        FoldConstants(),
        f"""(float[N,2] x) => (float[N,3] y) {weights} {{
            w = DequantizeLinear(c, s) y = MatMul(x, w) }}""",
        "few bits",
    )
    before = f"(float[N,3] x) => (float[N,3] y) {weights} {{ w = DequantizeLinear(c, s)"
    assert_rewrites(
        FoldConstants(),
        f"{before.replace('[2,3]', '[3]')} y = Mul(x, w) }}",
        "(float[N,3] x) => (float[N,3] y) <float[3] w> { y = Mul(x, w) }",
    )


def test_the_bias_of_a_quantized_layer_stays_and_other_vectors_fold() -> None:
    before = (
        "(float[N,300] x) => (float[N,300] y) <int32[300] c, float s = {0.1}, float[300,300] w>"
    )
    vector = f"{before} {{ v = DequantizeLinear(c, s) y = Mul(x, v) }}"
    after = "(float[N,300] x) => (float[N,300] y) <float[300] v> { y = Mul(x, v) }"
    assert_rewrites(FoldConstants(), vector.replace(", float[300,300] w", ""), after)
    layer = f"{before} {{ v = DequantizeLinear(c, s) y = Gemm(x, w, v) }}"
    assert_unchanged(FoldConstants(), layer, "few bits")
