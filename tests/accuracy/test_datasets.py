"""Reading data for a model, and splitting them into rows to choose on and rows to judge by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from graphopt.accuracy import datasets
from graphopt.accuracy.datasets import Dataset, in_batches
from graphopt.errors import InputError
from graphopt.serving.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("ids", "int64", ("N",)), TensorSpec("x", "float32", ("N", 2))),
    (TensorSpec("y", "float32", ("N",)),),
)


def rows(count: int = 3000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(0, 50, count),
        "x": rng.normal(size=(count, 2)).astype(np.float32),
        "label": rng.integers(0, 2, count),
        "group": rng.integers(0, 40, count),
    }


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def joined(data: Dataset, name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in data.batches])


def test_npz(tmp_path: Path) -> None:
    arrays = rows()
    data = datasets.read(saved(tmp_path, **arrays, unrelated=np.zeros(1)), SIGNATURE)
    assert data.rows == 3000 and len(data.batches) == 3
    assert data.batches[0].keys() == {"ids", "x"}
    np.testing.assert_array_equal(joined(data, "x"), arrays["x"])
    np.testing.assert_array_equal(data.labels, arrays["label"])
    np.testing.assert_array_equal(data.groups, arrays["group"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_become_inputs(tmp_path: Path, suffix: str) -> None:
    arrays = rows(50)
    columns = {"ids": arrays["ids"], "a": arrays["x"][:, 0], "b": arrays["x"][:, 1]}
    others = {"clicked": arrays["label"], "user": list("xy" * 25), "price": [None, 1.5] * 25}
    table = pa.table(columns | others)
    path = tmp_path / f"data.{suffix}"
    (csv.write_csv if suffix == "csv" else parquet.write_table)(table, path)
    data = datasets.read(
        path, SIGNATURE, labels="clicked", groups="user", columns={"x": ["a", "b"]}
    )
    assert joined(data, "x").dtype == np.float32
    np.testing.assert_allclose(joined(data, "x"), arrays["x"], rtol=1e-6)
    np.testing.assert_array_equal(data.labels, arrays["label"])
    assert data.groups is not None and set(data.groups) == {"x", "y"}
    data.split()


def test_lists_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"ids": [1, 2], "x": [[1.0, 2.0], [3.0, 4.0]]})
    parquet.write_table(table, tmp_path / "data.parquet")
    data = datasets.read(tmp_path / "data.parquet", SIGNATURE)
    np.testing.assert_array_equal(joined(data, "x"), [[1, 2], [3, 4]])
    assert data.labels is None


def test_no_row_is_in_both_halves() -> None:
    arrays = rows()
    arrays["ids"][1000:2000], arrays["x"][1000:2000] = arrays["ids"][:1000], arrays["x"][:1000]
    data = in_batches({name: arrays[name] for name in ("ids", "x")}, arrays["label"])
    first, second = data.split()
    keys = [set(joined(half, "x")[:, 0].tolist()) for half in (first, second)]
    assert not keys[0] & keys[1]
    assert first.rows + second.rows == 3000
    assert 1300 < first.rows < 1700
    again, _ = data.split()
    np.testing.assert_array_equal(joined(again, "ids"), joined(first, "ids"))


def test_labels_stay_with_their_rows() -> None:
    x = np.arange(400, dtype=np.float32)
    for half in in_batches({"x": x}, labels=x * 2).split():
        np.testing.assert_array_equal(half.labels, joined(half, "x") * 2)


def test_no_group_is_in_both_halves() -> None:
    arrays = rows()
    data = in_batches({"x": arrays["x"]}, arrays["label"], arrays["group"])
    first, second = data.split()
    assert first.groups is not None and second.groups is not None
    assert not set(first.groups) & set(second.groups)


def test_chunks(tmp_path: Path) -> None:
    chunks = {}
    for k, size in enumerate((3, 2, 4)):
        chunks[f"{k}/ids"] = np.arange(size + 5)
        chunks[f"{k}/x"] = np.full((size, 2), k, np.float32)
    path = saved(tmp_path, chunks=np.array(3), label=np.arange(9), **chunks)
    data = datasets.read(path, SIGNATURE)
    assert data.sizes == [3, 2, 4]
    first, second = data.split()
    assert first.labels is not None and second.labels is not None
    assert first.labels.tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert second.labels.tolist() == [3, 4]


def test_one_chunk_cannot_be_split() -> None:
    with pytest.raises(InputError, match="at least 2 chunks"):
        Dataset(({"x": np.zeros(4)},), whole=True).split()


def test_equal_rows_cannot_be_split() -> None:
    with pytest.raises(InputError, match="all alike"):
        in_batches({"x": np.zeros(4)}).split()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ids": None}, "nothing for input 'ids'; it has"),
        ({"label": np.zeros(5)}, r"labels of shape \(5,\) for 20 rows"),
        ({"label": np.zeros(())}, r"labels of shape \(\) for 20 rows"),
        ({"group": np.zeros((20, 1))}, r"groups of shape \(20, 1\)"),
        ({"chunks": np.array([1, 2])}, "one whole number"),
        ({"chunks": np.array(1.5)}, "one whole number"),
        ({"label": np.full(20, np.nan)}, "'label' holds NaN"),
        ({"ids": np.zeros(7, np.int64)}, "inputs differ in length"),
        ({"ids": np.zeros(0, np.int64), "x": np.zeros((0, 2)), "label": None}, "no rows"),
    ],
)
def test_bad_arrays(tmp_path: Path, changed: dict[str, np.ndarray | None], says: str) -> None:
    arrays = {n: a for n, a in (rows(20) | changed).items() if a is not None}
    if "label" not in arrays or len(arrays["x"]) == 0:
        arrays.pop("group")
    with pytest.raises(InputError, match=says):
        datasets.read(saved(tmp_path, **arrays), SIGNATURE)


@pytest.mark.parametrize(
    ("inputs", "labels", "groups", "says"),
    [
        ({"ids": 5, "x": 7}, 5, None, "inputs differ in length.*5.*7"),
        ({"x": 5}, 4, None, r"labels of shape \(4,\) for 5 rows"),
        ({"x": 5}, 6, None, r"labels of shape \(6,\) for 5 rows"),
        ({"x": 5}, None, 4, r"groups of shape \(4,\) for 5 rows"),
        ({"x": ()}, None, None, "one number"),
    ],
)
def test_arrays_of_unequal_length(
    inputs: dict[str, int], labels: int | None, groups: int | None, says: str
) -> None:
    beside = [None if size is None else np.zeros(size) for size in (labels, groups)]
    with pytest.raises(InputError, match=says):
        in_batches({name: np.zeros(size) for name, size in inputs.items()}, *beside)


def test_lists_are_arrays() -> None:
    halves = in_batches({"x": [[1.0], [2.0], [3.0], [4.0]]}, [1, 0, 1, 0]).split()  # type: ignore
    assert sum(half.rows for half in halves) == 4


@pytest.mark.parametrize("data", [in_batches({}), in_batches({"x": np.zeros((0, 2))}), Dataset(())])
def test_nothing_to_split(data: Dataset) -> None:
    with pytest.raises(InputError, match="no rows"):
        data.split()


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        ("ids,a\n1,2.0\n", {"x": ["a", "b"]}, "has no column 'b'"),
        ("ids,a\n1,2.0\n", {}, r"has no column 'x'; .* --columns x=a,b,"),
        ("ids,a,b\n1.5,2.0,3.0\n", {"x": ["a", "b"]}, "input 'ids' is int64"),
        ("ids,a,b\n1,,3.0\n2,1,3\n", {"x": ["a", "b"]}, "column 'a' has 1 empty"),
        ("ids,a,b\n1,2.0,3.0\n", {"z": ["a", "b"]}, "no input 'z'"),
        ("ids,a\n1,2,3,4\n", {}, "cannot be read"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, columns: dict[str, list[str]], says: str) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        datasets.read(tmp_path / "data.csv", SIGNATURE, columns=columns)


def test_other_kinds_of_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.npz, \.csv or \.parquet"):
        datasets.read(tmp_path / "data.txt", SIGNATURE)
    with pytest.raises(InputError, match="no such file"):
        datasets.read(tmp_path / "data.csv", SIGNATURE)
