"""Recurrences written out step by step become GRUs, in every form; others stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphopt.passes.raise_gru import RaiseGru
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse, run_compiled

HEAD = """(float[3,N,5] s, float[N,3,5] sb, float[N,4] h, bool[3,N,1] m, float[N,3,1] a)
    => (float[] y)
    <float[5,12] w, float[4,12] r, float[12] b, float[12] c, float one = {1}, float[N0] unused,
     float[5,4] wz, float[5,4] wr, float[5,4] wn, float[4,4] rz, float[4,4] rr, float[4,4] rn,
     float[4] bz, float[4] br, float[4] bn, float[4,4] other, float zero = {0},
     int64 t0 = {0}, int64 t1 = {1}, int64 t2 = {2}> {
""".replace(" float[N0] unused,", "")

Step = Callable[[int, str, str], str]


def fused(t: int, old: str, new: str) -> str:
    """Keras: one product for all gates, bias of the state within reset."""
    return f"""
        p{t} = MatMul(x{t}, w) px{t} = Add(p{t}, b) q{t} = MatMul({old}, r) qx{t} = Add(q{t}, c)
        xz{t}, xr{t}, xn{t} = Split<axis=1, num_outputs=3>(px{t})
        hz{t}, hr{t}, hn{t} = Split<axis=1, num_outputs=3>(qx{t})
        sz{t} = Add(hz{t}, xz{t}) z{t} = Sigmoid(sz{t}) sr{t} = Add(xr{t}, hr{t})
        r{t} = Sigmoid(sr{t}) v{t} = Mul(hn{t}, r{t}) sn{t} = Add(v{t}, xn{t}) n{t} = Tanh(sn{t})
        k{t} = Sub(one, z{t}) u{t} = Mul(n{t}, k{t}) o{t} = Mul(z{t}, {old})
        {new} = Add(o{t}, u{t})"""


def difference(t: int, old: str, new: str) -> str:
    """torch: n + z * (h - n), a Gemm with transposed weights."""
    return f"""
        p{t} = Gemm<transB=1>(x{t}, wt, b) q{t} = Gemm<transB=1>({old}, rt, c)
        xr{t}, xz{t}, xn{t} = Split<axis=1, num_outputs=3>(p{t})
        hr{t}, hz{t}, hn{t} = Split<axis=1, num_outputs=3>(q{t})
        sz{t} = Add(xz{t}, hz{t}) z{t} = Sigmoid(sz{t}) sr{t} = Add(xr{t}, hr{t})
        r{t} = Sigmoid(sr{t}) v{t} = Mul(r{t}, hn{t}) sn{t} = Add(xn{t}, v{t}) n{t} = Tanh(sn{t})
        d{t} = Sub({old}, n{t}) e{t} = Mul(z{t}, d{t}) {new} = Add(n{t}, e{t})"""


def apart(t: int, old: str, new: str, share: str = "z", reset_first: bool = False) -> str:
    """One product per gate; z is the share of the new state."""
    within = f"rh{t} = Mul(r{t}, {old}) v{t} = MatMul(rh{t}, rn)"
    after = f"vn{t} = MatMul({old}, rn) v{t} = Mul(r{t}, vn{t})"
    scaled = f"g{t} = Mul(at{t}, z{t})" if share == "g" else ""
    return f"""
        az{t} = MatMul(x{t}, wz) cz{t} = MatMul({old}, rz) ez{t} = Add(az{t}, cz{t})
        sz{t} = Add(ez{t}, bz) z{t} = Sigmoid(sz{t}) {scaled}
        ar{t} = MatMul(x{t}, wr) cr{t} = MatMul({old}, rr) er{t} = Add(ar{t}, cr{t})
        sr{t} = Add(er{t}, br) r{t} = Sigmoid(sr{t})
        an{t} = MatMul(x{t}, wn) {within if reset_first else after}
        en{t} = Add(an{t}, v{t}) sn{t} = Add(en{t}, bn) n{t} = Tanh(sn{t})
        k{t} = Sub(one, {share}{t}) u{t} = Mul({share}{t}, n{t}) o{t} = Mul(k{t}, {old})
        {new} = Add(o{t}, u{t})"""


def reset_first(t: int, old: str, new: str) -> str:
    return apart(t, old, new, reset_first=True)


def attentional(t: int, old: str, new: str) -> str:
    return f"at{t} = Gather<axis=1>(a, t{t})" + apart(t, old, new, share="g")


def masked(step: Step, where: bool) -> Step:
    def build(t: int, old: str, new: str) -> str:
        blend = (
            f"{new} = Where(mt{t}, c{t}, {old})"
            if where
            else f"""f{t} = Cast<to=1>(mt{t}) i{t} = Not(mt{t}) j{t} = Cast<to=1>(i{t})
                on{t} = Mul(f{t}, c{t}) off{t} = Mul({old}, j{t}) {new} = Add(on{t}, off{t})"""
        )
        return f"mt{t} = Gather(m, t{t})" + step(t, old, f"c{t}") + blend

    return build


def text(step: Step, start: str = "h", batch_first: bool = False, tail: str = "") -> str:
    gather = "Gather<axis=1>(sb" if batch_first else "Gather(s"
    body, old = "", start
    for t in range(3):
        new = f"h{t}" if t < 2 else "y"
        body += f"\nx{t} = {gather}, t{t})" + step(t, old, new)
        old = new
    head = HEAD.replace("float[4,4] other", "float[12,5] wt, float[12,4] rt, float[4,4] other")
    return head + body + tail + "}"


@pytest.mark.parametrize(
    ("step", "linear"),
    [(fused, 1), (difference, 1), (apart, 1), (reset_first, 0)],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_forms(step: Step, linear: int, batch_first: bool) -> None:
    graph = parse(text(step, batch_first=batch_first))
    assert_keeps_outputs(RaiseGru(), graph)
    (gru,) = [node for node in graph.nodes if node.op == "graphopt::GRU"]
    assert gru.attr("linear_before_reset") == linear
    assert not any(node.op in ("MatMul", "Gemm", "Sigmoid") for node in graph.nodes)


@pytest.mark.parametrize("where", [False, True])
def test_masks_hold_the_state(where: bool) -> None:
    graph = parse(text(masked(fused, where)))
    assert_keeps_outputs(RaiseGru(), graph)
    (gru,) = [node for node in graph.nodes if node.op == "graphopt::GRU"]
    assert gru.inputs[0].tensor.dims[2] == 6  # type: ignore[union-attr]


def test_attention_scales_the_update() -> None:
    graph = parse(text(attentional, batch_first=True))
    assert_keeps_outputs(RaiseGru(), graph)
    assert [node.op for node in graph.nodes if node.domain] == ["graphopt::AttentionalGRU"]
    feeds = {
        "sb": np.random.default_rng(0).normal(size=(9, 3, 5)).astype(np.float32),
        "h": np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32),
        "a": np.random.default_rng(2).random((9, 3, 1)).astype(np.float32),
        "s": np.zeros((3, 9, 5), np.float32),
        "m": np.zeros((3, 9, 1), bool),
    }
    source = run_compiled(parse(text(attentional, batch_first=True)), feeds)["y"]
    np.testing.assert_allclose(run_compiled(graph, feeds)["y"], source, rtol=1e-5, atol=1e-6)


def test_a_state_of_zeros_is_left_out() -> None:
    zeros = "b0 = Shape<end=1>(h) s0 = Concat<axis=0>(b0, four) h00 = ConstantOfShape(s0)"
    source = text(fused, start="h00").replace("{\n", "{\n" + zeros, 1)
    source = source.replace("float zero", "int64[1] four = {4}, float zero")
    graph = parse(source)
    assert_keeps_outputs(RaiseGru(), graph)
    (gru,) = [node for node in graph.nodes if node.op == "graphopt::GRU"]
    assert gru.input(4) is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("vn1 = MatMul(h0, rn)", "vn1 = MatMul(h0, other)", "share their weights"),
        ("x1 = Gather(s, t1)", "x1 = Gather(s, t2)", "positions 0, 1, 2"),
        ("x1 = Gather(s, t1)", "x1 = Gather<axis=1>(sb, t1)", "positions 0, 1, 2"),
        ("k1 = Sub(one, z1)", "k1 = Sub(zero, z1)", None),
        ("n1 = Tanh(sn1)", "n1 = Relu(sn1)", None),
        ("cr1 = MatMul(h0, rr)", "cr1 = MatMul(h, rr)", None),
    ],
)
def test_others_stay(old: str, new: str, reason: str | None) -> None:
    source = text(apart)
    assert old in source
    assert_unchanged(RaiseGru(), source.replace(old, new), reason)


def test_attention_after_a_reset_state_stays() -> None:
    def step(t: int, old: str, new: str) -> str:
        gather = f"at{t} = Gather<axis=1>(a, t{t})"
        return gather + apart(t, old, new, share="g", reset_first=True)

    assert_unchanged(RaiseGru(), text(step), "multiplies the state")


def test_states_read_on_the_way_stay() -> None:
    source = text(fused, tail=" z = Relu(h1)").replace(
        "=> (float[] y)", "=> (float[] y, float[] z)"
    )
    assert_unchanged(RaiseGru(), source, "also read elsewhere")


def test_values_of_unknown_rank_stay() -> None:
    source = text(fused).replace("float[N,4] h,", "float[] h,")
    assert_unchanged(RaiseGru(), source.replace("float[3,N,5] s,", "float[] s,"))
