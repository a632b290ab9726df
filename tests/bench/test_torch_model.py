"""Models in PyTorch answer as ONNX Runtime does, op by op and whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import production  # noqa: E402
import torch_model  # noqa: E402

import graphopt  # noqa: E402
from graphopt.ir.dims import Sym  # noqa: E402
from graphopt.ir.graph import Graph  # noqa: E402
from graphopt.ir.types import TensorType  # noqa: E402
from graphopt.testing import parse, random_inputs, run_onnxruntime  # noqa: E402

SIZES = {"N": 3, "T": 4}


def check(graph: Graph, feeds: dict[str, np.ndarray] | None = None) -> None:
    """Compare; float32 sums have at most some hundred terms, in another order."""
    feeds = feeds or random_inputs(graph, SIZES)
    expected = run_onnxruntime(graph, feeds)
    module = torch_model.to_torch(graph)
    assert (module.input_names, module.output_names) == (list(feeds), list(expected))
    found = module(*(torch.from_numpy(array) for array in feeds.values()))
    for (name, wanted), tensor in zip(expected.items(), found, strict=True):
        assert tensor.numpy().dtype == wanted.dtype, name
        np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-5, atol=1e-5, err_msg=name)


ONE = {
    "Gemm": "float[N,4] x => Gemm<transB=1>(x, float[3,4], float[3])",
    "Gemm, scaled": (
        "float[4,N] x => Gemm<transA=1, alpha=0.5, beta=2.0>(x, float[4,3], float[1,3])"
    ),
    "MatMul": "float[N,2,4] x => MatMul(x, float[4,3])",
    "MatMul of two": "float[N,2,4] x, float[N,4,3] y => MatMul(x, y)",
    "Div of integers": "int64[N,4] x => Div(x, [3,2,-3,1])",
    "Max of three": "float[N,4] x => Max(x, float[4], float[1])",
    "LeakyRelu": "float[N,4] x => LeakyRelu<alpha=0.2>(x)",
    "Clip": "float[N,4] x => Clip(x, {-0.5}, {0.25})",
    "Cast": "float[N,4] x => Cast<to=7>(x)",
    "Softmax": "float[N,4,2] x => Softmax<axis=1>(x)",
    "LayerNormalization": "float[N,4] x => LayerNormalization(x, float[4], float[4])",
    "ReduceSum": "int32[N,4] x => ReduceSum<keepdims=0>(x, [1])",
    "ReduceMean": "float[N,4] x => ReduceMean(x, [-1])",
    "ReduceMax": "float[N,4] x => ReduceMax<keepdims=0>(x, [0])",
    "Gather": "int32[N] x => Gather(float[9,4], x)",
    "Gather, one place": "float[N,4] x => Gather<axis=1>(x, {2})",
    "Gather, places": "float[N,4] x => Gather<axis=1>(x, [-1,2])",
    "Gather, computed": "float[N,4] x, int64[T] y => Gather<axis=1>(x, y)",
    "Reshape": "float[N,4] x => Reshape(x, [0,2,-1])",
    "Flatten": "float[N,4,2] x => Flatten(x)",
    "Transpose": "float[N,4,2] x => Transpose<perm=[2,0,1]>(x)",
    "Squeeze": "float[N,1,2] x => Squeeze(x, [1])",
    "Unsqueeze": "float[N,2] x => Unsqueeze(x, [0,-1])",
    "Slice": "float[N,9] x => Slice(x, [1], [-1], [1], [2])",
    "Expand": "float[N,1] x => Expand(x, [1,5])",
    "Trilu": "float[N,4,4] x => Trilu<upper=0>(x)",
    "Where": "float[N,4] x => Where(bool[4], x, {0.5})",
    "EmbeddingBag": "int64[N,5] x => graphopt.EmbeddingBag<mode=\"mean\">(float[9,4], x)",
    "EmbeddingBag, padded": (
        "int32[N,5] x => graphopt.EmbeddingBag<mode=\"sum\", padding_idx=0>(float[9,4], x)"
    ),
    "EmbeddingBag, weighted": (
        "int64[N,5] x, float[N,5] y => "
        "graphopt.EmbeddingBag<mode=\"sum\">(float[9,4], x, , y)"
    ),
    "TableRows": "int64[N,2] x => graphopt.TableRows(x, [5,3], [0,5])",
    "DotInteraction": "float[N,4,3] x => graphopt.DotInteraction<pairs=[4,8,9]>(x)",
    "DotInteraction, beside": (
        "float[N,4,3] x, float[N,2] y => graphopt.DotInteraction<pairs=[4,8,9]>(x, y)"
    ),
    "BiInteraction": "float[N,4,3] x => graphopt.BiInteraction<scale=0.5>(x)",
    "BiInteraction, pooled": "float[N,4,3] x => graphopt.BiInteraction<pooled=1>(x)",
    "PairProducts": "float[N,4,3] x => graphopt.PairProducts<pairs=[4,8,9]>(x)",
    "PairProducts, weighted": (
        "float[N,4,3] x => "
        "graphopt.PairProducts<pairs=[4,8,9], matrices=[1,0,1]>(x, float[2,3,3])"
    ),
    "CompressedInteraction": (
        "float[N,4,3] x, float[N,2,3] y => "
        "graphopt.CompressedInteraction<activation=\"relu\">(x, y, float[8,5], float[5])"
    ),
    "CrossNetwork": (
        "float[N,4] x => graphopt.CrossNetwork(x, float[4,3], float[3], float[4])"
    ),
    "Attention": (
        "float[N,T,9] x, float[N,T,8] y, float[N,1,T,T] z => "
        "graphopt.Attention<heads=2, dim=4, scale=0.5, columns=[1,0,0]>(x, y, y, z)"
    ),
    "GRU": (
        "float[T,N,4] x, float[1,N,3] y => graphopt.GRU<hidden_size=3, linear_before_reset=1>"
        "(x, float[1,9,4], float[1,9,3], float[1,18], y)"
    ),
    "AttentionalGRU": (
        "float[T,N,4] x, float[1,N,3] y, float[T,N,1] z => graphopt.AttentionalGRU"
        "(x, float[1,9,4], float[1,9,3], float[1,18], y, z)"
    ),
}  # fmt: skip
"""Inputs and one call; an argument in the place of a weight is its type, or numbers."""


def written(call: str) -> Graph:
    """The graph of such a line."""
    inputs, body = call.split(" => ")
    weights: list[str] = []

    def weight(match: re.Match[str]) -> str:
        name, (kind, numbers) = f"w{len(weights)}", (match["type"], match["list"] or match["one"])
        if kind is None:
            count = f"[{numbers.count(',') + 1}]" if match["list"] else ""
            kind = f"{'float' if '.' in numbers else 'int64'}{count}"
            weights.append(f"{kind} {name} = {{{numbers}}}")
        else:
            weights.append(f"{kind} {name}")
        return name

    head, opening, arguments = body.partition("(")
    kinds = r"(?P<type>(?:float|int64|bool)\[[\d,]+\])|\[(?P<list>[-\d,.]+)\]|\{(?P<one>[-\d.]+)\}"
    arguments = re.sub(kinds, weight, arguments)
    declared = f"<{', '.join(weights)}>" if weights else ""
    return parse(f"({inputs}) => (float[] out) {declared} {{ out = {head}{opening}{arguments} }}")


@pytest.mark.parametrize("name", ONE)
def test_an_op_answers_as_in_onnx_runtime(name: str) -> None:
    check(written(ONE[name]))


@pytest.mark.parametrize("lengths", ["", ", y"])
def test_a_gru_stops_where_its_samples_end(lengths: str) -> None:
    extra = ", int32[N] y" if lengths else ""
    graph = parse(
        f"""(float[5,N,4] x{extra}) => (float[] states, float[] last)
        <float[1,9,4] w, float[1,9,3] r, float[1,18] b> {{
        states, last = GRU<hidden_size=3, linear_before_reset=1>(x, w, r, b{lengths}) }}"""
    )
    feeds = {"x": random_inputs(graph, SIZES)["x"]}
    if lengths:
        feeds["y"] = np.array([5, 1, 3], np.int32)
    check(graph, feeds)


def test_sizes_that_are_computed() -> None:
    graph = parse(
        """(float[N,4] x, int64[N,1] y) => (float[] flat, float[] zeros, float[] picked)
            <int64[1] minus = {-1}, int64[1] two = {2}> {
            rows = Shape<end=1>(x)
            shape = Concat<axis=0>(rows, two, minus)
            flat = Reshape(x, shape)
            doubled = Mul(rows, two)
            zeros = ConstantOfShape(doubled)
            picked = GatherND<batch_dims=1>(x, y) }"""
    )
    check(graph, random_inputs(graph, SIZES) | {"y": np.array([[3], [0], [2]])})


@pytest.mark.parametrize("name", ["dlrm_mlperf", "two_tower", "din_history100", "sasrec"])
def test_production_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production, "ROWS", 50)
    check(graphopt.optimize(production.MODELS[name][0]()))


def test_bags_of_several_fields() -> None:
    table = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    for mode, with_end in (("sum", 0), ("mean", 1)):
        graph = Graph(opsets={"": 18})
        offsets = graph.add_input("offsets", TensorType("int64", (2, Sym.named("b"))))
        ids = [graph.add_input(f"i{k}", TensorType("int64", (Sym.named(f"n{k}"),))) for k in "01"]
        whole = [graph.constant(a) for a in (table, np.array([5, 3]), np.array([0, 5]))]
        attrs = {"mode": mode, "include_last_offset": with_end}
        node = graph.insert("EmbeddingBags", [*whole, offsets, *ids], attrs, domain="graphopt")
        graph.set_outputs([node.output], ["pooled"])
        feeds = {
            "offsets": np.array([[0, 2, 2, 3], [0, 0, 1, 4]]),
            "i0": np.array([4, 0, 1]),
            "i1": np.array([2, 2, 0, 1]),
        }
        check(graph, feeds)


def test_what_is_not_covered_is_named() -> None:
    with pytest.raises(torch_model.Untranslatable, match="no translation of Det"):
        torch_model.to_torch(parse("(float[N,4,4] x) => (float[N] y) { y = Det(x) }"))
    with pytest.raises(torch_model.Untranslatable, match="runs backwards"):
        torch_model.to_torch(
            parse(
                """(float[5,N,4] x) => (float[] y, float[] h)
                <float[1,9,4] w, float[1,9,3] r, float[1,18] b> { y, h = GRU<direction="reverse",
                hidden_size=3, linear_before_reset=1>(x, w, r, b) }"""
            )
        )
