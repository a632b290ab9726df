"""Data to measure a model on: inputs in batches, and labels and groups where there are any.

A *row* is one scored sample. In an `.npz` file every input is an array by its own name, one row of
it a sample, beside `label` and `group`. Where samples have no fixed length (bags with offsets) the
file holds whole batches instead: `chunks` says how many, and batch 3 has its inputs as `3/ids` and
the like. A `.csv` or `.parquet` file has a column per input, or several that are joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import arrays
from graphopt.errors import InputError
from graphopt.serving.signature import Signature, TensorSpec

Feeds = Mapping[str, np.ndarray]
BATCH = 1024  # rows run at once
_MIX = 0x9E3779B97F4A7C15  # an odd constant without pattern (the golden ratio)


@dataclass(frozen=True)
class Dataset:
    """Inputs in batches, in order, with one label and group per row over all of them.

    Attributes:
        whole: batches cannot be taken apart, because their inputs differ in length.

    Raises:
        InputError: there is not one label and group for each row.
    """

    batches: tuple[Feeds, ...]
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        for name, array in (("labels", self.labels), ("groups", self.groups)):
            shape = () if array is None else np.shape(array)
            many = name == "groups" and len(shape) > 1  # of labels a metric may want several a row
            if array is not None and (many or shape[:1] != (self.rows,)):
                raise InputError(f"{name} of shape {shape} for {self.rows} rows; give one a row")

    @property
    def sizes(self) -> list[int]:
        """Rows per batch: the shortest of its inputs, as lists of ids and offsets are longer."""
        return [min(len(array) for array in batch.values()) for batch in self.batches]

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    def split(self) -> tuple[Dataset, Dataset]:
        """Two halves for choosing on and for judging by, which share no row.

        A hash decides: that of the group where there are groups, so that nobody is in both, else
        that of the inputs, so that equal rows stay together. Whole batches are taken in turns.

        Raises:
            InputError: there is too little to take apart.
        """
        if not self.rows:
            raise InputError("the data hold no rows")
        if self.whole:
            return self._every_other(0), self._every_other(1)
        joined = {name: np.concatenate([b[name] for b in self.batches]) for name in self.batches[0]}
        keys = [self.groups] if self.groups is not None else list(joined.values())
        first = hashes(keys) >> np.uint64(63) == 0
        halves = [self._picked(joined, chosen) for chosen in (first, ~first)]
        if not all(half.batches for half in halves):
            raise InputError("the rows are all alike; nothing would be left to judge by")
        return halves[0], halves[1]

    def _picked(self, joined: Feeds, chosen: np.ndarray) -> Dataset:
        labels, groups = (None if a is None else a[chosen] for a in (self.labels, self.groups))
        return in_batches({n: a[chosen] for n, a in joined.items()}, labels, groups)

    def _every_other(self, first: int) -> Dataset:
        if len(self.batches) < 2:
            raise InputError("one batch cannot be split; give at least 2 chunks")
        ends = np.cumsum([0, *self.sizes])
        chosen = range(first, len(self.batches), 2)
        rows = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in chosen])
        labels, groups = (None if a is None else a[rows] for a in (self.labels, self.groups))
        return Dataset(tuple(self.batches[k] for k in chosen), labels, groups, whole=True)


def hashes(keys: Sequence[np.ndarray]) -> np.ndarray:
    """One uint64 per row of arrays of equal length; equal rows have equal ones, on any machine."""
    total = np.zeros(len(keys[0]), np.uint64)
    for key in keys:
        flat = np.ascontiguousarray(key).reshape(len(key), -1)
        if flat.dtype.kind not in "biuf":
            flat = np.array([[str(x) for x in row] for row in flat])
        octets = flat.view(np.uint8).reshape(len(flat), -1)
        for column in octets.T:
            total = (total ^ column) * np.uint64(_MIX)
            total ^= total >> np.uint64(29)
    return total


def in_batches(
    feeds: Feeds, labels: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Dataset:
    """A dataset of arrays that have one row a sample.

    Raises:
        InputError: they differ in length.
    """
    arrays = {name: np.asarray(array) for name, array in feeds.items()}
    if not all(array.ndim for array in arrays.values()):
        raise InputError("an input is one number; give an array with a row a sample")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        first = min(lengths)
        raise InputError(
            f"inputs differ in length: {lengths}; store whole batches, as '0/{first}', "
            f"'1/{first}' and so on, and how many there are as 'chunks'"
        )
    starts = range(0, max(lengths.values(), default=0), BATCH)
    batches = tuple({n: a[k : k + BATCH] for n, a in arrays.items()} for k in starts)
    labels, groups = (None if a is None else np.asarray(a) for a in (labels, groups))
    return Dataset(batches, labels, groups)


def read(
    path: str | Path,
    signature: Signature,
    *,
    labels: str = "label",
    groups: str = "group",
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Dataset:
    """Read a `.npz`, `.csv` or `.parquet` file for a model that takes `signature`.

    Args:
        labels, groups: names of the arrays or columns; not required to be there.
        columns: for inputs that are not called like a column: those it is made of, side by side.

    Raises:
        InputError: the file or something in it is missing, or does not fit the model.
    """
    path = Path(path)
    if path.suffix == ".npz":
        found = arrays.read(path)
    else:
        found = _table(path, signature, columns or {}, (labels, groups))
    truth, owner = (_beside(path, name, found.get(name)) for name in (labels, groups))
    try:
        if "chunks" in found:
            count = _count(found["chunks"])
            batches = tuple(_inputs(found, signature, f"{k}/") for k in range(count))
            data = Dataset(batches, truth, owner, whole=True)
        else:
            data = in_batches(_inputs(found, signature, ""), truth, owner)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not data.rows:
        raise InputError(f"{path}: holds no rows")
    return data


def _count(chunks: np.ndarray) -> int:
    if chunks.size != 1 or chunks.dtype.kind not in "iu" or chunks.item() < 0:
        raise InputError("'chunks' says how many there are: one whole number")
    return int(chunks.item())


def _beside(path: Path, name: str, array: np.ndarray | None) -> np.ndarray | None:
    if array is not None and array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{path}: {name!r} holds NaN; drop these rows")
    return array


def _inputs(found: Feeds, signature: Signature, prefix: str) -> dict[str, np.ndarray]:
    missing = [spec.name for spec in signature.inputs if prefix + spec.name not in found]
    if missing:
        raise InputError(
            f"nothing for input{'s' if len(missing) > 1 else ''} "
            f"{', '.join(map(repr, missing))}; it has {', '.join(map(repr, found))}"
        )
    return {spec.name: found[prefix + spec.name] for spec in signature.inputs}


# -------------------------------------------------------------- csv and parquet files


def _table(
    path: Path,
    signature: Signature,
    columns: Mapping[str, Sequence[str]],
    beside: Sequence[str],
) -> dict[str, np.ndarray]:
    """Arrays of inputs, and columns that lie beside them; what else is in the file is not read."""
    try:
        from pyarrow import ArrowInvalid, csv, parquet
    except ImportError:
        raise InputError(f"{path}: needs pyarrow; pip install 'graphopt[data]'") from None
    readers = {".csv": csv.read_csv, ".parquet": parquet.read_table}
    if path.suffix not in readers:
        raise InputError(f"{path}: give an .npz, .csv or .parquet file")
    try:
        table = readers[path.suffix](path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ArrowInvalid as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    unknown = columns.keys() - {spec.name for spec in signature.inputs}
    if unknown:
        raise InputError(f"the model has no input {', '.join(map(repr, sorted(unknown)))}")
    there = set(table.column_names)
    found = {name: _column(path, name, table[name]) for name in beside if name in there}
    for spec in signature.inputs:
        parts = columns.get(spec.name, [spec.name])
        absent = [name for name in parts if name not in there]
        if absent:
            hint = f"; name those that make it up by --columns {spec.name}=a,b,…"
            hint = "" if spec.name in columns else hint
            raise InputError(f"{path}: has no column {', '.join(map(repr, absent))}{hint}")
        arrays_of = [_column(path, name, table[name]) for name in parts]
        found[spec.name] = _as_input(path, spec, arrays_of)
    return found


def _column(path: Path, name: str, column: Any) -> np.ndarray:
    if column.null_count:
        raise InputError(f"{path}: column {name!r} has {column.null_count} empty cells")
    array: np.ndarray = column.to_numpy()
    if array.dtype == object and len(array) and isinstance(array[0], np.ndarray):
        if len({len(row) for row in array}) > 1:
            raise InputError(f"{path}: the lists in column {name!r} differ in length")
        return np.stack(list(array))
    return array


def _as_input(path: Path, spec: TensorSpec, parts: Sequence[np.ndarray]) -> np.ndarray:
    rank = None if spec.shape is None else len(spec.shape)
    single = len(parts) == 1 and parts[0].ndim == rank
    array = parts[0] if single else np.column_stack(list(parts))
    with np.errstate(invalid="ignore"):
        converted = array.astype(spec.numpy_dtype)
    if spec.numpy_dtype.kind in "iu" and not np.array_equal(converted, array):
        raise InputError(f"{path}: input {spec.name!r} is {spec.dtype}; the file has fractions")
    return converted
