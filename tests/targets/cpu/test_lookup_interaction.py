"""Features that are looked up for their products alone are multiplied where they are looked up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from graphopt.analysis.cost import node_cost
from graphopt.analysis.lookups import lookups_of
from graphopt.errors import IdError
from graphopt.ir.graph import Graph
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

HEAD = """(int64[N] i, int64[N] j, int64[N,3] m, float[N,{dim}] d) => (float[] y{more})
    <int8[7,{dim}] t, float[7] scales, float[5,{dim}] u, int64[3] up = {{-1, 1, {dim}}}> {{
    a = graphopt.QuantizedLookup<bits=8>(t, scales, i) b = Gather(u, j)
    """
SHAPED = "ra = Reshape(a, up) rb = Reshape(b, up) rd = Reshape(d, up) "
JOINED = (
    SHAPED
    + """e = graphopt.EmbeddingBag<mode="sum">(u, m) re = Reshape(e, up)
    k = Gather(u, m) x = Concat<axis=1>(rd, ra, rb, re, k) """
)
CODES = (
    SHAPED
    + """c = graphopt.QuantizedLookup<bits=8>(t, scales, j) rc = Reshape(c, up)
    k = graphopt.QuantizedLookup<bits=8>(t, scales, m) x = Concat<axis=1>(rd, ra, rc, rb, k) """
)
FLAT = "f = Concat<axis=1>(d, a, b) s = Constant<value_ints=[-1, 3, 64]>() x = Reshape(f, s) "


def triangle(features: int) -> list[int]:
    return [i * features + j for i in range(features) for j in range(i)]


def dots(pairs: Sequence[int], beside: str = "") -> str:
    return f"y = graphopt.DotInteraction<pairs=[{', '.join(map(str, pairs))}]>(x{beside}) "


FUSED = {
    "of all pairs": (64, JOINED + dots(triangle(7), ", d")),
    "of features of 10 vectors": (160, JOINED + dots(triangle(7), ", d")),
    "alone": (64, JOINED + dots(triangle(7))),
    "by columns": (64, JOINED + dots([i * 7 + j for j in range(7) for i in range(j, 7)])),
    "of few pairs in any order": (64, JOINED + dots([3, 40, 3, 12, 48])),
    "in more than one block": (64, JOINED + dots([*range(49), *range(49)])),
    "of codes": (64, CODES + dots(triangle(7), ", d")),
    "of codes of 4 vectors": (256, CODES + dots(triangle(7))),
    "of codes by columns": (64, CODES + dots([i * 7 + j for j in range(7) for i in range(j, 7)])),
    "of few codes": (64, CODES + dots([9, 8, 1])),
    "of codes in more than one block": (128, CODES + dots([*range(49), *range(49)])),
    "joined in another form": (64, FLAT + dots(triangle(3), ", d")),
}
STAY = {
    "short features": (16, JOINED + dots(triangle(7))),
    "features read elsewhere": (64, JOINED + dots(triangle(7)) + "o = Neg(x)"),
    "joined rows read elsewhere": (64, FLAT + dots(triangle(3)) + "o = Neg(f)"),
    "rows that are added up": (
        64,
        SHAPED
        + "z = Concat<axis=1>(ra, rb) one = Constant<value_ints=[1]>() x = ReduceSum(z, one) "
        + dots([0]),
    ),
    "features that are computed": (64, SHAPED + "x = Concat<axis=1>(rd, rd) " + dots(triangle(2))),
}


def graph_of(case: tuple[int, str]) -> Graph:
    dim, body = case
    more = ", float[] o" if "o = " in body else ""
    return parse(HEAD.format(dim=dim, more=more) + body + "}")


def legal(graph: Graph) -> Graph:
    found = graph.clone()
    legalize(found, lanes=16)
    return found


@pytest.mark.parametrize("name", FUSED)
def test_products_of_what_is_looked_up(name: str) -> None:
    source = graph_of(FUSED[name])
    assert [node.op_type for node in legal(source).nodes if node.op != "Reshape"] == [
        "LookupInteraction"
    ]
    compiled = Compiled(source)
    all_feeds = random_inputs(source, {"N": 20})
    found = compiled(all_feeds)["y"]
    # Sums of up to 256 products of numbers near 1.
    wanted = run_onnxruntime(source, all_feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    for row in (0, 19):
        feeds = {name: array[row : row + 1] for name, array in all_feeds.items()}
        np.testing.assert_array_equal(compiled(feeds)["y"], found[row : row + 1])


@pytest.mark.parametrize(
    ("dim", "vnni", "kept"),
    [
        (64, True, [False, True, True, False, True]),
        (160, True, [False] * 5),
        (64, False, [False] * 5),
    ],
)
def test_what_is_multiplied_as_bytes(dim: int, vnni: bool, kept: list[bool]) -> None:
    graph = graph_of((dim, CODES + dots(triangle(7))))
    legalize(graph, lanes=16, in_bytes=vnni)
    (node,) = [node for node in graph.nodes if node.op_type == "LookupInteraction"]
    assert [part.kept for part in node.attrs["parts"]] == kept


@pytest.mark.parametrize("name", STAY)
def test_others_stay(name: str) -> None:
    assert all(node.op_type != "LookupInteraction" for node in legal(graph_of(STAY[name])).walk())


@pytest.mark.parametrize("name", ["alone", "of codes"])
def test_an_id_outside_its_table_is_an_error(name: str) -> None:
    source = graph_of(FUSED[name])
    feeds = random_inputs(source, {"N": 3})
    feeds["j"][1] = 7
    with pytest.raises(IdError):
        Compiled(source)(feeds)
    found = Compiled(source, oob="zero")(feeds)["y"]
    assert np.isfinite(found).all()
    assert (found[1] == 0).any()
    assert not (found[0] == 0).any()


def test_costs() -> None:
    (node,) = [n for n in legal(graph_of(FUSED["of all pairs"])).nodes if n.op != "Reshape"]
    cost = node_cost(node).at({"N": 10})
    assert cost is not None
    # 21 products of 64, 21 results and what is beside them, and bags of 3 rows.
    assert cost.flops == 10 * (2 * 21 * 64 + 3 * 64)
    assert cost.written == 4 * 10 * (64 + 21)
    names = [found.name for found in lookups_of(node)]
    assert names == ["t", "u", "u", "u"]


CODED = """(int64[N] i, int64[N] j, float[N,{beside}] d) => (float[N,5] y) <
    float[7,64] t, float[5,64] u, int64[3] up = {{-1, 1, 64}}, float s = {{0.9}},
    uint8 z = {{100}}, int8[{width},5] w, float[5] ws> {{
    a = Gather(t, i) b = Gather(u, j) ra = Reshape(a, up) rb = Reshape(b, up)
    x = Concat<axis=1>(ra, rb) p = graphopt.DotInteraction<pairs=[0, 1, 2]>(x, d)
    q = QuantizeLinear(p, s, z) r = DequantizeLinear(q, s, z)
    v = DequantizeLinear<axis=1>(w, ws) y = MatMul(r, v) }}"""


@pytest.mark.parametrize("beside", [1, 2, 20])
def test_a_layer_of_8_bits_reads_codes(beside: int) -> None:
    """Of 4, 5 and 23 columns: some fill up the last group of 4."""
    source = parse(CODED.format(beside=beside, width=beside + 3))
    graph = source.clone()
    legalize(graph, lanes=16, in_bytes=True)
    products, layer = [node for node in graph.nodes if node.op != "Reshape"]
    width = -(-(beside + 3) // 4) * 4
    assert (products.output.dtype, products.output.tensor.dims[1]) == ("uint8", width)
    weights = layer.const(1)
    assert weights is not None
    assert weights.shape == (width, 5)
    assert not weights[beside + 3 :].any()
    compiled = Compiled(source)
    feeds = random_inputs(source, {"N": 50})
    found, wanted = compiled(feeds)["y"], run_onnxruntime(source, feeds)["y"]
    # A product near the middle of two codes may go to the other one.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0.02 * np.abs(wanted).max())
    assert (np.abs(found - wanted) < 1e-4 * np.abs(wanted).max()).mean() > 0.9


def test_codes_are_for_one_reader() -> None:
    text = CODED.format(beside=1, width=4).replace("(float[N,5] y)", "(float[N,5] y, float[N,4] o)")
    graph = parse(text.replace("y = MatMul(r, v)", "y = MatMul(r, v) o = Neg(p)"))
    legalize(graph, lanes=16, in_bytes=True)
    assert all(node.output.dtype != "uint8" for node in graph.nodes)
