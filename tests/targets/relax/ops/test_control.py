"""If, Loop and Scan with a known number of steps on a CPU; `test_repetition` has the others."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("flag", [True, False])
def test_if_takes_one_branch(flag: bool) -> None:
    agree(
        """g (bool c, float[N,4] x) => (float[N,4] y) {
            h = Relu(x)
            z = If(c) <
                then_branch = t () => (float[N,4] a) { a = Add(h, h) },
                else_branch = e () => (float[N,4] b) { q = Neg(h) b = Sub(q, x) }>
            y = Neg(z)
        }""",
        *({"c": np.array(flag), "x": ramp(n, 4)} for n in (1, 3)),
    )


@pytest.mark.parametrize("flag", [True, False])
def test_branches_of_different_size(flag: bool) -> None:
    agree(
        """g (bool c, float[N,2] x) => (float[M,2] y) {
            z = If(c) <
                then_branch = t () => (float[N,2] a) { a = Neg(x) },
                else_branch = e () => (float[K,2] b) { b = Concat<axis=0>(x, x) }>
            y = Relu(z)
        }""",
        *({"c": np.array(flag), "x": ramp(n, 2)} for n in (1, 5)),
    )


def test_scan_states_and_outputs() -> None:
    agree(
        """g (float[2] start, float[5,2] x) => (float[2] last, float[5,2] all) {
            last, all = Scan <num_scan_inputs=1, body = b (float[2] s, float[2] v)
                => (float[2] t, float[2] o) { t = Add(s, v) o = Mul(t, v) }> (start, x)
        }""",
        {"start": ramp(2), "x": ramp(5, 2)},
    )


def test_scan_backwards_along_another_axis() -> None:
    agree(
        """g (float[N,4] x) => (float[N] last, float[N,4] all) <int64[1] one = {1}> {
            start = ReduceMax<keepdims=0>(x, one)
            last, all = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
                scan_output_axes=[1], scan_output_directions=[1],
                body = b (float[N] s, float[N] v) => (float[N] t, float[N] o)
                    { t = Add(s, v) o = Mul(t, v) }> (start, x)
        }""",
        *({"x": ramp(n, 4)} for n in (1, 3)),
    )


LOOP = """g (float[N,2] x) => (float[N,2] last, float[20,N,2] all)
<int64 trip = {20}, bool go = {1}> {
    last, all = Loop <body = b (int64 i, bool c, float[N,2] s)
        => (bool d, float[N,2] t, float[N,2] o)
        { d = Identity(c) k = Cast<to=1>(i) t = Add(s, k) o = Mul(t, x) }> (trip, go, x)
}"""


def test_loop_with_a_known_number_of_steps() -> None:
    agree(LOOP, {"x": ramp(1, 2)}, {"x": ramp(4, 2)})


def test_loop_of_no_steps() -> None:
    agree(
        """g (float[N,2] x) => (float[N,2] last, float[M,2] all) <int64 trip = {0}, bool go = {1}> {
            last, all = Loop <body = b (int64 i, bool c, float[N,2] s)
                => (bool d, float[N,2] t, float[2] o)
                { d = Identity(c) t = Neg(s) o = ReduceSum<keepdims=0>(t, zero) }> (trip, go, x)
        }""".replace("bool go = {1}>", "bool go = {1}, int64[1] zero = {0}>"),
        {"x": ramp(3, 2)},
    )
