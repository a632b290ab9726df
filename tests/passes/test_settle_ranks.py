"""A squeezed axis of free size stays where nothing else would be computed without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.errors import UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.passes.settle_ranks import SettleRanks
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    assert_rewrites,
    assert_unchanged,
    parse,
    random_inputs,
    run_compiled,
    run_onnxruntime,
)

CONSTANTS = """int64[1] last = {-1}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2},
    int64[1] three = {3}, int64 one = {1}, int64 zero = {0}, int64[2] pairs = {-1, 2},
    int64[2] copied = {0, -1}, float[4,3] w, float[3] b, float[4] g, float[9,4] table, float c"""
TEXT = "(float[N,4] x, int64[N,1] ids) => (float[] y) <CONSTANTS> { BODY }"


def text(body: str) -> str:
    return TEXT.replace("CONSTANTS", CONSTANTS).replace("BODY", body)


WIDE = "u = Unsqueeze(x, v1) s = Squeeze(u)"  # [N,4]; [4] for one sample
FLAT = "u = ReduceSum<keepdims=1>(x, v1) s = Squeeze(u)"  # [N]
IF = """u = ReduceSum<keepdims=0>(x, v1) n = Shape(u) k = Gather(n, zero) f = Equal(k, one)
    s = If(f) <
        then_branch = t () => (float[] p) <int64[1] axis = {-1}> { p = Squeeze(u, axis) },
        else_branch = e () => (float[N] q) { q = Identity(u) }
    >"""
SAFE = [
    f"{WIDE} y = Sigmoid(s)",
    f"{FLAT} y = Sigmoid(s)",
    f"{IF} y = Sigmoid(s)",
    f"{WIDE} m = MatMul(s, w) a = Add(m, b) y = Squeeze(a)",
    f"{WIDE} y = Gemm(s, w, b)",
    f"{WIDE} y = Softmax<axis=-1>(s)",
    f"{WIDE} n = LayerNormalization(s, g) y = ReduceSum<keepdims=0>(n, last)",
    f"{WIDE} y = Add(s, x)",
    f"{WIDE} y = Concat<axis=-1>(s, s)",
    f"{WIDE} y = Concat<axis=1>(s, x)",
    f"{WIDE} y = Reshape(s, pairs)",
    f"{WIDE} y = Slice(s, v0, v2, v1)",
    f"{WIDE} y = Unsqueeze(s, last)",
    f"{FLAT} r = ReduceSum<keepdims=0>(x, v1) a = Mul(s, r) y = Unsqueeze(a, v1)",
    "i = Squeeze(ids) y = Gather(table, i)",
    f"{FLAT} p = Exp(s) t = Unsqueeze(p, v1) y = Squeeze(t)",
]
OTHERS = [  # for one sample the source computes something else
    f"{WIDE} y = ReduceMean<keepdims=0>(s, v0)",
    f"{WIDE} y = Softmax<axis=0>(s)",
    f"{WIDE} y = Unsqueeze(s, v1)",
    f"{WIDE} y = Concat<axis=0>(s, s)",
    f"{WIDE} n = Shape(s) y = Expand(c, n)",
    f"{WIDE} y = Reshape(s, copied)",
    f"{WIDE} y = Flatten(s)",
    f"{WIDE} y = Transpose(s)",
    f"{FLAT} y = MatMul(s, x)",
    f"{WIDE} a = ReduceMean<keepdims=0>(s, v0) r = Squeeze(a) y = Add(r, x)",
]


@pytest.mark.parametrize("body", SAFE)
@pytest.mark.parametrize("batch", [1, 5])
def test_elements_stay(body: str, batch: int) -> None:
    graph = parse(text(body))
    feeds = random_inputs(graph, {"N": batch})
    try:
        wanted = run_onnxruntime(graph, feeds)["y"]
    except Exception:
        assert batch == 1  # it fails for one sample
        wanted = None
    ctx = PassContext()
    assert SettleRanks().run(graph, ctx) and ctx.stats.hits["settle_rank"]
    assert not SettleRanks().run(graph, PassContext())
    found = run_onnxruntime(graph, feeds)["y"]
    if wanted is not None:
        np.testing.assert_array_equal(found.ravel(), wanted.ravel())
    if batch > 1:
        assert found.shape == wanted.shape
    compiled = run_compiled(graph, feeds)["y"]
    np.testing.assert_allclose(compiled, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", OTHERS)
def test_what_reads_it_depends_on_the_axis(body: str) -> None:
    assert_unchanged(SettleRanks(), text(body), "something else")


def test_the_rank_is_known() -> None:
    before = text(f"{WIDE} y = Sigmoid(s)").replace("float[] y", "float[N,4] y")
    after = before.replace("s = Squeeze(u)", "s = Squeeze(u, v1)")
    assert_rewrites(SettleRanks(), before, after, sizes={"N": 3})


def test_axes_that_are_not_the_first() -> None:
    """Operands line up at their last axes: one in the middle may not go."""
    graph = """(float[4,T] x, float[4] g) => (float[] y) <float c> {
        s = Squeeze(x) a = Mul(s, c) y = BODY
    }"""
    assert SettleRanks().run(parse(graph.replace("BODY", "Exp(a)")), PassContext())
    assert_unchanged(SettleRanks(), graph.replace("BODY", "Add(a, g)"), "something else")


def test_branches_that_are_no_squeeze() -> None:
    for other in ("Neg(u)", "Identity(x)"):
        assert_unchanged(SettleRanks(), text(f"{IF} y = Exp(s)").replace("Identity(u)", other))


@pytest.mark.parametrize("declared", ["float[N] y", "float[4] y", "float[] y"])
def test_compiled_as_the_file_declares(declared: str, tmp_path: Path) -> None:
    """Exporters declare what they saw once; answers are compared for one sample too."""
    graph = text(f"{IF} y = Identity(s)").replace("float[] y", declared)
    onnx_io.save(parse(graph), file := tmp_path / "model.onnx")
    artifact = graphopt.compile(file, "cpu")
    for batch in (1, 4, 7):
        feeds = random_inputs(parse(graph), {"N": batch})
        found = artifact.run({"x": feeds["x"]} if len(artifact.signature.inputs) == 1 else feeds)
        np.testing.assert_allclose(found["y"], feeds["x"].sum(1), rtol=1e-4)


def test_what_to_write_instead(tmp_path: Path) -> None:
    onnx_io.save(parse(text(OTHERS[0])), file := tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOpError, match=r"write reshape or squeeze\(1\)"):
        graphopt.compile(file, "cpu", verify=False)


@pytest.mark.parametrize("asks", ["flag", "one"])
def test_a_rank_that_stays_open_is_refused(asks: str, tmp_path: Path) -> None:
    """Also where the file declares one: it is not that of every size."""
    graph = """(float[N,4] x, bool flag) => (float[4] y) <int64[1] v0 = {0}, int64 i = {1}> {
        e = Relu(x) n = Shape<start=0, end=1>(x) k = Squeeze(n, v0) one = Equal(k, i)
        y = If(ASKS) <
            then_branch = t () => (float[4] p) { p = ReduceSum<keepdims=0>(e, v0) },
            else_branch = o () => (float[N,4] q) { q = Neg(e) }
        >
    }"""
    onnx_io.save(parse(graph.replace("ASKS", asks)), file := tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOpError, match="different rank"):
        graphopt.compile(file, "cpu", verify=False)
