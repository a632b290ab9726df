"""What sorts, counts or scatters long lines, next to ONNX Runtime, run by many threads."""

from __future__ import annotations

import re

import gpu_emulator
import numpy as np
import onnx
import pytest

from graphopt.errors import UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import run_onnxruntime

from .conftest import THOROUGH, Runner

RNG = np.random.default_rng(8)
IMPORTS = '<ir_version: 10, opset_import: ["": 18]>\n'
QUICK = gpu_emulator.Mode(order=3)


def compared(
    run_model: Runner,
    text: str,
    feeds: list[dict[str, np.ndarray]],
    constants: dict[str, np.ndarray] | None = None,
    mode: gpu_emulator.Mode = THOROUGH,
) -> None:
    """Equal to ONNX Runtime bit by bit, and no kernel on one thread."""
    model = onnx.parser.parse_model(IMPORTS + text)
    for name, array in (constants or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = onnx_io.from_proto(model)
    sources: list[str] = []
    results = run_model(graph, *feeds, mode=mode, edit=lambda s: sources.append(s) or s)
    assert not re.search(r'extern "C" __global__ void (?!__launch_bounds__)\w+\(', sources[0])
    for found, feed in zip(results, feeds):
        for name, wanted in run_onnxruntime(graph, feed).items():
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def ties(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Numbers that occur several times, of both signs and both zeros."""
    x = RNG.integers(-40, 40, shape)
    return (x / 8).astype(dtype) * (-1 if dtype == "float32" else 1)


TOPK = """agraph ({0}[n, {1}, {2}] x)
    => ({0}[n, {3}, {2}] y, int64[n, {3}, {2}] at, {0}[n, {3}, {2}] z, int64[n, {3}, {2}] from) {{
    y, at = TopK <axis = 1> (x, k)
    z, from = TopK <axis = 1, largest = 0> (x, k)
}}"""


@pytest.mark.parametrize(
    ("dtype", "length", "taken", "inner"),
    [("float", 2100, 7, 1), ("int32", 1100, 300, 2), ("int64", 530, 5, 1), ("float", 600, 600, 1)],
)
def test_best_of_long_lines(
    dtype: str, length: int, taken: int, inner: int, run_model: Runner
) -> None:
    x = ties(2, length, inner, dtype=dtype.replace("float", "float32"))
    text = TOPK.format(dtype, length, inner, taken)
    mode = QUICK if dtype == "int64" or length > 2000 else THOROUGH
    compared(run_model, text, [{"x": x}], {"k": np.array([taken])}, mode)


def test_best_of_a_catalogue_is_found_by_several_blocks(run_model: Runner) -> None:
    x = RNG.standard_normal((2, 40_000, 1)).astype(np.float32)
    x[0, ::3] = x[0, 1]
    text = TOPK.format("float", 40_000, 1, 9)
    compared(run_model, text, [{"x": x}], {"k": np.array([9])}, QUICK)


@pytest.mark.parametrize("taken", [3, 599])
def test_nan_is_the_greatest(taken: int, run_text: Runner) -> None:
    x = ties(1, 600, 1)
    x[0, [7, 400], 0] = np.nan, -np.float32(np.nan)
    text = TOPK.format("float", 600, 1, taken)
    (found,) = run_text(text, {"x": x}, constants={"k": np.array([taken])}, mode=QUICK)
    at = np.argsort(-x[0, :, 0], kind="stable")
    at = np.array([7, 400, *(k for k in at if k not in (7, 400))])
    np.testing.assert_array_equal(found["at"][0, :, 0], at[:taken])
    ascending = np.argsort(x[0, :, 0], kind="stable")
    np.testing.assert_array_equal(found["from"][0, :, 0], ascending[:taken])


def test_running_sums_of_a_batch(run_model: Runner) -> None:
    text = """agraph (int64[n, 2] x) => (int64[n, 2] y, int64[n, 2] z) {
        y = CumSum (x, axis)
        z = CumSum <exclusive = 1, reverse = 1> (x, axis)
    }"""
    feeds = [{"x": RNG.integers(-9, 9, (n, 2))} for n in (1, 600)]
    compared(run_model, text, feeds, {"axis": np.array(0)})


def test_running_sums_of_floats_do_not_depend_on_what_follows(run_text: Runner) -> None:
    text = "agraph (float[n] x) => (float[n] y) { y = CumSum (x, axis) }"
    x = RNG.standard_normal(700).astype(np.float32)
    found = run_text(text, {"x": x}, {"x": x[:300]}, constants={"axis": np.array(0)}, mode=QUICK)
    np.testing.assert_allclose(found[0]["y"], np.cumsum(x, dtype=np.float64), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[0]["y"][:300], found[1]["y"])


def of_each_reduction(op: str, reductions: list[str], signature: str) -> str:
    """A model with an output for each reduction."""
    rank = signature[signature.index("[") : signature.index("]") + 1]
    outs = ", ".join(f"float{rank} {name}_" for name in reductions)
    lines = [f'{name}_ = {op} <{{}}reduction = "{name}"> (x, at, v)' for name in reductions]
    axis = "axis = 0, " if op == "ScatterElements" else ""
    body = " ".join(line.format(axis) for line in lines)
    return f"agraph ({signature}) => ({outs}) {{ {body} }}"


def test_many_updates_along_the_batch(run_model: Runner) -> None:
    signature = "float[n, 3] x, int64[m, 2] at, float[m, 2] v"
    text = of_each_reduction("ScatterElements", ["none", "add", "min"], signature)
    feeds = []
    for n, m in ((5, 130), (1, 0)):
        x, v = (RNG.standard_normal(shape).astype(np.float32) for shape in ((n, 3), (m, 2)))
        feeds.append({"x": x, "at": RNG.integers(-n, n, (m, 2)), "v": v})
    compared(run_model, text, feeds)


def test_many_updates_of_rows(run_model: Runner) -> None:
    signature = "float[n, 4, 3] x, int64[m, 2] at, float[m, 3] v"
    text = of_each_reduction("ScatterND", ["mul", "max"], signature)
    feeds = []
    for n, m in ((2, 130), (1, 0)):
        at = np.stack([RNG.integers(-n, n, m), RNG.integers(-4, 4, m)], axis=1)
        x, v = (RNG.standard_normal(shape).astype(np.float32) for shape in ((n, 4, 3), (m, 3)))
        feeds.append({"x": x, "at": at, "v": v})
    compared(run_model, text, feeds)


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize("oob", ["error", "clamp", "zero"])
def test_updates_outside(op: str, oob: str, run_text: Runner) -> None:
    shape = "[m, 1]" if op == "ScatterND" else "[m]"
    text = f"""agraph (float[n] x, int64{shape} at, float[m] v) => (float[n] y) {{
        y = {op} <reduction = "add"> (x, at, v)
    }}"""
    at = np.array([3, -9, 2, 7, 3])
    feed = {"x": np.zeros(4, np.float32), "at": at, "v": np.float32([1, 2, 4, 8, 16])}
    feed["at"] = at[:, None] if op == "ScatterND" else at
    if oob == "error":
        with pytest.raises(gpu_emulator.LaunchError, match=f"IdError.*{op}"):
            run_text(text, feed)
        return
    (found,) = run_text(text, feed, oob=oob, mode=QUICK)
    wanted = [2, 0, 4, 25] if oob == "clamp" else [0, 0, 4, 17]
    np.testing.assert_array_equal(found["y"], np.float32(wanted))


def test_compress(run_model: Runner) -> None:
    text = """agraph (float[n, 3] x, bool[n] c) => (float[k, 3] y) {
        y = Compress <axis = 0> (x, c)
    }"""
    feeds = [
        {"x": RNG.standard_normal((n, 3)).astype(np.float32), "c": RNG.random(n) < 0.4}
        for n in (1, 7, 1500)
    ]
    compared(run_model, text, feeds)


@pytest.mark.parametrize("dtype", ["float", "int64"])
def test_unique(dtype: str, run_model: Runner) -> None:
    text = f"""agraph ({dtype}[n] x) => ({dtype}[k] y, int64[k] a, int64[n] b, int64[k] c,
        {dtype}[l] z, int64[l] d, int64[n] e, int64[l] f) {{
        y, a, b, c = Unique (x)
        z, d, e, f = Unique <sorted = 0> (x)
    }}"""
    feeds = [{"x": ties(n, dtype=dtype.replace("float", "float32"))} for n in (1, 700)]
    compared(run_model, text, feeds)


def test_unique_rows(run_model: Runner) -> None:
    text = """agraph (int64[2, n] x) => (int64[2, k] y, int64[k] a, int64[n] b, int64[k] c,
        int64[2, l] z, int64[l] d, int64[n] e, int64[l] f) {
        y, a, b, c = Unique <axis = 1> (x)
        z, d, e, f = Unique <axis = 1, sorted = 0> (x)
    }"""
    compared(run_model, text, [{"x": RNG.integers(0, 4, (2, n))} for n in (1, 40)])


def test_unique_rows_of_unknown_length_are_refused(run_model: Runner) -> None:
    text = "agraph (int64[n, m] x) => (int64[k, m] y) { y = Unique <axis = 0> (x) }"
    with pytest.raises(UnsupportedOpError, match="more than 64 elements"):
        compared(run_model, text, [{"x": RNG.integers(0, 4, (2, 2))}])
