"""Factorization machines, products of pairs, cross layers: a thread an element, a warp a sample."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels import warps
from graphopt.targets.cuda.kernels.blocks import covering, launched
from graphopt.targets.relax.primfunc import int64

THREADS = 256
_WARPS = THREADS // warps.WARP


def bi_interaction(x: Any, scale: float, out: Any) -> None:
    """The statements of the kernel (x[n, f, d]) -> out[n, d] = scale * ((sum x)^2 - sum x^2)."""
    samples, dim = x.shape[0], x.shape[2]
    with launched(covering(samples * dim, THREADS), THREADS) as (block, thread):
        at = T.bind(block * THREADS + thread)
        with T.If(at < samples * dim), T.Then():
            sums = T.alloc_buffer([2], "float32", scope="local")
            _clear(sums)
            _add_features(x, at // dim, at % dim, sums)
            value = (sums[0] * sums[0] - sums[1]) * T.float32(scale)
            T.buffer_store(out, value, [at // dim, at % dim])


def pooled_bi_interaction(x: Any, scale: float, out: Any) -> None:
    """The statements of the kernel (x[n, f, d]) -> out[n, 1], the sums over d of the above."""
    samples, dim = x.shape[0], int(x.shape[2])
    with launched(covering(samples, _WARPS), THREADS) as (block, thread):
        sample, lane = T.bind(block * _WARPS + thread // warps.WARP), thread % warps.WARP
        with T.If(sample < samples), T.Then():
            total = T.alloc_buffer([1], "float32", scope="local")
            _clear(total)
            for first in range(0, dim, warps.WARP):
                with T.If(first + lane < dim), T.Then():
                    sums = T.alloc_buffer([2], "float32", scope="local")
                    _clear(sums)
                    _add_features(x, sample, first + lane, sums)
                    T.buffer_store(total, total[0] + (sums[0] * sums[0] - sums[1]), [0])
            warps.added(total, 0)
            with T.If(lane == 0), T.Then():
                T.buffer_store(out, total[0] * T.float32(scale), [sample, 0])


def _add_features(x: Any, sample: Any, column: Any, sums: Any) -> None:
    """sums = the sum over the features of a column, and the sum of the squares."""
    with T.serial(int64(0), int64(x.shape[1])) as f:
        value = T.bind(x[sample, f, column])
        T.buffer_store(sums, sums[0] + value, [0])
        T.buffer_store(sums, sums[1] + value * value, [1])


def _clear(buffer: Any) -> None:
    for k in range(int(buffer.shape[0])):
        T.buffer_store(buffer, T.float32(0), [k])


def cross_network(x: Any, weights: Any, shifts: Any, bias: Any, out: Any) -> None:
    """The statements of the kernel (x[n, d], weights[k, d], shifts[k], bias[d]) -> out[n, d].

    A warp a row. All products with the weights come from one reading of the row.
    """
    samples, dim, layers = x.shape[0], int(x.shape[1]), int(weights.shape[0])
    turns = -(-dim // warps.WARP)
    with launched(covering(samples, _WARPS), THREADS) as (block, thread):
        row, lane = T.bind(block * _WARPS + thread // warps.WARP), thread % warps.WARP
        with T.If(row < samples), T.Then():
            dots = T.alloc_buffer([layers], "float32", scope="local")
            _clear(dots)
            with T.serial(int64(0), int64(turns)) as turn:
                column = T.bind(turn * warps.WARP + lane)
                with T.If(column < dim), T.Then():
                    value = T.bind(x[row, column])
                    for k in range(layers):
                        T.buffer_store(dots, dots[k] + value * weights[k, column], [k])
            multiple = T.alloc_buffer([1], "float32", scope="local")
            T.buffer_store(multiple, T.float32(1), [0])
            for k in range(layers):
                warps.added(dots, k)
                grown = multiple[0] * (dots[k] + T.float32(1)) + shifts[k]
                T.buffer_store(multiple, grown, [0])
            with T.serial(int64(0), int64(turns)) as turn:
                column = T.bind(turn * warps.WARP + lane)
                with T.If(column < dim), T.Then():
                    value = multiple[0] * x[row, column] + bias[column]
                    T.buffer_store(out, value, [row, column])


_ROWS = 4  # samples of a thread, which share what it reads of a matrix


def pair_products(x: Any, pairs: Any, matrices: Any, weights: Any, out: Any) -> None:
    """The statements of the kernel (x[n, f, d], pairs[p], matrices[p]?, weights?) -> out[n, p, d].

    A thread has one element of a pair, of `_ROWS` samples. Pairs are positions `i * f + j`; with
    weights[g, d, d], the element of x_i is that of its product with the matrix of the pair.
    """
    samples, count, dim = x.shape
    columns = int64(int(out.shape[1]) * int(dim))
    with (
        T.thread_binding(int64(0), covering(samples, _ROWS), thread="blockIdx.x") as part,
        T.thread_binding(int64(0), covering(columns, THREADS), thread="blockIdx.y") as block,
        T.thread_binding(int64(0), int64(THREADS), thread="threadIdx.x") as thread,
    ):
        at = T.bind(block * THREADS + thread)
        # TVM launches a block where there are no samples.
        with T.If(T.And(at < columns, part * _ROWS < samples)), T.Then():
            pair, e = T.bind(at // dim), T.bind(at % dim)
            place = T.bind(T.Cast("int64", pairs[pair]))
            i, j = T.bind(place // count), T.bind(place % count)
            own = T.alloc_buffer([_ROWS], "float32", scope="local")
            rows = [T.bind(T.min(part * _ROWS + r, samples - 1)) for r in range(_ROWS)]
            if weights is None:
                for r in range(_ROWS):
                    T.buffer_store(own, x[rows[r], i, e], [r])
            else:
                matrix = T.bind(T.Cast("int64", matrices[pair]))
                _clear(own)
                with T.serial(int64(0), int64(int(dim))) as k:
                    weight = T.bind(weights[matrix, k, e])
                    for r in range(_ROWS):
                        T.buffer_store(own, own[r] + x[rows[r], i, k] * weight, [r])
            for r in range(_ROWS):
                with T.If(part * _ROWS + r < samples), T.Then():
                    T.buffer_store(out, own[r] * x[rows[r], j, e], [rows[r], pair, e])
