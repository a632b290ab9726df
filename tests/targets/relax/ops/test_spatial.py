"""Convolutions against ONNX Runtime, with a symbolic batch, and what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from agreement import agree_on_random_inputs

from graphopt.errors import InputError, InvalidModelError, UnsupportedOpError
from graphopt.testing import parse, random_inputs, run_compiled

# Sums of up to 200 products of numbers of size 1, in another order.
check = partial(agree_on_random_inputs, rtol=1e-4, atol=2e-5)


def test_conv_of_one_to_three_axes() -> None:
    check(
        """(float[N,4,11] a, float[N,6,9,8] b, float[N,2,5,6,7] c)
        => (float[N,p,q] x, float[N,p,r,s] y, float[N,p,t,u,v] z)
        <float[5,4,3] wa, float[5] bias, float[4,3,2,3] wb, float[3,2,2,3,2] wc>
        {
            x = Conv<strides=[2], pads=[1,2], dilations=[2]>(a, wa, bias)
            y = Conv<group=2, strides=[1,3], pads=[0,1,2,0]>(b, wb)
            z = Conv<dilations=[1,2,3], pads=[1,0,1,0,2,1]>(c, wc)
        }"""
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv_auto_pad(auto_pad: str) -> None:
    check(
        f"""(float[N,3,10,9] a) => (float[N,p,q,r] x, float[N,s,t,u] y)
        <float[6,1,3,2] w, float[3,2,4,3] v>
        {{
            x = Conv<group=3, auto_pad="{auto_pad}", strides=[2,3]>(a, w)
            y = ConvTranspose<auto_pad="{auto_pad}", strides=[2,3]>(a, v)
        }}"""
    )


def test_conv_over_a_symbolic_length_keeps_its_size() -> None:
    text = """(float[N,4,L] a) => (float[N,p,L] y) <float[4,4,3] w>
        { x = Conv<auto_pad="SAME_UPPER">(a, w) z = Conv<pads=[2,2], dilations=[2]>(a, w)
          y = Add(x, z) }"""
    assert str(parse(text).outputs[0].type) == "f32[N, 4, L]"
    check(text, {"L": 1}, {"L": 8})


def test_conv_of_half_precision_sums_in_float32() -> None:
    graph = parse(
        "(float16[N,64,9] a) => (float16[N,2,7] y) <float16[2,64,3] w> { y = Conv(a, w) }"
    )
    feeds = random_inputs(graph, {"N": 2})
    (conv,) = graph.nodes
    weight = conv.inputs[1].const
    windows = np.lib.stride_tricks.sliding_window_view(feeds["a"].astype(np.float64), 3, axis=2)
    wanted = np.einsum("nclk,mck->nml", windows, weight.astype(np.float64))
    # One rounding to 11 bits.
    np.testing.assert_allclose(run_compiled(graph, feeds)["y"], wanted, rtol=5.1e-4, atol=1e-4)


def test_conv_transpose() -> None:
    check(
        """(float[N,4,5] a, float[N,6,4,3] b, float[N,2,3,2,2] c)
        => (float[N,p,q] w, float[N,p,r,s] x, float[N,p,r,s] y, float[N,p,t,u,v] z)
        <float[4,3,4] wa, float[3] bias, float[6,2,3,2] wb, float[2,3,2,2,3] wc>
        {
            w = ConvTranspose<strides=[3], pads=[1,2], dilations=[2],
                output_padding=[1]>(a, wa, bias)
            x = ConvTranspose<group=3, strides=[1,2], pads=[0,1,1,0]>(b, wb)
            y = ConvTranspose<strides=[2,3], output_shape=[8,7]>(b, wb)
            z = ConvTranspose<strides=[1,2,1]>(c, wc)
        }"""
    )


def test_integer_convolutions() -> None:
    check(
        """(uint8[N,4,7,6] a, int8[N,4,7,6] b)
        => (int32[N,p,q,r] x, uint8[N,p,s,t] y, int8[N,p,u,v] z)
        <uint8[6,2,3,2] w, int8[6,4,2,2] v, uint8 zero = {3}, int8 izero = {-2}, int8 none = {0},
         float scale = {0.5}, float[6] scales = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6},
         int8[6] nones = {0,0,0,0,0,0}, int32[6] bias>
        {
            x = ConvInteger<group=2, pads=[1,0,0,1]>(a, w, zero, zero)
            y = QLinearConv<group=2, strides=[2,1]>(a, scale, zero, w, scale, zero, scale, zero)
            z = QLinearConv<pads=[1,1,1,1]>(b, scale, izero, v, scales, nones, scale, izero, bias)
        }"""
    )


def test_col2im_adds_up_overlapping_blocks() -> None:
    check(
        """(float[N,18,9] a) => (float[N,p,q,r] y)
        <int64[2] image = {5, 6}, int64[2] block = {2, 3}>
        { y = Col2Im<strides=[2,2], pads=[1,0,1,2]>(a, image, block) }"""
    )


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("(float[N,3,9] x) => (float[N,M,L] y) <float[5,4,3] w>", "3 channels"),
        ("(float[N,4,1] x) => (float[N,M,L] y) <float[5,4,3] w>", "windows are larger"),
    ],
)
def test_conv_that_cannot_be(signature: str, reason: str) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        parse(f"{signature} {{ y = Conv(x, w) }}")


def test_col2im_of_too_few_blocks() -> None:
    graph = parse(
        "(float[N,4,8] a) => (float[N,p,q,r] y) <int64[2] image = {4, 4}, int64[2] block = {2, 2}>"
        "{ y = Col2Im(a, image, block) }"
    )
    with pytest.raises(InputError, match="does not hold the blocks"):
        run_compiled(graph, random_inputs(graph))


def test_conv_with_windows_of_unknown_size_is_refused() -> None:
    text = "(float[N,4,9] x, float[5,4,K] w) => (float[N,M,L] y) { y = Conv(x, w) }"
    with pytest.raises(UnsupportedOpError, match="windows"):
        run_compiled(parse(text), {})


@pytest.mark.parametrize(
    ("shape", "reason"), [((2, 3, 7), "must have 4 channels"), ((2, 4, 1), "windows are larger")]
)
def test_sizes_are_checked_at_run_time(shape: tuple[int, ...], reason: str) -> None:
    graph = parse("(float[N,C,L] x) => (float[N,5,M] y) <float[5,4,3] w> { y = Conv(x, w) }")
    with pytest.raises(InputError, match=reason):
        run_compiled(graph, {"x": np.ones(shape, np.float32)})
