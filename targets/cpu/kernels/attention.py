"""Scaled dot-product attention over short sequences, all heads of a sample in one go.

For each head the keys are turned around once, so that the scores of a vector of keys are computed
together; scores, softmax and the weighted sum of values then stay in the nearest cache.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.kernels.elementary import fast_exp
from graphopt.targets.kernels.inlining import inlined
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.storage import element_bytes

_ROWS = 4  # queries that share each load of a key
_SUMS = 8  # vectors of sums that keep two units for fused multiply-adds busy


@dataclass(frozen=True)
class _Head:
    """One head: `dim` elements of a query or a key, `keys` of these, in vectors of `lanes` keys."""

    dim: int
    keys: Any
    lanes: int
    guarded: bool

    @property
    def blocks(self) -> Any:
        """Vectors of keys; those beyond the last key count for nothing."""
        return (self.keys + self.lanes - 1) // self.lanes


@cache
def attention(
    heads: int,
    dim: int,
    scale: float,
    columns: tuple[int, int, int],
    widths: tuple[int, int, int],
    bias: tuple[bool, bool, bool, bool] | None,
    queries: int | None,
    keys: int | None,
    lanes: int,
    guarded: bool = False,
) -> PrimFunc:
    """Kernel (q[b, t, widths[0]], k[b, s, widths[1]], v[b, s, widths[2]], bias?) -> y[b, t, …].

    y[b, t, heads * dim] = softmax(scale * q k^T + bias) v for each head, whose columns in q, k and
    v begin at `columns`. float32. NaN stays NaN; all scores -inf give NaN, and no keys 0.
    If `guarded`, all of these give 0.

    Args:
        bias: which axes of the bias [b, heads, t, s] it has; the others are of size 1. None for no
            bias.
        queries: t, symbolic if None, and `keys` is s likewise; `b` is symbolic.
        lanes: float32 elements in a vector register.
    """
    align, samples = element_bytes("float32"), tirx.Var("samples", "int64")
    t = tirx.Var("queries", "int64") if queries is None else queries
    s = tirx.Var("keys", "int64") if keys is None else keys
    head, kept = _Head(dim, s, lanes, guarded), bias or (False,) * 4
    sizes = [size if given else 1 for given, size in zip(kept, (samples, heads, t, s))]
    turn_keys, blocks = _turning(head, columns[1]), head.blocks
    attend = _attending(head, scale, columns, bias)

    @T.prim_func(private=True, s_tir=True)
    def attention(q_: T.handle, k_: T.handle, v_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        q = T.match_buffer(q_, (samples, t, widths[0]), "float32", align=align)
        k = T.match_buffer(k_, (samples, s, widths[1]), "float32", align=align)
        v = T.match_buffer(v_, (samples, s, widths[2]), "float32", align=align)
        added = T.match_buffer(bias_, sizes, "float32", align=align)
        y = T.match_buffer(out_, (samples, t, heads * dim), "float32", align=align)
        turned = T.alloc_buffer((dim * blocks * lanes,), "float32")
        score = T.alloc_buffer((_ROWS * blocks * lanes,), "float32")
        total = T.alloc_buffer((_ROWS,), "float32", scope="local")
        for b in range(samples):
            for h in range(heads):
                tensors = T.meta_var((q, turned, v, added, y, score, total))
                turn_keys(turned, k, b, h)
                for i in range(t // _ROWS):
                    attend(tensors, b, h, i * _ROWS, _ROWS)
                for i in range(t % _ROWS):
                    attend(tensors, b, h, t - 1 - i, 1)

    return attention if bias is not None else without_parameters(attention, "added")


def _turning(head: _Head, column: int) -> Emitted:
    """For use in a kernel: `turn_keys(turned, k, b, h)` puts the keys of a head side by side."""
    dim, s, padded = head.dim, head.keys, head.blocks * head.lanes

    @inlined
    def turn_keys(turned, k, b, h):
        for row in range(s):
            for d in range(dim):
                turned[d * padded + row] = k[b, row, column + h * dim + d]
        for d in range(dim):
            for row in range(padded - s):
                turned[d * padded + s + row] = T.float32(0)

    return turn_keys


def _attending(
    head: _Head,
    scale: float,
    columns: tuple[int, int, int],
    bias: tuple[bool, bool, bool, bool] | None,
) -> Emitted:
    """For use in a kernel: `attend(tensors, b, h, first, rows)` computes rows of y for a head."""
    scores, mix = _scoring(head, scale, columns[0]), _mixing(head, columns[2])
    softmax = _softmax(head, bias)

    @inlined
    def attend(tensors, b, h, first, rows):
        q, turned, v, added, y, score, total = T.meta_var(tensors)
        scores(score, q, turned, b, h, first, rows)
        for m in range(rows):
            softmax(score, total, added, b, h, first + m, m)
        mix(y, score, total, v, b, h, first, rows)

    return attend


def _scoring(head: _Head, scale: float, column: int) -> Emitted:
    """For use in a kernel: `scores(score, q, turned, b, h, first, rows)` multiplies with keys."""
    dim, lanes, blocks = head.dim, head.lanes, head.blocks

    @inlined
    def multiply(score, q, turned, b, h, first, rows, block, side):
        """Queries times `side` vectors of keys from vector `block` on."""
        acc = T.alloc_buffer((rows * side * lanes,), "float32", scope="local")
        for part in T.unroll(rows * side):
            acc[T.ramp(part * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
        for d in range(dim):
            for m in T.unroll(rows):
                for n in T.unroll(side):
                    acc[T.ramp((m * side + n) * lanes, 1, lanes)] = (
                        acc[T.ramp((m * side + n) * lanes, 1, lanes)]
                        + T.Broadcast(q[b, first + m, column + h * dim + d], lanes)
                        * turned[T.ramp((d * blocks + block + n) * lanes, 1, lanes)]
                    )
        for m in T.unroll(rows):
            for n in T.unroll(side):
                score[T.ramp((m * blocks + block + n) * lanes, 1, lanes)] = acc[
                    T.ramp((m * side + n) * lanes, 1, lanes)
                ] * T.Broadcast(T.float32(scale), lanes)

    @inlined
    def scores(score, q, turned, b, h, first, rows):
        side = T.meta_var(_SUMS // rows)
        for i in range(blocks // side):
            multiply(score, q, turned, b, h, first, rows, i * side, side)
        if not isinstance(blocks, int):
            for i in range(blocks % side):
                multiply(score, q, turned, b, h, first, rows, blocks - 1 - i, 1)
        elif blocks % side > 0:
            multiply(score, q, turned, b, h, first, rows, blocks - blocks % side, blocks % side)

    return scores


def _softmax(head: _Head, bias: tuple[bool, bool, bool, bool] | None) -> Emitted:
    """For use in a kernel: `softmax(score, total, added, b, h, row, m)` for row m of the scores.

    It leaves shares that add up to total[m]; those beyond the last key are 0.
    """
    lanes, blocks, s = head.lanes, head.blocks, head.keys
    has_bias, kept = bias is not None, bias or (False,) * 4
    greatest, add_up = reducing(lanes, T.max), reducing(lanes)

    def bias_at(added, *place):
        return added[tuple(index if given else 0 for index, given in zip(place, kept))]

    @inlined
    def softmax(score, total, added, b, h, row, m):
        start = T.meta_var(m * blocks * lanes)
        top = T.alloc_buffer((lanes,), "float32", scope="local")
        parts = T.alloc_buffer((lanes,), "float32", scope="local")
        if has_bias:
            for key in range(s):
                score[start + key] = score[start + key] + bias_at(added, b, h, row, key)
        for key in range(blocks * lanes - s):
            score[start + s + key] = T.float32("-inf")
        for lane in T.vectorized(lanes):
            top[lane] = T.float32("-inf")
        for block in range(blocks):
            for lane in T.vectorized(lanes):
                top[lane] = T.max(top[lane], score[start + block * lanes + lane])
        greatest(top, 0)
        for lane in T.vectorized(lanes):
            parts[lane] = T.float32(0)
        for block in range(blocks):
            for lane in T.vectorized(lanes):
                score[start + block * lanes + lane] = fast_exp(
                    score[start + block * lanes + lane] - top[0]
                )
            for lane in T.vectorized(lanes):
                parts[lane] = parts[lane] + score[start + block * lanes + lane]
        add_up(parts, 0)
        total[m] = T.Select(s == 0, T.float32(1), parts[0])

    return softmax


def _mixing(head: _Head, first_column: int) -> Emitted:
    """For use in a kernel: `mix(y, score, total, v, b, h, first, rows)` adds up weighted values."""
    dim, lanes, blocks, s = head.dim, head.lanes, head.blocks, head.keys

    def share_of(value, total):
        part = value / total
        return T.Select(total > T.float32(0), part, T.float32(0)) if head.guarded else part

    @inlined
    def mix(y, score, total, v, b, h, first, rows):
        tiles = T.meta_var(Tiles(dim, lanes, 4 if lanes == 16 else _SUMS // rows))
        width = T.meta_var(tiles.vectors * tiles.lanes)
        acc = T.alloc_buffer((rows * width,), "float32", scope="local")
        for tile in range(tiles.count):
            for m in T.unroll(rows):
                for n in T.unroll(tiles.vectors):
                    for lane in T.vectorized(tiles.lanes):
                        acc[m * width + n * tiles.lanes + lane] = T.float32(0)
            for key in range(s):
                for n in T.unroll(tiles.vectors):
                    for m in T.unroll(rows):
                        for lane in T.vectorized(tiles.lanes):
                            acc[m * width + n * tiles.lanes + lane] = (
                                acc[m * width + n * tiles.lanes + lane]
                                + score[m * blocks * lanes + key]
                                * v[b, key, first_column + h * dim + tiles.column(tile, n) + lane]
                            )
            for m in T.unroll(rows):
                for n in T.unroll(tiles.vectors):
                    for lane in T.vectorized(tiles.lanes):
                        y[b, first + m, h * dim + tiles.column(tile, n) + lane] = share_of(
                            acc[m * width + n * tiles.lanes + lane], total[m]
                        )

    return mix
