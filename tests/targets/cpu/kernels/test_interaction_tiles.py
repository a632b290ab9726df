"""Compressed interaction by tiles against sums of rounded products in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.machine import host_features
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.bfloat16 import Words, round_bits
from graphopt.targets.cpu.kernels.interaction_tiles import interaction_tiles, pack_interaction

pytestmark = pytest.mark.skipif(
    "avx512_bf16" not in host_features(), reason="this CPU lacks AVX512-BF16"
)


def compiled(words: Words, *sizes: int, activation: str, same: bool) -> Any:
    kernel = interaction_tiles(*sizes, words, activation, same)  # type: ignore[misc, arg-type]
    mcpu = "cooperlake" if words.tiles != Amx() else "sapphirerapids"
    target = tvm.target.Target({"kind": "llvm", "num-cores": 1, "mcpu": mcpu})
    return tvm.compile(kernel.with_attr("global_symbol", "f"), target=target)


def rounded(array: np.ndarray) -> np.ndarray:
    bits = round_bits(array).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).astype(np.float64)


def expected(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, same: bool) -> np.ndarray:
    """From products and weights rounded to bfloat16; those of i and j are one if `same`."""
    products = rounded(x[:, :, None] * y[:, None])
    maps = w.reshape(x.shape[1], y.shape[1], -1)
    if not same:
        return np.einsum("nhmd,hmk->nkd", products, rounded(maps)) + b[:, None]
    upper = np.triu(np.ones(maps.shape[:2], bool), 1)
    folded = np.where(upper[..., None], maps + maps.transpose(1, 0, 2), 0)
    folded[range(len(maps)), range(len(maps))] = maps[range(len(maps)), range(len(maps))]
    return np.einsum("nhmd,hmk->nkd", products, rounded(folded)) + b[:, None]


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("left", "right", "dim", "maps", "same"),
    [
        (3, 2, 4, 5, False),
        (1, 1, 1, 1, True),
        (5, 5, 10, 33, True),
        (8, 8, 16, 48, True),
        (2, 9, 8, 17, False),
        (7, 5, 3, 70, False),
        (1, 6, 19, 32, False),
    ],
)
def test_tiles(
    tiles: Amx, left: int, right: int, dim: int, maps: int, same: bool, activation: str
) -> None:
    words = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512", tiles)
    library = compiled(words, left, right, dim, maps, activation=activation, same=same)
    rng = np.random.default_rng(left * right * dim)
    shapes = ((23, left, dim), (23, right, dim), (left * right, maps), (maps,))
    x, y, w, b = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    y = x if same else y
    constants = [pack_interaction(w, left, right, same, words), b]
    wanted = expected(x, y, w, b, same)
    wanted = np.maximum(wanted, 0) if activation == "relu" else wanted
    together = np.empty(0)
    for samples in (23, 0, 1, 2, 5, 9):
        room = np.full(samples * maps * dim + 64, 7, np.float32)
        out = room[: samples * maps * dim].reshape(samples, maps, dim)
        data = [part[:samples].copy() for part in ([x] if same else [x, y])]
        library["f"](*map(tvm_ffi.from_dlpack, passed([*data, *constants, out])))
        assert (room[samples * maps * dim :] == 7).all()
        together = together if together.size else out
        np.testing.assert_array_equal(out, together[:samples])  # the same bits in any batch
    # Sums of up to 64 products near 1, each rounded to float32.
    np.testing.assert_allclose(together, wanted, rtol=1e-5, atol=3e-5)


def test_products_that_do_not_end_stay_beside_the_others(tiles: Amx) -> None:
    """No product is multiplied by weights of zeros that stand for no product."""
    words = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512", tiles)
    library = compiled(words, 3, 3, 16, 16, activation="none", same=True)
    x = np.ones((3, 3, 16), np.float32)
    x[1, 0, 5] = np.inf
    x[2, 1, 2] = np.nan
    constants = [pack_interaction(np.ones((9, 16), np.float32), 3, 3, True, words)]
    out = np.empty((3, 16, 16), np.float32)
    arrays = [x, *constants, np.zeros(16, np.float32), out]
    library["f"](*map(tvm_ffi.from_dlpack, passed(arrays)))
    wanted = np.full((3, 16, 16), 9, np.float32)
    wanted[1, :, 5], wanted[2, :, 2] = np.inf, np.nan
    np.testing.assert_array_equal(out, wanted)
