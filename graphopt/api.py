"""The verbs: optimize, compile, check (`load` has a module of its own, which imports less)."""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Literal, Union

import numpy as np
import onnx

from graphopt.accuracy.budget import Budget, Speed, Spending
from graphopt.accuracy.compression import Compression, require_spender
from graphopt.accuracy.stopwatch import Stopwatch
from graphopt.analysis.ids import IdRange, inexact_ids
from graphopt.analysis.tables import tables_of
from graphopt.checking.comparison import Comparison, compare
from graphopt.checking.feeds import random_feeds
from graphopt.checking.verification import Original, original_model, signature_of
from graphopt.deployment.engine_choice import record_engines
from graphopt.deployment.writing import Stages, temporary_artifact, write_artifact, write_portable
from graphopt.errors import SpecError
from graphopt.ir import onnx_io
from graphopt.ir.atomic import scratch_folder
from graphopt.ir.graph import Graph, Value
from graphopt.pipeline.instruments import Instrument
from graphopt.pipeline.manager import PassManager, size_of
from graphopt.pipeline.report import Report
from graphopt.pipeline.spec import Pipeline
from graphopt.serving.artifact import Artifact
from graphopt.serving.auto_engine import AutoEngine
from graphopt.serving.manifest import PORTABLE
from graphopt.targets import base
from graphopt.targets.portable import OnnxModel
from graphopt.targets.tuning.options import Tuning

_VERSIONS = ("graphopt", "onnx", "onnx-graphsurgeon", "onnxruntime", "numpy", "apache-tvm")

Model = Union[str, Path, Graph, onnx.ModelProto]
Runnable = Union[Artifact, AutoEngine, OnnxModel]


def optimize(
    model: Model,
    *,
    passes: str | Pipeline | None = None,
    budget: Budget | None = None,
    target: str | None = None,
    report: Report | None = None,
    instruments: Sequence[Instrument] = (),
) -> Graph:
    """Run passes over a copy of `model`.

    Args:
        passes: a preset ("O0" to "O3"), a pipeline, or its text; "O2" by default, and with a
            budget "O3".
        budget: what lossy passes may cost. Without one they do nothing.
        target: where the result is to be fast; nothing is then done for speed that does not make
            it faster there.
        report: gets one record per pass.

    Returns:
        a new graph; the one given is not changed.

    Raises:
        BudgetExceededError: no compression stays within the budget.
    """
    report = report if report is not None else Report()
    pipeline = _pipeline(passes, budget)
    with _timed(report, "load"):
        graph = model.clone() if isinstance(model, Graph) else _read(model, report)
    if budget is None:
        return _optimized(graph, pipeline, report, instruments)
    file = Path(model) if isinstance(model, (str, Path)) else None
    aim = None if target is None else base.find(target)
    with original_model(graph, file) as original:
        compression = _compression(original, budget, aim)
    return _optimized(graph, pipeline, report, instruments, compression)


def _compression(original: OnnxModel, budget: Budget, target: base.Target | None) -> Compression:
    """What spends `budget` on a model that is to be fast on `target`, anywhere if None."""
    if target is None:
        return Compression.of(original, original.signature, budget)
    stopwatch = None
    if target.runs_here:
        build = partial(temporary_artifact, target=target)
        stopwatch = Stopwatch(build, bool(target.multiplies_bytes))
    levels = target.row_levels
    speed = Speed(target.multiplies_bytes, target.multiplies_bfloat16, levels, stopwatch)
    return Compression.of(original, original.signature, budget, speed)


@cache
def _versions() -> dict[str, str]:
    """Of Python and what results depend on; each takes reading a file."""
    return {name: version(name) for name in _VERSIONS} | {"python": python_version()}


def _optimized(
    graph: Graph,
    pipeline: Pipeline,
    report: Report,
    instruments: Sequence[Instrument],
    compression: Compression | None = None,
) -> Graph:
    """`graph` after `pipeline`; changed in place unless there is a budget."""
    before = size_of(graph)
    report.tables = tables_of(graph)

    def run(graph: Graph, spending: Spending | None) -> None:
        PassManager(report, instruments, budget=spending).run(graph, pipeline)

    with _timed(report, "optimize"):
        if compression is not None:
            graph = compression.run(graph, run, report)
        else:
            run(graph, None)
    after = size_of(graph)
    report.facts |= {
        "versions": _versions(),
        "pipeline": str(pipeline),
        "nodes": [before.nodes, after.nodes],
        "constant_bytes": [before.bytes, after.bytes],
        "producer": graph.metadata.get("producer", ""),
    }
    report.warnings += map(_inexact, inexact_ids(graph))
    if maps := graph.metadata.get("tensors_of_maps"):
        report.warnings.append(f"{maps}: tensors of scores, a column a label, in place of maps")
    return graph


def compile(
    model: Model,
    target: str = "cpu",
    *,
    passes: str | Pipeline | None = None,
    budget: Budget | None = None,
    output: str | Path | None = None,
    oob: base.Oob = "error",
    precision: base.Precision = "fp32",
    verify: bool = True,
    inputs: Mapping[str, np.ndarray] | None = None,
    latency_batches: Sequence[int] = (),
    tuning: Tuning | None = None,
    report: Report | None = None,
    instruments: Sequence[Instrument] = (),
    progress: Callable[[str], None] | None = None,
) -> Runnable:
    """Optimize `model` and make it runnable on `target`.

    Args:
        output: the artifact folder, or the `.onnx` file of a portable target; replaced only when
            all is well. None for a temporary place that lives as long as the result.
        oob: what an id outside its table does: "error", "clamp" to the nearest row, or "zero".
        precision: what dense layers multiply; "tf32", "fp16" (both GPUs only) and "bf16" round
            their operands to 11, 11 and 8 significant bits, add up in float32, and are verified
            with the tolerance of a model in such numbers; "tf32x3" (GPUs only) keeps about 20 bits.
        budget: how much worse the answers may be, and on which data; what is kept has been measured
            on rows that had no part in choosing what to change.
        verify: compare with the source model, in ONNX Runtime, before anything is kept; under a
            budget by the budget's metric.
        inputs: what to compare on; random valid inputs at batch 1, 7 and 64 if None.
        latency_batches: batch sizes at which to measure whether ONNX Runtime is faster on the
            portable model; the artifact records it for `load(path, engine="auto")`.
        tuning: where the parameters of kernels come from; their defaults if None.
        progress: called with the name of each stage as it begins.

    Raises:
        VerificationError: the result does not agree with the source; nothing is written.
        BudgetExceededError: no compression stays within the budget; nothing is written.
        UnsupportedOpError: an op cannot be compiled for this target.
        TuningMissError, TuningCacheError: the tuning cache is of no use.
    """
    found = _target(target, oob, precision, compared=bool(latency_batches))
    report = report if report is not None else Report()
    tell = progress or (lambda stage: None)
    pipeline = _pipeline(passes, budget)
    tell("load")
    source = model if isinstance(model, Graph) else _read(model, report)
    file = Path(model) if isinstance(model, (str, Path)) else None
    compression = None
    if budget is not None:
        tell("measure")
        with _timed(report, "measure"), original_model(source, file) as original:
            compression = _compression(original, budget, found)
    tell("optimize")
    graph = _optimized(source.clone(), pipeline, report, instruments, compression)
    report.facts |= {"target": target, "oob": oob}
    check_against = Original(source, file, inputs, compression) if verify else None
    stages = Stages(report, tell)
    holder = None
    if output is None:
        holder = scratch_folder()
        output = Path(holder.name) / ("model.onnx" if found.portable else "model.gopt")
    result: Runnable
    if found.portable:
        result = write_portable(graph, found, Path(output), check_against, stages)
    else:
        result = write_artifact(graph, found, Path(output), oob, check_against, stages, tuning)
    if latency_batches and isinstance(result, Artifact):
        tell("measure engines")
        result = record_engines(result, latency_batches)
        report.facts["engines"] = result.manifest["engines"]
    if holder is not None:
        weakref.finalize(result, holder.cleanup)
    return result


def check(
    a: str | Path,
    b: str | Path,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    batches: Sequence[int] = (1, 7, 64),
    rtol: float = 1e-4,
    atol: float = 1e-5,
    seed: int = 0,
) -> Comparison:
    """Compare the outputs of two models or artifacts.

    Args:
        inputs: what to run them on; random valid inputs at each of `batches` if None.
        rtol, atol: an element differs if |a - b| > atol + rtol * |b|. The defaults allow for a
            different order of float32 additions.

    Returns:
        the worst element over all outputs and batches.
    """
    first, second = runnable(a), runnable(b)
    feeds: Sequence[Mapping[str, np.ndarray]]
    if inputs is not None:
        feeds = [inputs]
    else:
        feeds, _ = random_feeds(_sized(a if Path(a).is_dir() else b), first.run, batches, seed)
    return compare(first, second, feeds, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------ pieces


def _inexact(found: tuple[Value, IdRange, int]) -> str:
    value, ids, lost = found
    column = "".join(f"[axis {axis}, {first}:{last}]" for axis, first, last in ids.region)
    return (
        f"input {value.name!r}{column} carries ids of {' + '.join(ids.node)} as {value.dtype}, "
        f"which has no {lost}; with {ids.high} rows, such ids read another row: export with int64"
    )


def _target(target: str, oob: base.Oob, precision: base.Precision, compared: bool) -> base.Target:
    """The target of that name, if it computes as asked and, if `compared`, next to other engines.

    Raises:
        SpecError: there is no such target, policy or precision, or no such combination.
    """
    if oob not in base.OOB_POLICIES:
        raise SpecError(f"oob is one of {', '.join(base.OOB_POLICIES)}, not {oob!r}")
    if precision not in base.PRECISIONS:
        raise SpecError(f"precision is one of {', '.join(base.PRECISIONS)}, not {precision!r}")
    found = base.find(target).computing(precision)
    if compared and (found.portable or oob != "error"):
        raise SpecError("engines are compared for a compiling target and oob=error only")
    return found


def _pipeline(passes: str | Pipeline | None, budget: Budget | None = None) -> Pipeline:
    if passes is None:
        passes = "O2" if budget is None else "O3"
    pipeline = _parsed(passes)
    if budget is not None:
        require_spender(pipeline)
    return pipeline


def _parsed(passes: str | Pipeline) -> Pipeline:
    if isinstance(passes, Pipeline):
        return passes
    return Pipeline.parse(passes)


def _read(model: str | Path | onnx.ModelProto, report: Report) -> Graph:
    if isinstance(model, onnx.ModelProto):
        return onnx_io.from_proto(model)
    with _timed(report, "load"):
        graph = onnx_io.load(model)
        with Path(model).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    report.facts |= {"source": Path(model).name, "source_sha256": digest}
    return graph


@contextmanager
def _timed(report: Report, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        report.took(stage, start)


def runnable(path: str | Path, engine: Literal["compiled", "auto"] = "compiled") -> Runnable:
    """The artifact or the model (in ONNX Runtime) at `path`, ready to run.

    Args:
        engine: what runs an artifact; see `graphopt.load`.

    Raises:
        ArtifactError, InvalidModelError, UnsafePathError: it cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        artifact = Artifact.load(path)
        return AutoEngine(artifact) if engine == "auto" else artifact
    graph = onnx_io.load(path)  # our own checks come first: a model is untrusted
    return OnnxModel(path, signature=signature_of(graph)).as_written()


def random_inputs(
    path: str | Path, engine: Runnable, batch: int = 1, seed: int = 0
) -> Mapping[str, np.ndarray]:
    """Random inputs that `engine`, the model or artifact at `path`, accepts.

    Raises:
        InputError: it accepts none of this batch size.
    """
    return random_feeds(_sized(path), engine.run, (batch,), seed)[0][0]


def _sized(path: str | Path) -> Graph:
    """A graph of the model or artifact that knows which sizes of its inputs must agree."""
    path = Path(path)
    return onnx_io.load(path / PORTABLE) if path.is_dir() else optimize(path)
