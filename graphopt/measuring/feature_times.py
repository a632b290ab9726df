"""Times of kernels as times of tables and of features.

A kernel that looks rows up in many tables is shared out among them by the bytes that it moves for
each; the rest of it belongs to what else it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphopt.analysis.program import evaluate

Entry = Mapping[str, Any]
"""A kernel call in `manifest["program"]`; see `graphopt.analysis.program`."""


@dataclass(frozen=True)
class TableTime:
    """What looking rows up in one table by the ids of some features takes.

    Attributes:
        rows, dim, bits: the size of the table, and the bits of an element in it.
        features: where the ids come from: inputs, or columns of inputs (`x[:, 3]`).
        microseconds: its share of the kernels that do it; None if they were not run.
        bytes: read, ids included, and written; None where known at run time only.
    """

    table: str
    rows: int
    dim: int
    bits: int
    features: tuple[str, ...]
    microseconds: float | None
    bytes: int | None


@dataclass(frozen=True)
class FeatureTime:
    """What is computed from one feature alone.

    Attributes:
        feature: an input or a column of one; "" for all that depends on several.
    """

    feature: str
    microseconds: float


@dataclass(frozen=True)
class _Share:
    """A part of a kernel call: a lookup, or with None all the rest."""

    lookup: Entry | None
    features: tuple[str, ...]
    microseconds: float | None
    bytes: int | None


def table_times(
    program: Sequence[Entry],
    times: Sequence[float | None],
    sizes: Mapping[str, int],
    sources: Iterable[Entry] = (),
) -> tuple[TableTime, ...]:
    """What each table takes, the slowest first.

    Args:
        times: microseconds of each call in `program`.
        sizes: the numbers of its sizes.
        sources: the tables of the source model (`report.json`), after which pieces of stacked
            tables are named.
    """
    named = list(sources)
    found: dict[TableTime, list[_Share]] = defaultdict(list)
    for entry, time in zip(program, times):
        for share in _shares(entry, time, sizes):
            if share.lookup is not None:
                rows, dim, bits = (share.lookup[key] for key in ("rows", "dim", "bits"))
                name = _name(share.lookup, named)
                found[TableTime(name, rows, dim, bits, share.features, None, None)].append(share)
    tables = [
        replace(
            table,
            microseconds=_total(share.microseconds for share in shares),
            bytes=_total(share.bytes for share in shares),
        )
        for table, shares in found.items()
    ]
    return tuple(sorted(tables, key=lambda t: (-(t.microseconds or 0), -(t.bytes or 0))))


def feature_times(
    program: Sequence[Entry], times: Sequence[float], sizes: Mapping[str, int]
) -> tuple[FeatureTime, ...]:
    """What each feature takes, the slowest first; the sum is that of `times`."""
    found: dict[str, float] = defaultdict(float)
    for entry, time in zip(program, times):
        for share in _shares(entry, time, sizes):
            name = share.features[0] if len(share.features) == 1 else ""
            found[name] += share.microseconds or 0.0
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return tuple(FeatureTime(name, round(t, 3)) for name, t in ordered if t > 0.0005)


def _shares(entry: Entry, time: float | None, sizes: Mapping[str, int]) -> Iterator[_Share]:
    """The parts of a kernel call; they add up to `time`."""
    lookups, features = entry.get("lookups", ()), tuple(entry.get("features", ()))
    moved = [evaluate(lookup["bytes"], sizes) for lookup in lookups]
    total = max(evaluate(entry["bytes"], sizes) or 0, sum(size or 0 for size in moved))
    rest = time
    for lookup, size in zip(lookups, moved):
        part = (size or 0) / total if total else 1 / len(lookups)
        taken = None if time is None else time * part
        rest = None if rest is None or taken is None else rest - taken
        yield _Share(lookup, tuple(lookup["features"]), taken, size)
    yield _Share(None, features, rest, None)


def _total(numbers: Iterable[Any]) -> Any:
    """The sum, to a thousandth; None if one is not known."""
    known = list(numbers)
    return None if None in known else round(sum(known), 3)


def _name(lookup: Entry, sources: Sequence[Entry]) -> str:
    """What the source calls a table, where its own name or its size and ids tell."""
    name = str(lookup["table"])
    if any(source["name"] == name for source in sources):
        return name
    alike = [s for s in sources if set(s["indexed_by"]) & set(lookup["features"])]
    same = [s for s in alike if (s["rows"], s["dim"]) == (lookup["rows"], lookup["dim"])]
    for candidates in (same, alike):
        names = {str(source["name"]) for source in candidates}
        if len(names) == 1:
            return names.pop()
    return name
