"""Which models treat samples one by one: by proof, op by op."""

from __future__ import annotations

import pytest

from graphopt.analysis.rows import batch_inputs
from graphopt.testing import parse


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        (
            """g (int64[N] ids, float[N,3] x) => (float[N,2] y)
            <float[9,4] t, float[7,2] w, float[2] b> {
            rows = Gather(t, ids)
            both = Concat<axis=1>(rows, x)
            h = Gemm(both, w, b)
            y = Softmax<axis=-1>(h)
            }""",
            (True, True),
        ),
        (
            """g (float[N,2,3] x, float[3] user) => (float[N,2] y) <int64[1] axis = {2}> {
            h = Mul(x, user)
            y = ReduceSum<keepdims=0>(h, axis)
            }""",
            (True, False),
        ),
        (
            """g (float[N,2,3] x) => (float[N,2,2] y) {
            t = Transpose<perm=[0,2,1]>(x)
            y = MatMul(x, t)
            }""",
            (True,),
        ),
        (
            """g (float[N,4] x) => (float[N,2] y) <int8[4,2] c, float[2] s> {
            y = graphopt.DynamicMatMul(x, c, s)
            }""",
            (True,),
        ),
        (
            """g (float[N,4] x) => (float[N,2] y) <int64[1] a = {1}, int64[1] b = {3}> {
            y = Slice(x, a, b, a)
            }""",
            (True,),
        ),
        (
            """g (float[N,4,9] x) => (float[N,8,1] y)
            <float[8,4,2] w, int64[6] pads = {0, 0, 1, 0, 0, 0}> {
            p = Pad(x, pads)
            c = Conv(p, w)
            m = MaxPool<kernel_shape=[3]>(c)
            y = GlobalMaxPool(m)
            }""",
            (True,),
        ),
        (
            """g (float[N,5,3] x, int32[N] lens) => (float[N,8] y, float[N,5,4] z)
            <float[2,1,4] c, float[1,8,3] w, float[1,8,4] r, float[1,12,3] w3, float[1,12,4] r3,
             int64[1] one = {1}, int64[1] first = {0}, int64[1] two = {2}, int64[1] four = {4},
             int64[3] back = {5, -1, 4}, int64[2] flat = {-1, 8}, float[1,16,3] w4,
             float[1,16,4] r4, int64[3] state = {1, -1, 4}> {
            t = Transpose<perm=[1,0,2]>(x)
            n = Shape<start=0,end=1>(x)
            size = Concat<axis=0>(two, n, four)
            all = Expand(c, size)
            h0 = Slice(all, first, one, first)
            zeros = Concat<axis=0>(one, n, four)
            h1 = ConstantOfShape(zeros)
            a, ah = GRU<hidden_size=4>(t, w3, r3, , lens, h0)
            b, bh, bc = LSTM<hidden_size=4>(t, w4, r4, , , h1, h0)
            d = Reshape(b, back)
            back_d = Transpose<perm=[1,0,2]>(d)
            u = Reshape(ah, state)
            v = Concat<axis=2>(u, bc)
            y = Reshape(v, flat)
            z = Relu(back_d)
            }""",
            (True, True),
        ),
        (
            """g (float[N,5,3] x) => (float[N,5,1,4] y, float[N,1,4] z)
            <float[1,4,3] w, float[1,4,4] r> {
            y, z = RNN<hidden_size=4, layout=1>(x, w, r)
            }""",
            (True,),
        ),
        (
            "g (float[N,9] x) => (float[N,2] y, int64[N,2] i) <int64[1] k = {2}>"
            " { y, i = TopK(x, k) }",
            (True,),
        ),
    ],
)
def test_sample_by_sample(text: str, inputs: tuple[bool, ...]) -> None:
    assert batch_inputs(parse(text)) == inputs


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("g (float[N,3] x) => (float[N,3] y) { y = Softmax<axis=0>(x) }", "softmax over samples"),
        (
            """g (float[N,3] x) => (float[N,3] y) <int64[4] pads = {1, 0, -1, 0}> {
            y = Pad(x, pads) }""",
            "samples take another's place",
        ),
        (
            "g (float[N,2,9] x) => (float[N,2,7] y, int64[N,2,7] i)"
            " { y, i = MaxPool<kernel_shape=[3]>(x) }",
            "positions count samples before",
        ),
        (
            "g (float[N,2,9] x) => (float[1,N,1] y) <float[1,2,9] u> { y = Conv(u, x) }",
            "samples are weights",
        ),
        (
            """g (float[N,3] x) => (float[N,3] y) <int64[1] a = {0}> {
            s = ReduceMean(x, a)
            y = Sub(x, s)
            }""",
            "mean of samples",
        ),
        (
            """g (float[N,3] x) => (float[N,N] y) {
            t = Transpose<perm=[1,0]>(x)
            y = MatMul(x, t)
            }""",
            "products of samples",
        ),
        (
            """g (float[N,3] x) => (float[N,3] y)
            <int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] a = {0}> {
            y = Slice(x, s, e, a, s)
            }""",
            "order reversed",
        ),
        (
            """g (float[N,3] x) => (float[N,3] y) {
            n = Shape<start=0,end=1>(x)
            z = ConstantOfShape(n)
            m = NonZero(z)
            f = Cast<to=1>(m)
            s = ReduceSum<keepdims=0>(f)
            y = Add(x, s)
            }""",
            "zeros of the size of the batch",
        ),
        (
            """g (float[N,5,3] x) => (float[N,1,5,4] y) <float[1,4,3] w, float[1,4,4] r> {
            y = RNN<hidden_size=4>(x, w, r)
            }""",
            "samples are steps",
        ),
        (
            """g (float[N,5,3] x) => (float[N,20] y) <float[1,4,3] w, float[1,4,4] r,
            float[1,1,4] h, int64[2] s = {-1, 20}> {
            t = Transpose<perm=[1,0,2]>(x)
            a = RNN<hidden_size=4>(t, w, r, , , h)
            b = Transpose<perm=[2,0,1,3]>(a)
            y = Reshape(b, s)
            }""",
            "a state that is not of samples",
        ),
        (
            """g (float[N,2,3] x) => (float[N,6] y) <int64[2] s = {-1, 6}> {
            t = Transpose<perm=[1,0,2]>(x)
            y = Reshape(t, s)
            }""",
            "halves of two samples side by side",
        ),
        (
            """g (float[N,3] x) => (float[N,3] y) <float[4,3] c> {
            n = Shape(x)
            e = Expand(c, n)
            y = Add(x, e)
            }""",
            "what is expanded has as many rows as the batch",
        ),
        ("g (float[N,3] x) => (float[N,3] y) <int64 a = {0}> { y = CumSum(x, a) }", "unknown op"),
        ("g (float[N,3] x, float[M,3] z) => (float[N,3] y) { y = Relu(x) }", "two sizes"),
        ("g (float[3,N] x) => (float[3,N] y) { y = Relu(x) }", "batch on another axis"),
        ("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }", "no batch"),
        (
            """g (float[N,3] x) => (float[N,3] y, float[3] z) <int64[1] a = {0}> {
            y = Relu(x)
            z = ReduceSum<keepdims=0>(x, a)
            }""",
            "an output that is not of samples",
        ),
        (
            """g (float[N,3] x) => (float[N,3] y) {
            n = Shape<start=0,end=1>(x)
            f = Cast<to=1>(n)
            y = Div(x, f)
            }""",
            "the number of samples as a value",
        ),
    ],
)
def test_no_proof(text: str, why: str) -> None:
    assert batch_inputs(parse(text)) is None, why
