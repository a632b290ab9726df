"""Whether two models give the same answers, and where they differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphopt.errors import VerificationError
from graphopt.serving.signature import Runnable

TOP = 10
MAX_PAIRS = 4_000_000  # candidate pairs compared per output; longer lists are thinned out evenly


@dataclass(frozen=True)
class Element:
    """One element of an output in both models.

    Attributes:
        sample: which set of inputs it was computed from, counted from 0.
        relative: |a - b| / |b|; infinite where b is 0, NaN where either is not a number.
        excess: how many times the allowed difference it is off; over 1 is a mismatch.
    """

    sample: int
    index: tuple[int, ...]
    a: Any
    b: Any
    absolute: float
    relative: float
    excess: float


@dataclass(frozen=True)
class RankAgreement:
    """How far two models put the same candidates in the same order (the worst list counts).

    Attributes:
        pairs: share of candidate pairs that they do not order oppositely.
        top: share of the first `k` candidates that they have in common.
    """

    pairs: float
    top: float
    k: int


@dataclass(frozen=True)
class OutputComparison:
    """One output over all inputs.

    Attributes:
        problem: why the arrays cannot be compared element by element, such as different shapes.
        ranking: for float outputs with several candidates, how well the orders agree.
    """

    name: str
    elements: int = 0
    mismatches: int = 0
    worst: Element | None = None
    problem: str | None = None
    ranking: RankAgreement | None = None

    @property
    def agrees(self) -> bool:
        return self.problem is None and self.mismatches == 0

    def __str__(self) -> str:
        if self.problem is not None:
            return f"output {self.name!r}: {self.problem}"
        if self.worst is None:
            return f"output {self.name!r}: empty"
        w = self.worst
        where = f"{self.name!r}[{', '.join(map(str, w.index))}]"
        return (
            f"output {where} of input set {w.sample}: {shown(w.a)} against {shown(w.b)} "
            f"(abs {w.absolute:.2g}, rel {w.relative:.2g}); "
            f"{self.mismatches} of {self.elements} elements are out of tolerance"
        )


@dataclass(frozen=True)
class Comparison:
    """Two models compared on some inputs.

    Attributes:
        outputs: one entry per output, in order.
        rtol, atol: an element of a float output differs if |a - b| > atol + rtol * |b|. NaN equals
            NaN, infinities must be the same, and other dtypes must be equal.
        samples: how many sets of inputs both were run on.
    """

    outputs: tuple[OutputComparison, ...]
    rtol: float
    atol: float
    samples: int

    @property
    def agrees(self) -> bool:
        """True if every element of every output is within the tolerance."""
        return all(output.agrees for output in self.outputs)

    @property
    def worst(self) -> OutputComparison:
        """The output that is furthest off."""
        return max(self.outputs, key=_badness)

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-able data."""
        return {
            "agrees": self.agrees,
            "rtol": self.rtol,
            "atol": self.atol,
            "input_sets": self.samples,
            "worst": str(self.worst),
            "outputs": [_output_to_json(output) for output in self.outputs],
        }

    def __str__(self) -> str:
        return f"{self.worst} (rtol {self.rtol:g}, atol {self.atol:g})"


def compare(
    a: Runnable,
    b: Runnable,
    feeds: Sequence[Mapping[str, np.ndarray]],
    rtol: float = 1e-4,
    atol: float = 1e-5,
    slack: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> Comparison:
    """Run both models on each of `feeds` and compare all outputs.

    Where a size of `b` is free and 1, `a` may lack its axis: PyTorch's `squeeze` is exported so.

    Args:
        slack: what elements of each output may be off by beside that, for each of `feeds`; it
            broadcasts to the output (see `midpoints`).

    Raises:
        VerificationError: the models do not have the same outputs.
        InputError: a model does not accept the inputs.
    """
    found: dict[str, OutputComparison] = {}
    free = _free_axes(b)
    for sample, feed in enumerate(feeds):
        left, right = a.run(feed), b.run(feed)
        if left.keys() != right.keys():
            raise VerificationError(
                f"the models have different outputs: {sorted(left)} and {sorted(right)}"
            )
        for name in left:
            if name in free:
                left[name] = _of_equal_rank(left[name], right[name], free[name])
            more = 0.0 if slack is None else slack[sample][name]
            one = compare_arrays(name, left[name], right[name], rtol, atol, sample, more)
            found[name] = _merged(found[name], one) if name in found else one
    return Comparison(tuple(found.values()), rtol, atol, len(feeds))


def _free_axes(model: Runnable) -> dict[str, list[int]]:
    """The axes of each output whose sizes are free, where the model says so."""
    signature = getattr(model, "signature", None)
    return {
        spec.name: [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
        for spec in (() if signature is None else signature.outputs)
        if spec.shape is not None
    }


def _of_equal_rank(a: np.ndarray, b: np.ndarray, free: Sequence[int]) -> np.ndarray:
    """`a` in the shape of `b` if all it lacks are axes of `free` where `b` has size 1."""
    a = np.asarray(a)
    units = sum(axis < b.ndim and b.shape[axis] == 1 for axis in free)
    same = [size for size in a.shape if size != 1] == [size for size in b.shape if size != 1]
    return a.reshape(b.shape) if same and 0 < b.ndim - a.ndim <= units else a


def compare_arrays(
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    rtol: float,
    atol: float,
    sample: int = 0,
    slack: float | np.ndarray = 0.0,
) -> OutputComparison:
    """Two arrays of one output, element by element."""
    a, b = np.asarray(a), np.asarray(b)
    for what, left, right in (("shape", a.shape, b.shape), ("dtype", a.dtype, b.dtype)):
        if left != right:
            return OutputComparison(name, problem=f"{what} {left} against {right}")
    if not a.size:
        return OutputComparison(name)
    difference, excess = _differences(a, b, rtol, atol, slack)
    at = _argworst(difference, excess)
    index = tuple(int(i) for i in np.unravel_index(at, a.shape))
    size = abs(float(b[index])) if b.dtype.kind in "fiubV" else math.nan
    off = float(difference.flat[at])
    relative = off / size if size else (math.inf if off else 0.0)
    worst = Element(sample, index, a[index], b[index], off, relative, float(excess.flat[at]))
    mismatches = int(np.count_nonzero(excess > 1))
    return OutputComparison(name, a.size, mismatches, worst, None, rank_agreement(a, b))


def _differences(
    a: np.ndarray, b: np.ndarray, rtol: float, atol: float, slack: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """|a - b|, and the same in units of what is allowed (infinite where nothing is)."""
    if a.dtype.kind not in "fV":  # V: bfloat16 and its like
        differs = a != b
        number = a.dtype.kind in "iub"
        off = np.abs(a.astype(float) - b.astype(float)) if number else differs.astype(float)
        within = (off <= slack) & (np.asarray(slack) > 0)
        return np.where(differs, off, 0.0), np.where(differs & ~within, np.inf, 0.0)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(x - y)
        excess = np.where(off == 0, 0.0, off / (atol + rtol * np.abs(y) + slack))
        same = (x == y) | (np.isnan(x) & np.isnan(y))
    finite = np.isfinite(x) & np.isfinite(y)
    excess = np.where(finite, excess, np.where(same, 0.0, np.inf))
    return np.where(same, 0.0, np.where(finite, off, np.inf)), excess


def _argworst(difference: np.ndarray, excess: np.ndarray) -> int:
    """The flat position of the largest excess; among equals, of the largest difference."""
    worst = np.flatnonzero(excess == excess.max())
    return int(worst[difference.flat[worst].argmax()])


def rank_agreement(a: np.ndarray, b: np.ndarray) -> RankAgreement | None:
    """How alike the orders are that two arrays of scores put candidates in.

    Shape [N] or [N, few]: the candidates are the samples of the batch, per column. [N, many]: those
    of each row. None where there is nothing to rank: not floats, one candidate, NaNs.
    """
    shape = tuple(n for n in a.shape if n != 1)
    if a.dtype.kind not in "fV" or len(shape) not in (1, 2) or a.size < 2:
        return None
    x, y = (np.atleast_2d(s.astype(np.float64).reshape(shape).T) for s in (a, b))
    if len(shape) == 2 and shape[1] >= TOP:
        x, y = x.T, y.T
    lists, count = x.shape
    if count < 2 or np.isnan(x).any() or np.isnan(y).any():
        return None
    k = min(TOP, max(1, count // 2))
    tops = [np.argsort(-s, axis=1, kind="stable")[:, :k] for s in (x, y)]
    top = min(len(np.intersect1d(p, q)) / k for p, q in zip(*tops))
    step = math.ceil(lists * count * count / MAX_PAIRS)
    thin = slice(None, None, min(math.ceil(math.sqrt(step)), count // 2))
    pairs = min(_pairs_in_order(p[thin], q[thin]) for p, q in zip(x, y))
    return RankAgreement(pairs, top, k)


def _pairs_in_order(x: np.ndarray, y: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # two infinite scores are a tie
        left, right = (np.sign(s[:, None] - s[None, :]) for s in (x, y))
    return 1.0 - float(np.count_nonzero(left * right < 0)) / (len(x) * (len(x) - 1))


def _merged(a: OutputComparison, b: OutputComparison) -> OutputComparison:
    """The same output over the inputs of both."""
    worse = max(a, b, key=_badness)
    ranks = [r for r in (a.ranking, b.ranking) if r is not None]
    return replace(
        worse,
        elements=a.elements + b.elements,
        mismatches=a.mismatches + b.mismatches,
        problem=a.problem or b.problem,
        ranking=min(ranks, key=lambda r: (r.pairs, r.top)) if ranks else None,
    )


def _badness(output: OutputComparison) -> tuple[bool, float, float]:
    if output.worst is None:
        return (output.problem is not None, 0.0, 0.0)
    return (output.problem is not None, output.worst.excess, output.worst.absolute)


def _output_to_json(output: OutputComparison) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": output.name,
        "elements": output.elements,
        "mismatches": output.mismatches,
    }
    if output.problem is not None:
        entry["problem"] = output.problem
    if output.worst is not None:
        w = output.worst
        entry["worst"] = {
            "input_set": w.sample,
            "index": list(w.index),
            "a": _plain(w.a),
            "b": _plain(w.b),
            "absolute": _plain(w.absolute),
            "relative": _plain(w.relative),
        }
    if output.ranking is not None:
        entry["ranking"] = vars(output.ranking)
    return entry


def _plain(value: Any) -> Any:
    """A JSON value: text, a number, or the text of a number that JSON does not know."""
    if isinstance(value, (str, bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else str(float(value))


def shown(value: Any) -> str:
    """An element of an output for people: floats to seven digits."""
    return f"{value:.7g}" if isinstance(value, (float, np.floating)) else str(_plain(value))
