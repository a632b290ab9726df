"""Products of one-hot rows become lookups."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.raise_lookups import RaiseLookups
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_rewrites, assert_unchanged, parse, run_onnxruntime

CLASSES = "int64[1] depth = {5}, float[2] marks = {0, 1}"


def text(body: str, weights: str, ids: str = "int64[N] ids") -> str:
    return f"({ids}) => (float[] y) <{weights}> {{ {body} }}"


HOT = "h = OneHot(ids, depth, marks)"
PLAIN = text(f"{HOT} y = MatMul(h, w)", f"{CLASSES}, float[5,3] w")
LAYER = text(
    f"{HOT} y = Gemm<alpha=2.0, beta=0.5, transB=1>(h, w, b)",
    f"{CLASSES}, float[3,5] w, float[3] b",
)


def test_layers_and_types_of_ids() -> None:
    body, bounds = "c = Clip(ids, low, high) y = Gather(t, c)", "int64 low = {-6}, int64 high = {5}"
    assert_rewrites(RaiseLookups(), LAYER, text(body, f"{bounds}, float[11,3] t"))
    narrow = PLAIN.replace("int64[N] ids", "int32[N,L] ids").replace("int64[1]", "int32[1]")
    weights = f"{bounds.replace('int64', 'int32')}, float[11,3] t"
    assert_rewrites(RaiseLookups(), narrow, text(body, weights, "int32[N,L] ids"))


def test_marks_that_are_cast() -> None:
    marks = "int64[1] depth = {5}, int64[2] marks = {0, 1}, float[5,3] w"
    source = text(f"{HOT} f = Cast<to=1>(h) y = MatMul(f, w)", marks)
    weights = "int64 low = {-6}, int64 high = {5}, float[11,3] t"
    after = text("c = Clip(ids, low, high) y = Gather(t, c)", weights)
    assert_rewrites(RaiseLookups(), source, after)


# What PyTorch's newer exporter writes for `one_hot(ids, 5).float() @ w`.
COMPARED = text(
    "u = Reshape(ids, column) h = Equal(u, classes) i = Cast<to=7>(h) f = Cast<to=1>(i)"
    " y = MatMul(f, w)",
    "int64[2] column = {-1, 1}, int64[5] classes = {0, 1, 2, 3, 4}, float[5,3] w",
)


def test_comparisons_with_all_classes() -> None:
    after = text(
        "u = Reshape(ids, column) r = Reshape(u, row) c = Clip(r, low, high) y = Gather(t, c)",
        "int64[2] column = {-1, 1}, int64[1] row = {-1}, int64 low = {-1}, int64 high = {5},"
        " float[6,3] t",
    )
    assert_rewrites(RaiseLookups(), COMPARED, after)
    others = COMPARED.replace("{0, 1, 2, 3, 4}", "{0, 1, 2, 4, 3}")
    assert_unchanged(RaiseLookups(), others, "not compare with 0, 1, 2")
    wide = COMPARED.replace("u = Reshape(ids, column)", "u = Identity(ids)")
    wide = wide.replace("int64[N] ids", "int64[N,5] ids")
    assert_unchanged(RaiseLookups(), wide, "one whole number a row")


@pytest.mark.parametrize("source", [PLAIN, LAYER, COMPARED])
def test_ids_outside_give_zeros(source: str) -> None:
    limits = np.iinfo(np.int64)
    ids = np.array([0, 4, -1, -5, 5, -6, limits.max, limits.min, 2**32])
    graph = parse(source)
    wanted = run_onnxruntime(graph, {"ids": ids})["y"]
    assert RaiseLookups().run(graph, PassContext())
    found = run_onnxruntime(graph, {"ids": ids})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (PLAIN.replace("{0, 1}", "{0, 2}"), "not 0 and 1"),
        (PLAIN.replace("OneHot(", "OneHot<axis=0>("), "along the last axis"),
        (PLAIN.replace("int64[N] ids", "float[N] ids"), "not integers"),
        (PLAIN.replace("float[5,3] w", "float[5] w"), "not one matrix"),
        (PLAIN.replace("w>", "w = {inf,1,2,3,4,5,6,7,8,9,10,11,12,13,14}>"), "not finite"),
        (PLAIN.replace("{5}", "{400000}").replace("[5,3]", "[400000,3]"), "bytes more"),
        (PLAIN.replace("y = MatMul(h, w)", "m = MatMul(h, w) y = Add(m, h)"), None),
    ],
)
def test_refusals(source: str, reason: str | None) -> None:
    if reason is None:
        source = source.replace("[5,3]", "[5,5]")
        assert_unchanged(RaiseLookups(), source, "also read elsewhere")
    else:
        assert_unchanged(RaiseLookups(), source, reason)
