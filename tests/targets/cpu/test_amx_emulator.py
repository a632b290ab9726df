"""The C functions that stand for AMX next to the instructions themselves: the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.amx import DATA, SUMS, TILE, WEIGHTS, WORD, Amx
from graphopt.targets.kernels import script

TARGET = {"kind": "llvm", "num-cores": 1, "mcpu": "sapphirerapids"}
ROOM = 3 * TILE  # rows of as many bytes lie in memory, of which a tile has some
Product = Callable[..., np.ndarray]


def product(amx: Amx, instruction: str) -> Product:
    """What sums become: f(rows, k, columns, sums, data, weights, strides), in words of 4 bytes."""

    @script.prim_func(private=True, s_tir=True)
    def once(c: T.handle, s: T.handle, x: T.handle, w: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        config = T.match_buffer(c, (64,), "uint8", align=1)
        strides = T.match_buffer(s, (3,), "int64", align=1)
        data = T.match_buffer(x, (ROOM, ROOM), "int32", align=1)
        weights = T.match_buffer(w, (ROOM, ROOM), "int32", align=1)
        sums = T.match_buffer(y, (ROOM, ROOM), "int32", align=1)
        amx("ldtilecfg", T.address_of(config[0]))
        amx("tileloadd64", T.int8(SUMS), T.address_of(sums[0, 0]), strides[0])
        amx("tileloadd64", T.int8(DATA), T.address_of(data[0, 0]), strides[1])
        amx("tileloadd64", T.int8(WEIGHTS), T.address_of(weights[0, 0]), strides[2])
        amx(instruction, T.int8(SUMS), T.int8(DATA), T.int8(WEIGHTS))
        amx("tilestored64", T.int8(SUMS), T.address_of(sums[0, 0]), strides[0])
        amx("tilerelease")

    kernel = once.with_attr("global_symbol", "once")
    function = tvm.compile(kernel, target=tvm.target.Target(TARGET))["once"]

    def call(rows, k, columns, sums, data, weights, strides):
        config = np.zeros(64, np.uint8)
        config[0] = 1
        for tile, height, width in ((SUMS, rows, columns), (DATA, rows, k), (WEIGHTS, k, columns)):
            config[16 + 2 * tile], config[48 + tile] = WORD * width, height
        given = [config, np.array(strides), data, weights, sums.copy()]
        function(*map(tvm_ffi.from_dlpack, given))
        return given[-1]

    return call


def halves(rng: np.random.Generator, kind: str) -> np.ndarray:
    """int32[ROOM, ROOM] of pairs of bfloat16."""
    size = (ROOM, 2 * ROOM)
    exponents = {"usual": (117, 132), "tiny": (0, 110), "cancelling": (55, 75), "huge": (180, 255)}
    if kind in exponents:
        signs, exponent = rng.integers(0, 2, size), rng.integers(*exponents[kind], size)
        found = signs << 15 | exponent << 7 | rng.integers(0, 128, size)
    elif kind == "special":  # zeros, subnormal and extreme numbers, infinities, NaNs; beside 1
        some = [0, 1, 0x7F, 0x80, 0x7F7F, 0x7F80, 0x7FC1, 0x7F81, 0x7FFF]
        found = rng.choice([*some, *(0x8000 | bits for bits in some)], size)
        found[rng.random(size) < 0.9] = 0x3F80
    else:
        found = rng.integers(0, 1 << 16, size)
    return found.astype(np.uint16).view(np.int32)


def words(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-(1 << 31), 1 << 31, (ROOM, ROOM)).astype(np.int32)


def compare(
    emulated: Product, hardware: Product, rng: np.random.Generator, draw: Callable[[], np.ndarray]
) -> np.ndarray:
    """Sums on some tiles of any sizes, after they were found equal."""
    results = []
    for which in range(60):
        sizes = rng.integers(1, TILE + 1, 3) if which else np.full(3, TILE)
        # Rows of memory, parts of them, and one row again and again where nothing is stored.
        strides = [rng.integers(WORD * TILE, WORD * ROOM), *rng.choice([0, 61, 64, WORD * ROOM], 2)]
        # As what is multiplied, nothing, and floats about the smallest that are not subnormal.
        sums = draw() & np.int32([-1, 0, -0x7E000001][which % 3])
        arguments = (*map(int, sizes), sums, draw(), draw(), strides)
        expected = hardware(*arguments)
        np.testing.assert_array_equal(emulated(*arguments), expected, err_msg=f"{sizes} {strides}")
        results.append(expected[: sizes[0], : sizes[2]].ravel())
    found = np.concatenate(results)
    assert len(np.unique(found)) > 200
    return found


@pytest.mark.parametrize("kind", ["usual", "tiny", "cancelling", "huge", "special", "any"])
def test_products_of_bfloat16(emulated: Amx, hardware: Amx, kind: str) -> None:
    """The order of additions, rounding, what becomes of subnormal numbers, which NaN it is."""
    rng = np.random.default_rng(0)
    pair = (product(amx, "tdpbf16ps") for amx in (emulated, hardware))
    found = compare(*pair, rng, lambda: halves(rng, kind)).view(np.float32)
    if kind == "usual":
        assert np.isfinite(found).mean() > 0.9
    if kind == "special":
        assert 0.1 < np.isnan(found).mean() < 0.99


def test_products_of_bytes(emulated: Amx, hardware: Amx) -> None:
    """Sums that leave the range of int32 too."""
    rng = np.random.default_rng(0)
    pair = (product(amx, "tdpbusd") for amx in (emulated, hardware))
    compare(*pair, rng, lambda: words(rng))
