"""Dense layers between QuantizeLinear and DequantizeLinear multiply bytes on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

import gpu_emulator
import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops import stored_weights
from graphopt.targets.cuda.kernels.gemm import FewRows, Tile, Variant, gemm
from graphopt.targets.cuda.kernels.packed import pack_codes
from graphopt.targets.cuda.legalize import dense_layers, legalize
from graphopt.targets.cuda.ops import dense

from .conftest import Runner

RNG = np.random.default_rng(8)
# Of the first two, stages are filled while others are multiplied.
SIZES = ((201, 36), (100, 37), (140, 38), (33, 3), (64, 4))
TILES = {
    36: Tile(64, 64, 16, 32, 32, 3),  # each warp for itself
    37: Tile(32, 64, 16, 32, 32, 2, 2),  # two of them along k
    38: Tile(16, 32, 32, 16, 32, 3, 4),  # four along k
}
STEP, ZERO = np.float32(0.03), 99
LINE = """q@ = QuantizeLinear (x@, s, z)
    d@ = DequantizeLinear (q@, s, z)
    v@ = DequantizeLinear <axis = 1> (w@, t@)
    m@ = Gemm (d@, v@, b@)
    r@ = Relu (m@)
    y@ = Mul (r@, u@)"""
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CONSTANTS: Arrays = {"s": STEP, "z": np.array(ZERO, np.uint8)}
for _k, _n in SIZES:
    CONSTANTS[f"w{_n}"] = RNG.integers(-127, 128, (_k, _n)).astype(np.int8)
    CONSTANTS |= {f"t{_n}": RNG.random(_n).astype(np.float32), f"b{_n}": normal(_n)}
TEXT = "agraph ({}) => ({}) {{ {} }}".format(
    ", ".join(f"float[m, {k}] x{n}, float[m, {n}] u{n}" for k, n in SIZES),
    ", ".join(f"float[m, {n}] y{n}" for _, n in SIZES),
    "\n".join(LINE.replace("@", str(n)) for _, n in SIZES),
)


def feed_of(batch: int) -> Arrays:
    found = {}
    for k, n in SIZES:
        found |= {f"x{n}": 2 * normal(batch, k), f"u{n}": normal(batch, n)}
        found[f"x{n}"][0, :3] = 1e9, -1e9, 2.5 * STEP  # beyond all codes, and half between two
    return found


def expected_of(feed: Arrays, n: int) -> np.ndarray:
    """The sums are exact; what follows is in float64."""
    codes = np.clip(np.rint(feed[f"x{n}"] * (1 / STEP)).astype(np.float64) + ZERO, 0, 255) - ZERO
    sums = codes @ CONSTANTS[f"w{n}"].astype(np.float64)
    product = sums * (CONSTANTS[f"t{n}"] * STEP) + CONSTANTS[f"b{n}"]
    return np.maximum(product, 0) * feed[f"u{n}"]


def check(run_text: Runner, batches: tuple[int, ...] = (1, 7, 64), **options: object) -> None:
    feeds = [feed_of(batch) for batch in batches]
    for found, feed in zip(run_text(TEXT, *feeds, constants=CONSTANTS, **options), feeds):
        for _, n in SIZES:
            wanted = expected_of(feed, n)
            np.testing.assert_allclose(found[f"y{n}"], wanted, rtol=1e-5, atol=1e-4)


@pytest.fixture(autouse=True)
def every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles for more than four rows, and for few columns what there is for them."""
    default = dense.default_ranges

    def choose(n: int, math: str) -> tuple[tuple[int | None, Variant], ...]:
        assert math == "Int8"
        return ((4, FewRows(4, 32, 64)), (None, TILES[n])) if n in TILES else default(n, math)

    monkeypatch.setattr(dense, "default_ranges", choose)


def test_products_of_bytes(run_text: Runner) -> None:
    sources: list[str] = []
    check(run_text, edit=lambda s: sources.append(s) or s)
    kernels = re.findall(r"graphopt::(\w+)<.*Int8<", sources[0])
    assert set(kernels) == {"gemm_tile", "few_rows", "row_dots"}
    assert sources[0].count('extern "C" __global__') // 2 == 3 * 2 + 2  # no other kernels


def test_by_the_default_variants(run_text: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    check(run_text, (3, 70))


MUTATIONS: dict[str, Callable[[str], str]] = {
    "codes are written before they are read no more": lambda s: s.replace(
        "int present = 0, next = T::STAGES - 1", "int present = 0, next = 0"
    ),
    "the codes of another row": lambda s: s.replace(
        "at / T::DEPTH * Stage<T, MATH>::LA", "(at / T::DEPTH + 1) % T::BM * Stage<T, MATH>::LA"
    ),
    "x beyond its rows": lambda s: s.replace("at < ALL && r < m ?", "at < ALL && r <= m ?"),
    "another row for the start": lambda s: s.replace(
        "weights + WORDS * PITCH + column", "weights + (WORDS - 1) * PITCH + column"
    ),
    "the start of the next column": lambda s: s.replace(
        "% (T::WN / 8) * 8 + i % 2", "% (T::WN / 8) * 8 + (i + 1) % 2"
    ),
    "a code that does not fit": lambda s: s.replace("min(whole, 255 - ZERO)", "whole"),
    "a word of k too few": lambda s: s.replace("word < (K + 3) / 4", "word < K / 4"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(name: str, run_text: Runner) -> None:
    def edit(code: str) -> str:
        broken = MUTATIONS[name](code)
        if broken == code:
            pytest.fail("there is nothing to edit")
        return broken

    with pytest.raises((gpu_emulator.LaunchError, AssertionError), match=r"\S"):
        check(run_text, edit=edit)


def test_weights_are_packed_with_what_sums_start_from() -> None:
    codes = np.array([[1, -2], [3, 4], [-5, 6], [7, 8], [9, -10]], np.int8)
    packed = pack_codes(codes, 100)
    assert packed.shape == (3, 4)
    assert packed[0, :2].tolist() == [0x07FB0301, 0x080604FE]
    assert packed.view(np.int32)[2].tolist() == [28 * 15, 28 * 6, 0, 0]


def test_other_products_are_not_rounded() -> None:
    with pytest.raises(ValueError, match="8 bits go with a rounding"):
        gemm(4, 4, "Int8", ((None, FewRows(1, 16, 64)),))


@pytest.mark.parametrize("multiplies", [True, False])
def test_weights_that_are_stored_in_few_bits_multiply_so_too(multiplies: bool) -> None:
    graph = Graph(opsets={"": 21, stored_weights.DOMAIN: 1})
    x = graph.add_input("x", TensorType("float32", (Sym.named("m"), 45)))
    scales = [graph.constant(np.array(v)) for v in (STEP, np.uint8(ZERO))]
    codes = graph.insert("QuantizeLinear", [x, *scales]).output
    rounded = graph.insert("DequantizeLinear", [codes, *scales]).output
    constants = [graph.constant(a) for a in (np.ones((45, 36), np.int8), np.ones(36, np.float32))]
    attrs = {"axis": 1, "bits": 8}
    weights = graph.insert(
        stored_weights.OP_TYPE, constants, attrs, domain=stored_weights.DOMAIN
    ).output
    graph.set_outputs([graph.insert("MatMul", [rounded, weights]).output], ["y"])
    legalize(graph, "Fp32", multiplies)
    (layer,) = dense_layers(graph)
    assert layer.attrs["math"] == ("Int8" if multiplies else "Fp32")
