"""Reshapes, transposes, joins, parts and repetitions against ONNX Runtime."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from agreement import agree

from graphopt.errors import UnsupportedOpError
from graphopt.testing import Compiled, parse, run_onnxruntime

FEW_AND_NONE = [(4, 3), (1, 3), (0, 3), (4, 0)]


def ramp(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (np.arange(int(np.prod(shape))) - 5).astype(dtype).reshape(shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# One op per output, so that a single program covers them all.
_EVERY_OP = """
    g ({dtype}[N,3,4] x) => ({dtype}[a,b,c] t, {dtype}[d,e,f] s, {dtype}[h,i,j] c, {dtype}[k,l,m] p,
        {dtype}[o,p,q] r, {dtype}[u,v] f, {dtype}[w,x] z, {dtype}[y,z] e, {dtype}[aa,ab] n)
    <int64[2] shape = {{-1, 6}}, int64[1] from = {{-1}}, int64[1] to = {{-9}}, int64[1] by = {{-2}},
     int64[1] last = {{2}}, int64[3] times = {{2, 1, 3}}, int64[2] parts = {{1, 2}},
     int64[1] one = {{1}}, int64[4] wide = {{2, 1, 3, 4}}, {dtype}[1,3,4] w>
    {{
        t = Transpose<perm=[2,0,1]>(x)
        s = Slice(x, from, to, last, by)
        c = Concat<axis=0>(x, w, x)
        p, unused = Split<axis=1>(x, parts)
        r = Tile(x, times)
        f = Reshape(x, shape)
        d = Unsqueeze(x, one)
        g1, g2 = Split<axis=1>(x, parts)
        z = Flatten<axis=2>(g2)
        h = Expand(d, wide)
        e = Flatten<axis=-1>(h)
        n = Flatten<axis=0>(d)
    }}
"""
_ONNX_NAMES = {"float32": "float", "float64": "double"}
_DTYPES = ["bool", "float16", "bfloat16", "float32", "float64"] + [
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
]


@pytest.mark.parametrize("dtype", _DTYPES)
def test_every_dtype_moves_alike(dtype: str) -> None:
    graph = parse(_EVERY_OP.replace("{{", "{").replace("}}", "}").format_map({}) if False else
                  _EVERY_OP.format(dtype=_ONNX_NAMES.get(dtype, dtype)))
    plain = parse(_EVERY_OP.format(dtype="int64"))
    weights = next(v for v in graph.constants() if v.name == "w").const
    next(v for v in plain.constants() if v.name == "w").const[...] = weights.astype(np.int64)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    compiled = Compiled(graph)
    for n in (1, 3):
        x = np.arange(n * 12).reshape(n, 3, 4) % (2 if dtype == "bool" else 100)
        found = compiled({"x": x.astype(numpy_dtype)})
        for name, array in run_onnxruntime(plain, {"x": x}).items():
            assert found[name].dtype == numpy_dtype
            np.testing.assert_array_equal(found[name].astype(np.int64), array, name)
