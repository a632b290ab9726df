"""Attention by tiles against products of rounded operands in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.machine import host_features
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.attention_shares import NO_AXES, Axes
from graphopt.targets.cpu.kernels.attention_tiles import attention_tiles, suits
from graphopt.targets.cpu.kernels.bfloat16 import Words, round_bits

pytestmark = pytest.mark.skipif(
    "avx512_bf16" not in host_features(), reason="this CPU lacks AVX512-BF16"
)


def compiled(tiles: Amx, *what: Any, guarded: bool = False, **others: Any) -> Any:
    words = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512", tiles)
    kernel = attention_tiles(*what, words, guarded, **others)
    mcpu = "cooperlake" if tiles != Amx() else "sapphirerapids"
    target = tvm.target.Target({"kind": "llvm", "num-cores": 1, "mcpu": mcpu})
    return tvm.compile(kernel.with_attr("global_symbol", "f"), target=target)


def rounded(array: np.ndarray) -> np.ndarray:
    bits = round_bits(array).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).astype(np.float64)


def call(library: Any, arrays: list[np.ndarray], width: int) -> np.ndarray:
    samples, queries = arrays[0].shape[:2]
    room = np.full(samples * queries * width + 64, 7, np.float32)
    y = room[: samples * queries * width].reshape(samples, queries, width)
    library["f"](*map(tvm_ffi.from_dlpack, passed([*arrays, y])))
    assert (room[samples * queries * width :] == 7).all()
    return y


def expected(
    arrays: list[np.ndarray], heads: int, dim: int, columns: tuple[int, ...], activation: str | None
) -> np.ndarray:
    def apart(x: np.ndarray, first: int) -> np.ndarray:
        return rounded(x[..., first : first + heads * dim]).reshape(*x.shape[:2], heads, dim)

    q, k, v = map(apart, arrays[:3], columns)
    bias, factor = [*arrays[3:], np.zeros(1), np.ones(1)][:2]
    scores = 0.3 * np.einsum("bthd,bshd->bhts", q, k) + bias
    if activation is None:
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
    else:
        shares = scores / (1 + np.exp(-scores)) * factor
    mixed = np.einsum("bhts,bshd->bthd", shares, v)
    return mixed.reshape(*mixed.shape[:2], heads * dim)


CASES: list[tuple[int, int, int, int, Axes | None, tuple[int, int, int], str | None]] = [
    (2, 32, 50, 50, (False, False, True, True), (0, 0, 0), None),
    (1, 16, 16, 16, None, (0, 0, 0), None),
    (3, 20, 17, 33, (True, True, True, True), (5, 0, 2), None),
    (1, 64, 33, 200, (True, False, False, True), (0, 0, 0), None),
    (2, 8, 3, 5, (False, True, True, False), (0, 16, 32), None),
    (1, 70, 70, 1, None, (0, 0, 0), None),
    (2, 24, 40, 31, (False, False, True, True), (0, 1, 0), "silu"),
]


@pytest.mark.parametrize(("heads", "dim", "t", "s", "bias", "columns", "activation"), CASES)
def test_tiles(
    tiles: Amx,
    heads: int,
    dim: int,
    t: int,
    s: int,
    bias: Axes | None,
    columns: tuple[int, int, int],
    activation: str | None,
) -> None:
    rng = np.random.default_rng(heads + dim + t + s)
    widths = tuple(heads * dim + first + 3 for first in columns)
    factor = None if activation is None else (True, True, False, True)
    what = (heads, dim, 0.3, columns, widths, bias, t, s)
    library = compiled(tiles, *what, activation=activation, factor=factor)
    samples = 3
    arrays = [rng.normal(size=(samples, length, width)) for length, width in zip((t, s, s), widths)]
    for axes in (bias, factor):
        if axes is not None:
            sizes = zip(axes or NO_AXES, (samples, heads, t, s))
            arrays.append(rng.normal(size=[size if kept else 1 for kept, size in sizes]))
    arrays = [array.astype(np.float32) for array in arrays]
    together = call(library, arrays, heads * dim)
    # Shares are rounded too, to 2^-9 of what they are at most; values are numbers near 1, and
    # without softmax up to 3 times as many count.
    wanted, size = expected(arrays, heads, dim, columns, activation), 1 if activation is None else s
    np.testing.assert_allclose(together, wanted, atol=2**-9 * 5 * size**0.5, rtol=2**-8)
    for few in (0, 1, 2):  # the same bits in any batch
        alone = [array[:few].copy() if len(array) == samples else array for array in arrays]
        np.testing.assert_array_equal(call(library, alone, heads * dim), together[:few])


def test_scores_are_those_of_rounded_operands(tiles: Amx) -> None:
    """Of two keys apart by 20 in score the shares are 1 and 0, and the value comes as rounded."""
    t, dim, rng = 18, 32, np.random.default_rng(1)
    q = rng.normal(size=(1, t, dim)).astype(np.float32)
    k = np.concatenate([q, -q], 1)
    k *= 200 / (q**2).sum(-1).min()
    v = rng.normal(size=(1, 2 * t, dim)).astype(np.float32)
    what = (1, dim, 1.0, (0, 0, 0), (dim,) * 3, None, t, 2 * t)
    scores = rounded(q[0]) @ rounded(k[0]).T
    best = scores.argmax(1)
    ahead = scores.max(1) - np.sort(scores, 1)[:, -2] > 20
    assert ahead.sum() > t / 2
    found = call(compiled(tiles, *what), [q, k, v], dim)[0]
    np.testing.assert_array_equal(found[ahead], rounded(v[0])[best][ahead])


@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_no_number(tiles: Amx, guarded: bool) -> None:
    t, dim, rng = 20, 16, np.random.default_rng(2)
    arrays = [rng.normal(size=(2, t, dim)).astype(np.float32) for _ in range(3)]
    bias = np.zeros((1, 1, t, t), np.float32)
    bias[..., 4, :] = -np.inf
    bias[..., 5, 1:] = -np.inf
    arrays[0][1, 2] = np.nan
    what = (1, dim, 1.0, (0, 0, 0), (dim,) * 3, (False, False, True, True), t, t)
    found = call(compiled(tiles, *what, guarded=guarded), [*arrays, bias], dim)
    nothing = np.zeros(found.shape[:2], bool)
    nothing[:, 4], nothing[1, 2] = True, True
    assert (found[nothing] == 0).all() if guarded else np.isnan(found[nothing]).all()
    assert np.isfinite(found[~nothing]).all()
    np.testing.assert_array_equal(found[:, 5], rounded(arrays[2][:, 0]))


def test_which_are_faster_so() -> None:
    assert suits(16, 1, 16)
    assert suits(50, 50, 32)
    assert not suits(15, 50, 32)
    assert not suits(50, 50, 8)
    assert not suits("T", 50, 32)
    assert not suits(50, "T", 32)
