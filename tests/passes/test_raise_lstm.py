"""Recurrences written out step by step become LSTMs, in every form; others stay."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.passes.raise_lstm import RaiseLstm
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse, run_compiled

HEAD = """(float[3,N,5] s, float[N,4,5] sb, float[N,4] h, float[N,4] c, float[1,4] row)
    => (float[] y{outputs})
    <float[5,16] w, float[4,16] r, float[16] b, float[16] d, float[16,5] wt, float[16,4] rt,
     float[5,4] wi, float[5,4] wf, float[5,4] wg, float[5,4] wo, float[4,4] ri, float[4,4] rf,
     float[4,4] rg, float[4,4] ro, float[4] bi, float[4] bf, float[4] other, float zero = {{0}},
     int64[1] four = {{4}}, int64 t0 = {{0}}, int64 t1 = {{1}}, int64 t2 = {{2}}> {{
"""
CELL = """
    si{t} = Sigmoid(i{t}) sf{t} = Sigmoid(f{t}) tg{t} = Tanh(g{t}) so{t} = Sigmoid(o{t})
    k{t} = Mul(sf{t}, c{t}) n{t} = Mul(si{t}, tg{t}) c{next} = Add(k{t}, n{t})
    v{t} = Tanh(c{next}) h{next} = Mul(so{t}, v{t})
"""
Step = Callable[[int], str]


def difference(t: int) -> str:
    """torch's LSTMCell: gates i, f, g, o."""
    return f"""p{t} = Gemm<transB=1>(x{t}, wt, b) q{t} = Gemm<transB=1>(h{t}, rt, d)
        a{t} = Add(q{t}, p{t}) i{t}, f{t}, g{t}, o{t} = Split<axis=1, num_outputs=4>(a{t})"""


def of_slices(t: int) -> str:
    """Gates cut out of a sum; the bias comes last."""
    cuts = " ".join(
        f"l{t}{k} = Constant<value_ints=[{4 * k}]>() m{t}{k} = Constant<value_ints=[{4 * k + 4}]>()"
        f" {gate}{t} = Slice(a{t}, l{t}{k}, m{t}{k}, one{t})"
        for k, gate in enumerate("ofig")
    )
    return f"""p{t} = MatMul(x{t}, w) q{t} = MatMul(h{t}, r) e{t} = Add(p{t}, q{t})
        a{t} = Add(b, e{t}) one{t} = Constant<value_ints=[1]>() {cuts}"""


def apart(t: int) -> str:
    """A product for each gate, some without a bias."""
    gates = " ".join(
        f"p{g}{t} = MatMul(x{t}, w{g}) q{g}{t} = MatMul(h{t}, r{g})"
        f" {g if g in 'go' else 'e' + g}{t} = Add(p{g}{t}, q{g}{t})"
        for g in "ifgo"
    )
    return f"{gates} i{t} = Add(ei{t}, bi) f{t} = Add(ef{t}, bf)"


def text(
    step: Step, steps: int = 3, batch_first: bool = False, start: str = "", tail: str = ""
) -> str:
    gather = "Gather<axis=1>(sb" if batch_first else "Gather(s"
    body = start or "h0 = Identity(h) c0 = Identity(c)"
    for t in range(steps):
        body += f"\nx{t} = {gather}, t{t}) {step(t)} {CELL.format(t=t, next=t + 1)}"
    outputs = ", float[] z" if "z = " in tail else ""
    return HEAD.format(outputs=outputs) + body + f" y = Relu(h{steps}) {tail} }}"


def raised(source: str) -> Graph:
    graph = parse(source)
    assert_keeps_outputs(RaiseLstm(), graph)
    return graph


def lstms(graph: Graph) -> int:
    assert not any(node.op in ("Sigmoid", "Tanh", "Gemm", "MatMul") for node in graph.nodes)
    return sum(node.op == "LSTM" for node in graph.nodes)


@pytest.mark.parametrize("step", [difference, of_slices, apart])
@pytest.mark.parametrize("batch_first", [False, True])
def test_forms(step: Step, batch_first: bool) -> None:
    assert lstms(raised(text(step, batch_first=batch_first))) == 1


SIZE = "rows = Shape<end=1>(h) size = Concat<axis=0>(rows, four) h0 = ConstantOfShape(size) "


@pytest.mark.parametrize("cell", ["zero", "h0"])
def test_states_of_zeros_are_left_out(cell: str) -> None:
    graph = raised(text(difference, start=SIZE).replace("(sf0, c0)", f"(sf0, {cell})"))
    (lstm,) = [node for node in graph.nodes if node.op == "LSTM"]
    assert len(lstm.inputs) == 4


def test_one_state_of_zeros() -> None:
    graph = raised(text(difference, start=SIZE + "c0 = Identity(c)"))
    (lstm,) = [node for node in graph.nodes if node.op == "LSTM"]
    assert [value is None for value in lstm.inputs[4:]] == [True, True, False]


def test_states_and_the_last_cell_may_be_read() -> None:
    tail = "u = Neg(h1) v = Add(u, h2) z = Add(v, c3)"
    assert lstms(raised(text(difference, tail=tail))) == 1


def test_layers_upon_each_other() -> None:
    above = "gh0 = Identity(h) gc0 = Identity(c)"
    for t in range(3):
        step = f"""gp{t} = Gemm(h{t + 1}, r, b) gq{t} = Gemm(gh{t}, r, d) ga{t} = Add(gp{t}, gq{t})
            gi{t}, gf{t}, gg{t}, go{t} = Split<axis=1, num_outputs=4>(ga{t})"""
        above += step + re.sub(r"\b(\w+)(?= =|,|\))", r"g\1", CELL.format(t=t, next=t + 1))
    assert lstms(raised(text(difference, tail=above + "z = Neg(gh3)"))) == 2


def test_compiled_it_gives_the_same() -> None:
    source = parse(text(difference, batch_first=True, tail="z = Add(h1, c3)"))
    graph = source.clone()
    assert_keeps_outputs(RaiseLstm(), graph)
    rng = np.random.default_rng(0)
    shapes = {"s": (3, 9, 5), "sb": (9, 4, 5), "h": (9, 4), "c": (9, 4), "row": (1, 4)}
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    wanted, found = run_compiled(source, feeds), run_compiled(graph, feeds)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("qg1 = MatMul(h1, rg)", "qg1 = MatMul(h1, ri)", "share their weights"),
        ("f1 = Add(ef1, bf)", "f1 = Add(ef1, bi)", "share their weights"),
        ("x1 = Gather(s, t1)", "x1 = Gather(s, t2)", "positions 0, 1, 2"),
        ("x1 = Gather(s, t1)", "x1 = Gather<axis=1>(sb, t1)", "positions 0, 1, 2"),
        ("v1 = Tanh(c2)", "v1 = Tanh(c1)", None),
        ("v1 = Tanh(c2)", "v1 = Relu(c2)", None),
        ("c2 = Add(k1, n1)", "c2 = Sub(k1, n1)", None),
        ("k1 = Mul(sf1, c1)", "k1 = Mul(f1, c1)", None),
        ("qi1 = MatMul(h1, ri)", "qi1 = MatMul(h, ri)", None),
        ("c0 = Identity(c)", "c0 = Identity(row)", "another shape"),
        ("y = Relu(h3)", "y = Relu(h3) u = Neg(c1) z = Neg(u)", "also read elsewhere"),
        ("y = Relu(h3)", "y = Relu(h3) z = Neg(pi2)", "also read elsewhere"),
    ],
)
def test_others_stay(old: str, new: str, reason: str | None) -> None:
    source = text(apart)
    assert old in source
    changed = source.replace(old, new)
    if " z = " in new:
        changed = changed.replace("=> (float[] y)", "=> (float[] y, float[] z)")
    assert_unchanged(RaiseLstm(), changed, reason)


def test_values_of_unknown_rank_stay() -> None:
    source = text(difference).replace("float[N,4] h,", "float[] h,")
    assert_unchanged(RaiseLstm(), source.replace("float[3,N,5] s,", "float[] s,"))
