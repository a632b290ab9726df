"""Scaled dot-product attention over short sequences: a warp a query, in one pass over the keys.

Each thread scores a key of its own; then the warp adds up their values, scaled by what the scores
weigh so far. Sums made under an earlier maximum are scaled down when a greater one turns up.
(Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.) Weights that another
activation makes of scores one by one are final at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, inf
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels import warps
from graphopt.targets.cuda.kernels.blocks import covering, launched
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.elementary import fast_exp
from graphopt.targets.relax.primfunc import int64

THREADS = 128
_WARPS = THREADS // warps.WARP
LANES = 4


@dataclass(frozen=True)
class Heads:
    """`count` heads of `dim` columns, those of q, k and v from `columns` on.

    If `guarded`, shares that are NaN count as 0. `activation` makes shares of scores one by one;
    None for softmax.
    """

    count: int
    dim: int
    scale: float
    columns: tuple[int, int, int]
    guarded: bool = False
    activation: Activation | None = None


def attention(heads: Heads, q: Any, k: Any, v: Any, bias: Any, factor: Any, out: Any) -> None:
    """The statements of the kernel: out[b, t, heads * dim] = softmax(scale * q k^T + bias) v.

    float32. NaN stays NaN; all scores -inf give NaN, and no keys 0. If guarded, all give 0. With an
    activation, activation(scale * q k^T + bias) * factor v.

    Args:
        bias: [b, heads, t, s], each axis there or of size 1; None for no bias. So is `factor`.
    """
    samples, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    whole = samples * heads.count * queries
    with launched(covering(whole, _WARPS), THREADS) as (block, thread):
        at, lane = T.bind(block * _WARPS + thread // warps.WARP), thread % warps.WARP
        with T.If(at < whole), T.Then():
            sample = T.bind(at // (heads.count * queries))
            head = T.bind(at // queries % heads.count)
            query = T.bind(at % queries)
            width = -(-heads.dim // warps.WARP)
            # The greatest score so far, the sum of weights, and the weighted sum of values.
            state = T.alloc_buffer([2], "float32", scope="local")
            sums = T.alloc_buffer([width], "float32", scope="local")
            T.buffer_store(state, T.float32(-inf), [0])
            T.buffer_store(state, T.float32(0), [1])
            for c in range(width):
                T.buffer_store(sums, T.float32(0), [c])
            with T.serial(int64(0), covering(keys, warps.WARP)) as turn:
                first = T.bind(turn * warps.WARP)
                weight = T.alloc_buffer([2], "float32", scope="local")
                place = (sample, head, query)
                _score(heads, (q, k, bias, factor), place, first + lane, keys, weight)
                if heads.activation is None:
                    _weigh(weight, state, sums)
                _add_values(heads, v, (sample, head), first, lane, keys, weight, sums)
            for c in range(width):
                column = c * warps.WARP + lane
                value = sums[c] if heads.activation else _share_of(heads, sums[c], state[1], keys)
                with T.If(column < heads.dim), T.Then():
                    T.buffer_store(out, value, [sample, query, head * heads.dim + column])


def _share_of(heads: Heads, value: Any, total: Any, keys: Any) -> Any:
    some = total > T.float32(0) if heads.guarded else keys > 0
    return T.Select(some, value / total, T.float32(0))


def _score(
    heads: Heads, tensors: tuple[Any, ...], place: tuple[Any, Any, Any], key: Any, keys: Any,
    weight: Any,
) -> None:  # fmt: skip
    """weight[0] = the score of a key, or what the activation makes of it.

    -inf for one that there is not, which nothing but a maximum reads.
    """
    (q, k, bias, factor), (sample, head, query) = tensors, place
    at_q, at_k, _ = heads.columns
    lanes = gcd(LANES, heads.dim, at_q, at_k, int(q.shape[2]), int(k.shape[2]))
    T.buffer_store(weight, T.float32(-inf), [0])
    with T.If(key < keys), T.Then():
        total = T.alloc_buffer([1], "float32", scope="local")
        held = T.alloc_buffer([2, lanes], "float32", scope="local")
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(int64(0), int64(heads.dim // lanes)) as piece:
            column = head * heads.dim + piece * lanes
            with T.vectorized(lanes) as j:
                T.buffer_store(held, q[sample, query, at_q + column + j], [0, j])
            with T.vectorized(lanes) as j:
                T.buffer_store(held, k[sample, key, at_k + column + j], [1, j])
            for j in range(lanes):
                T.buffer_store(total, total[0] + held[0, j] * held[1, j], [0])
        score = total[0] * T.float32(heads.scale)
        if bias is not None:
            score = score + _at(bias, (*place, key))
        T.buffer_store(weight, score, [0])
        if heads.activation is not None:
            share = heads.activation(weight[0])
            share = share if factor is None else share * _at(factor, (*place, key))
            T.buffer_store(weight, share, [0])


def _at(tensor: Any, place: tuple[Any, ...]) -> Any:
    return tensor[tuple(0 if _is_one(size) else at for size, at in zip(tensor.shape, place))]


def _is_one(size: Any) -> bool:
    return isinstance(size, tirx.IntImm) and int(size) == 1


def _weigh(weight: Any, state: Any, sums: Any) -> None:
    """Make weights of scores: weight[0] = e^(score - greatest), the sums scaled to that."""
    T.buffer_store(weight, weight[0], [1])
    warps.combined(weight, 1, tirx.max)
    greatest = T.bind(tirx.max(state[0], weight[1]))
    # Where all scores so far are -inf, any finite number does.
    base = T.bind(T.Select(greatest == T.float32(-inf), T.float32(0), greatest))
    shrink = T.bind(fast_exp(state[0] - base))
    T.buffer_store(weight, fast_exp(weight[0] - base), [0])
    T.buffer_store(weight, weight[0], [1])
    warps.added(weight, 1)
    T.buffer_store(state, greatest, [0])
    T.buffer_store(state, state[1] * shrink + weight[1], [1])
    for c in range(int(sums.shape[0])):
        T.buffer_store(sums, sums[c] * shrink, [c])


def _add_values(
    heads: Heads, v: Any, place: tuple[Any, Any], first: Any, lane: Any, keys: Any,
    weight: Any, sums: Any,
) -> None:  # fmt: skip
    """Add the values of the 32 keys from `first` on, each times its weight."""
    sample, head = place
    for k in range(warps.WARP):
        own = T.bind(warps.broadcast(weight[0], k))
        for c in range(int(sums.shape[0])):
            column = c * warps.WARP + lane
            inside = T.And(first + k < keys, column < heads.dim)
            with T.If(inside), T.Then():
                at = heads.columns[2] + head * heads.dim + column
                T.buffer_store(sums, sums[c] + own * v[sample, first + k, at], [c])
