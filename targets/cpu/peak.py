"""The most operations a second that one core of this CPU does, by each instruction for products.

Loops of nothing but independent multiply-adds in registers: no kernel is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.latency import Call
from graphopt.targets.cpu.kernels import amx as tiles
from graphopt.targets.cpu.kernels.amx import TILE, amx_for, configuring, tile_number
from graphopt.targets.cpu.kernels.bfloat16 import PAIR, words_for
from graphopt.targets.cpu.kernels.byte_products import byte_products
from graphopt.targets.cpu.kernels.row_codes import GROUP
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.kernels import script

STEPS = 10_000
_SUMS = 12  # vectors: two multiply-adds begin in a cycle, and take four or five
_EACH_WAY = 2  # tiles of data and of weights, each of which is multiplied with each

Dot = Callable[[Any, Any, Any], Any]
"""A vector of sums, and words of 32 bits to be multiplied, as the next sums."""


def products() -> dict[str, tuple[Call, int]]:
    """By each instruction that this CPU has, a call, and the operations that it does.

    Instructions are called as in `analysis.cost`; "" are those of float32.
    """
    host = CpuTarget.parse("").with_tiles
    has, lanes = set(host.features), host.lanes
    kernels = {"": (_vectors(lanes, "float32", partial(_multiply_add, lanes)), 1)}
    words = words_for(has - {"amx_tile", "avx512_fp16"}, lanes)
    if words is not None:
        kernels[words.name] = _vectors(lanes, "float32", words.dot, words.llvm), PAIR
    if host.multiplies_bytes:
        by = byte_products(lanes)
        kernels[by.name] = _vectors(lanes, "int32", by.dot), by.group
    sums = lanes * _SUMS * STEPS
    calls = {name: (_call(each, host), 2 * n * sums) for name, (each, n) in kernels.items()}
    for instruction, operands, each in (("tdpbf16ps", "bf16", PAIR), ("tdpbusd", "int8", GROUP)):
        if amx_for(has, operands):
            operations = 2 * each * TILE**3 * _EACH_WAY**2 * STEPS
            calls[instruction] = _call(_tiles(instruction), host), operations
    return calls


def _call(kernel: PrimFunc, target: CpuTarget) -> Call:
    function = tvm.compile(kernel.with_attr("global_symbol", "main"), target=target.llvm)["main"]
    return partial(function, tvm_ffi.from_dlpack(np.zeros((TILE, TILE), np.int32)))


def _multiply_add(lanes: int, total: Any, a: Any, b: Any) -> Any:
    return total * T.reinterpret(f"float32x{lanes}", a) + T.reinterpret(f"float32x{lanes}", b)


def _vectors(lanes: int, dtype: str, dot: Dot, llvm: str = "") -> PrimFunc:
    @script.prim_func(private=True, s_tir=True)
    def vectors(x: T.handle) -> None:
        T.func_attr({"tirx.noalias": True})
        data = T.match_buffer(x, (TILE, TILE), "int32", align=4)
        with T.attr(0, "pragma_import_llvm", llvm):
            sums = T.alloc_buffer((_SUMS * lanes,), dtype, scope="local")
            for v in T.unroll(_SUMS):
                sums[T.ramp(v * lanes, 1, lanes)] = T.Broadcast(T.Cast(dtype, 0), lanes)
            for _ in range(STEPS):
                for v in T.unroll(_SUMS):
                    sums[T.ramp(v * lanes, 1, lanes)] = dot(
                        sums[T.ramp(v * lanes, 1, lanes)],
                        data[0, T.ramp(0, 1, lanes)],
                        data[1, T.ramp(0, 1, lanes)],
                    )
            for v in T.unroll(_SUMS):
                data[v, T.ramp(0, 1, lanes)] = T.reinterpret(
                    f"int32x{lanes}", sums[T.ramp(v * lanes, 1, lanes)]
                )

    return vectors


def _tiles(instruction: str) -> PrimFunc:
    amx, stride = tiles.Amx(), T.int64(tiles.WORD * TILE)
    configure, release = configuring(amx, TILE)

    @script.prim_func(private=True, s_tir=True)
    def multiplied(x: T.handle) -> None:
        T.func_attr({"tirx.noalias": True})
        data = T.match_buffer(x, (TILE, TILE), "int32", align=4)
        configure(T.int64(TILE))
        for tile in T.unroll(tiles.END):
            amx("tileloadd64", tile_number(tile), T.address_of(data[0, 0]), stride)
        for _ in range(STEPS):
            for a in T.unroll(_EACH_WAY):
                for b in T.unroll(_EACH_WAY):
                    operands = T.meta_var((_EACH_WAY * a + b, tiles.DATA + a, tiles.WEIGHTS + b))
                    amx(instruction, *map(tile_number, operands))
        for tile in T.unroll(_EACH_WAY**2):
            amx("tilestored64", tile_number(tile), T.address_of(data[0, 0]), stride)
        release(T.int64(TILE))

    return multiplied
