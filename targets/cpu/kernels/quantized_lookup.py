"""Row lookup in a table of 8-bit or 4-bit codes with a scale for each row."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.rows import PREFETCH_BYTES, prefetch_row, zero_row
from graphopt.targets.kernels import script
from graphopt.targets.kernels.bounds import (
    OutOfBounds,
    check_policy,
    is_allowed,
    is_valid,
    row_of,
)
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

OUT_OF_RANGE = "QuantizedLookup: an index lies outside the table"
_LANES = 16  # elements converted at once


@inlined
def _write(dst, at, column, code, scale):
    dst[at, column] = T.Cast("float32", code) * scale


@inlined
def _write_codes(bits, dst, at, half, src, row, column, scale):
    """The element, or the two elements, of one code byte."""
    if bits == 8:
        _write(dst, at, column, src[row, column], scale)
    else:
        byte = T.meta_var(T.Cast("int32", src[row, column]))
        _write(dst, at, column, (byte & 15) - 8, scale)
        _write(dst, at, half + column, (byte >> 4) - 8, scale)


@inlined
def _write_row(bits, dst, at, src, row, scale, width):
    for chunk in range(width // _LANES):
        for lane in T.vectorized(_LANES):
            _write_codes(bits, dst, at, width, src, row, chunk * _LANES + lane, scale)
    if width % _LANES > 0:
        for lane in T.vectorized(width % _LANES):
            _write_codes(bits, dst, at, width, src, row, width - width % _LANES + lane, scale)


@cache
def quantized_lookup(
    rows: int,
    width: int,
    bits: int,
    scale_dtype: str,
    index_dtype: str,
    oob: OutOfBounds = "error",
    message: str = OUT_OF_RANGE,
) -> PrimFunc:
    """Kernel (codes[rows, width], scales[rows], ids[n]) -> float32 out[n, dim].

    `width` is in bytes: dim for 8 bits, half of it for 4, stored as `QuantizedLookup` says. `n` is
    symbolic.  Indices mean what they mean to `gather_rows`.
    """
    check_policy(oob, index_dtype)
    if bits not in (4, 8):
        raise ValueError(f"codes have 4 or 8 bits, not {bits}")
    dtype, dim = ("int8", width) if bits == 8 else ("uint8", 2 * width)
    scale_align, index_align = element_bytes(scale_dtype), element_bytes(index_dtype)
    zeroes, prefetches = oob == "zero", rows * width >= PREFETCH_BYTES

    @script.prim_func(private=True, s_tir=True)
    def quantized_lookup(codes: T.handle, scales: T.handle, ids: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        src = T.match_buffer(codes, (rows, width), dtype, align=1)
        scale = T.match_buffer(scales, (rows,), scale_dtype, align=scale_align)
        index = T.match_buffer(ids, (n,), index_dtype, align=index_align)
        dst = T.match_buffer(out, (n, dim), "float32", align=4)
        for i in range(n):
            at = T.Cast("int64", index[i])
            assert is_allowed(at, rows, oob), message
            if prefetches:
                prefetch_row(src, index, i, 0, rows, width, 1)
            if zeroes:
                if is_valid(at, rows):
                    row = row_of(at, rows, oob)
                    _write_row(bits, dst, i, src, row, T.Cast("float32", scale[row]), width)
                else:
                    zero_row(dst, i, dim)
            else:
                row = row_of(at, rows, oob)
                _write_row(bits, dst, i, src, row, T.Cast("float32", scale[row]), width)

    return quantized_lookup
