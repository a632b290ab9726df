"""Results on disk: the file of a portable model, the folder of an artifact.

Either takes the place of what was there only once it has been verified.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from graphopt.analysis.ids import id_ranges
from graphopt.analysis.rows import batch_inputs
from graphopt.checking.verification import Original, signature_of
from graphopt.errors import OutputError
from graphopt.ir import onnx_io
from graphopt.ir.atomic import replacing_folder, scratch_folder, temporary_folder
from graphopt.ir.external_data import TensorWriter
from graphopt.ir.graph import Graph
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.report import Report
from graphopt.pipeline.spec import Pipeline
from graphopt.serving.artifact import Artifact
from graphopt.serving.manifest import (
    LIBRARY,
    MANIFEST,
    PORTABLE,
    REPORT,
    WEIGHTS,
    obstacle,
    signature_to_json,
    write_manifest,
)
from graphopt.targets import base
from graphopt.targets.portable import OnnxModel, OnnxRuntimeTarget
from graphopt.targets.tuning.options import Tuning


class Stages:
    """Times consecutive stages and tells of them."""

    def __init__(self, report: Report, tell: Callable[[str], None]) -> None:
        self.report, self.tell, self.name, self.start = report, tell, "", 0.0

    def begin(self, name: str) -> None:
        self.end()
        self.name, self.start = name, time.perf_counter()
        self.tell(name)

    def end(self) -> None:
        if self.name:
            self.report.took(self.name, self.start)
        self.name = ""


def suited(graph: Graph, target: base.Target) -> Graph:
    """`graph` after the passes of `target`'s own: a copy, if they change anything.

    The last of several cleans up after the others.
    """
    steps, working = Pipeline.parse(target.own_passes).steps, graph.clone()
    if not PassManager().run(working, Pipeline(steps[:-1] or steps)):
        return graph
    PassManager().run(working, Pipeline(steps[-1:]))
    return working


def write_portable(
    graph: Graph,
    target: base.Target,
    output: Path,
    original: Original | None,
    stages: Stages,
) -> OnnxModel:
    """Write `graph` to the `.onnx` file `output`, and compare it with the original, if given.

    Raises:
        OutputError: there is no such folder.
        VerificationError: the answers differ; nothing is written.
    """
    with temporary_folder(_parent(output)) as folder:
        stages.begin("write")
        onnx_io.save(suited(graph, target), folder / output.name)
        opened = cache(lambda: OnnxModel(folder / output.name, target.name))
        if original is not None:
            stages.begin("verify")
            original.verify(graph, lambda: [opened().as_written()], stages.report)
        result = opened()
        stages.end()
        for file in sorted(folder.iterdir(), reverse=True):  # the data file before the model
            os.replace(file, output.with_name(file.name))
    result.path = output
    return result


def write_artifact(
    graph: Graph,
    target: base.Target,
    output: Path,
    oob: base.Oob,
    original: Original | None,
    stages: Stages,
    tuning: Tuning | None,
) -> Artifact:
    """Compile `graph` into the folder `output`, and compare it with the original, if given.

    Raises:
        OutputError: there is no such folder, or something that is no artifact has the name.
        TuningMissError, TuningCacheError: the tuning cache is of no use.
        UnsupportedOpError: an op cannot be compiled for this target.
        VerificationError: the answers differ; nothing is written.
    """
    _parent(output)
    if output.exists() and not (output / MANIFEST).is_file():
        raise OutputError(f"{output}: exists and is not a graphopt artifact; choose another name")
    report = stages.report
    with replacing_folder(output) as folder:
        own = suited(graph, target)
        compiled = target.compile(own, folder / LIBRARY, oob, stages.begin, tuning)
        stages.begin("write")
        with TensorWriter(folder / WEIGHTS) as writer:
            portable = onnx_io.to_proto(suited(graph, OnnxRuntimeTarget()), writer)
            entries = [writer.place(array) for array in compiled.constants]
        (folder / PORTABLE).write_bytes(portable.SerializeToString())
        manifest = {"oob": oob, **compiled.facts, **signature_to_json(signature_of(graph))}
        manifest["batch_inputs"] = batch_inputs(graph)
        if oob == "error":
            manifest["ids"] = _valid_ids(graph)
        write_manifest(folder, {**manifest, "weights": entries})
        report.facts |= compiled.facts | compiled.kernels
        report.facts["artifact_bytes"] = sum(f.stat().st_size for f in folder.iterdir())
        report.facts["obstacle"] = obstacle(manifest)
        if original is not None:
            stages.begin("verify")
            original.verify(graph, lambda: _runnable(folder, manifest), report)
        stages.end()
        (folder / REPORT).write_text(report.to_json())
    return Artifact.foreign(output) if report.facts["obstacle"] else Artifact.load(output)


def _runnable(folder: Path, manifest: dict[str, Any]) -> list[Artifact | OnnxModel]:
    """What can be verified here of an artifact that is being written."""
    portable = OnnxModel(folder / PORTABLE).as_written()
    return [portable] if obstacle(manifest) else [Artifact.load(folder), portable]


def temporary_artifact(graph: Graph, target: base.Target) -> Artifact:
    """`graph` compiled, not verified, in a folder that lives as long as the result.

    Raises:
        UnsupportedOpError: an op cannot be compiled for this target.
    """
    folder = scratch_folder()
    place, silent = Path(folder.name) / "model.gopt", Stages(Report(), lambda stage: None)
    result = write_artifact(graph, target, place, "error", None, silent, None)
    weakref.finalize(result, folder.cleanup)
    return result


def _valid_ids(graph: Graph) -> list[dict[str, Any]]:
    """The ids that lookups take where they come straight from inputs, for `serving.bad_ids`."""
    marks = {node.where for node in graph.walk() if node.op == "OneHot"}  # of which none is wrong
    return [
        {
            "input": name,
            "node": ids.node[0],
            "region": ids.region,
            "low": 2 * ids.low - ids.high,  # negative ones count from the end
            "high": ids.high,
        }
        for name, ranges in id_ranges(graph).items()
        for ids in ranges
        if ids.sorted_axis is None and ids.node and ids.node not in marks
        if isinstance(ids.low, int) and isinstance(ids.high, int)
    ]


def _parent(output: Path) -> Path:
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")
    return output.parent
