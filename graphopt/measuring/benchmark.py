"""How fast a model is compiled by graphopt, next to the other engines, and whether they agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import api
from graphopt.errors import InputError, SpecError
from graphopt.ir.maps import as_array
from graphopt.latency import Latency, interleaved
from graphopt.machine import cpu_name
from graphopt.measuring.peers import Bound, Feeds, Peer, Unavailable, bind, find, open_peer
from graphopt.measuring.profiling import floor
from graphopt.measuring.roofline import Roofline
from graphopt.serving.artifact import Artifact
from graphopt.serving.manifest import PORTABLE
from graphopt.targets.base import Precision

OURS = "graphopt"


@dataclass(frozen=True)
class Row:
    """One batch size.

    Attributes:
        latencies: of each engine that ran, ours first.
        precisions: what each of them computes in.
        differences: the largest absolute difference of each peer's outputs from ours.
        errors: the largest absolute difference of each engine's outputs from those of the first
            fp32 peer, in units of the largest of these outputs.
        floor: microseconds that our kernels need at least on this machine (see `profiling`); None
            if not asked for or not known.
    """

    batch: int
    latencies: dict[str, Latency]
    precisions: dict[str, str]
    differences: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    floor: float | None = None

    def ratio(self, name: str) -> float:
        """The median of engine `name` over ours: above 1 we are faster."""
        return self.latencies[name].median / self.latencies[OURS].median

    def best(self, precision: str = "fp32") -> str | None:
        """The fastest peer that computes in `precision`; None if none ran."""
        peers = [n for n in self.latencies if n != OURS and self.precisions[n] == precision]
        return min(peers, key=lambda n: self.latencies[n].median, default=None)


@dataclass(frozen=True)
class Benchmark:
    """The rows of one model.

    Attributes:
        left_out: peers and batch sizes that were not measured, and why.
        machine: the CPU, versions and the date.
    """

    model: str
    rows: tuple[Row, ...]
    left_out: dict[str, str]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Everything, with the ratios."""
        found = dataclasses.asdict(self)
        for entry, row in zip(found["rows"], self.rows):
            entry["ratios"] = {n: round(row.ratio(n), 3) for n in row.latencies if n != OURS}
            entry["best"] = row.best(row.precisions[OURS])
        return found


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """What was not measured, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    return [f"left out: {', '.join(those)}: {reason}" for reason, those in names.items()]


def bench(
    model: str | Path,
    *,
    source: str | Path | None = None,
    batches: Sequence[int] = (1, 64, 512),
    peers: str = "onnxruntime,openvino",
    others: Mapping[str, tuple[Peer, ...]] | None = None,
    seconds: float = 1.0,
    precision: Precision = "fp32",
    inputs: Sequence[Feeds] | None = None,
    seed: int = 0,
    peaks: Roofline | None = None,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure an artifact, or what a model file compiles to, and peers on the same inputs.

    Everything runs in this process on one thread and takes turns.

    Args:
        source: the model file that peers run; by default `model`, or the portable model of an
            artifact, which has been optimized already.
        peers: engine names separated by commas.
        others: engines of the caller's own that `peers` may name.
        seconds: how long to measure each engine at each batch size.
        precision: what a model file is compiled for; an artifact has one already.
        inputs: a set of inputs per batch size; random valid ones if None.
        peaks: what this machine can do, to say how far from it we are.

    Raises:
        InputError: the model takes none of the batch sizes.
    """
    chosen = find(peers, others)
    if inputs is not None and len(inputs) != len(batches):
        raise SpecError(f"{len(inputs)} sets of inputs for {len(batches)} batch sizes")
    tell = progress or (lambda step: None)
    path, left_out = Path(model), dict[str, str]()
    artifact = Artifact.load(path) if path.is_dir() else _compiled(path, precision, tell)
    peer_model = Path(source) if source else path / PORTABLE if path.is_dir() else path
    opened = _opened(chosen, peer_model, left_out, tell)
    rows: list[Row] = []
    for k, batch in enumerate(batches):
        tell(f"batch {batch}")
        try:
            feeds = inputs[k] if inputs else api.random_inputs(artifact.path, artifact, batch, seed)
            artifact.signature.bind(feeds)  # peers need not look
        except InputError as error:
            left_out[f"batch {batch}"] = str(error)
            continue
        if rows and not any(
            isinstance(s.shape[0], str) for s in artifact.signature.inputs if s.shape
        ):
            left_out[f"batch {batch}"] = "the model has a fixed batch size"
            continue
        bound = _bound(opened, feeds, batch, left_out)
        row = _row(batch, artifact, feeds, bound, seconds)
        least = floor(artifact, feeds, peaks) if peaks else None
        rows.append(dataclasses.replace(row, floor=least))
    if not rows:
        raise InputError(f"{path}: no batch size can be measured: {'; '.join(left_out.values())}")
    return Benchmark(path.name, tuple(rows), left_out, machine())


def machine() -> dict[str, Any]:
    """What figures depend on: this CPU, the versions of the engines, and the date."""
    versions = {}
    for name in ("graphopt", "apache-tvm", "onnxruntime", "openvino", "torch", "numpy"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"cpu": cpu_name(), "threads": 1, "versions": versions, "date": date}


def _compiled(model: Path, precision: Precision, tell: Callable[[str], None]) -> Artifact:
    compiled = api.compile(model, "cpu", precision=precision, verify=False, progress=tell)
    assert isinstance(compiled, Artifact)
    return compiled


Opened = tuple[Peer, Callable[[Feeds], Bound]]


def _opened(
    peers: Sequence[Peer], model: Path, left_out: dict[str, str], tell: Callable[[str], None]
) -> list[Opened]:
    """The peers that take `model`; why the others do not goes to `left_out`."""
    opened = []
    for peer in peers:
        tell(f"open {peer.name}")
        try:
            opened.append((peer, open_peer(peer, model)))
        except Unavailable as error:
            left_out[peer.name] = str(error)
    return opened


def _bound(
    opened: Sequence[Opened], feeds: Feeds, batch: int, left_out: dict[str, str]
) -> list[tuple[Peer, Bound]]:
    """The peers that run on `feeds`; why the others do not goes to `left_out`."""
    bound = []
    for peer, binder in opened:
        try:
            bound.append((peer, bind(binder, feeds)))
        except Unavailable as error:
            left_out[f"{peer.name} at batch {batch}"] = str(error)
    return bound


def _row(
    batch: int,
    artifact: Artifact,
    feeds: Feeds,
    bound: Sequence[tuple[Peer, Bound]],
    seconds: float,
) -> Row:
    answers = {OURS: list(artifact.run(feeds).values())}
    answers |= {peer.name: [as_array(result).copy() for result in run()] for peer, run in bound}
    differences = {
        name: _difference(found, answers[OURS]) for name, found in answers.items() if name != OURS
    }
    calls: Mapping[str, Callable[[], object]] = {
        OURS: lambda: artifact.run(feeds),
        **{peer.name: run for peer, run in bound},
    }
    precisions = {OURS: artifact.precision, **{peer.name: peer.precision for peer, _ in bound}}
    errors = _errors(answers, [peer.name for peer, _ in bound if peer.precision == "fp32"])
    return Row(batch, interleaved(calls, seconds), precisions, differences, errors)


def _errors(answers: Mapping[str, Sequence[np.ndarray]], exact: Sequence[str]) -> dict[str, float]:
    """How far each engine is from the first of those that are exact; nothing if there is none."""
    if not exact:
        return {}
    expected = answers[exact[0]]
    largest = _difference(expected, [np.zeros_like(array) for array in expected]) or 1.0
    return {name: _difference(found, expected) / largest for name, found in answers.items()}


def _difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest absolute difference of numeric outputs; infinite where shapes differ."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.dtype.kind in "fiu":
            gap = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
            worst = max(worst, float(gap.max(initial=0.0)))
    return worst
