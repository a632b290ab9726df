"""`graphopt::DynamicMatMul`: rows in ranges of their own, in every form that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.machine import sums_bytes_exactly
from graphopt.ops.dynamic_matmul import DOMAIN, LEVELS, OP_TYPE, rounded
from graphopt.targets.cpu.target import CpuTarget
from graphopt.testing import Compiled, parse, run_onnxruntime

RNG = np.random.default_rng(5)
K, N = 83, 70
CODES = RNG.integers(-127, 128, (K, N)).astype(np.int8)
SCALES = RNG.uniform(0.0005, 0.005, N).astype(np.float32)
Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]


def product(
    *leading: int | Sym,
    codes: np.ndarray = CODES,
    scales: np.ndarray = SCALES,
    levels: int = 255,
) -> Graph:
    graph = Graph(opsets={"": 18, DOMAIN: 1})
    x = graph.add_input("x", TensorType("float32", (*leading, len(codes))))
    constants = [graph.constant(codes), graph.constant(scales)]
    made = graph.insert(OP_TYPE, [x, *constants], {"levels": levels}, domain=DOMAIN)
    graph.set_outputs([made.output], ["y"])
    return graph


@pytest.fixture(params=["portable", "compiled", "compiled without bytes"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes one of the ways to run a graph."""
    if request.param == "portable":
        return in_onnxruntime
    if request.param.endswith("without bytes"):
        monkeypatch.setattr(CpuTarget, "multiplies_bytes", property(lambda self: False))
    elif not CpuTarget.parse("").multiplies_bytes:
        pytest.skip("this CPU multiplies no bytes")
    return Compiled


def in_onnxruntime(graph: Graph) -> Run:
    if any(n.attr("levels") == LEVELS for n in graph.nodes) and not sums_bytes_exactly():
        pytest.skip("this CPU lacks VNNI: ONNX Runtime's sums of such products saturate")
    return lambda feeds: run_onnxruntime(graph, feeds)


def rows_of(count: int) -> np.ndarray:
    """Rows of very different sizes, some above or below 0 throughout."""
    rows = RNG.normal(size=(count, K)) * 10.0 ** RNG.integers(-4, 5, (count, 1))
    rows[1::5], rows[2::5] = np.abs(rows[1::5]), -np.abs(rows[2::5])
    return rows.astype(np.float32)


def assert_is_product(found: np.ndarray, rows: np.ndarray, levels: int = 255) -> None:
    """The sums are exact; what is left is a few roundings in float32, of the size of the terms."""
    weights = CODES * SCALES.astype(np.float64)
    wanted = rounded(rows, levels).astype(np.float64) @ weights
    size = np.abs(rows).max(axis=1, keepdims=True) * np.abs(weights).sum(axis=0)
    assert (np.abs(found - wanted) <= 1e-6 * size).all()


@pytest.mark.parametrize("levels", [255, 127])
def test_each_row_has_its_own_range(levels: int, runner: Callable[..., Run]) -> None:
    run = runner(product(Sym.named("n"), levels=levels))
    for count in (1, 7, 100):
        rows = rows_of(count)
        assert_is_product(run({"x": rows})["y"], rows, levels)


def test_rows_of_more_axes(runner: Callable[..., Run]) -> None:
    run, rows = runner(product(Sym.named("n"), 3)), rows_of(15)
    found = run({"x": rows.reshape(5, 3, K)})["y"]
    assert found.shape == (5, 3, N)
    assert_is_product(found.reshape(15, N), rows)
    assert run({"x": np.zeros((0, 3, K), np.float32)})["y"].shape == (0, 3, N)


def test_an_outlier_spoils_its_own_row_alone(runner: Callable[..., Run]) -> None:
    run, rows = runner(product(Sym.named("n"))), rows_of(9)
    before = run({"x": rows})["y"]
    rows[4, 11] = 1e6
    after = run({"x": rows})["y"]
    np.testing.assert_array_equal(np.delete(after, 4, 0), np.delete(before, 4, 0))
    assert_is_product(after, rows)


def test_rows_that_have_no_range(runner: Callable[..., Run]) -> None:
    run, rows = runner(product(Sym.named("n"))), rows_of(9)
    before = run({"x": rows})["y"]
    rows[0], rows[1] = 0, 1e-40
    for row, (place, number) in enumerate(
        [(0, np.nan), (K - 1, np.nan), (40, np.inf), (82, -np.inf), (16, -np.nan)], 2
    ):
        rows[row, place] = number
    found = run({"x": rows})["y"]
    assert (found[:2] == 0).all()
    assert np.isnan(found[2:7]).all()
    np.testing.assert_array_equal(found[7:], before[7:])
    assert run({"x": rows[:0]})["y"].shape == (0, N)


def test_elements_further_apart_than_the_largest_number(runner: Callable[..., Run]) -> None:
    ones, rows = np.ones((64, 64), np.int8), np.zeros((2, 64), np.float32)
    rows[:, :2] = 3e38, -2e38
    found = runner(product(Sym.named("n"), codes=ones, scales=ones[0].astype(np.float32)))
    np.testing.assert_allclose(found({"x": rows})["y"], 1e38, rtol=0.01)  # a step is 2e36


def test_the_bits_of_a_row(runner: Callable[..., Run]) -> None:
    run, rows = runner(product(Sym.named("n"))), rows_of(130)
    together = run({"x": rows})["y"]
    for size in (1, 2, 5, 13, 97):
        for start in range(0, 130 - size, 29):
            part = rows[start : start + size]
            np.testing.assert_array_equal(run({"x": part})["y"], together[start : start + size])


def test_the_largest_products_do_not_saturate(runner: Callable[..., Run]) -> None:
    codes, one = np.full((64, 64), 127, np.int8), np.ones(64, np.float32)
    run = runner(product(Sym.named("n"), codes=codes, scales=one, levels=127))
    rows = np.full((3, 64), 127, np.float32)
    assert (run({"x": rows})["y"] == 64 * 127 * 127).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("float[N,5] x, int8[6,4] c, float[4] s", r"x must be float\[..., 6\]"),
        ("float[6] x, int8[6,4] c, float[4] s", "of two axes or more"),
        ("float16[N,6] x, int8[6,4] c, float[4] s", "x must be float"),
        ("float[N,6] x, uint8[6,4] c, float[4] s", "codes must be int8"),
        ("float[N,6] x, int8[6,4] c, float[6] s", "scales must be"),
        ("float[N,6] x, int8[6,4] c, float16[4] s", "scales must be"),
    ],
)
def test_what_it_does_not_take(text: str, reason: str) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        parse(f"({text}) => (float[N,4] y) {{ y = graphopt.DynamicMatMul(x, c, s) }}")


def test_it_has_levels_that_codes_hold() -> None:
    with pytest.raises(InvalidModelError, match="levels must be 127 or 255"):
        product(3, levels=200)
