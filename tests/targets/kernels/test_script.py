"""Kernels are what TVM's own decorators make of the same text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tvm
from tvm.script import tirx as T

from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined

TEXT = """
@inlined
def add_up(acc, a, i, lanes, start=0):
    for v in T.vectorized(lanes):
        acc[v] = T.float32(start)
    for j in range(i, 2 * i + 1):
        for v in T.vectorized(lanes):
            acc[v] = acc[v] + a[j * lanes + v]


@inlined
def twice(acc, a, i, lanes, *more, **named):
    add_up(acc, a, i, lanes, *more)
    add_up(acc, a, i + 1, lanes=lanes, **named)


def build(wide, names):
    lanes = 8 if wide else 4

    @script.prim_func(private=True, s_tir=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, names.key: len(names.key)})
        n = T.int64()
        a = T.match_buffer(x, (n * lanes,))
        b = T.match_buffer(y, (n, lanes), "float32")
        acc = T.alloc_buffer((lanes,), "float32", scope="local")
        for i in range(n):
            with T.sblock("rows"):
                T.reads()
                T.writes()
                assert 0 <= i < n, "a row"
                twice(acc, a, i, lanes, 1, start=-2)
                if wide and lanes > 4:
                    b[i, 0] = T.float32(3)
                if not wide or i % 2 == 0 and i != 6 or i == n - 1:
                    b[i, lanes // 2 - 1] = acc[[0, 1][1]] if wide else ~i
                elif names.none is not None:
                    missing(i)
                half = i >> 1
                whole: T.int64 = half + (1 if i > half else 0)
                parts = T.meta_var([whole - j for j in range(2)])
                while whole > 0 and a[0] > T.float32(0):
                    whole = whole - parts[0]
                b[i, 0:2] = T.broadcast(T.float32(0), 2)
                bag, last = T.meta_var((i >> 1, f"{names.key}"))
                b[bag, 1 & 3] = a[bag] * b[bag, 0]
                T.evaluate(T.call_extern("int32", last, *parts))

    return kernel
"""


def built(tmp_path: Any, name: str, wide: bool, **decorators: Any) -> tvm.tirx.PrimFunc:
    """The kernel of the text with some decorators."""
    path = tmp_path / f"{name}.py"
    path.write_text(TEXT)
    found = {"T": T, "__name__": name, **decorators}
    exec(compile(TEXT, str(path), "exec"), found)
    return found["build"](wide, SimpleNamespace(key="tirx.some", none=None))


@pytest.mark.parametrize("wide", [False, True])
def test_as_tvm_makes_it(tmp_path: Any, wide: bool) -> None:
    ours = built(tmp_path, "ours", wide, inlined=inlined, script=script)
    theirs = built(tmp_path, "theirs", wide, inlined=T.inline, script=T)
    tvm.ir.assert_structural_equal(ours, theirs)
    assert ours.script() == theirs.script()


@pytest.mark.parametrize("line", ["acc[0] = unknown", "acc[0] = acc.unknown", "acc[0] = len(1)"])
def test_what_cannot_be_evaluated_is_an_error(tmp_path: Any, line: str) -> None:
    path = tmp_path / "wrong.py"
    text = f"""
@script.prim_func(private=True, s_tir=True)
def kernel(x: T.handle):
    acc = T.match_buffer(x, (4,))
    {line}
"""
    path.write_text(text)
    with pytest.raises(tvm.error.DiagnosticError):
        exec(compile(text, str(path), "exec"), {"T": T, "__name__": "wrong", "script": script})


def test_what_is_inlined_needs_a_kernel() -> None:
    @inlined
    def store(a):
        a[0] = 1

    with pytest.raises(RuntimeError, match="store is for use inside"):
        store([0])
