"""A part of the ONNX node tests, and the machinery that runs them all."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphopt

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import onnx_backend  # noqa: E402
from isolation import Lost, isolated_map  # noqa: E402
from onnx_backend import Case, Outcome, run_case  # noqa: E402

_PASSING = """
add add_bcast and2d argmax_default_axis_example argmax_no_keepdims_random
argmin_negative_axis_keepdims_random_select_last_index attention_4d_gqa
batchnorm_epsilon batchnorm_example bitshift_left_uint8 cast_DOUBLE_to_FLOAT16
cast_FLOAT_to_BFLOAT16 cast_FLOAT_to_DOUBLE castlike_FLOAT16_to_DOUBLE celu clip concat_1d_axis_0
concat_2d_axis_1 cumsum_1d_reverse_exclusive cumsum_2d_axis_0 dequantizelinear
dequantizelinear_blocked det_nd div dynamicquantizelinear einsum_batch_diagonal einsum_batch_matmul
einsum_inner_prod equal exp expand_dim_changed flatten_axis1 gather_0 gather_negative_indices
gemm_all_attributes gemm_default_vector_bias greater group_normalization_epsilon gru_defaults
hardmax_one_hot identity instancenorm_epsilon l1normalization_axis_1 l2normalization_axis_0
layer_normalization_3d_axis1_epsilon leakyrelu logsoftmax_large_number lrn lstm_with_peepholes
matmul_2d matmul_3d matmulinteger max_two_inputs mul_bcast mvn neg nllloss_NCd1_weight
onehot_negative_indices pow qlinearconv qlinearmatmul_2D_int8_float16 qlinearmatmul_3D_uint8_float32
quantizelinear_axis quantizelinear_blocked_asymmetric reduce_l1_keep_dims_random
reduce_l2_do_not_keepdims_random reduce_log_sum_asc_axes reduce_log_sum_exp_empty_set
reduce_log_sum_exp_keepdims_random reduce_max_bool_inputs reduce_mean_default_axes_keepdims_example
reduce_min_empty_set reduce_prod_negative_axes_keepdims_random
reduce_sum_default_axes_keepdims_random reduce_sum_keepdims_example
reduce_sum_square_default_axes_keepdims_random relu reshape_negative_dim rms_normalization_4d_axis2
rotary_embedding shape_start_1_end_negative_1 sigmoid simple_rnn_with_initial_bias slice
softmax_axis_1 softplus sqrt squeeze sub swish tanh tile transpose_all_permutations_3
unsqueeze_axis_0 where_example
"""


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """All but pooling, whose expected values onnx computes for 6 of 8 seconds."""
    home = "onnx.backend.test.case.node"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("averagepool", "lppool", "maxpool"):
            patch.setitem(sys.modules, f"{home}.{name}", ModuleType(name))
        return {case.name: case for case in onnx_backend.collect_cases()}


@pytest.mark.parametrize("name", _PASSING.split())
def test_node(name: str, cases: dict[str, Case]) -> None:
    outcome = run_case(cases[f"test_{name}"])
    assert outcome.status == "pass", outcome


def test_attention_in_float16_is_closer_than_what_is_expected(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    """Expected values are rounded after every step; ours, as ONNX Runtime's, where they are stored.

    So neither is within the case's tolerance of them, and ours are held against exact ones.
    """
    case = cases["test_attention_4d_causal_fp16"]
    (tmp_path / "model.onnx").write_bytes(case.model)
    ((arrays, (expected,)),) = case.data_sets
    artifact = graphopt.compile(tmp_path / "model.onnx", "cpu")
    names = [spec.name for spec in artifact.signature.inputs]
    (found,) = artifact.run(dict(zip(names, arrays))).values()
    q, k, v = (array.astype(np.float64) for array in arrays)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    assert np.abs(found - exact).max() < np.abs(expected - exact).max()


def test_all_cases_are_there(cases: dict[str, Case]) -> None:
    assert len(cases) > 1800
    assert cases["test_string_concat"].dtypes == ("STRING",)
    assert not cases["test_string_concat"].is_common
    assert cases["test_identity_sequence"].dtypes == ("SEQUENCE",)
    assert cases["test_add"].is_common


def case(op: str, array: np.ndarray, expected: np.ndarray) -> Case:
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, array.shape)],
        [helper.make_tensor_value_info("y", dtype, expected.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    data = (([array], [expected]),)
    return Case("a_case", model.SerializeToString(), (op,), ("FLOAT",), data, 1e-3, 1e-7)


X = np.array([-1, 2], np.float32)


@pytest.mark.parametrize(
    ("expected", "status", "reason"),
    [
        (-X, "pass", ""),
        (-X.astype(np.float64), "wrong", "dtype float32 instead of float64"),
        (-X * np.float32(1 + 5e-4), "pass", ""),
        (X, "wrong", "2 elements, 1.0 instead of -1.0 at [0]"),
        (-X[None], "wrong", "shape (2,) instead of (1, 2)"),
        (np.array([1, np.nan], np.float32), "wrong", "1 elements, -2.0 instead of nan at [1]"),
    ],
)
def test_outputs_are_compared(expected: np.ndarray, status: str, reason: str) -> None:
    outcome = run_case(case("Neg", X, expected))
    assert (outcome.status, outcome.reason) == (status, reason)


def test_number_of_outputs_is_compared() -> None:
    one = case("Neg", X, -X)
    outcome = run_case(replace(one, data_sets=(([X], [-X, -X]),)))
    assert outcome.reason == "1 outputs instead of 2"


def test_refusal_names_the_op() -> None:
    text = np.array(["a"], object)
    outcome = run_case(case("StringNormalizer", text, text))
    assert outcome.status == "refused"
    assert outcome.op
    assert outcome.reason


def test_an_invalid_model_is_an_error() -> None:
    outcome = run_case(case("Concat", X, X))
    assert outcome.status == "error"
    assert outcome.reason.startswith("InvalidModelError: ")


def test_selection(tmp_path: Path) -> None:
    cases = [case("Neg", X, -X), replace(case("Abs", X, X), name="other", ops=("Abs", "Neg"))]
    assert onnx_backend.select(cases, "", None) == cases
    assert onnx_backend.select(cases, "^oth", None) == cases[1:]
    assert onnx_backend.select(cases, "", frozenset(["Abs", "Neg"])) == cases[:1]
    body = onnx.load_from_string(cases[0].model).graph
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [condition], [])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert onnx_backend.ops_of(tmp_path) == {"If", "Neg"}


def test_report_counts() -> None:
    outcomes = [
        Outcome("a", ("Add",), "pass"),
        Outcome("b", ("Add",), "refused", "Add", "no"),
        Outcome("c", ("Add", "Mul"), "pass", is_common=False),
    ]
    totals = onnx_backend.table_of_totals(outcomes, dtypes=True)
    assert list(totals.columns[1].cells) == ["2", "1", "1"]
    assert list(totals.columns[-1].cells) == ["66.7 %", "50.0 %", "100.0 %"]
    assert list(onnx_backend.table_by_op(outcomes).columns[0].cells) == ["(several ops)", "Add"]
    assert list(onnx_backend.table_of_failures(outcomes).columns[3].cells) == ["no"]


# ---------------------------------------------------------------------- isolation


def test_results_of_children() -> None:
    assert sorted(isolated_map(operator.neg, range(5), jobs=2)) == [(k, -k) for k in range(5)]


def test_a_child_that_dies_is_replaced() -> None:
    results = dict(isolated_map(os._exit, [3], jobs=1))
    assert results == {3: Lost("the process ended with code 3")}
    assert len(list(isolated_map(os._exit, [1, 2, 3, 4], jobs=2))) == 4


def test_a_child_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hangs = """import pathlib, tempfile, time
left = pathlib.Path(tempfile.mkdtemp())
(left.parents[1] / "left").write_text(str(left))
time.sleep(60)"""
    results = dict(isolated_map(exec, [hangs, "pass"], jobs=1, timeout=3))
    assert results == {hangs: Lost("no answer in 3 s"), "pass": None}
    left = (tmp_path / "left").read_text()
    assert left.startswith(str(tmp_path)) and not Path(left).exists()


def test_a_script_that_is_terminated_leaves_nothing_behind(tmp_path: Path) -> None:
    script = """
import os, signal, sys, tempfile
sys.path.insert(0, sys.argv.pop())
from isolation import run_script

def main():
    with tempfile.TemporaryDirectory():
        os.kill(os.getpid(), signal.SIGTERM)

run_script(main)"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script, str(BENCH)], env=environment)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
