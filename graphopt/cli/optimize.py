"""`graphopt optimize`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Context

from graphopt.cli import console, options
from graphopt.errors import InvalidModelError, OutputError, SpecError

if TYPE_CHECKING:
    from graphopt.pipeline.instruments import Instrument
    from graphopt.pipeline.report import Report


def optimize(
    context: Context,
    model: options.Model,
    target: options.Target = "cpu",
    level: options.Level = None,
    passes: options.Passes = None,
    output: options.Output = None,
    oob: options.OobPolicy = options.Oob.ERROR,
    precision: options.Precision = options.PrecisionName.FP32,
    verify: options.Verify = True,
    inputs: options.Inputs = None,
    data: options.Data = None,
    metric: options.MetricName = None,
    max_drop: options.MaxDrop = None,
    sweep: options.Sweep = None,
    plot: options.Plot = None,
    labels: options.Labels = "label",
    group: options.Group = "group",
    score: options.Score = None,
    columns: options.Columns = [],  # noqa: B006  # typer copies it
    trace: options.Trace = None,
    verify_latency: options.VerifyLatency = None,
    tune: options.Tune = None,
    trials: options.Trials = None,
    rpc: options.Rpc = None,
    tune_batches: options.TuneBatches = "1,64,512",
    meta_schedule: options.MetaSchedule = False,
    tuning_cache: options.TuningCache = None,
    tuning_cache_read_only: options.CacheReadOnly = False,
    error_on_cache_miss: options.ErrorOnMiss = False,
    report_file: options.ReportFile = None,
    print_ir_after: options.PrintIR = None,
    dump_ir: options.DumpIR = None,
    time_passes: options.TimePasses = False,
    explain: options.Explain = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Optimize and compile a model, and verify it.

    The answers are compared with those of the source model before anything is kept. Progress and
    results are shown on stderr; a graph that was asked for goes to stdout. With --data and
    --max-drop the model is also compressed, as far as the metric allows; --sweep compares budgets.
    """
    from graphopt import api, arrays
    from graphopt.cli import budgets, summary, sweeps, tunings
    from graphopt.pipeline.report import Report

    pipeline = options.pipeline(level, passes)
    if sweep is not None:
        return sweeps.run(context)
    if plot is not None:
        raise SpecError("--plot draws a sweep; give --sweep and the budgets")
    budget = budgets.read(data, metric, max_drop, labels, group, score, columns, trace)
    measured = options.batch_sizes(verify_latency, "--verify-latency") if verify_latency else ()
    cache = (tuning_cache, tuning_cache_read_only, error_on_cache_miss)
    tuning = tunings.read(tune, trials, rpc, tune_batches, *cache, meta_schedule)
    destination = _destination(model, target, output)
    if report_file is not None:
        _need_folder(report_file.parent)
    feeds = arrays.read(inputs) if inputs else None
    report = Report()
    try:
        with console.progress(quiet, verbose) as tell:
            api.compile(
                model,
                target,
                passes=pipeline,
                budget=budget,
                output=destination,
                oob=oob.value,
                precision=precision.value,
                verify=verify,
                inputs=feeds,
                latency_batches=measured,
                tuning=tuning and replace(tuning, progress=_tuning_progress(tell)),
                report=report,
                instruments=_instruments(print_ir_after, dump_ir, tell),
                progress=tell,
            )
        _write_report(report, report_file)
    finally:
        if explain:
            summary.print_refusals(report)
    for text in report.warnings:
        console.warning(text)
    if time_passes:
        summary.print_times(report)
    if not quiet:
        summary.print_summary(report, destination, verbose)


def _tuning_progress(tell: console.Tell) -> Callable[[int, int, str], None]:
    return lambda done, total, problem: tell(f"tune {done} of {total}: {problem}")


def _instruments(
    print_ir_after: str | None, dump_ir: Path | None, tell: console.Tell
) -> list[Instrument]:
    from graphopt.pipeline import instruments, registry

    found: list[Instrument] = [instruments.Progress(lambda name: tell(f"optimize: {name}"))]
    if print_ir_after is not None:
        if print_ir_after not in ("all", "change"):
            registry.find(print_ir_after)
        found.append(instruments.PrintIR(print_ir_after, lambda text: print(text, flush=True)))
    if dump_ir is not None:
        found.append(instruments.DumpIR(dump_ir))
    return found


def _write_report(report: Report, path: Path | None) -> None:
    from graphopt.ir.atomic import replacing

    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(report.to_json())


def _destination(model: Path, target: str, output: Path | None) -> Path:
    """Where the result goes; found out before any work is done.

    Raises:
        OutputError: something of the user's is there, or the folder does not exist.
    """
    from graphopt.serving.manifest import MANIFEST
    from graphopt.targets import base

    portable = base.find(target).portable
    if not model.name:
        raise InvalidModelError(f"{model}: is a directory; give the .onnx file inside it")
    path = output or model.with_suffix(".opt.onnx" if portable else ".gopt")
    if portable and path.suffix != ".onnx":
        raise SpecError(f"target {target} writes an .onnx file, so {path} should end in .onnx")
    if not portable and path.suffix == ".onnx" and not path.exists():
        raise SpecError(f"target {target} writes a folder, so {path} should end in .gopt")
    if output is not None:
        _need_folder(output.parent)
    if not path.exists():
        return path
    if model.exists() and path.samefile(model):
        raise OutputError(f"{path}: would overwrite the source model; choose another name")
    if not (_is_own_model(path) if portable else (path / MANIFEST).is_file()):
        raise OutputError(f"{path}: exists and was not made by graphopt; choose another name")
    return path


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")


def _is_own_model(path: Path) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False).producer_name == "graphopt"
    except (OSError, DecodeError):
        return False
