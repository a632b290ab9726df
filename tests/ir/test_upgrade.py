"""Each op in each of its versions from opset 7 on, imported and exported, against the source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import run
from upgrade_cases import (
    BODY,
    CASES,
    IDS,
    IMAGE,
    SCALES,
    SMALLER,
    STATISTICS,
    UNTESTED,
    Case,
    Const,
    X,
    floats,
    ints,
)

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.model_check import OLDEST_OPSET
from graphopt.ir.upgrade import MIN_OPSET


def schemas_of(op: str) -> list[onnx.defs.OpSchema]:
    """The versions of an op that opsets 7 to 18 use, oldest first."""
    found = [s for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", op)]
    found = sorted(
        (s for s in found if s.since_version <= MIN_OPSET), key=lambda s: s.since_version
    )
    first = max(k for k, s in enumerate(found) if s.since_version <= max(7, found[0].since_version))
    return found[first:]


def changed_ops() -> set[str]:
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    return {
        name
        for name in names
        if min(s.since_version for s in every(name)) <= MIN_OPSET and len(schemas_of(name)) > 1
    }


def every(op: str) -> list[onnx.defs.OpSchema]:
    return [s for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", op)]


def cases() -> Iterator[Any]:
    for op, found in CASES.items():
        versions = [max(OLDEST_OPSET, s.since_version) for s in schemas_of(op) if not s.deprecated]
        for k, case in enumerate(found):
            usable = [v for v in versions if case.since <= v < case.until] or [case.since]
            for opset in usable:
                yield pytest.param(op, case, opset, id=f"{op}-{k}-{opset}")


def test_no_changed_op_is_missed() -> None:
    assert changed_ops() - set(CASES) - UNTESTED == set()


@pytest.mark.parametrize(("op", "case", "opset"), list(cases()))
def test_answers_stay_the_same(op: str, case: Case, opset: int) -> None:
    model, feeds = case.model(op, opset)
    expected = run(model, feeds)
    graph = onnx_io.from_proto(model)
    assert graph.opset() == max(opset, MIN_OPSET)
    exported = onnx_io.to_proto(graph)
    found = run(exported, feeds)
    if all(value.shape is not None for value in graph.outputs):
        onnx.checker.check_model(exported, full_check=True)
    for before, after in zip(expected, found, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(after, before)


def test_flattening_keeps_symbolic_sizes() -> None:
    model, _ = Case(X).model("Softmax", 11)
    graph = onnx_io.from_proto(model)
    assert [node.op_type for node in graph.nodes] == ["Flatten", "Softmax", "Shape", "Reshape"]
    assert graph.outputs[0].shape == graph.inputs[0].shape


@pytest.mark.parametrize(
    ("op", "case", "opset", "message"),
    [
        ("Scan", Case(None, X, X, num_scan_inputs=1, outputs=2, body=BODY), 8, "batch axis"),
        ("BatchNormalization", Case(X, *STATISTICS, outputs=5), 9, "training"),
        ("Resize", Case(IMAGE, SCALES), 10, "rounds up"),
        ("Resize", Case(IMAGE, Const(SCALES * SMALLER[::-1])), 10, "rounds up"),
        (
            "Resize",
            Case(
                IMAGE,
                Const(floats(0)),
                Const(SCALES),
                coordinate_transformation_mode="tf_half_pixel_for_nn",
            ),
            11,
            "tf_half_pixel_for_nn",
        ),
    ],
)
def test_refuses(op: str, case: Case, opset: int, message: str) -> None:
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        onnx_io.from_proto(case.model(op, opset)[0])
    assert caught.value.where == ("the_node",)
    assert caught.value.op == op


@pytest.mark.parametrize(
    ("op", "case", "opset", "message"),
    [
        ("Squeeze", Case(X, axis=1), 11, "no attribute 'axis' in opset 11"),
        ("Squeeze", Case(X, axes=[1]), 13, "no attribute 'axes' in opset 13"),
        ("Unsqueeze", Case(X), 11, "attribute 'axes' is missing"),
        ("Unsqueeze", Case(X), 13, "1 inputs instead of 2"),
        ("Slice", Case(X, Const(ints(0)), Const(ints(1))), 9, "3 inputs instead of 1"),
        ("Slice", Case(X, None, Const(ints(1))), 11, "input 'starts' is missing"),
        ("Clip", Case(X, min=1), 7, "'min' must be of kind FLOAT"),
        ("Cast", Case(X, to="FLOAT"), 9, "'to' must be of kind INT"),
        ("ReduceSum", Case(X, axes=[0.5]), 11, "'axes' must be of kind INTS"),
        ("Softmax", Case(X, axis=4), 11, "axis 4 is out of range"),
        ("Upsample", Case(IMAGE, Const(SCALES)), 10, "removed from ONNX in opset 10"),
        ("Scatter", Case(floats(3, 2), IDS, floats(2, 2)), 11, "removed from ONNX in opset 11"),
        ("Relu", Case(X, outputs=2), 7, "2 outputs instead of 1"),
        ("Pad", Case(X, pads=[0, 1]), 7, "pads"),
        ("TopK", Case(X, outputs=2), 7, "'k' is missing"),
    ],
)
def test_rejects(op: str, case: Case, opset: int, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message) as caught:
        onnx_io.from_proto(case.model(op, opset)[0])
    assert "the_node" in str(caught.value)
    assert op in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_attribute_of_a_later_version_is_never_ignored() -> None:
    """Every attribute that came after opset 7 is refused in the version before it."""
    for op in sorted(changed_ops() - UNTESTED):
        versions = schemas_of(op)
        for old, new in itertools.pairwise(versions):
            for name in set(new.attributes) - set(old.attributes):
                case = next((c for c in CASES[op] if name not in c.attrs), None)
                assert case is not None, f"{op} has no case without {name}"
                late = Case(*case.operands, outputs=case.outputs, **case.attrs, **{name: 1})
                opset = max(OLDEST_OPSET, old.since_version)
                with pytest.raises(GraphoptError):
                    onnx_io.from_proto(late.model(op, opset)[0])
