"""Resize against ONNX Runtime, with a symbolic batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from agreement import agree_on_random_inputs

from graphopt.errors import UnsupportedOpError
from graphopt.testing import parse, run_compiled

# Weights are computed in float32, from coordinates that are rounded a few times.
check = partial(agree_on_random_inputs, rtol=1e-4, atol=1e-5)


MODES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
LINEAR = """
    x{0} = Resize<mode="linear", axes=[2], coordinate_transformation_mode="{0}">(a, , , longer)
    y{0} = Resize<mode="linear", axes=[2], coordinate_transformation_mode="{0}">(a, , , shorter)
"""
NEAREST = """
    {0}{1} = Resize<axes=[2], coordinate_transformation_mode="{0}",
        nearest_mode="{1}">(a, , , wanted)
"""
CUBIC = """
    x{0} = Resize<mode="cubic", axes=[2,3], coordinate_transformation_mode="{0}">(a, , , wanted)
    y{0} = Resize<mode="cubic", axes=[2,3], coordinate_transformation_mode="{0}",
        exclude_outside=1, cubic_coeff_a=-0.5>(a, , , wanted)
"""


def test_linear() -> None:
    outputs = ", ".join(f"float[N,2,P] x{mode}, float[N,2,Q] y{mode}" for mode in MODES)
    check(
        f"(float[N,2,7] a) => ({outputs}) <int64[1] longer = {{10}}, int64[1] shorter = {{3}}>"
        f"{{ {' '.join(LINEAR.format(mode) for mode in MODES)} }}"
    )


def test_nearest() -> None:
    rounds = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
    pairs = [(mode, rounding) for mode in MODES for rounding in rounds]
    outputs = ", ".join(f"float[N,2,P] {mode}{rounding}" for mode, rounding in pairs)
    check(
        f"(float[N,2,6] a) => ({outputs}) <int64[1] wanted = {{4}}>"
        f"{{ {' '.join(NEAREST.format(*pair) for pair in pairs)} }}"
    )


def test_cubic() -> None:
    outputs = ", ".join(f"float[N,2,P,Q] x{mode}, float[N,2,P,Q] y{mode}" for mode in MODES)
    check(
        f"(float[N,2,5,6] a) => ({outputs}) <int64[2] wanted = {{8, 4}}>"
        f"{{ {' '.join(CUBIC.format(mode) for mode in MODES)} }}"
    )


def test_antialias_widens_the_filter() -> None:
    check(
        """(float[N,2,9,8] a) => (float[N,2,P,Q] x, float[N,2,P,Q] y, float[N,2,P,Q] z)
        <int64[2] wanted = {4, 11}>
        {
            x = Resize<mode="linear", antialias=1, axes=[2,3]>(a, , , wanted)
            y = Resize<mode="cubic", antialias=1, axes=[2,3]>(a, , , wanted)
            z = Resize<mode="cubic", antialias=1, exclude_outside=1, axes=[2,3]>(a, , , wanted)
        }"""
    )


def test_a_region_may_reach_outside() -> None:
    check(
        """(float[N,2,5,6] a) => (float[N,2,P,Q] x, float[N,2,P,Q] y)
        <int64[2] wanted = {4, 3}, float[4] roi = {-0.2, 0.1, 0.7, 1.2}>
        {
            x = Resize<mode="linear", axes=[2,3], extrapolation_value=7.5,
                coordinate_transformation_mode="tf_crop_and_resize">(a, roi, , wanted)
            y = Resize<mode="nearest", axes=[3,2], extrapolation_value=7.5,
                coordinate_transformation_mode="tf_crop_and_resize">(a, roi, , wanted)
        }"""
    )


def test_scales_over_symbolic_sizes() -> None:
    check(
        """(uint8[N,2,H,W] a, float[N,2,H,W] b) => (uint8[N,2,P,Q] x, float[N,2,R,S] y)
        <float[4] scales = {1, 1, 2, 0.6}, float[2] both = {1.5, 3}>
        {
            x = Resize<mode="nearest">(a, , scales)
            y = Resize<mode="linear", axes=[2,3]>(b, , both)
        }""",
        {"H": 5, "W": 7},
    )


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(policy: str) -> None:
    check(
        f"""(float[N,2,4,6] a) => (float[N,2,P,Q] y) <int64[2] wanted = {{7, 8}}>
        {{ y = Resize<axes=[2,3], keep_aspect_ratio_policy="{policy}">(a, , , wanted) }}"""
    )


def test_sizes_given_at_run_time() -> None:
    graph = parse(
        "(float[N,1,3] a, int64[1] wanted) => (float[N,1,P] y)"
        '{ y = Resize<axes=[2], mode="nearest">(a, , , wanted) }'
    )
    feeds = {"a": np.float32([[[1, 2, 3]]]), "wanted": np.array([6])}
    np.testing.assert_array_equal(run_compiled(graph, feeds)["y"], [[[1, 1, 2, 2, 3, 3]]])


def test_cubic_of_integers_is_refused() -> None:
    graph = parse(
        "(uint8[N,1,4] a) => (uint8[N,1,P] y) <int64[1] wanted = {6}>"
        '{ y = Resize<axes=[2], mode="cubic">(a, , , wanted) }'
    )
    with pytest.raises(UnsupportedOpError, match="cubic"):
        run_compiled(graph, {})
