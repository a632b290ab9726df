"""What each damaged, hostile or unsupported model prints when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx_models import FUNCTIONS, model, sparse

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io


def plain() -> ModelProto:
    return model("g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }")


def changed(change: Callable[[ModelProto], object]) -> Callable[[], ModelProto]:
    def build() -> ModelProto:
        source = plain()
        change(source)
        return source

    return build


def text(body: str, opset: int = 18) -> Callable[[], ModelProto]:
    return lambda: model(body, opset)


def typed(source: ModelProto, **attribute: Any) -> None:
    source.graph.node[0].attribute.append(onnx.AttributeProto(**attribute))


REFUSED: dict[str, tuple[Callable[[], ModelProto], type[GraphoptError], str]] = {
    "opset too new": (
        changed(lambda m: setattr(m.opset_import[0], "version", 99)),
        InvalidModelError,
        "newer than",
    ),
    "opset too old": (
        changed(lambda m: setattr(m.opset_import[0], "version", 6)),
        InvalidModelError,
        "older than 7",
    ),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), InvalidModelError, "which opset"),
    "two opsets": (
        changed(lambda m: m.opset_import.add(domain="ai.onnx", version=17)),
        InvalidModelError,
        "two versions of domain 'ai.onnx'",
    ),
    "no graph": (changed(lambda m: m.ClearField("graph")), InvalidModelError, "no graph"),
    "unknown op": (
        text("g (float x) => (float y) { [n] y = Frobnicate(x) }"),
        UnsupportedOpError,
        r"Frobnicate \(node 'n'\): no such op in ai.onnx opset 18",
    ),
    "op of a later opset": (
        text("g (float x) => (float y) { y = Gelu(x) }"),
        UnsupportedOpError,
        "opset 18",
    ),
    "unknown domain": (
        text("g (float x) => (float y) { y = acme.Add(x) }"),
        UnsupportedOpError,
        "domain 'acme', which the model does not import",
    ),
    "unknown op of a known domain": (
        text("g (float x) => (float y) { y = local.Add(x) }"),
        UnsupportedOpError,
        "local opset 1",
    ),
    "op without a name": (
        changed(lambda m: setattr(m.graph.node[0], "op_type", "")),
        InvalidModelError,
        "'' is not the name of an op",
    ),
    "op whose name is no name": (
        changed(lambda m: setattr(m.graph.node[0], "op_type", "A\nd")),
        InvalidModelError,
        "is not the name of an op",
    ),
    "cycle": (
        text("g (float x) => (float y) { [a] u = Add(x, y) y = Neg(u) }"),
        InvalidModelError,
        "cycle through node 'a'",
    ),
    "what follows from a cycle": (
        text("g (float x) => (float y) { [last] y = Neg(b) [a] a = Add(x, b) b = Identity(a) }"),
        InvalidModelError,
        "cycle through node 'a'",
    ),
    "value computed twice": (
        text("g (float x) => (float y) { y = Neg(x) y = Abs(x) }"),
        InvalidModelError,
        "'y' is computed twice",
    ),
    "input computed": (
        text("g (float x) => (float y) { x = Neg(x) y = Abs(x) }"),
        InvalidModelError,
        "'x'",
    ),
    "initializer computed": (
        text("g (float x) => (float y) <float w = {1}> { w = Neg(x) y = Abs(w) }"),
        InvalidModelError,
        "'w' is computed twice",
    ),
    "undefined input": (
        text("g (float x) => (float y) { [n] y = Add(x, nowhere) }"),
        InvalidModelError,
        "node 'n' reads 'nowhere', which nothing computes",
    ),
    "undefined output": (
        text("g (float x) => (float y) { z = Neg(x) }"),
        InvalidModelError,
        "'y', which nothing",
    ),
    "value of a branch used outside": (
        text("""g (float x, bool c) => (float y) {
            a = If (c) <then_branch = t () => (float r) { r = Neg(x) },
                        else_branch = e () => (float r) { r = Abs(x) }>
            y = Neg(r) }"""),
        InvalidModelError,
        "'r', which nothing computes",
    ),
    "two inputs with one name": (
        changed(lambda m: m.graph.input.append(m.graph.input[0])),
        InvalidModelError,
        "two inputs",
    ),
    "two outputs with one name": (
        changed(lambda m: m.graph.output.append(m.graph.output[0])),
        InvalidModelError,
        "two outputs",
    ),
    "two initializers with one name": (
        changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        InvalidModelError,
        "two initializers are called 'w'",
    ),
    "input without a dtype": (
        changed(lambda m: m.graph.input[0].ClearField("type")),
        InvalidModelError,
        "input 'x' declares no dtype",
    ),
    "unknown dtype": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77)),
        InvalidModelError,
        "'x' has the unknown dtype 77",
    ),
    "optional input": (
        text("g (optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }"),
        UnsupportedOpError,
        "optional are not supported",
    ),
    "wrong dtypes": (
        text(
            "g (float[2,3] x) => (float[2,2] y) <int64[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"
        ),
        InvalidModelError,
        "MatMul",
    ),
    "mixed dtypes": (
        text("g (float x, int64 i) => (float y) { y = Add(x, i) }"),
        InvalidModelError,
        "dtypes",
    ),
    "ranks that differ": (
        text(
            "g (float[2,3] x) => (float[A] y) <float[3] w = {1,2,3}> { y = Concat<axis=0>(x, w) }"
        ),
        InvalidModelError,
        "different ranks",
    ),
    "sizes that differ": (
        text("g (float[2,3] x) => (float[2,3] y) <float[4] w = {1,2,3,4}> { [n] y = Add(x, w) }"),
        InvalidModelError,
        r"Add \(node 'n'\)",
    ),
    "inner sizes that differ": (
        text("g (float[2,3] x) => (float[A,B] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"),
        InvalidModelError,
        "MatMul",
    ),
    "axis out of range": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat<axis=2>(x, x) }"),
        InvalidModelError,
        "axis 2 is out of range",
    ),
    "malformed permutation": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Transpose<perm=[0,7]>(x) }"),
        InvalidModelError,
        "Transpose",
    ),
    "unknown attribute": (
        text("g (float[2,3] x) => (float[A,B] y) { [n] y = Relu<beta=1>(x) }"),
        InvalidModelError,
        r"Relu \(node 'n'\): it has no attribute 'beta'",
    ),
    "missing attribute": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat(x, x) }"),
        InvalidModelError,
        "'axis' is missing",
    ),
    "attribute of the wrong kind": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat<axis=1.5>(x, x) }"),
        InvalidModelError,
        "'axis' must be of kind INT",
    ),
    "attribute given twice": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat<axis=0, axis=1>(x, x) }"),
        InvalidModelError,
        "'axis' is given twice",
    ),
    "attribute without a kind": (
        changed(lambda m: typed(m, name="axis", i=1)),
        InvalidModelError,
        "'axis' has no known kind",
    ),
    "attribute that is no text": (
        changed(lambda m: typed(m, name="mode", type="STRING", s=b"\xff\xfe")),
        InvalidModelError,
        "not UTF-8",
    ),
    "attribute of a function outside of any": (
        changed(lambda m: typed(m, name="axis", type="INT", ref_attr_name="a")),
        InvalidModelError,
        "outside of any",
    ),
    "attribute of an unsupported kind": (
        changed(lambda m: typed(m, name="types", type="TYPE_PROTO")),
        UnsupportedOpError,
        "TYPE_PROTO",
    ),
    "too many inputs": (
        text("g (float x) => (float y) { y = Add(x, x, x) }"),
        InvalidModelError,
        "3 inputs instead of 2",
    ),
    "missing required input": (
        text("g (float x) => (float y) { y = Add(, x) }"),
        InvalidModelError,
        "input 'A' is missing",
    ),
    "initializer too short": (
        changed(lambda m: setattr(m.graph.initializer[0], "raw_data", b"abc")),
        InvalidModelError,
        "tensor 'w' is damaged",
    ),
    "initializer of an unknown dtype": (
        changed(lambda m: setattr(m.graph.initializer[0], "data_type", 55)),
        InvalidModelError,
        "tensor 'w' is damaged",
    ),
    "initializer with a negative size": (
        changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -3)),
        InvalidModelError,
        "tensor 'w' is damaged",
    ),
    "inner initializer that hides an outer one": (
        text("""g (float x, bool c) => (float y) <float w = {1}> {
            y = If (c) <then_branch = t () => (float r) <float w = {2}> { r = Add(x, w) },
                        else_branch = e () => (float r) { r = Abs(x) }> }"""),
        InvalidModelError,
        "initializer 'w' of a subgraph hides",
    ),
    "sparse index out of range": (
        changed(lambda m: replace_weight(m, sparse(np.array([1, 6])))),
        InvalidModelError,
        "out of range",
    ),
    "sparse tensor with too few indices": (
        changed(lambda m: replace_weight(m, sparse(np.array([1])))),
        InvalidModelError,
        "one index per",
    ),
    "huge sparse tensor": (
        changed(lambda m: replace_weight(m, sparse(np.array([1, 2]), [1 << 20, 1 << 20]))),
        InvalidModelError,
        "too large",
    ),
    "a function that calls itself": (
        lambda: model(
            "g (float x) => (float y) { y = local.f(x) }",
            functions="""<domain: "local", opset_import: ["": 18, "local": 1]>
            f (x) => (y) { y = local.f(x) }""",
        ),
        InvalidModelError,
        "must not be recursive",
    ),
    "a function of an unknown opset": (
        lambda: model(
            "g (float x) => (float y) { y = local.f(x) }",
            functions="""
            <domain: "local", opset_import: ["": 99]> f (x) => (y) { y = Neg(x) }""",
        ),
        InvalidModelError,
        "local::f is of opset 99",
    ),
    "functions that double each other": (
        lambda: model(
            "g (float x) => (float y) { y = local.f0(x) }",
            functions="""<domain: "local", opset_import: ["": 18]> f40 (x) => (y) { y = Neg(x) }"""
            + "".join(
                f"""<domain: "local", opset_import: ["": 18, "local": 1]>
                f{k} (x) => (y) {{ u = local.f{k + 1}(x) y = local.f{k + 1}(u) }}"""
                for k in range(40)
            ),
        ),
        InvalidModelError,
        "1,099,511,627,776 nodes once inlined",
    ),
    "a call with too many inputs": (
        lambda: model("g (float x) => (float y) { y = local.f(x, x) }", functions=FUNCTIONS),
        InvalidModelError,
        "inlined: Number of actual parameters",
    ),
    "branches with different numbers of outputs": (
        text("""g (float x, bool c) => (float y) {
            y = If (c) <then_branch = t () => (float r) { r = Neg(x) },
                        else_branch = e () => (float r, float s) { r = Abs(x) s = Neg(x) }> }"""),
        InvalidModelError,
        "If",
    ),
    "a subgraph of another op": (
        lambda: model(
            """g (seq(float) x) => (seq(float) y) {
            y = SequenceMap (x) <body = b (float u) => (float v) { v = Neg(u) }> }"""
        ),
        UnsupportedOpError,
        "only If, Loop and Scan may have subgraphs",
    ),
    "a loop body with too few inputs": (
        text("""g (float x) => (float y) <int64 n = {2}, bool c = {1}> {
            y = Loop (n, c, x)
                <body = b (int64 i, bool go) => (bool go, float r) { r = Neg(x) }> }"""),
        InvalidModelError,
        "Loop",
    ),
}


def replace_weight(source: ModelProto, tensor: onnx.SparseTensorProto) -> None:
    del source.graph.initializer[:]
    source.graph.sparse_initializer.append(tensor)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, tmp_path: Path) -> None:
    build, error, message = REFUSED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(build().SerializeToString())
    with pytest.raises(error, match=message) as caught:
        onnx_io.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line


def test_flipped_bytes_raise_only_our_errors(tmp_path: Path) -> None:
    """300 damaged copies of a small model: each loads, or says in one line why not."""
    original = bytearray(fuzzed().SerializeToString())
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(300):
        damaged = bytearray(original)
        for at in rng.integers(len(damaged), size=int(rng.integers(1, 4))):
            damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            onnx_io.to_proto(onnx_io.load(path))
        except GraphoptError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def fuzzed() -> ModelProto:
    return model("""
        g (float[N,3] x, int64[N,2] ids) => (float[N,D] y) <
            float[4,3] table = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[1] axis = {1},
            int64[2] shape = {0,-1}, bool c = {1},
            float[9,2] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}> {
            rows = Gather<axis=0>(table, ids)
            flat = Reshape(rows, shape)
            both = Concat<axis=-1>(flat, x)
            mean = ReduceMean<keepdims=1>(both, axis)
            centred = Sub(both, mean)
            dense = Gemm<alpha=0.5, transB=0>(centred, w)
            t = Transpose<perm=[1,0]>(dense)
            back = Transpose<perm=[1,0]>(t)
            y = If (c) <then_branch = a () => (float[N,2] r) { r = Softmax<axis=1>(back) },
                        else_branch = b () => (float[N,2] r) { r = Clip(back) }>
        }""")
