"""What `graphopt optimize` says at the end, on stderr."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli import console
from graphopt.cli.console import size_text, table

if TYPE_CHECKING:
    from graphopt.pipeline.report import PassRecord, Report

MOST_PLACES = 4


def print_summary(report: Report, destination: Path, verbose: bool) -> None:
    """What every pass did, how long each stage took, sizes, and the outcome of verification."""
    err = console.stderr()
    shown = [record for record in report.passes if record.changed or verbose]
    columns = ("pass", ">rewrites", ">nodes", ">constants", ">seconds")
    if shown:
        err.print(table(columns, (row for record in shown for row in _rows(record, verbose))))
    idle = len(report.passes) - len(shown)
    if idle:
        runs = "runs of passes" if idle > 1 else "run of a pass"
        err.print(f"({idle} other {runs} found nothing to do)", style="dim")
    err.print()
    for label, text in _facts(report, destination):
        err.print(f"{label:<10}{text}", soft_wrap=True)


def _rows(record: PassRecord, verbose: bool) -> list[tuple[object, ...]]:
    nodes = _change(str(record.before.nodes), str(record.after.nodes))
    size = _change(size_text(record.before.bytes), size_text(record.after.bytes))
    total = sum(record.rewrites.values())
    rows: list[tuple[object, ...]] = [
        (record.spec, total or "", nodes, size, f"{record.seconds:.3f}")
    ]
    if verbose:
        rows += [(f"  {rule}", hits, "", "", "") for rule, hits in record.rewrites.items()]
    return rows


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _facts(report: Report, destination: Path) -> list[tuple[str, str]]:
    facts = report.facts
    found = [("stages", ", ".join(f"{name} {s:.2f} s" for name, s in report.stages.items()))]
    if "nodes" in facts:
        nodes, size = facts["nodes"], facts["constant_bytes"]
        text = f"nodes {_change(*map(str, nodes))}, constants {_change(*map(size_text, size))}"
        found.append(("model", text))
    if report.tables:
        total = sum(entry["bytes"] for entry in report.tables)
        found.append(("tables", f"{len(report.tables)} in the source, {size_text(total)}"))
    found.append(("verified", _verified(report.verification)))
    if "tuning" in facts:
        found.append(("tuned", _tuned(facts["tuning"])))
    if "search" in facts:
        found.append(("searched", _searched(facts["search"])))
    if "engines" in facts:
        chosen = (f"{row['batch']}: {row['fastest']}" for row in facts["engines"])
        found.append(("faster", f"at batch {', '.join(chosen)}"))
    size = f" ({size_text(facts['artifact_bytes'])})" if "artifact_bytes" in facts else ""
    found.append(("wrote", f"{destination}{size}"))
    return found


def _tuned(tuning: dict[str, Any]) -> str:
    known, problems, measured = (tuning[name] for name in ("known", "problems", "measured"))
    gain = f"; {tuning['speedup']:.2f} times as fast as by default" if known else ""
    runs = "measurement" if measured == 1 else "measurements"
    return f"{known} of {problems} kernels known, {measured} {runs}{gain}"


def _searched(search: dict[str, Any]) -> str:
    kernels, left, gains = search["kernels"], len(search["left"]), search["gains"]
    text = f"{kernels} of {kernels + left} kernels without a template, "
    text += f"{search['measured']} measurements; "
    text += f"{len(gains)} gains, {search['speedup']:.2f} times as fast" if gains else "no gain"
    return text + ("; some failed (--explain)" if search["failed"] else "")


def _verified(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "no (--no-verify)"
    if "drop" in outcome:
        return f"on rows not used for choosing: {_verdict(outcome)}"
    if outcome.get("agrees") is None:
        return f"no ({outcome.get('reason')})"
    sets = f"on {outcome['input_sets']} set{'s' if outcome['input_sets'] != 1 else ''} of inputs"
    off = max(
        (float(o["worst"]["absolute"]) for o in outcome["outputs"] if "worst" in o), default=0
    )
    return f"{sets}, the same bits" if off == 0 else f"{sets}, largest difference {off:.2g}"


def _verdict(outcome: dict[str, Any]) -> str:
    low, high = outcome["interval"]
    noise = "; the rows cannot tell the models apart" if outcome["in_noise"] else ""
    return (
        f"{outcome['metric']} {outcome['before']:.6f} → {outcome['after']:.6f} on "
        f"{outcome['rows']} rows, a drop of {outcome['drop']:.2g} "
        f"(95 % between {low:.2g} and {high:.2g}{noise})"
    )


def print_times(report: Report) -> None:
    """The passes by falling time."""
    times: dict[str, list[float]] = defaultdict(list)
    for record in report.passes:
        times[record.spec].append(record.seconds)
    total = sum(sum(runs) for runs in times.values()) or 1.0
    rows = [
        (spec, len(runs), f"{sum(runs):.4f}", f"{sum(runs) / total:.1%}")
        for spec, runs in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]
    rows.append(("all passes", len(report.passes), f"{total:.4f}", ""))
    console.stderr().print(table(("time per pass", ">runs", ">seconds", ">share"), rows), "")


def print_refusals(report: Report) -> None:
    """What rules looked at and left alone, grouped by rule and reason."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for rule, where, reason in report.refusals():
        places[rule, reason].append(" + ".join(where))
    search = report.facts.get("search", {})
    for kernel, reason in search.get("left", {}).items():
        places["meta-schedule", reason].append(kernel)
    for problem, reason in search.get("failed", {}).items():
        places["meta-schedule", f"a schedule is of no use: {reason}"].append(problem)
    err = console.stderr()
    if not places:
        err.print("explain: no rule refused anything")
    for (rule, reason), found in places.items():
        err.print(f"{rule}: {reason}", soft_wrap=True)
        for place in found[:MOST_PLACES]:
            err.print(f"    at {place}", soft_wrap=True)
        if len(found) > MOST_PLACES:
            err.print(f"    and {len(found) - MOST_PLACES} more places")
