"""The bfloat16 GEMM against products of rounded operands in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.machine import host_features
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels import bf16_gemm as kernels
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.bf16_gemm import bf16_gemm, bf16_params, pack_bf16, suits
from graphopt.targets.cpu.kernels.bfloat16 import Words, pair_rows, round_bits, words_for
from graphopt.targets.cpu.kernels.panels import pack_bias
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue, Step

EXECUTES = pytest.mark.skipif(
    "avx512_bf16" not in host_features(), reason="this CPU lacks AVX512-BF16"
)
TARGET = {"kind": "llvm", "num-cores": 1, "mcpu": "cooperlake"}
TILED = {**TARGET, "mattr": ["+amx-tile", "+amx-bf16"]}
WORDS = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512")


def compiled(k: int, n: int, epilogue: Epilogue = PLAIN) -> Any:
    kernel = bf16_gemm(k, n, bf16_params(n, 16), WORDS, epilogue)
    return tvm.compile(kernel.with_attr("global_symbol", "f"), target=tvm.target.Target(TARGET))


def compiled_for(words: Words, k: int, n: int, target: dict[str, Any], *how: Any) -> Any:
    params = bf16_params(n, 16, bool(words.tiles))
    kernel = bf16_gemm(k, n, params, words, *how).with_attr("global_symbol", "f")
    return tvm.compile(kernel, target=tvm.target.Target(target))


def call(
    library: Any,
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    *others: np.ndarray,
    words: Words = WORDS,
) -> np.ndarray:
    m, n = len(x), w.shape[1]
    params = bf16_params(n, 16, bool(words.tiles))
    room = np.full(m * n + 64, 7, np.float32)
    y = room[: m * n].reshape(m, n)
    operands = [x, pack_bf16(w, params, words), pack_bias(bias, n, params), *others, y]
    library["f"](*map(tvm_ffi.from_dlpack, passed(operands)))
    assert (room[m * n :] == 7).all()
    return y


def rounded(array: np.ndarray) -> np.ndarray:
    bits = round_bits(array).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).astype(np.float64)


def sample(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m * 1000 + k + n)
    shapes = ((m, k), (k, n), (n,))
    x, w, b = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, w, b


def test_the_instruction_is_there_on_any_machine() -> None:
    for mcpu in ("cooperlake", "sapphirerapids", "znver4"):
        library = compiled_for(WORDS, 64, 64, {**TARGET, "mcpu": mcpu})
        assembly = set(library.mod.inspect_source("asm").split())
        assert {"vdpbf16ps", "vcvtneps2bf16"} <= assembly
        assert "tdpbf16ps" not in assembly


def test_the_code_for_tiles() -> None:
    words = words_for({"avx512_bf16", "amx_tile", "amx_bf16"}, 16)
    assert words is not None
    library = compiled_for(words, 70, 96, {**TARGET, "mcpu": "sapphirerapids"})
    assembly = library.mod.inspect_source("asm").split()
    used = ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease")
    assert set(used) <= set(assembly)
    assert "vdpbf16ps" not in assembly
    assert assembly.index("ldtilecfg") < assembly.index("tdpbf16ps")


@EXECUTES
@pytest.mark.parametrize(("k", "n"), [(5, 33), (65, 70), (130, 96), (64, 16)])
def test_tiles(tiles: Amx, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rows beside it, a row has the same bits: AMX sums in an order of its own."""
    words = Words(16, WORDS.instruction, tiles)
    bf16_gemm.cache_clear()
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 4 * words.depth(k) * 64)
    library = compiled_for(words, k, n, TILED)
    bf16_gemm.cache_clear()
    x, w, bias = sample(100, k, n)
    together = call(library, x, w, bias, words=words)
    np.testing.assert_allclose(together, rounded(x) @ rounded(w) + bias, rtol=1e-5, atol=3e-5)
    for m in (0, 1, 2, 9, 15, 16, 17, 31, 32, 48, 64, 65, 83):
        np.testing.assert_array_equal(call(library, x[:m], w, bias, words=words), together[:m])


def in_words(array: np.ndarray, words: Words) -> np.ndarray:
    """Rows as one layer hands them to the next; what nobody reads is 7."""
    rows, columns = array.shape
    stored = np.full((rows, words.stride(columns)), 7, np.int32)
    stored[:, : words.depth(columns)] = 0
    stored.view(np.uint16)[:, :columns] = round_bits(array)
    stored.view(np.uint16)[:, columns : columns + columns % 2] = 0
    return stored


# Of which 0 does not become 0: what is beyond the last column shows.
EPILOGUE = Epilogue(Activation("sigmoid"), (Step("mul"), Step("add")), before=1)


@EXECUTES
@pytest.mark.parametrize(
    ("tiles", "k", "n"), [(False, 33, 33), (False, 100, 48), (True, 46, 129), (True, 64, 64)]
)
def test_layers_hand_on_words(
    tiles: bool, k: int, n: int, emulated: Amx, monkeypatch: pytest.MonkeyPatch, at_the_end: Any
) -> None:
    """What they would round, to the last word that is there and no further; the next reads that."""
    words = Words(16, WORDS.instruction, emulated if tiles else None)
    bf16_gemm.cache_clear()
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 4 * words.depth(k) * 64)
    both = [
        compiled_for(words, k, n, TARGET, EPILOGUE, False, *handed)
        for handed in ((False, False), (True, False), (False, True), (True, True))
    ]
    bf16_gemm.cache_clear()
    params = bf16_params(n, 16, tiles)
    for m in (1, 15, 16, 17, 31, 64, 69, 100):
        x, w, bias = sample(m, k, n)
        others = [
            np.random.default_rng(m + r).normal(size=(m, n)).astype(np.float32) for r in (1, 2)
        ]
        constants = [pack_bf16(w, params, words), pack_bias(bias, n, params), *others]
        given = {False: x, True: at_the_end(in_words(x, words))}
        floats, from_words = (
            called(library, [given[takes], *constants], (m, n))
            for library, takes in zip(both[:2], (False, True))
        )
        expected = in_words(floats, words)[:, : words.depth(n)]
        np.testing.assert_array_equal(from_words, floats)
        for library, takes in zip(both[2:], (False, True)):
            found = called(library, [given[takes], *constants], (m, words.stride(n)), np.int32)
            np.testing.assert_array_equal(found[:, : words.depth(n)], expected)


def called(
    library: Any, operands: list[np.ndarray], shape: tuple[int, int], dtype: Any = np.float32
) -> np.ndarray:
    """What it writes; nothing beyond that."""
    count = shape[0] * shape[1]
    room = np.full(count + 64, 7, dtype)
    y = room[:count].reshape(shape)
    library["f"](*map(tvm_ffi.from_dlpack, passed([*operands, y])))
    assert (room[count:] == 7).all()
    return y


def test_rows_of_words_are_in_different_sets_of_a_cache() -> None:
    tiles = Words(16, WORDS.instruction, Amx())
    assert [tiles.stride(k) // 16 for k in (1, 32, 33, 64, 65, 1024)] == [1, 1, 3, 3, 3, 33]
    assert [WORDS.stride(k) for k in (1, 16, 17, 1024)] == [8, 8, 16, 512]
    assert [Words(4, "").stride(k) for k in (1, 4, 5)] == [2, 2, 4]


@EXECUTES
def test_weights_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without, also where rows are rounded in several chunks."""
    k, n = 31, 129
    x, w, bias = sample(40, k, n)
    expected = call(compiled(k, n), x, w, bias)
    monkeypatch.setattr("graphopt.targets.cpu.kernels.panel_ahead.LEAST_BYTES", 0)
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 4 * WORDS.depth(k) * 18)
    kernel = bf16_gemm.__wrapped__(k, n, bf16_params(n, 16), WORDS, far=True)
    assert "llvm.prefetch" in str(kernel)
    target = tvm.target.Target(TARGET)
    library = tvm.compile(kernel.with_attr("global_symbol", "f"), target=target)
    for m in (*range(1, 13), 40):
        np.testing.assert_array_equal(call(library, x[:m], w, bias), expected[:m])


@EXECUTES
@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 16), (31, 20), (65, 70), (46, 129)])
def test_every_row_count(k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bf16_gemm.cache_clear()
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 4 * -(-k // 2) * 24)  # 24 rows at a time
    library = compiled(k, n)
    bf16_gemm.cache_clear()
    for m in [*range(14), 23, 24, 25, 60]:
        x, w, bias = sample(m, k, n)
        expected = rounded(x) @ rounded(w) + bias
        # Sums of up to 130 products near 1, each rounded to float32.
        np.testing.assert_allclose(call(library, x, w, bias), expected, rtol=1e-5, atol=3e-5)


@EXECUTES
def test_activation_and_steps() -> None:
    x, w, bias = sample(9, 40, 37)
    scale, shift = (np.full((9, 37), value, np.float32) for value in (2, 3))
    library = compiled(40, 37, Epilogue(Activation("relu"), (Step("mul"), Step("add"))))
    found = call(library, x, w, bias, scale, shift)
    expected = np.maximum(rounded(x) @ rounded(w) + bias, 0) * 2 + 3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-5)


@EXECUTES
@pytest.mark.parametrize("k", [31, 32, 67])
def test_rounding_is_that_of_numpy(k: int) -> None:
    """Sums of one product by 1: the data come out as they were rounded."""
    rng = np.random.default_rng(k)
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808001, 0x7F7FFFFF, 0x00800000], np.uint32)
    x = rng.normal(scale=1e3, size=(3, k)).astype(np.float32)
    x[0, :5] = ties.view(np.float32)
    x[1, :2] = np.inf, -0.0
    found = call(compiled(k, k), x, np.eye(k, dtype=np.float32), np.zeros(k, np.float32))
    finite = np.isfinite(rounded(x)).all(axis=1)  # infinity times 0 is no number
    np.testing.assert_array_equal(found[finite], rounded(x)[finite])


@EXECUTES
@pytest.mark.parametrize("k", [3, 33])
def test_nan_stays_nan(k: int) -> None:
    x, w, bias = sample(4, k, 8)
    x[2, k - 1] = np.nan
    x[1, 0] = np.uint32(0x7F800001).view(np.float32)  # its payload would be rounded away
    found = call(compiled(k, 8), x, w, bias)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, False]


def test_rounding_of_weights() -> None:
    values = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001], np.uint32).view(np.float32)
    assert round_bits(values).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7FC0]
    words = pair_rows(np.array([[1, 2], [3, 4], [5, 6]], np.float32)).view(np.uint16)
    one, three, five = (round_bits(np.float32([v]))[0] for v in (1, 3, 5))
    assert words[:, :2].tolist() == [[one, three], [five, 0]]


def test_which_layers_and_cpus() -> None:
    assert suits((32, 32), 16)
    assert not suits((31, 64), 16)
    assert not suits((64, 31), 16)
    assert words_for({"avx512f"}, 16) is None
    assert words_for({"avx512_bf16"}, 8) is None
    assert words_for({"bf16"}, 4) is not None
    assert words_for({"avx512_bf16", "amx_tile"}, 16) == WORDS
