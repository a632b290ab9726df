"""Determinants by elimination with partial pivoting, a matrix on each thread."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels.blocks import each
from graphopt.targets.relax import scalar
from graphopt.targets.relax.primfunc import int64


def determinants(x: Any, out: Any) -> None:
    """The statements of the kernel (x[count, n, n]) -> out[count], in the order of the CPU's."""
    n, dtype = int(x.shape[1]), str(x.dtype)
    work = scalar.working_dtype(dtype)
    zero = tirx.const(0, work)

    def one(b: Any) -> None:
        m = T.alloc_buffer([n, n], work, scope="local")
        product = T.alloc_buffer([1], work, scope="local")
        pivot = T.alloc_buffer([1], "int64", scope="local")
        held = T.alloc_buffer([1], work, scope="local")
        with T.serial(int64(0), int64(n)) as i, T.serial(int64(0), int64(n)) as j:
            T.buffer_store(m, x[b, i, j].astype(work), [i, j])
        T.buffer_store(product, tirx.const(1, work), [0])

        def swap(k: Any) -> None:
            T.buffer_store(product, zero - product[0], [0])
            with T.serial(int64(0), int64(n)) as j:
                T.buffer_store(held, m[k, j], [0])
                T.buffer_store(m, m[pivot[0], j], [k, j])
                T.buffer_store(m, held[0], [pivot[0], j])

        with T.serial(int64(0), int64(n)) as k:
            T.buffer_store(pivot, k, [0])
            with T.serial(k + 1, int64(n)) as i:
                larger = tirx.abs(m[i, k]) > tirx.abs(m[pivot[0], k])
                T.buffer_store(pivot, T.Select(larger, i, pivot[0]), [0])
            with T.If(pivot[0] != k), T.Then():
                swap(k)
            T.buffer_store(product, product[0] * m[k, k], [0])
            with T.If(m[k, k] != zero), T.Then(), T.serial(k + 1, int64(n)) as i:
                T.buffer_store(held, m[i, k] / m[k, k], [0])
                with T.serial(k, int64(n)) as j:
                    T.buffer_store(m, m[i, j] - held[0] * m[k, j], [i, j])
        T.buffer_store(out, scalar.cast(product[0], dtype), [b])

    each(int64(x.shape[0]), one)
