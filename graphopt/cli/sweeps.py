"""`graphopt optimize --sweep`: what a range of budgets buys, as a table, JSON and a plot."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Context

from graphopt.cli import budgets, console
from graphopt.cli.console import size_text, table
from graphopt.cli.options import pipeline
from graphopt.errors import SpecError

if TYPE_CHECKING:
    from graphopt.accuracy.budget import Budget
    from graphopt.measuring.pareto import Point, Sweep

PLOTS = (".png", ".svg", ".pdf")
BUDGET = ("labels", "group", "score", "columns", "trace")
SHARED = ("target", "level", "passes", "oob", "data", "metric", *BUDGET)  # by all points
OWN = ("model", "sweep", "plot", "report_file", "quiet", "verbose")


def run(context: Context) -> None:
    """Sweep as the options of `graphopt optimize` say: print the table, write what is asked for.

    Raises:
        SpecError: the options do not make sense together.
    """
    from graphopt.ir.atomic import replacing
    from graphopt.measuring import pareto

    options = context.params
    limits = drops(options["sweep"])
    plot, report = options["plot"], options["report_file"]
    shared = _shared(context)
    if options["data"] is None:
        raise SpecError("--sweep takes --data to measure on")
    if plot is not None:
        _require_plotting(plot)
    with console.progress(options["quiet"], options["verbose"]) as tell:
        found = pareto.sweep(
            options["model"],
            options["target"],
            budget=_budget(options),
            drops=limits,
            passes=pipeline(options["level"], options["passes"]),
            oob=options["oob"].value,
            progress=tell,
        )
    if report is not None:
        with replacing(report) as temporary:
            temporary.write_text(to_json(found, options["model"], shared))
    if plot is not None:
        with replacing(plot) as temporary:
            draw(found, temporary, plot.suffix[1:])
    show(found, options["model"], shared)


def _shared(context: Context) -> dict[str, Any]:
    """The options that were given and that all points have in common, as they are spelled.

    Raises:
        SpecError: others were given.
    """
    found = {}
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is None or source.name != "COMMANDLINE" or param.name in OWN:
            continue
        option = param.opts[-1]
        if param.name not in SHARED:
            raise SpecError(f"--sweep has no use for {option}: it tries budgets and keeps no model")
        found[option] = context.params[param.name]
    return found


def _budget(options: Mapping[str, Any]) -> Budget:
    more = (options[name] for name in BUDGET)
    budget = budgets.read(options["data"], options["metric"], 0.0, *more)
    assert budget is not None
    return budget


def drops(text: str) -> tuple[float, ...]:
    """The budgets in the text of an option.

    Raises:
        SpecError: it does not list numbers of at least 0.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= drop < float("inf") for drop in found):
        raise SpecError(f"--sweep takes budgets such as 0.0001,0.001, not {text!r}")
    return found


def command(model: Path, shared: Mapping[str, Any], drop: float) -> str:
    """The command that makes the model of one point, for a shell.

    Args:
        shared: values by option; one that is a sequence is repeated.
    """
    words = ["graphopt", "optimize", str(model)]
    for name, value in {**shared, "--max-drop": repr(drop)}.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [word for v in values for word in (name, str(v))]
    return shlex.join(words)


def show(sweep: Sweep, model: Path, shared: Mapping[str, Any]) -> None:
    """Print a line for each point, and below the commands that make them."""
    out = console.stdout()
    columns = ("budget", ">size", f">time, {sweep.rows} rows", f">{sweep.metric}", ">drop")
    rows = [_row(point, sweep.points[0]) for point in sweep.points]
    out.print(table((*columns, ">95 % between", ""), rows))
    out.print("\n* no other is as good in size, time and drop\n")
    for point in sweep.points:
        if point.max_drop is not None and not point.failure:
            out.print(command(model, shared, point.max_drop), soft_wrap=True)


def _row(point: Point, full: Point) -> tuple[str, ...]:
    budget = "none" if point.max_drop is None else f"{point.max_drop:g}"
    if point.verdict is None:
        return (budget, "cannot be met", "", "", "", "", "")
    verdict = point.verdict
    low, high = verdict.interval
    return (
        budget,
        f"{size_text(point.bytes)} ({point.bytes / full.bytes:.2f})",
        f"{point.microseconds:.0f} µs ({point.microseconds / full.microseconds:.2f})",
        f"{verdict.after:.6f}",
        f"{verdict.drop:.2g}",
        f"{low:.2g}, {high:.2g}",
        "*" if point.best else "",
    )


def to_json(sweep: Sweep, model: Path, shared: Mapping[str, Any]) -> str:
    """The sweep as JSON, each point with its command."""
    data = sweep.to_json()
    for point in data["points"]:
        drop, failed = point["max_drop"], point["failure"]
        point["command"] = None if drop is None or failed else command(model, shared, drop)
    return json.dumps(data, indent=2) + "\n"


def _require_plotting(path: Path) -> None:
    """
    Raises:
        SpecError: there is nothing here to plot with, or the file has no name of a plot.
    """
    from importlib.util import find_spec

    if path.suffix not in PLOTS:
        raise SpecError(f"--plot {path}: the name should end in {', '.join(PLOTS)}")
    if find_spec("matplotlib") is None:
        raise SpecError("--plot needs matplotlib; pip install 'graphopt[plot]'")


def draw(sweep: Sweep, path: Path, form: str) -> None:
    """Plot the drop of the metric against size and against latency, as "png", "svg" or "pdf"."""
    from matplotlib.figure import Figure

    points = [point for point in sweep.points if point.verdict is not None]
    figure = Figure(figsize=(9, 4), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    _draw(sides[0], points, [point.bytes / 1e6 for point in points], "MB")
    _draw(sides[1], points, [p.microseconds for p in points], f"µs for {sweep.rows} rows")
    sides[0].set_ylabel(f"drop of {sweep.metric} on held-out rows")
    figure.savefig(path, format=form)


def _draw(side: Any, points: Sequence[Point], sizes: Sequence[float], unit: str) -> None:
    side.set_xlabel(unit)
    side.set_xlim(0, 1.1 * max(sizes))
    for point, size in zip(points, sizes):
        assert point.verdict is not None
        drop, (low, high) = point.verdict.drop, point.verdict.interval
        label = "no budget" if point.max_drop is None else f"{point.max_drop:g}"
        around = [[max(0.0, drop - low)], [max(0.0, high - drop)]]
        side.errorbar(size, drop, yerr=around, marker="o", color="C0" if point.best else "0.7")
        side.annotate(label, (size, drop), xytext=(3, 4), textcoords="offset points", rotation=45)
