"""Poolings against ONNX Runtime, with a symbolic batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from agreement import agree_on_random_inputs

from graphopt.errors import InputError
from graphopt.testing import parse, run_compiled

# Sums of up to 60 numbers in another order.
check = partial(agree_on_random_inputs, rtol=1e-5, atol=1e-6)


def test_pools_of_one_to_three_axes() -> None:
    check(
        """(float[N,3,11] a, float[N,2,9,8] b, float[N,2,5,6,7] c)
        => (float[N,3,q] u, float[N,2,q,r] v, float[N,2,q,r,s] w,
            float[N,2,t,p] x, float[N,2,m,n] y, float[N,3,k] z)
        {
            u = MaxPool<kernel_shape=[3], strides=[2], pads=[1,1], dilations=[2]>(a)
            v = AveragePool<kernel_shape=[2,3], pads=[1,0,1,2]>(b)
            w = MaxPool<kernel_shape=[2,3,2], auto_pad="SAME_LOWER", strides=[2,2,3]>(c)
            x = AveragePool<kernel_shape=[3,2], count_include_pad=1, pads=[1,1,2,0]>(b)
            y = LpPool<kernel_shape=[2,3], p=3, strides=[2,1]>(b)
            z = LpPool<kernel_shape=[4], auto_pad="SAME_UPPER">(a)
        }"""
    )


def test_ceil_mode_leaves_out_windows_that_start_in_the_padding() -> None:
    text = """(float[N,2,7] a) => (float[N,2,P] x, float[N,2,P] y, float[N,2,Q] z)
        {
            x = MaxPool<kernel_shape=[3], strides=[3], pads=[1,2], ceil_mode=1>(a)
            y = AveragePool<kernel_shape=[3], strides=[3], pads=[1,2], ceil_mode=1>(a)
            z = AveragePool<kernel_shape=[3], strides=[2], ceil_mode=1, count_include_pad=1>(a)
        }"""
    assert [str(v.type) for v in parse(text).outputs[:1]] == ["f32[N, 2, 3]"]
    check(text)


@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_tells_where_the_first_greatest_is(order: int) -> None:
    # Small integers: most windows have several greatest elements.
    check(
        f"""(uint8[N,3,5,7] a, float[N,2,3,4,5] b)
        => (uint8[N,3,p,q] x, int64[N,3,p,q] i, float[N,2,r,s,t] y, int64[N,2,r,s,t] j)
        {{
            x, i = MaxPool<kernel_shape=[3,2], pads=[1,0,1,1], storage_order={order}>(a)
            y, j = MaxPool<kernel_shape=[2,2,2], storage_order={order}, strides=[1,2,2]>(b)
        }}"""
    )


def test_max_pool_over_a_symbolic_length() -> None:
    text = "(int8[N,2,L] a) => (int8[N,2,M] y) { y = MaxPool<kernel_shape=[3], strides=[2]>(a) }"
    check(text, {"L": 3}, {"L": 8})
    with pytest.raises(InputError, match="windows are larger"):
        run_compiled(parse(text), {"a": np.ones((1, 2, 0), np.int8)})


def test_max_unpool_puts_elements_back() -> None:
    check(
        """(float[N,2,6,8] a) => (float[N,2,6,8] y)
        {
            x, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
            y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)
        }"""
    )


def test_max_unpool_checks_its_indices() -> None:
    graph = parse(
        "(float[1,1,2] x, int64[1,1,2] i) => (float[1,1,4] y)"
        "{ y = MaxUnpool<kernel_shape=[2], strides=[2]>(x, i) }"
    )
    for bad in (4, -1):
        feeds = {"x": np.ones((1, 1, 2), np.float32), "i": np.array([[[0, bad]]])}
        with pytest.raises(InputError, match="index"):
            run_compiled(graph, feeds)


def test_pools_of_everything() -> None:
    check(
        """(float[N,3,L] a, float[N,2,4,5] b)
        => (float[N,3,1] w, float[N,2,1,1] x, float[N,3,1] y, float[N,2,4,5] z)
        {
            w = GlobalAveragePool(a)
            x = GlobalMaxPool(b)
            y = GlobalLpPool<p=3>(a)
            z = LRN<size=3, alpha=0.3, beta=0.6, bias=1.5>(b)
        }""",
        {"L": 7},
    )
