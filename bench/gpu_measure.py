"""Checks and times compiled models on a GPU, with no more than a payload holds.

Every case of a folder (see `gpu_cases`) is run at every batch size that it has inputs of, and timed
at those asked for, in each precision that it was compiled in. Peers follow when all that is done.
What is known is written as it comes, and a model that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  brings CUDA's runtime with it, so that it is found

import gpu_device
import gpu_lookup
import gpu_peers
import gpu_report
from gpu_timing import SLOW, Arrays, arrays_of, batches_of, clocked, repeated, worst_error

import graphopt
from graphopt.errors import ArtifactError, GraphoptError
from graphopt.serving.artifact import Artifact

Row = dict[str, Any]


LATE = "there was no time left"


def measure(
    case: Path, batches: Sequence[int], seconds: float, end: float = math.inf
) -> dict[str, Any]:
    """All batch sizes of one model; what fails is said, and the rest goes on.

    Args:
        end: when to begin with no more of them, as `time.monotonic` counts.
    """
    described: dict[str, Any] = json.loads((case / "case.json").read_text())
    found: dict[str, Any] = {"rows": [], "left_out": described["left_out"]}
    artifacts = {}
    for path in sorted(case.glob("*.gopt")):
        start = time.perf_counter()
        artifacts[path.stem] = graphopt.load(path)
        found.setdefault("load_seconds", {})[path.stem] = round(time.perf_counter() - start, 3)
    most = described["most"]
    batches = [batch for batch in batches if most is None or batch <= most]
    for batch, inputs, expected in _samples(case, batches, next(iter(artifacts.values()))):
        if time.monotonic() > end:
            found["left_out"][str(batch)] = LATE
            continue
        row: Row = {"batch": batch, "engines": {}, **described["costs"].get(str(batch), {})}
        for precision, artifact in artifacts.items():
            timed = seconds if batch in batches else 0.0
            row["engines"][f"graphopt {precision}"] = _measured(
                artifact, inputs, expected, precision, timed
            )
        found["rows"].append(row)
    return found


def _samples(
    case: Path, batches: Sequence[int], artifact: Artifact
) -> Iterator[tuple[int, Arrays, Arrays]]:
    """Batch sizes, inputs, and expected outputs or their first rows.

    The largest batch that is stored is repeated for larger ones, if samples are known not to depend
    on each other.
    """
    stored = batches_of(case)
    for batch in stored:
        yield batch, arrays_of(case, "inputs", batch), arrays_of(case, "expected", batch)
    grow, largest = artifact.manifest["batch_inputs"], stored[-1]
    for batch in batches:
        if grow is None or batch <= largest or batch % largest:
            continue
        given = arrays_of(case, "inputs", largest)
        ordered = {spec.name: given[spec.name] for spec in artifact.signature.inputs}
        inputs = repeated(ordered, grow, batch // largest)
        yield batch, inputs, arrays_of(case, "expected", largest)


def _measured(
    artifact: Artifact, inputs: Arrays, expected: Arrays, precision: str, seconds: float
) -> dict[str, Any]:
    try:
        start, errors = time.perf_counter(), []
        for _ in range(4):  # a graph of the calls is made after some: each way is checked
            errors.append(worst_error(artifact.run(inputs), expected, precision))
            if time.perf_counter() - start > 1:
                break
        found: dict[str, Any] = {"error": max(errors)}
        if seconds:
            found |= _times(artifact, inputs, seconds)
    except Exception as error:  # other sizes and models may work
        return {"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return found


def _times(artifact: Artifact, inputs: Arrays, seconds: float) -> dict[str, float]:
    there = {name: gpu_device.resident(array) for name, array in inputs.items()}
    call = clocked(lambda: artifact.run_device(there), seconds)
    count = min(200, max(5, int(seconds * 1e6 / call))) if call < 1e6 * SLOW else 1
    return {
        "device": float(median(artifact.device_times(there, count))),
        "call": call,
        **_call_with_room(artifact, inputs, there, seconds),
        "end_to_end": clocked(lambda: artifact.run(inputs), seconds),
    }


def _call_with_room(
    artifact: Artifact, inputs: Arrays, there: dict[str, Any], seconds: float
) -> dict[str, float]:
    """`call` where the caller says what memory results go to, if the program can be told."""
    room = {
        name: gpu_device.resident(np.empty_like(array))
        for name, array in artifact.run(inputs).items()
    }
    try:
        return {"call_out": clocked(lambda: artifact.run_device(there, out=room), seconds)}
    except ArtifactError:  # sizes are known only at run time
        return {}


def kernels_of(case: Path, batch: int) -> dict[str, list[tuple[str, int, float]]]:
    """By precision: name, launches and microseconds of the kernels of a call, longest first.

    They are launched one by one, which takes longer than in a CUDA graph, on the GPU too.
    """
    inputs, found = arrays_of(case, "inputs", batch), {}
    for path in sorted(case.glob("*.gopt")):
        artifact = graphopt.load(path)
        try:
            calls = np.array([artifact.profile(inputs) for _ in range(7)]) / 1000
        except ArtifactError:  # a program with loops
            continue
        totals: dict[str, tuple[int, float]] = {}
        for entry, microseconds in zip(artifact.manifest["program"], np.median(calls, 0).tolist()):
            launches, total = totals.get(entry["kernel"], (0, 0.0))
            totals[entry["kernel"]] = launches + 1, total + microseconds
        rows = [(name, count, total) for name, (count, total) in totals.items()]
        found[path.stem] = sorted(rows, key=lambda row: -row[2])
    return found


def versions() -> dict[str, str]:
    """Of what takes part in the measurement."""
    found = {}
    for name in ("numpy", "torch", "triton", "onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure the cases of a folder; 0 if all answers of ours were right."""
    options = _options(arguments)
    try:
        found: dict[str, Any] = {"device": gpu_device.describe()}
    except GraphoptError as error:
        print(error)
        return 1
    end = time.monotonic() + options.limit
    found["ceilings"] = gpu_device.ceilings()
    found |= {"versions": versions(), "date": datetime.now(UTC).strftime("%Y-%m-%d"), "models": {}}
    print(gpu_report.heading(found), flush=True)
    names = options.only.split(",") if options.only else sorted(os.listdir(options.cases))
    folders = [options.cases / name for name in names]
    for folder in folders:
        if folder.name == gpu_lookup.NAME:
            found["lookups"] = gpu_lookup.measure(folder, options.seconds)
            speed = found["ceilings"]["bytes_per_s"]
            print(*gpu_lookup.lines(found["lookups"], speed), sep="\n", flush=True)
        else:
            found["models"][folder.name] = model = _model(folder, options, end)
            print(gpu_report.lines(folder.name, model), flush=True)
        _write(found, options.json)
    if options.peers and time.monotonic() < end:
        _add_peers(found, [f for f in folders if f.name in found["models"]], options, end)
        print(gpu_report.comparison(found), flush=True)
    return 0 if all(_right(model) for model in found["models"].values()) else 1


def _model(case: Path, options: argparse.Namespace, end: float) -> dict[str, Any]:
    if time.monotonic() > end:
        return {"failure": LATE}
    try:
        model = measure(case, _numbers(options.batches), options.seconds, end)
        if options.profile in batches_of(case):
            model["kernels"] = kernels_of(case, options.profile)
        return model
    except Exception as error:  # the other models are still of use
        return {"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def _add_peers(
    found: dict[str, Any], cases: Sequence[Path], options: argparse.Namespace, end: float
) -> None:
    """Measure peers; what is known is written as it comes."""
    for name, batch, engine, times in gpu_peers.measure(
        cases,
        _numbers(options.peer_batches),
        options.peers.split(","),
        options.seconds,
        min(options.peer_seconds, end - time.monotonic()),
        options.cache,
    ):
        for row in found["models"][name].get("rows", ()):
            if row["batch"] == batch:
                row["engines"][engine] = times
                print(gpu_report.line(name, row, engine), flush=True)
        _write(found, options.json)
        if time.monotonic() > end:
            break


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="checks and times compiled models on this GPU")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--only", default="", help="names of models, in this order")
    parser.add_argument("--batches", default="1,512,8192", help="the batch sizes to time")
    parser.add_argument("--peer-batches", default="1,512,8192", help="those for peers")
    parser.add_argument("--peers", default="", help="torch, onnxruntime")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each measurement")
    parser.add_argument("--peer-seconds", type=float, default=600, help="to compile peers in")
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds to begin all this in"
    )
    parser.add_argument("--cache", type=Path, help="a folder to keep what PyTorch compiles")
    parser.add_argument("--profile", type=int, default=0, metavar="BATCH", help="kernels of a call")
    parser.add_argument("--json", type=Path, help="write it all here")
    return parser.parse_args(arguments)


def _write(found: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n")


def _right(model: dict[str, Any]) -> bool:
    ours = [
        times
        for row in model.get("rows", ())
        for engine, times in row["engines"].items()
        if engine.startswith("graphopt")
    ]
    return bool(ours) and all(times.get("error", 2.0) <= 1 for times in ours)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
