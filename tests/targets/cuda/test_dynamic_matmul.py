"""Layers whose rows are rounded in ranges of their own multiply bytes on a GPU, with exact sums."""

from __future__ import annotations

import re

import gpu_emulator
import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.dynamic_matmul import DOMAIN, OP_TYPE, rounded
from graphopt.targets.cuda.kernels.gemm import FewRows, Tile, Variant
from graphopt.targets.cuda.legalize import dense_layers, legalize
from graphopt.targets.cuda.ops import dense
from graphopt.targets.cuda.target import CudaTarget
from graphopt.testing import parse, run_onnxruntime

from .conftest import Runner
from .mutants import replaced

RNG = np.random.default_rng(3)
# Rows that threads hold, by single elements too, and one too long for that.
SIZES = ((132, 36), (301, 37), (1100, 38), (33, 3), (5, 4))
TILES = {
    36: Tile(64, 64, 16, 32, 32, 3),  # each warp for itself
    37: Tile(32, 64, 16, 32, 32, 2, 2),  # two of them along k
    38: Tile(16, 32, 32, 16, 32, 3, 4),  # four along k
}
LEVELS = {36: 255, 37: 127, 38: 255, 3: 127, 4: 255}
CODES = {n: RNG.integers(-127, 128, (k, n)).astype(np.int8) for k, n in SIZES}
SCALES = {n: RNG.uniform(0.0001, 0.001, n).astype(np.float32) for _, n in SIZES}
BIASES = {n: RNG.standard_normal(n).astype(np.float32) for _, n in SIZES}
Arrays = dict[str, np.ndarray]


def layers() -> Graph:
    """Relu(x @ w + b) * u for each of the sizes, side by side."""
    graph = Graph(opsets={"": 18, DOMAIN: 1})
    found = []
    for k, n in SIZES:
        x, u = (
            graph.add_input(f"{name}{n}", TensorType("float32", (Sym.named("m"), size)))
            for name, size in (("x", k), ("u", n))
        )
        constants = [graph.constant(CODES[n]), graph.constant(SCALES[n])]
        attrs = {"levels": LEVELS[n]}
        made = graph.insert(OP_TYPE, [x, *constants], attrs, domain=DOMAIN).output
        made = graph.insert("Add", [made, graph.constant(BIASES[n])]).output
        made = graph.insert("Relu", [made]).output
        found.append(graph.insert("Mul", [made, u]).output)
    graph.set_outputs(found, [f"y{n}" for _, n in SIZES])
    return graph


def feed_of(batch: int) -> Arrays:
    """Rows of very different sizes, with outliers; some above or below 0 throughout, or 0."""
    found: Arrays = {}
    for k, n in SIZES:
        x = RNG.normal(size=(batch, k)) * 10.0 ** RNG.integers(-3, 4, (batch, 1))
        x[1::5], x[2::5], x[3::9] = np.abs(x[1::5]), -np.abs(x[2::5]), 0
        x[4::7, -1] *= 100
        x[5::11, 0] = -1e-4
        found[f"x{n}"] = x.astype(np.float32)
        found[f"u{n}"] = RNG.standard_normal((batch, n)).astype(np.float32)
    return found


def first(feed: Arrays, rows: int) -> Arrays:
    return {name: array[:rows] for name, array in feed.items()}


def assert_right(found: Arrays, feed: Arrays) -> None:
    """Sums are exact, and float32 is what follows."""
    for _, n in SIZES:
        data, weights = rounded(feed[f"x{n}"], LEVELS[n]), CODES[n] * SCALES[n].astype(np.float64)
        product = data.astype(np.float64) @ weights
        wanted = np.maximum(product + BIASES[n], 0) * feed[f"u{n}"]
        size = np.abs(data) @ np.abs(weights) + np.abs(BIASES[n])
        assert (np.abs(found[f"y{n}"] - wanted) <= 1e-6 * size * np.abs(feed[f"u{n}"])).all()


def check(run_model: Runner, batches: tuple[int, ...] = (64, 7, 1), **options: object) -> None:
    """Also that a row has the same bits in every batch, whichever variant computes it."""
    feed = feed_of(batches[0])
    feeds = [first(feed, rows) for rows in batches]
    results = run_model(layers(), *feeds, **options)
    assert_right(results[0], feed)
    for rows, found in zip(batches, results):
        for name, array in found.items():
            np.testing.assert_array_equal(array, results[0][name][:rows], err_msg=name)


@pytest.fixture(autouse=True)
def every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles for more than four rows, and for few columns what there is for them."""
    default = dense.default_ranges

    def choose(n: int, math: str) -> tuple[tuple[int | None, Variant], ...]:
        chosen = math == "Codes" and n in TILES
        return ((4, FewRows(4, 32, 64)), (None, TILES[n])) if chosen else default(n, math)

    monkeypatch.setattr(dense, "default_ranges", choose)


def test_rows_in_ranges_of_their_own(run_model: Runner) -> None:
    sources: list[str] = []
    check(run_model, edit=lambda s: sources.append(s) or s)
    kernels = re.findall(r"graphopt::(\w+)<.*Codes,", sources[0])
    assert set(kernels) == {"gemm_tile", "few_rows", "row_dots"}
    coding = len(SIZES)
    assert sources[0].count('extern "C" __global__') // 2 == coding + 3 * 2 + 2  # no other kernels


def test_by_the_default_variants(run_model: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    check(run_model, (70, 20, 3, 2))


def test_rows_that_have_no_range(run_model: Runner) -> None:
    feed = feed_of(64)
    spoiled = {name: array.copy() for name, array in feed.items()}
    numbers = np.float32([np.nan, np.inf, -np.inf, -np.nan])
    for k, n in SIZES:
        for row, number in enumerate(numbers, 10):
            spoiled[f"x{n}"][row, row * 7 % k] = number
        spoiled[f"x{n}"][20] = 1e-40
        spoiled[f"x{n}"][21, :2] = 3e38, -2e38  # further apart than the largest number
    before, after, nothing = run_model(layers(), feed, spoiled, first(feed, 0))
    others = np.r_[:10, 14:20, 22:64]
    for _, n in SIZES:
        found = after[f"y{n}"]
        assert np.isnan(found[10:14]).all()
        wanted = np.maximum(BIASES[n], 0) * feed[f"u{n}"][20]
        np.testing.assert_allclose(found[20], wanted, rtol=1e-6)
        assert np.isfinite(found[21]).all()
        np.testing.assert_array_equal(found[others], before[f"y{n}"][others])
        assert nothing[f"y{n}"].shape == (0, n)


SHARED = """(float[N,3,64] x) => (float[N,3,70] y, float[N,3,70] z, float[N,3,70] v)
<int8[64,70] c, int8[64,70] d, float[70] s> {
    y = graphopt.DynamicMatMul(x, c, s)
    z = graphopt.DynamicMatMul(x, d, s)
    v = graphopt.DynamicMatMul<levels=127>(x, c, s)
}"""


MANY_AXES = """(float[N,3,64] x) => (float[N,3,6] y) <int8[64,6] c, float[6] s> {
    y = graphopt.DynamicMatMul(x, c, s)
}"""


@pytest.mark.parametrize(("target", "maths"), [("sm_80", "Codes"), ("sm_75", "Fp32")])
def test_codes_are_made_once_for_all_that_read_them(target: str, maths: str) -> None:
    graph = CudaTarget.parse(target).legalize(parse(SHARED))
    assert [layer.attrs["math"] for layer in dense_layers(graph)] == [maths] * 3
    coding = [node.attrs["levels"] for node in graph.walk() if node.op_type == "RowCodes"]
    assert sorted(coding) == ([127, 255] if maths == "Codes" else [])
    again = len(list(graph.walk()))
    legalize(graph, "Fp32")
    assert len(list(graph.walk())) == again


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_75"])
def test_rows_of_more_axes(target: str, run_model: Runner) -> None:
    """On a GPU without tensor cores for bytes in floats, the same numbers."""
    graph, x = parse(MANY_AXES), RNG.standard_normal((5, 3, 64)).astype(np.float32)
    codes, scales = (value.const for value in graph.constants())
    (found,) = run_model(graph, {"x": x}, target=target)
    wanted = rounded(x.reshape(15, 64)).astype(np.float64) @ (codes * scales.astype(np.float64))
    np.testing.assert_allclose(found["y"].reshape(15, 6), wanted, rtol=1e-5, atol=1e-3)


MUTATIONS = {
    "the largest of fewer threads": ("int step = GROUP / 2; step;", "int step = GROUP / 4; step;"),
    "rows that there are not": ("if (row >= m) return;", "if (row > m) return;"),
    "rows beyond the batch are read": ("min(row, m - 1) * K", "row * K"),
    "the zero point of a row of negative numbers": ("rintf(-range.low", "rintf(range.high"),
    "codes beyond 255": ("min(__float2int_rn(v / distance), 255 - zero)", "256 - zero"),
    "the next word of codes": ("first + left[r] + word", "first + left[r] + word + 1"),
    "rows without what follows codes": ("PITCH = DISTANCE + 4", "PITCH = DISTANCE"),
    "a shift of another sign": ("lane == 1 ? 128 - zero", "lane == 1 ? zero - 128"),
    "words before they are there": ("wait_prior(T::STAGES - 2)", "wait_prior(T::STAGES - 1)"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(name: str, run_model: Runner) -> None:
    old, new = MUTATIONS[name]
    with pytest.raises((gpu_emulator.LaunchError, AssertionError), match=r"\S"):
        check(run_model, (9, 1), edit=lambda s: replaced(s, old, new))


OF_BATCHES = """(float[N,40] x) => (float[N,36] y)
<int8[40,36] w, int8 zero = {0}, float s = {0.02}> {
    q, scale, z = DynamicQuantizeLinear(x)
    p = MatMulInteger(q, w, z, zero)
    f = Cast<to = 1>(p)
    both = Mul(scale, s)
    y = Mul(f, both)
}"""


def test_one_range_for_all_rows_stays_that_of_the_batch(run_model: Runner) -> None:
    graph, feed = parse(OF_BATCHES), {"x": feed_of(64)["x36"][:, :40]}
    feeds = [first(feed, rows) for rows in (1, 7, 64)]
    for found, given in zip(run_model(graph, *feeds), feeds):
        np.testing.assert_allclose(found["y"], run_onnxruntime(graph, given)["y"], rtol=1e-6)
