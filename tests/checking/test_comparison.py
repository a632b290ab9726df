"""Comparing two models: the worst element, what is never equal, and how rankings agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest

from graphopt.checking.comparison import Comparison, compare, compare_arrays, rank_agreement
from graphopt.errors import VerificationError
from graphopt.serving.signature import Signature, TensorSpec


class Fixed:
    """A model that answers with given outputs, one set after the other."""

    def __init__(self, *answers: Mapping[str, object]) -> None:
        self.answers = [{k: np.asarray(v) for k, v in answer.items()} for answer in answers]
        self.calls = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.answers[self.calls - 1]


def one(a: object, b: object, rtol: float = 1e-4, atol: float = 1e-5) -> Comparison:
    return compare(Fixed({"y": a}), Fixed({"y": b}), [{}], rtol, atol)


def test_names_the_worst_element() -> None:
    a = np.ones((3, 4), np.float32)
    b = a.copy()
    b[0, 1], b[2, 3] = 1.1, 1.5
    found = one(a, b)
    assert not found.agrees
    worst = found.worst.worst
    assert worst is not None
    assert worst.index == (2, 3)
    assert (worst.a, worst.b) == (1.0, 1.5)
    assert worst.absolute == pytest.approx(0.5)
    assert worst.relative == pytest.approx(1 / 3)
    assert found.worst.mismatches == 2
    assert "output 'y'[2, 3]" in str(found)
    assert "1 against 1.5" in str(found)
    assert "2 of 12 elements" in str(found)


def test_worst_is_what_exceeds_its_own_tolerance_most() -> None:
    found = one([1000.0, 0.001], [1000.05, 0.002])
    assert found.worst.worst is not None
    assert found.worst.worst.index == (1,)  # 1000.05 is within rtol


@pytest.mark.parametrize(("off", "agrees"), [(0.9, True), (1.1, False)])
def test_tolerance_is_atol_plus_rtol_times_b(off: float, agrees: bool) -> None:
    b = 2.0
    allowed = 1e-3 + 1e-2 * b
    assert one(b + off * allowed, b, rtol=1e-2, atol=1e-3).agrees is agrees


def test_zero_tolerance_wants_the_same_bits() -> None:
    assert one([0.1, 0.2], [0.1, 0.2], 0.0, 0.0).agrees
    assert not one([0.1, 0.2], [0.1, np.nextafter(0.2, 1)], 0.0, 0.0).agrees


@pytest.mark.parametrize(
    ("a", "b", "agrees"),
    [
        (np.nan, np.nan, True),
        (np.nan, 1.0, False),
        (1.0, np.nan, False),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (1.0, np.inf, False),
        (np.inf, 1.0, False),
        (np.nan, np.inf, False),
    ],
)
def test_what_is_not_a_number(a: float, b: float, agrees: bool) -> None:
    found = one([0.0, a], [0.0, b], rtol=1.0, atol=1.0)
    assert found.agrees is agrees
    assert agrees or (found.worst.worst is not None and found.worst.worst.index == (1,))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_other_dtypes_must_be_equal(dtype: type) -> None:
    a, b = np.array([0, 1], dtype), np.array([0, 0], dtype)
    assert one(a, a).agrees
    found = one(a, b, rtol=10.0, atol=10.0)
    assert not found.agrees
    assert found.worst.worst is not None
    assert found.worst.worst.index == (1,)


def test_large_integers_that_floats_cannot_tell_apart() -> None:
    assert not one(np.array([2**60 + 1]), np.array([2**60])).agrees


def test_strings() -> None:
    a, b = np.array(["x", "y"], object), np.array(["x", "z"], object)
    assert one(a, a).agrees
    assert not one(a, b).agrees


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_floats_of_any_width(dtype: type) -> None:
    a = np.array([1.0, 2.0], dtype)
    assert one(a, a).agrees
    assert not one(a, np.array([1.0, 2.5], dtype)).agrees


def test_shapes_and_dtypes_must_match() -> None:
    found = one(np.zeros((3, 1)), np.zeros(3))
    assert not found.agrees
    assert "shape (3, 1) against (3,)" in str(found)
    assert "dtype float32 against float64" in str(one(np.float32(1), np.float64(1)))


class Signed(Fixed):
    """It also says which sizes are free."""

    def __init__(self, answer: object, *shape: int | str) -> None:
        super().__init__({"y": answer})
        self.signature = Signature((), (TensorSpec("y", "float32", shape),))


@pytest.mark.parametrize(
    ("a", "b", "shape", "agrees"),
    [
        ((), (1,), ("N",), True),
        ((4,), (1, 4), ("N", 4), True),
        ((), (1, 1), ("N", "T"), True),
        ((4,), (4, 1), (4, "T"), True),
        ((), (1, 1), ("N", 1), False),  # it lacks an axis of known size too
        ((4,), (1, 4), (1, 4), False),
        ((1, 4), (4,), ("N",), False),
        ((2, 3), (1, 6), ("N", 6), False),
        ((1, 4), (4, 1), ("N", 1), False),
    ],
)
def test_axes_of_free_size_1_may_be_missing(
    a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int | str, ...], agrees: bool
) -> None:
    found = compare(Fixed({"y": np.ones(a)}), Signed(np.ones(b), *shape), [{}])
    assert found.agrees is agrees


def test_empty_outputs_agree() -> None:
    found = one(np.zeros((0, 3)), np.zeros((0, 3)))
    assert found.agrees
    assert "empty" in str(found)


def test_different_outputs_are_an_error() -> None:
    with pytest.raises(VerificationError, match=r"\['y'\] and \['z'\]"):
        compare(Fixed({"y": 1.0}), Fixed({"z": 1.0}), [{}])


def test_the_worst_of_several_inputs_and_outputs() -> None:
    a = Fixed({"p": [1.0], "q": [1.0]}, {"p": [1.0, 1.0], "q": [1.0, 1.0]})
    b = Fixed({"p": [1.0], "q": [1.1]}, {"p": [1.0, 1.0], "q": [1.0, 1.3]})
    found = compare(a, b, [{}, {}])
    assert found.samples == 2
    assert found.worst.name == "q"
    assert found.worst.worst is not None
    assert (found.worst.worst.sample, found.worst.worst.index) == (1, (1,))
    assert (found.worst.mismatches, found.worst.elements) == (2, 3)


def test_a_problem_is_worse_than_any_difference() -> None:
    found = compare(Fixed({"p": [1.0], "q": [1.0]}), Fixed({"p": [np.nan], "q": [[1.0]]}), [{}])
    assert found.worst.name == "q"


def test_json_holds_only_json() -> None:
    found = one(np.array([np.nan, 1.0, 2.0]), np.array([1.0, 0.0, np.inf]))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["agrees"] is False
    assert data["outputs"][0]["worst"]["a"] == "nan"
    assert data["outputs"][0]["mismatches"] == 3
    whole = one(np.array([3]), np.array([4])).to_json()["outputs"][0]["worst"]
    assert (whole["a"], whole["b"]) == (3, 4)


# ------------------------------------------------------------------------- rankings


def test_same_order_of_different_scores() -> None:
    scores = np.linspace(0, 1, 50)[:, None]
    found = rank_agreement(scores, scores**3)
    assert found is not None
    assert (found.pairs, found.top, found.k) == (1.0, 1.0, 10)


def test_one_swap() -> None:
    a = np.arange(20.0)
    b = a.copy()
    b[[3, 4]] = b[[4, 3]]
    found = rank_agreement(a, b)
    assert found is not None
    assert found.pairs == pytest.approx(1 - 1 / math.comb(20, 2))
    assert found.top == 1.0


def test_reversed() -> None:
    found = rank_agreement(np.arange(20.0), -np.arange(20.0))
    assert found is not None
    assert (found.pairs, found.top) == (0.0, 0.0)


def test_ties_are_no_swaps() -> None:
    found = rank_agreement(np.zeros(20), np.arange(20.0))
    assert found is not None
    assert found.pairs == 1.0


def test_rows_of_a_score_matrix_are_lists() -> None:
    a = np.tile(np.arange(100.0), (3, 1))
    b = a.copy()
    b[1] = -b[1]
    found = rank_agreement(a, b)
    assert found is not None
    assert found.pairs == 0.0  # the worst list counts
    columns = rank_agreement(np.arange(30.0).reshape(15, 2), np.arange(30.0).reshape(15, 2))
    assert columns is not None
    assert columns.k == 7  # fifteen candidates per task


def test_long_lists_are_thinned_out() -> None:
    scores = np.random.default_rng(0).normal(size=100_000)
    found = rank_agreement(scores, -scores)
    assert found is not None
    assert found.pairs == 0.0


@pytest.mark.parametrize(
    "array",
    [np.zeros(1), np.zeros((1, 1)), np.arange(9), np.zeros((3, 4, 5)), np.array([1.0, np.nan])],
)
def test_nothing_to_rank(array: np.ndarray) -> None:
    assert rank_agreement(array, array) is None


def test_comparison_reports_the_worst_ranking() -> None:
    up, down = np.arange(20.0), np.arange(20.0)[::-1]
    found = compare(Fixed({"y": up}, {"y": up}), Fixed({"y": up}, {"y": down}), [{}, {}])
    ranking = found.outputs[0].ranking
    assert ranking is not None
    assert ranking.pairs == 0.0
    assert compare_arrays("y", up, up, 0, 0).ranking is not None
