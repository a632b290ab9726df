"""Operations and bytes of each kind of op, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.analysis.cost import (
    _RULES,
    Cost,
    UnknownCost,
    costs,
    dtype_bits,
    is_parameter,
    node_cost,
    parameters,
)
from graphopt.ir import dims
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Node
from graphopt.testing import parse

F32, I64 = 4, 8


def cost(text: str, **sizes: int) -> Cost:
    """The cost of the last node. A size that several inputs share is one number for all of them."""
    graph = parse(text)
    names = {n for v in graph.inputs for d in v.tensor.shape or () for n in dims.symbols(d)}
    nodes = list(costs(graph, {name: sizes[name.partition("@")[0]] for name in names}))
    found = nodes[-1][1]
    assert found is not None
    return found


def test_matmul_counts_a_multiply_and_an_add_per_term() -> None:
    found = cost("(float[N,5] x, float[5,7] w) => (float[N,7] y) { y = MatMul(x, w) }", N=3)
    assert found == Cost(2 * 3 * 5 * 7, F32 * (3 * 5 + 5 * 7), F32 * 3 * 7)


def test_batched_matmul() -> None:
    text = "(float[N,4,5] x, float[N,5,6] w) => (float[N,4,6] y) { y = MatMul(x, w) }"
    assert cost(text, N=3).flops == 3 * 2 * 4 * 5 * 6


@pytest.mark.parametrize(("attr", "shape"), [("", "N,5"), ("<transA=1>", "5,N")])
def test_gemm_adds_its_bias(attr: str, shape: str) -> None:
    text = f"(float[{shape}] x, float[5,7] w, float[7] b) => (float[N,7] y) "
    with_bias = cost(text + f"{{ y = Gemm{attr}(x, w, b) }}", N=3)
    without = cost(text + f"{{ y = Gemm{attr}(x, w) }}", N=3)
    assert without.flops == 2 * 3 * 5 * 7
    assert with_bias.flops - without.flops == 3 * 7
    assert with_bias.read - without.read == F32 * 7


def test_conv() -> None:
    text = "(float[N,4,10] x, float[6,2,3] w, float[6] b) => (float[N,6,8] y) "
    found = cost(text + "{ y = Conv<group=2>(x, w, b) }", N=5)
    assert found.flops == 5 * 6 * 8 * (2 * 2 * 3 + 1)


def test_transposed_conv_spreads_every_input() -> None:
    text = "(float[N,4,10] x, float[4,6,3] w, float[6] b) => (float[N,6,12] y) "
    found = cost(text + "{ y = ConvTranspose(x, w, b) }", N=5)
    assert found.flops == 5 * 4 * 10 * 2 * 6 * 3 + 5 * 6 * 12


def test_pooling_reads_a_window_per_element() -> None:
    text = "(float[N,4,10] x) => (float[N,4,8] y) { y = MaxPool<kernel_shape=[3]>(x) }"
    assert cost(text, N=5).flops == 5 * 4 * 8 * 3


def test_an_unknown_rank_is_unknown() -> None:
    for body in ("y = Relu(x)", "y = MatMul(x, x)"):
        (found,) = (c for _, c in costs(parse(f"(float[] x) => (float[] y) {{ {body} }}"), {}))
        assert found is None


@pytest.mark.parametrize(
    ("equation", "shapes", "flops"),
    [
        ("be,bed->bd", ("N,5", "N,5,7"), 2 * 3 * 5 * 7),
        ("ij,jk", ("N,5", "5,7"), 2 * 3 * 5 * 7),
        ("bi,bi->bi", ("N,5", "N,5"), 3 * 5),
        ("bij->b", ("N,5,7", ""), 3 * 5 * 7),
        ("bi,bj,ij->b", ("N,5", "N,7", "5,7"), 3 * 3 * 5 * 7),
        ("...i,ij->...j", ("N,2,5", "5,7"), 2 * 3 * 2 * 5 * 7),
        ("bij->bji", ("N,5,7", ""), 0),
    ],
)
def test_einsum(equation: str, shapes: tuple[str, ...], flops: int) -> None:
    shapes = tuple(shape for shape in shapes if shape)
    names = [f"x{k}" for k in range(len(shapes))]
    inputs = ", ".join(f"float[{shape}] {name}" for shape, name in zip(shapes, names))
    body = f'y = Einsum<equation="{equation}">({", ".join(names)})'
    assert cost(f"({inputs}) => (float y) {{ {body} }}", N=3).flops == flops


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
def test_recurrent_products_dominate(op: str, gates: int) -> None:
    steps, inputs, hidden = 6, 40, 50
    text = (
        f"(float[{steps},N,{inputs}] x, float[1,{gates * hidden},{inputs}] w, "
        f"float[1,{gates * hidden},{hidden}] r) => (float[{steps},1,N,{hidden}] y) "
        f"{{ y = {op}<hidden_size={hidden}>(x, w, r) }}"
    )
    found = cost(text, N=3)
    products = 2 * steps * 3 * gates * hidden * (inputs + hidden)
    assert isinstance(found.flops, int)
    assert products < found.flops < 1.05 * products


@pytest.mark.parametrize(
    ("body", "flops"),
    [
        ("y = Add(x, x)", 15),
        ("y = Sum(x, x, x)", 30),
        ("y = Sigmoid(x)", 15),
        ("y = ReduceSum(x)", 15),
        ("y = ReduceL2(x)", 30),
        ("y = Softmax(x)", 75),
        ("y = Cast<to=1>(x)", 0),
        ("y = Transpose(x)", 0),
        ("y = Concat<axis=1>(x, x)", 0),
    ],
)
def test_element_by_element(body: str, flops: int) -> None:
    assert cost(f"(float[N,5] x) => (float y) {{ {body} }}", N=3).flops == flops


@pytest.mark.parametrize("body", ["y = Identity(x)", "y = Flatten(x)", "y = Shape(x)"])
def test_views_are_free(body: str) -> None:
    assert cost(f"(float[N,5] x) => (float y) {{ {body} }}", N=3) == Cost(0, 0, 0)


def test_broadcast_writes_the_larger_shape() -> None:
    found = cost("(float[N,5] x, float[5] b) => (float[N,5] y) { y = Add(x, b) }", N=3)
    assert found == Cost(15, F32 * (15 + 5), F32 * 15)


def test_gather_reads_rows_not_the_table() -> None:
    text = "(float[1000000,16] t, int64[N] ids) => (float[N,16] y) { y = Gather(t, ids) }"
    assert cost(text, N=3) == Cost(0, F32 * 3 * 16 + I64 * 3, F32 * 3 * 16)


def test_slice_reads_what_it_takes() -> None:
    text = (
        "(float[N,100] x) => (float[N,1] y) <int64[1] a = {3}, int64[1] b = {4}, int64[1] c = {1}>"
        "{ y = Slice(x, a, b, c) }"
    )
    assert cost(text, N=3) == Cost(0, F32 * 3, F32 * 3)


def test_loop_costs_its_body_times_its_trip_count() -> None:
    text = """(float[5] x) => (float[5] y) <int64 n = {7}, bool yes = {1}> {
        y = Loop<body = b (int64 i, bool c, float[5] s) => (bool c, float[5] t) {
            t = Add(s, s)
        }>(n, yes, x)
    }"""
    assert cost(text).flops == 7 * 5


def test_loop_of_unknown_length_is_unknown() -> None:
    text = """(float[5] x, int64 n) => (float[5] y) <bool yes = {1}> {
        y = Loop<body = b (int64 i, bool c, float[5] s) => (bool c, float[5] t) {
            t = Add(s, s)
        }>(n, yes, x)
    }"""
    ((_, found),) = costs(parse(text), {})
    assert found is None


def test_if_costs_the_dearer_branch() -> None:
    text = """(float[5] x, bool c) => (float[5] y) {
        y = If<then_branch = a () => (float[5] p) { p = Relu(x) },
               else_branch = b () => (float[5] q) { r = Relu(x)  q = Relu(r) }>(c)
    }"""
    assert cost(text).flops == 10


def test_scan_costs_its_body_times_its_length() -> None:
    text = """(float[5] s, float[N,5] x) => (float[5] y) {
        y = Scan<num_scan_inputs=1, body = b (float[5] a, float[5] e) => (float[5] t) {
            t = Add(a, e)
        }>(s, x)
    }"""
    assert cost(text, N=4).flops == 20


def test_data_dependent_sizes_are_unknown() -> None:
    nodes = list(costs(parse("(float[N] x) => (int64[1,K] y) { y = NonZero(x) }"), {"N": 3}))
    assert nodes[0][1] is None


def test_costs_stay_symbolic() -> None:
    graph = parse("(float[N,5] x, float[5,7] w) => (float[N,7] y) { y = MatMul(x, w) }")
    (node,) = graph.nodes
    found = node_cost(node)
    assert found.flops == 70 * Sym.named("N")
    assert found.at({}) is None
    assert found.at({"N": 2}) == cost(
        "(float[2,5] x, float[5,7] w) => (float[2,7] y) { y = MatMul(x, w) }"
    )


def test_an_op_without_a_rule_is_unknown() -> None:
    node = Node("Fused", "elsewhere", {}, ())
    with pytest.raises(UnknownCost, match="elsewhere::Fused"):
        node_cost(node)


def test_rules_are_for_ops_that_exist() -> None:
    real = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert {op for domain, op in _RULES if not domain} <= real


def test_ops_of_recommenders_have_rules() -> None:
    text = """
    Add And ArgMax BatchNormalization Cast Clip Compress Concat ConstantOfShape Conv CumSum
    Div Einsum Equal Erf Exp Expand Flatten Gather GatherElements GatherND Gemm Greater
    GRU If Less Log LogSoftmax Loop LSTM MatMul Max Mean Min Mod Mul Neg NonZero Not
    OneHot Or PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum Relu Reshape ScatterElements ScatterND Shape Sigmoid
    Sign Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu
    Unique Unsqueeze Where LayerNormalization
    """
    assert not [op for op in text.split() if ("", op) not in _RULES]


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("float32", 32), ("bfloat16", 16), ("bool", 8), ("uint4", 4), ("float8e4m3fn", 8)],
)
def test_dtype_bits(dtype: str, bits: int) -> None:
    assert dtype_bits(dtype) == bits


def test_parameters_are_counted_once_and_indices_not_at_all() -> None:
    graph = Graph()
    weight = np.ones((3, 4), np.float32)
    a, b = graph.constant(weight), graph.constant(weight)
    quantized, ids = graph.constant(np.ones(5, np.int8)), graph.constant(np.ones(6, np.int64))
    exponent = graph.constant(np.array(2.0, np.float32))
    assert parameters([a, b, quantized, ids, exponent]) == 12 + 5
    assert not is_parameter(ids)


@pytest.mark.parametrize(("mode", "weighted", "flops"), [
    ("sum", False, 12 * 16),
    ("mean", False, 12 * 16 + 4 * 16),
    ("sum", True, 2 * 12 * 16),
])  # fmt: skip
def test_embedding_bag_reads_the_rows_of_its_ids(mode: str, weighted: bool, flops: int) -> None:
    inputs = "float[9999,16] t, int64[I] ids, int64[N] o" + (", float[I] w" if weighted else "")
    call = f'graphopt.EmbeddingBag<mode="{mode}">(t, ids, o{", w" if weighted else ""})'
    found = cost(f"({inputs}) => (float[N,16] y) {{ y = {call} }}", I=12, N=4)
    read = F32 * 12 * 16 + I64 * (12 + 4) + (F32 * 12 if weighted else 0)
    assert found == Cost(flops, read, F32 * 4 * 16)


def test_attention_is_two_products_and_a_softmax() -> None:
    inputs = "float[N,2,8] q, float[N,5,8] k, float[N,5,8] v, float[5] bias"
    call = "graphopt.Attention<heads=2, dim=4>(q, k, v, bias)"
    found = cost(f"({inputs}) => (float[N,2,8] y) {{ y = {call} }}", N=3)
    scores = 3 * 2 * 2 * 5
    read = F32 * (3 * 2 * 8 + 2 * 3 * 5 * 8 + 5)
    assert found == Cost(scores * (2 * 2 * 4 + 7), read, F32 * 3 * 2 * 8)


def test_attention_in_a_gru_costs_what_a_gru_costs() -> None:
    shapes = "float[T,N,4] x, float[1,9,4] w, float[1,9,3] r, float[1,18] b, float[1,N,3] h"
    call = "y, z = GRU<hidden_size=3>(x, w, r, b, , h)"
    plain = cost(f"({shapes}) => (float[] y, float[1,N,3] z) {{ {call} }}", T=5, N=2)
    call = "z = graphopt.AttentionalGRU(x, w, r, b, h, a)"
    found = cost(f"({shapes}, float[T,N,1] a) => (float[1,N,3] z) {{ {call} }}", T=5, N=2)
    assert found.flops == plain.flops
