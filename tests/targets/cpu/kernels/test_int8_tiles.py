"""The 8-bit GEMM with AMX: the same bits as without it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.machine import host_features
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels import int8_gemm as kernels
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.int8_gemm import (
    Rounding,
    int8_gemm,
    int8_params,
    least_rows,
    pack_int8,
    pack_start,
)
from graphopt.targets.cpu.kernels.panels import GemmParams, pack_bias
from graphopt.targets.cpu.kernels.row_codes import LANES, Quantization, RowQuantization
from graphopt.targets.cpu.kernels.tile_products import tile_params
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue, Step

EXECUTES = pytest.mark.skipif(
    "avx512_vnni" not in host_features(), reason="this CPU lacks AVX512-VNNI"
)
TARGET = {
    "kind": "llvm",
    "num-cores": 1,
    "mcpu": "icelake-server",
    "mattr": ["+amx-tile", "+amx-int8"],
}
FIXED, BY_ROW = Quantization(0.05, 117), RowQuantization()
RELU = Epilogue(Activation("relu"))
# Less than a tile, whole ones and parts of them along K; one vector of a panel, or two.
SHAPES = {
    FIXED: [(1, 1), (60, 16), (67, 64), (132, 80), (190, 129)],
    BY_ROW: [(5, 33), (64, 48), (128, 96)],
}
ROWS = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 50, 95, 96, 97, 111, 112, 113, 130)


class Layer:
    """A layer of random weights, called as a kernel that was compiled for it."""

    def __init__(self, k: int, n: int, rounding: Rounding, params: GemmParams | None = None):
        rng = np.random.default_rng(k * 1000 + n)
        self.k, self.n, self.rounding = k, n, rounding
        self.params = params or tile_params(n)
        self.weights = rng.integers(-128, 128, (k, n)).astype(np.int8)
        self.scale, self.bias = (rng.uniform(1e-4, 1e-3, n).astype(np.float32) for _ in range(2))
        x = rng.normal(scale=4, size=(max(ROWS), k)) * 10.0 ** rng.integers(-2, 3, (max(ROWS), 1))
        self.x = x.astype(np.float32)
        self.codes = rng.integers(0, 256, (max(ROWS), k)).astype(np.uint8)

    def compiled(self, amx: Amx | None, epilogue: Epilogue = PLAIN, **options: Any) -> Any:
        kernel = int8_gemm(self.k, self.n, self.rounding, self.params, epilogue, amx=amx, **options)
        target = tvm.target.Target(TARGET)
        function = tvm.compile(kernel.with_attr("global_symbol", "f"), target=target)["f"]
        dtype = np.uint8 if options.get("result") else np.float32

        def call(x: np.ndarray, *others: np.ndarray) -> np.ndarray:
            m = len(x)
            # Nothing may be read or written beyond the data and the result.
            room = np.full(m * self.n + 64, 77, dtype)
            y = room[: m * self.n].reshape(m, self.n)
            function(*map(tvm_ffi.from_dlpack, passed([x, *self.packed(amx), *others, y])))
            assert (room[m * self.n :] == 77).all()
            return y

        return call

    def packed(self, amx: Amx | None) -> list[np.ndarray]:
        zero = self.rounding.zero if isinstance(self.rounding, Quantization) else 1
        codes = pack_int8(self.weights, self.params, amx)
        start = pack_start(self.weights, zero, self.params)
        return [codes, start, *(pack_bias(a, self.n, self.params) for a in (self.scale, self.bias))]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes kernels use tiles from so many rows on."""

    def use(rows: int) -> None:
        int8_gemm.cache_clear()
        monkeypatch.setattr(kernels, "least_rows", lambda k, n: rows)

    yield use
    int8_gemm.cache_clear()


@EXECUTES
@pytest.mark.parametrize(
    ("k", "n", "rounding", "least"),
    [*((*shape, each, 1) for each in SHAPES for shape in SHAPES[each]), (67, 64, FIXED, 17)],
)
def test_tiles_give_the_bits_of_vectors(
    k: int, n: int, rounding: Rounding, least: int, tiles: Amx, always: Any
) -> None:
    always(least)
    layer = Layer(k, n, rounding)
    vectors, tiled = layer.compiled(None, RELU), layer.compiled(tiles, RELU)
    expected = vectors(layer.x)
    assert np.isfinite(expected).all() and expected.any()
    for m in ROWS:
        np.testing.assert_array_equal(tiled(layer.x[:m]), expected[:m], err_msg=str(m))


@EXECUTES
@pytest.mark.parametrize(("k", "n"), [(4, 4), (64, 48), (68, 132), (200, 72)])
def test_codes_are_multiplied_where_they_are(
    k: int, n: int, tiles: Amx, always: Any, at_the_end: Any
) -> None:
    """Up to the last byte of them and no further, and the next layer's are the same."""
    always(1)
    layer = Layer(k, n, FIXED)
    options = {"takes_codes": True, "result": Quantization(0.3, 12)}
    vectors, tiled = (layer.compiled(amx, RELU, **options) for amx in (None, tiles))
    expected = vectors(layer.codes)
    assert len(np.unique(expected)) > 50
    for m in ROWS[1:]:
        found = tiled(at_the_end(layer.codes[:m]))
        np.testing.assert_array_equal(found, expected[:m], err_msg=str(m))


@EXECUTES
@pytest.mark.parametrize("vectors", [1, 2])
def test_panels_of_either_width(vectors: int, tiles: Amx, always: Any) -> None:
    always(1)
    layer = Layer(200, 200, FIXED, GemmParams(LANES, vectors, 4))
    expected, tiled = layer.compiled(None)(layer.x), layer.compiled(tiles)
    for m in (7, 16, 40, 64, 130):
        np.testing.assert_array_equal(tiled(layer.x[:m]), expected[:m], err_msg=str(m))


@EXECUTES
def test_operands_at_the_store(tiles: Amx, always: Any) -> None:
    always(1)
    layer, rng = Layer(70, 37, FIXED), np.random.default_rng(0)
    others = [rng.normal(size=(50, 37)).astype(np.float32) for _ in range(2)]
    epilogue = Epilogue(Activation("sigmoid"), (Step("mul"), Step("add")))
    vectors, tiled = layer.compiled(None, epilogue), layer.compiled(tiles, epilogue)
    for m in (1, 33, 50):
        given = [other[:m] for other in others]
        found, expected = tiled(layer.x[:m], *given), vectors(layer.x[:m], *given)
        np.testing.assert_array_equal(found, expected)


@EXECUTES
def test_sums_neither_saturate_nor_round(tiles: Amx, always: Any) -> None:
    always(1)
    layer = Layer(4096, 2, Quantization(1.0, 0))
    layer.weights[:], layer.scale[:], layer.bias[:] = -128, 1, 0
    found = layer.compiled(tiles)(np.full((33, 4096), 255, np.float32))
    assert (found == -128 * 255 * 4096).all()


def code(k: int, n: int, amx: Amx | None) -> list[str]:
    params = tile_params(n) if amx else int8_params(n)
    kernel = int8_gemm(k, n, FIXED, params, amx=amx).with_attr("global_symbol", "f")
    target = tvm.target.Target({"kind": "llvm", "num-cores": 1, "mcpu": "sapphirerapids"})
    assembly: list[str] = tvm.compile(kernel, target=target).mod.inspect_source("asm").split()
    return assembly


def test_the_instructions() -> None:
    used = ["ldtilecfg", "tilezero", "tileloadd", "tdpbusd", "tilestored", "tilerelease"]
    with_tiles = code(130, 96, Amx())
    assert {*used, "vpdpbusd"} <= set(with_tiles)
    assert with_tiles.index("ldtilecfg") < with_tiles.index("tdpbusd")
    assert not set(used) & set(code(130, 96, None))


@EXECUTES
@pytest.mark.parametrize(
    ("rows", "columns", "products", "loads"),
    [
        (32, 64, 8, 8),  # 2 x 2 tiles, twice: each that is loaded is multiplied twice
        (16, 64, 4, 6),
        (9, 64, 4, 6),
        (33, 64, 12, 14),
        (96, 80, 36, 36),  # the last panel has a column of tiles that nobody needs
        (32, 16, 2, 3),
    ],
)
def test_how_many_instructions(
    rows: int, columns: int, products: int, loads: int, emulated: Amx, always: Any
) -> None:
    always(1)
    layer, steps = Layer(256, columns, FIXED), 256 // 64
    compiled = layer.compiled(emulated)
    counted = (ctypes.c_int64 * 2).in_dll(ctypes.CDLL(None), "emulated_counts")
    before = list(counted)
    compiled(layer.x[:rows])
    assert [now - then for now, then in zip(counted, before)] == [steps * loads, steps * products]


@pytest.mark.parametrize(("shape", "rows"), [((1024, 1024), 3), ((128, 128), 5), ((16, 64), 40)])
def test_few_rows_of_small_layers_are_left_to_vectors(shape: Sequence[int], rows: int) -> None:
    assert least_rows(*shape) == rows


def test_zeros_lie_before_the_last_tile() -> None:
    """Which so overlaps the one before, where rows of codes are."""
    weights = np.arange(1, 69, dtype=np.int8).reshape(68, 1)
    params = int8_params(1)
    plain, tiled = pack_int8(weights, params), pack_int8(weights, params, Amx())
    assert (plain.shape, tiled.shape) == ((1, 17, 16), (1, 32, 16))
    np.testing.assert_array_equal(tiled[:, :16], plain[:, :16])
    assert not tiled[:, 16:31].any()
    np.testing.assert_array_equal(tiled[:, 31], plain[:, 16])
    np.testing.assert_array_equal(pack_int8(weights[:64], params, Amx()), plain[:, :16])


@pytest.mark.parametrize(("columns", "vectors"), [(1, 1), (16, 1), (17, 2), (48, 2), (512, 2)])
def test_columns_of_a_panel(columns: int, vectors: int) -> None:
    """Tiles in pairs: one alone takes nearly as long as two."""
    assert tile_params(columns).vectors == vectors
