"""`graphopt::EmbeddingBag`: what it means, its function bodies, its types, its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.errors import IdError, InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops import function_protos
from graphopt.ops.embedding_bag import DOMAIN, OP_TYPE, EmbeddingBag
from graphopt.ops.embedding_bag_body import CHUNK, NARROW
from graphopt.targets.base import Oob
from graphopt.testing import Compiled

ROWS = 7
N, B, K = (Sym.named(name) for name in "nbk")
INF = float("inf")


def graph_of(
    bag: EmbeddingBag,
    *,
    fixed: bool = False,
    weighted: bool = False,
    dim: Dim = 3,
    rows: Dim = ROWS,
    dtype: str = "float32",
    ints: str = "int64",
    opset: int = 18,
) -> Graph:
    """One bag of inputs table, ids, offsets (unless `fixed`) and weights (if `weighted`)."""
    graph = Graph(opsets={"": opset})
    shape = (B, K) if fixed else (N,)
    table = graph.add_input("table", TensorType(dtype, (rows, dim)))
    ids = graph.add_input("ids", TensorType(ints, shape))
    offsets = None if fixed else graph.add_input("offsets", TensorType(ints, (B,)))
    weights = graph.add_input("weights", TensorType(dtype, shape)) if weighted else None
    inputs = [table, ids, offsets, weights]
    while inputs[-1] is None:
        inputs.pop()
    node = graph.insert(OP_TYPE, inputs, bag.attrs, domain=DOMAIN)
    graph.set_outputs([node.output], ["pooled"])
    return graph


def session_of(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def feeds_of(
    bag: EmbeddingBag, fixed: bool, weighted: bool, dim: int, ints: str, least: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs with empty bags everywhere, ids before the first bag, negative ids, nothing at all."""
    rng = np.random.default_rng(3)
    long = 3 * CHUNK + 5
    if fixed:
        shapes = [(1, 1), (3, 2), (2, long), (0, 3), (2, least), (0, least)]
        cases = [(rng.integers(-ROWS, ROWS, shape), None) for shape in shapes]
    else:
        bounds = [
            ([0, 3, 5], 9), ([0], 4), ([0, 0, 0, 2, 2], 2), ([0, 4, 4], 4), ([2, 2, 3], 5),
            ([0, 0], 0), ([0, 1, 2, 3], 4), ([0, long, long + 1, 3 * long], 4 * long), ([], 0),
        ]  # fmt: skip
        if bag.include_last_offset:
            bounds = [([*starts, count], count) for starts, count in bounds]
        cases = [
            (rng.integers(-ROWS, ROWS, count), np.array(starts, np.int64))
            for starts, count in bounds
        ]
    for ids, offsets in cases:
        feeds = {"table": rng.standard_normal((ROWS, dim)), "ids": ids.astype(ints)}
        if offsets is not None:
            feeds["offsets"] = offsets.astype(ints)
        if weighted:
            feeds["weights"] = rng.standard_normal(ids.shape)
        yield {k: v.astype(np.float32) if v.dtype == float else v for k, v in feeds.items()}


def expected(bag: EmbeddingBag, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return bag.pool(feeds["table"], feeds["ids"], feeds.get("offsets"), feeds.get("weights"))


# ------------------------------------------------------------------------------- meaning

TABLE = np.array([[0, 10], [1, -11], [2, 12], [3, -13]], np.float32)
IDS = np.array([1, 2, 3, 1, -1])


@pytest.mark.parametrize(
    ("bag", "offsets", "weights", "rows"),
    [
        (EmbeddingBag("sum"), [0, 2], None, [[3, 1], [7, -37]]),
        (EmbeddingBag("mean"), [0, 2], None, [[1.5, 0.5], [7 / 3, -37 / 3]]),
        (EmbeddingBag("max"), [0, 2], None, [[2, 12], [3, -11]]),
        (EmbeddingBag("sum"), [0, 5], None, [[10, -36], [0, 0]]),
        (EmbeddingBag("max", empty=-INF), [0, 0, 5], None, [[-INF, -INF], [3, 12], [-INF, -INF]]),
        (EmbeddingBag("sum"), [0, 2], [1, 0, -1, 2, 0.5], [[1, -11], [0.5, -15.5]]),
        (EmbeddingBag("mean"), [0, 2], [1, 0, -1, 2, 0.5], [[0.5, -5.5], [0.5 / 3, -15.5 / 3]]),
        (EmbeddingBag("sum", padding_idx=3), [0, 2], None, [[3, 1], [1, -11]]),
        (EmbeddingBag("mean", padding_idx=-1), [0, 2], None, [[1.5, 0.5], [1, -11]]),
        (EmbeddingBag("max", padding_idx=1), [0, 1], None, [[0, 0], [3, 12]]),
        (EmbeddingBag("sum", include_last_offset=True), [0, 2, 4], None, [[3, 1], [4, -24]]),
        (EmbeddingBag("sum"), [3, 4], None, [[1, -11], [3, -13]]),
    ],
)
def test_meaning(bag: EmbeddingBag, offsets: list[int], weights: list[float], rows: list) -> None:
    given = None if weights is None else np.array(weights, np.float32)
    pooled = bag.pool(TABLE, IDS, np.array(offsets), given)
    np.testing.assert_allclose(pooled, np.array(rows, np.float32), rtol=1e-6)
    assert pooled.dtype == np.float32


def test_meaning_of_rows_of_ids() -> None:
    ids = np.array([[1, 2], [3, -1]])
    np.testing.assert_array_equal(EmbeddingBag("sum").pool(TABLE, ids), [[3, 1], [6, -26]])
    np.testing.assert_array_equal(
        EmbeddingBag("max", padding_idx=3).pool(TABLE, ids), [[2, 12], [0, 0]]
    )
    np.testing.assert_array_equal(
        EmbeddingBag("sum", padding_idx=3, by_id=True).pool(TABLE, ids), [[3, 1], [3, -13]]
    )


# -------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dim", [3, NARROW + 3], ids=["narrow", "wide"])
@pytest.mark.parametrize("form", ["ragged", "csr", "fixed"])
def test_body_means_the_same(mode: str, dim: int, form: str) -> None:
    for weighted, padding, empty, ints in product(
        (False, True), (None, 2, -1), (0.0, -INF, 1.5), ("int32", "int64")
    ):
        bag = EmbeddingBag(mode, form == "csr", padding, empty)  # type: ignore[arg-type]
        fixed = form == "fixed"
        graph = graph_of(bag, fixed=fixed, weighted=weighted, dim=dim, ints=ints)
        session = session_of(onnx_io.to_proto(graph))
        for feeds in feeds_of(bag, fixed, weighted, dim, ints):
            (pooled,) = session.run(None, feeds)
            wanted = expected(bag, feeds)
            assert pooled.shape == wanted.shape
            # Chunks of a long bag are added up one by one, NumPy adds in pairs.
            np.testing.assert_allclose(pooled, wanted, rtol=1e-5, atol=1e-5, err_msg=str(bag))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [0, -1])
def test_padding_by_id(mode: str, padding: int) -> None:
    for weighted, empty, ints, dtype in [
        (False, 0.0, "int64", "float32"),
        (True, 1.5, "int32", "float32"),
        (False, float("nan"), "int32", "float16"),
    ]:
        bag = EmbeddingBag(mode, padding_idx=padding, empty=empty, by_id=True)  # type: ignore[arg-type]
        graph = graph_of(bag, fixed=True, weighted=weighted, ints=ints, dtype=dtype)
        session, compiled = session_of(onnx_io.to_proto(graph)), Compiled(graph)
        for given in feeds_of(bag, True, weighted, 3, ints, least=1):
            feeds = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in given.items()}
            wanted, tolerance = expected(bag, feeds), 1e-5 if dtype == "float32" else 1e-2
            for found in (session.run(None, feeds)[0], compiled(feeds)["pooled"]):
                np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["narrow", "wide", "fixed"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_other_dtypes(mode: str, dtype: str, form: str) -> None:
    bag, dim = EmbeddingBag(mode, padding_idx=2), NARROW + 3 if form == "wide" else 3  # type: ignore
    weighted, fixed = mode != "max", form == "fixed"
    graph = graph_of(bag, fixed=fixed, weighted=weighted, dim=dim, dtype=dtype)
    session, compiled = session_of(onnx_io.to_proto(graph)), Compiled(graph)
    for feeds in feeds_of(bag, fixed, weighted, dim, "int64", least=1):
        feeds = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in feeds.items()}
        exact = {k: v.astype(np.float64) if v.dtype == dtype else v for k, v in feeds.items()}
        # Half precision is pooled in single: the result is rounded once.
        tolerance = 1e-3 if dtype == "float16" else 1e-12
        for pooled in (session.run(None, feeds)[0], compiled(feeds)["pooled"]):
            assert pooled.dtype == dtype
            np.testing.assert_allclose(pooled, expected(bag, exact), tolerance, tolerance)


@pytest.mark.parametrize("dim", [3, NARROW + 3], ids=["narrow", "wide"])
def test_threads_do_not_race(dim: int) -> None:
    graph = graph_of(EmbeddingBag("sum"), dim=dim)
    session = session_of(onnx_io.to_proto(graph), threads=4)
    table, ids = np.ones((ROWS, dim), np.float32), np.zeros(40_000, np.int64)
    for _ in range(5):
        (pooled,) = session.run(
            None, {"table": table, "ids": ids, "offsets": np.array([0, 10, 20_000])}
        )
        np.testing.assert_array_equal(pooled[:, 0], [10, 19_990, 20_000])


@pytest.mark.parametrize("opset", [18, 20, onnx.defs.onnx_opset_version() - 3])
def test_exported_model_is_valid_and_loop_free(opset: int) -> None:
    graph = graph_of(EmbeddingBag("mean", padding_idx=2, empty=1.0), weighted=True, opset=opset)
    model = onnx_io.to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    (function,) = model.functions
    assert {node.domain for node in function.node} == {""}
    assert not {node.op_type for node in function.node} & {"Loop", "Scan", "If", "ScatterND"}
    session_of(model)


def test_op_survives_export_and_import() -> None:
    bag = EmbeddingBag("max", True, -2, -INF)
    model = onnx_io.to_proto(graph_of(bag))
    assert model.graph.node[0].op_type.startswith("EmbeddingBag__max")
    graph = onnx_io.from_proto(model)
    (node,) = graph.nodes
    assert (node.op, EmbeddingBag.of(node)) == ("graphopt::EmbeddingBag", bag)
    assert str(node.output.type) == "f32[b + -1, 3]"


def test_each_form_has_one_function() -> None:
    graph = Graph(opsets={"": 18})
    table = graph.add_input("table", TensorType("float32", (ROWS, 3)))
    ids = graph.add_input("ids", TensorType("int64", (B, K)))
    forms = [EmbeddingBag("sum"), EmbeddingBag("sum", padding_idx=1), EmbeddingBag("max")]
    nodes = [
        graph.insert(OP_TYPE, [table, ids], bag.attrs, domain=DOMAIN)
        for bag in [*forms, EmbeddingBag("sum", padding_idx=2)]
    ]
    graph.set_outputs([node.output for node in nodes], ["a", "b", "c", "d"])
    assert [function.name for function in function_protos(graph)] == [
        "EmbeddingBag__max_fixed_filled",
        "EmbeddingBag__sum_fixed",
        "EmbeddingBag__sum_fixed_padded",
    ]
    feeds = {
        "table": TABLE[[0, 1, 2, 3, 0, 1, 2], [[0], [1], [0]]].T,
        "ids": np.array([[1, 2], [1, 1]]),
    }
    found = session_of(onnx_io.to_proto(graph)).run(None, feeds)
    for bag, pooled in zip([*forms, EmbeddingBag("sum", padding_idx=2)], found):
        np.testing.assert_array_equal(pooled, bag.pool(feeds["table"], feeds["ids"]))


@pytest.mark.parametrize("dim", [3, NARROW + 3], ids=["narrow", "wide"])
@pytest.mark.parametrize("stray", [ROWS, -ROWS - 1])
def test_portable_model_refuses_stray_ids(stray: int, dim: int) -> None:
    session = session_of(onnx_io.to_proto(graph_of(EmbeddingBag("sum"), dim=dim)))
    feeds = {"table": np.zeros((ROWS, dim), np.float32), "ids": np.array([1, stray])}
    with pytest.raises(Exception, match="data bounds"):
        session.run(None, {**feeds, "offsets": np.array([0])})


# --------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (["float32 3", "int64 1"], "table must be"),
        (["int64 2", "int64 1"], "table must be"),
        (["float32 2", "float32 1"], "ids must be"),
        (["float32 2", "int64 3"], "ids must be"),
        (["float32 2", "int64 1"], "offsets must be"),
        (["float32 2", "int64 1", "float32 1"], "offsets must be"),
        (["float32 2", "int64 2", "int64 1"], "have no offsets"),
        (["float32 2", "int64 1", "int64 1", "float64 1"], "weights must be"),
        (["float32 2", "int64 2", "", "float32 1"], "weights must be"),
        (["float32 2"], "must be tensors"),
    ],
)
def test_type_errors(types: list[str], reason: str) -> None:
    graph = Graph(opsets={"": 18})
    inputs = []
    for text in types:
        dtype, _, rank = text.partition(" ")
        shape = tuple(graph.fresh_dim() for _ in range(int(rank or 0)))
        inputs.append(
            graph.add_input(f"x{len(inputs)}", TensorType(dtype, shape)) if text else None
        )
    with pytest.raises(InvalidModelError, match=reason):
        graph.insert(OP_TYPE, inputs, EmbeddingBag("sum").attrs, domain=DOMAIN)


@pytest.mark.parametrize(("mode", "fixed"), [("max", True), ("sum", False)])
def test_padding_by_id_has_a_form_for_sums_of_rows_of_ids_only(mode: str, fixed: bool) -> None:
    bag = EmbeddingBag(mode, padding_idx=0, by_id=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidModelError, match="by_id is for sums and means"):
        graph_of(bag, fixed=fixed)


# ------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("bag", "form", "weighted", "ints"),
    [
        (EmbeddingBag("sum"), "ragged", False, "int64"),
        (EmbeddingBag("sum", padding_idx=-2), "ragged", True, "int32"),
        (EmbeddingBag("mean", True), "csr", False, "int64"),
        (EmbeddingBag("max", padding_idx=1), "ragged", False, "int64"),
        (EmbeddingBag("max", True, empty=-INF), "csr", False, "int32"),
        (EmbeddingBag("sum"), "fixed", True, "int64"),
        (EmbeddingBag("mean", padding_idx=0, empty=1.5), "fixed", False, "int32"),
    ],
    ids=str,
)
def test_compiled_means_the_same(bag: EmbeddingBag, form: str, weighted: bool, ints: str) -> None:
    fixed = form == "fixed"
    compiled = Compiled(graph_of(bag, fixed=fixed, weighted=weighted, dim=5, ints=ints))
    for feeds in feeds_of(bag, fixed, weighted, 5, ints, least=1):
        np.testing.assert_allclose(
            compiled(feeds)["pooled"], expected(bag, feeds), rtol=1e-5, atol=1e-5
        )


@cache
def sums(oob: Oob = "error") -> Compiled:
    return Compiled(graph_of(EmbeddingBag("sum"), dim=1), oob)


@pytest.mark.parametrize("stray", [ROWS, -ROWS - 1, 2**62, -(2**62)])
def test_stray_ids(stray: int) -> None:
    table = np.arange(ROWS, dtype=np.float32).reshape(-1, 1) + 1
    feeds = {"table": table, "ids": np.array([2, stray]), "offsets": np.array([0, 1])}
    with pytest.raises(IdError, match=rf"EmbeddingBag .*axis of size {ROWS}"):
        sums()(feeds)
    nearest = ROWS if stray > 0 else 1
    assert sums("clamp")(feeds)["pooled"].ravel().tolist() == [3, nearest]
    assert sums("zero")(feeds)["pooled"].ravel().tolist() == [3, 0]


@pytest.mark.parametrize("offsets", [[0, 3], [1, 0], [-1, 1]])
def test_stray_offsets(offsets: list[int]) -> None:
    feeds = {"table": np.ones((ROWS, 1), np.float32), "ids": np.array([2, 3])}
    with pytest.raises(IdError, match="offsets decrease or leave the ids"):
        sums()({**feeds, "offsets": np.array(offsets)})


@pytest.mark.parametrize(
    ("options", "bag", "reason"),
    [
        (
            {"rows": Sym.named("rows")},
            EmbeddingBag("sum", padding_idx=0),
            "known only at run time",
        ),
        ({"weighted": True}, EmbeddingBag("max"), "max pooling"),
        ({}, EmbeddingBag("sum", padding_idx=ROWS), "padding_idx"),
    ],
)
def test_not_compiled(options: dict, bag: EmbeddingBag, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        Compiled(graph_of(bag, **options))
    assert caught.value.op == "graphopt::EmbeddingBag"
