"""Stages of classical pipelines are read as what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx_models import run

from graphopt.ir import onnx_io
from graphopt.testing import run_onnxruntime

DOMAIN = "ai.onnx.ml"
FLOATS, INTS = "float[N,4]", "int64[N,2]"
TREES = """nodes_treeids=[0,0,0,1,1,1], nodes_nodeids=[0,1,2,0,1,2], nodes_featureids=[1,0,0,3,0,0],
    nodes_values=[0.25,0.0,0.0,-0.5,0.0,0.0], nodes_truenodeids=[1,0,0,1,0,0],
    nodes_modes=["BRANCH_LEQ","LEAF","LEAF","BRANCH_LEQ","LEAF","LEAF"],
    nodes_falsenodeids=[2,0,0,2,0,0]"""
PLAIN = [
    (FLOATS, "Scaler<offset=[1.0,2.0,3.0,-1.0], scale=[0.5,2.0,1.0,-3.0]>(x)"),
    (FLOATS, "Scaler<offset=[1.0], scale=[0.5]>(x)"),
    (INTS, "Scaler<offset=[1.0], scale=[0.5]>(x)"),
    (FLOATS, 'Normalizer<norm="MAX">(x)'),
    (FLOATS, 'Normalizer<norm="L1">(x)'),
    (FLOATS, 'Normalizer<norm="L2">(x)'),
    (FLOATS, "Imputer<imputed_value_floats=[1.0,2.0,3.0,4.0], replaced_value_float=0.5>(x)"),
    (FLOATS, "Imputer<imputed_value_floats=[7.0], replaced_value_float=nan>(x)"),
    (INTS, "Imputer<imputed_value_int64s=[7], replaced_value_int64=2>(x)"),
    (FLOATS, "Binarizer<threshold=0.5>(x)"),
    (FLOATS, "ArrayFeatureExtractor(x, i)"),
    (INTS, "OneHotEncoder<cats_int64s=[2,0,5]>(x)"),
    (INTS, "OneHotEncoder<cats_int64s=[5,4,3,2,1,0,-1], zeros=0>(x)"),
    (INTS, "LabelEncoder<keys_int64s=[2,0,4], values_int64s=[7,8,9], default_int64=-5>(x)"),
    (INTS, "LabelEncoder<keys_int64s=[2,900000], values_floats=[0.5,1.5]>(x)"),
    (FLOATS, "LabelEncoder<keys_floats=[0.5,0.0], values_int64s=[7,8]>(x)"),
    (FLOATS, "FeatureVectorizer<inputdimensions=[4,4]>(x, x)"),
    (FLOATS, "LinearRegressor<coefficients=[1.0,2.0,-1.0,0.5], intercepts=[0.1]>(x)"),
    (
        FLOATS,
        """LinearRegressor<coefficients=[1.0,2.0,-1.0,0.5,0.3,0.2,0.1,0.0], targets=2,
        post_transform="SOFTMAX">(x)""",
    ),
]
LINEAR = """LinearClassifier<classlabels_ints=[3,7],
    coefficients=[1.0,2.0,-1.0,0.5,-1.0,-2.0,1.0,-0.5], intercepts=[0.1,-0.1],
    post_transform="{}">(x)"""
THREE = """classlabels_int64s=[3,5,9], class_ids=[0,0,1,1,2,2],
    class_weights=[0.5,-1.0,0.25,2.0,-0.5,0.75]"""
PAIR = "classlabels_int64s=[0,1], class_ids=[0,0,1,1], class_weights=[0.5,-1.0,0.25,-2.0]"
CLASSES = [
    LINEAR.format("LOGISTIC"),
    LINEAR.format("SOFTMAX"),
    *(
        f"TreeEnsembleClassifier<{TREES}, {rest}>(x)"
        for rest in (
            "classlabels_int64s=[3,5], class_ids=[0,0,0,0], class_weights=[0.1,0.2,0.1,0.5]",
            """classlabels_int64s=[3,5], class_ids=[0,0,0,0], class_weights=[-0.1,0.2,0.1,-0.5],
            post_transform="LOGISTIC", base_values=[0.05]""",
            "classlabels_int64s=[3,5], class_ids=[0,0,0,0], class_weights=[-0.1,0.2,0.1,-0.5]",
            THREE,
            f'{THREE}, post_transform="SOFTMAX", base_values=[0.1,0.2,0.3]',
            f'{THREE}, post_transform="LOGISTIC"',
            PAIR,
            f'{PAIR}, post_transform="LOGISTIC"',
        )
    ),
]
KEPT = [
    LINEAR.format("PROBIT"),
    f'TreeEnsembleClassifier<{TREES}, {THREE}, post_transform="PROBIT">(x)',
    *(
        f"TreeEnsembleClassifier<{TREES}, classlabels_int64s=[3,5], {rest}>(x)"
        for rest in (
            "class_ids=[0,1,0,1], class_weights=[0.1,0.2,0.1,0.5]",
            "class_ids=[1,1,1,1], class_weights=[0.1,-0.2,0.1,0.5]",
            "class_ids=[0,0,0,0], class_weights=[0.1,-0.2,0.1,0.5], base_values=[0.1,0.2]",
            'class_ids=[0,0,0,0], class_weights=[0.1,0.2,0.1,0.5], post_transform="LOGISTIC"',
        )
    ),
    f"TreeEnsembleClassifier<{TREES}, {PAIR}, base_values=[0.1,0.2]>(x)",
    f"""TreeEnsembleClassifier<{TREES}, classlabels_int64s=[3,5,9], class_ids=[0,0,1,2],
    class_weights=[-0.5,-1.0,-0.25,-2.0]>(x)""",
]


def placed(call: str) -> str:
    """`call` with the leaves that its classes are scored at, in turn, where it is of trees."""
    if "class_ids" not in call:
        return call
    count = len(call.split("class_ids=[")[1].split("]")[0].split(","))
    trees, nodes = ([0, 0, 1, 1, 1, 1][:count], [1, 2] * (count // 2))
    return call.replace("class_ids", f"class_treeids={trees}, class_nodeids={nodes}, class_ids")


def model(kind: str, call: str, outputs: str) -> onnx.ModelProto:
    results = [name.split()[-1] for name in outputs.split(", ")]
    text = f"""<ir_version: 8, opset_import: ["": 17, "{DOMAIN}": 3]>
        g ({kind} x) => ({outputs}) <int64[2] i = {{3, 0}}> {{
        {", ".join(results)} = {DOMAIN}.{placed(call)} }}"""
    proto = onnx.parser.parse_model(text.replace("nan", "3.0e38"))
    for node in proto.graph.node:
        for attr in node.attribute:
            if attr.f > 2e38:
                attr.f = np.nan
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return proto


def rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == INTS:
        return rng.integers(-1, 6, (40, 2))
    x = rng.normal(size=(40, 4)).astype(np.float32)
    x[3], x[5, 1], x[6:9] = 0, 0.25, 0.5
    return x


def same(proto: onnx.ModelProto, x: np.ndarray, domains: bool = False) -> None:
    graph = onnx_io.from_proto(proto)
    trees = any(node.op_type == "TreeEnsembleClassifier" for node in proto.graph.node)
    assert {node.op_type for node in graph.nodes if node.domain} == (
        {"TreeEnsembleRegressor"} if trees else set()
    )
    got = run_onnxruntime(graph, {"x": x})
    for output, expected in zip(proto.graph.output, run(proto, {"x": x})):
        np.testing.assert_allclose(got[output.name], expected, rtol=1e-6, atol=1e-6)
        assert got[output.name].dtype == expected.dtype
        assert got[output.name].shape == expected.shape


@pytest.mark.parametrize(("kind", "call"), PLAIN)
def test_one_result(kind: str, call: str) -> None:
    whole = "int64" if "values_int64s" in call or "value_int64" in call else "float"
    x = rows(kind)
    if "nan" in call:
        x[::7, 2] = np.nan
    same(model(kind, call, f"{whole}[A] y"), x)


@pytest.mark.parametrize("call", CLASSES)
def test_labels_and_scores(call: str) -> None:
    same(model(FLOATS, call, "int64[A] y, float[A,B] z"), rows(FLOATS))


@pytest.mark.parametrize("call", KEPT)
def test_what_is_not_known_stays(call: str) -> None:
    proto = model(FLOATS, call, "int64[A] y, float[A,B] z")
    graph = onnx_io.from_proto(proto)
    assert [node.domain for node in graph.nodes] == [DOMAIN]


def test_a_category_that_is_not_known_is_an_error() -> None:
    proto = model(INTS, "OneHotEncoder<cats_int64s=[2,0,5], zeros=0>(x)", "float[A] y")
    graph = onnx_io.from_proto(proto)
    assert run_onnxruntime(graph, {"x": np.array([[2, 5]])})["y"].tolist() == [
        [[1, 0, 0], [0, 0, 1]]
    ]
    for source in (lambda x: run(proto, {"x": x}), lambda x: run_onnxruntime(graph, {"x": x})):
        with pytest.raises(Exception, match=r"[Uu]nknown|out of (data )?bounds"):
            source(np.array([[2, 3]]))
