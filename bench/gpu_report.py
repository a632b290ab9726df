"""Measurements of GPUs as text: what was found of each model, and how it compares with peers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from statistics import geometric_mean
from typing import Any

MISSING = "not measured"
TIMES = ("device", "call", "end_to_end")
_STAND_INS = {"fp32": ("tf32x3",)}


def heading(found: dict[str, Any]) -> str:
    """The device, and what it was measured to be able to do."""
    device, limits = found["device"], found["ceilings"]
    parts = [f"copies at {limits['bytes_per_s'] / 1e9:.0f} GB/s"]
    for name in ("fp32", "tf32"):
        if f"{name}_flop_per_s" in limits:
            parts.append(f"{name} products at {limits[f'{name}_flop_per_s'] / 1e12:.0f} TFLOP/s")
    return f"{device['name']} (compute capability {device['capability']}): {', '.join(parts)}"


def lines(name: str, model: dict[str, Any]) -> str:
    """What was measured of one model."""
    if "failure" in model:
        return f"{name}: {model['failure']}"
    text = [line(name, row, engine) for row in model["rows"] for engine in row["engines"]]
    for precision, kernels in model.get("kernels", {}).items():
        for kernel, count, microseconds in kernels[:6]:
            text.append(f"{precision:>29} {microseconds:9.1f} us in {count} of {kernel}")
    return "\n".join(text)


def line(name: str, row: dict[str, Any], engine: str) -> str:
    """What was measured of one engine at one batch size."""
    times = row["engines"][engine]
    if "failure" in times:
        figures = [times["failure"]]
    else:
        figures = [f"error {times['error']:.3f}"]
        figures += [f"{key} {times[key]:.1f}" for key in TIMES if key in times]
        figures += achieved(row, times)
    return f"{name:23}{row['batch']:>6} {engine:14} {'  '.join(figures)}"


def achieved(row: dict[str, Any], times: dict[str, float]) -> list[str]:
    """Bytes and operations a second, as far as both the work and the time are known."""
    if "device" not in times:
        return []
    seconds, found = times["device"] / 1e6, []
    if "bytes" in row:
        found.append(f"{row['bytes'] / seconds / 1e9:.0f} GB/s")
    if "flops" in row:
        found.append(f"{row['flops'] / seconds / 1e12:.2f} TFLOP/s")
    return found


def ratios(found: dict[str, Any], peer: str, ours: str, time: str) -> dict[int, dict[str, float]]:
    """By batch size and model, the peer's time over ours: above 1 we are faster."""
    result: dict[int, dict[str, float]] = {}
    for name, model in found["models"].items():
        for row in model.get("rows", ()):
            both = [row["engines"].get(engine, {}).get(time) for engine in (peer, ours)]
            if None not in both:
                result.setdefault(row["batch"], {})[name] = both[0] / both[1]
    return result


def _pairs(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Peers, and what of ours computes in the same precision or in its stand-in."""
    engines: dict[str, None] = {}
    for model in found["models"].values():
        for row in model.get("rows", ()):
            engines.update(dict.fromkeys(row["engines"]))
    for engine in engines:
        precision = engine.rpartition(" ")[2]
        for ours in (precision, *_STAND_INS.get(precision, ())):
            if not engine.startswith("graphopt") and f"graphopt {ours}" in engines:
                yield engine, f"graphopt {ours}"


def comparison(found: dict[str, Any]) -> str:
    """Geometric means of the ratios to each peer."""
    text = []
    for peer, ours in _pairs(found):
        for time in TIMES:
            for batch, by_model in sorted(ratios(found, peer, ours, time).items()):
                worst = min(by_model, key=lambda name: by_model[name])
                text.append(
                    f"{peer} over {ours}, {time}, batch {batch}: "
                    f"{geometric_mean(by_model.values()):.2f} over {len(by_model)} models, "
                    f"smallest {by_model[worst]:.2f} ({worst})"
                )
    return "\n".join(text) or MISSING


# ------------------------------------------------------------------ for the pages


def headline(file: Path) -> str:
    """The means next to the peer that was measured first."""
    found = json.loads(file.read_text())
    return _means(found, *next(_pairs(found)))


def markdown(file: Path) -> str:
    """What there is to say of a file of measurements, which need not be there."""
    if not file.exists():
        return f"Speed on a GPU: {MISSING}."
    found = json.loads(file.read_text())
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [f"{heading(found)}; {found['date']}, {versions}."]
    if "lookups" in found:
        parts.append(_lookups(found["lookups"], found["ceilings"]["bytes_per_s"]))
    parts.append(_answers(found))
    pairs = list(_pairs(found))
    if not pairs:
        return "\n\n".join([*parts, f"Other engines: {MISSING}."])
    parts.append(_MEANING)
    return "\n\n".join(
        [*parts, *(_means(found, *pair) for pair in pairs), _table(found, *pairs[0])]
    )


_MEANING = """\
`device` is time on the GPU's clock: of our kernels alone, but for PyTorch of everything between two
events around a call, which in small batches is mostly its host code. `call` goes from tensors on
the GPU to new tensors on the GPU. `end_to_end` goes from NumPy arrays to NumPy arrays: our inputs
are copied at once, PyTorch's one by one and unpinned. PyTorch is
`torch.compile(mode="max-autotune")` on the optimized graph, for each shape; the number of models
that it compiled in the time there was is in brackets. Above 1 we are faster."""


def _answers(found: dict[str, Any]) -> str:
    """How many models were right everywhere, and which were not."""
    right, wrong = 0, []
    for name, model in found["models"].items():
        if "failure" in model:
            wrong.append(f"{name} was {MISSING}")
            continue
        bad = [
            f"{name} at batch {row['batch']}: {engine} is off by {times.get('error', inf):.2f} "
            "times that"
            for row in model["rows"]
            for engine, times in row["engines"].items()
            if engine.startswith("graphopt") and times.get("error", 2.0) > 1
        ]
        right, wrong = right + (not bad), wrong + bad
    rest = f"; {'; '.join(wrong)}" if wrong else ""
    return f"Answers of {right} models are within what is allowed (`gpu_timing.py`){rest}."


def _means(found: dict[str, Any], peer: str, ours: str) -> str:
    """Geometric means of the peer's times over ours."""
    by_time = {time: ratios(found, peer, ours, time) for time in TIMES}
    batches = sorted({batch for by_batch in by_time.values() for batch in by_batch})
    rows = [_line([f"{peer} over {ours}, mean (models)", *(f"batch {b}" for b in batches)])]
    rows.append("|---|" + "---:|" * len(batches))
    for time, by_batch in by_time.items():
        values = [list(by_batch.get(batch, {}).values()) for batch in batches]
        cells = [f"{geometric_mean(v):.2f} ({len(v)})" if v else MISSING for v in values]
        rows.append(_line([f"`{time}`", *cells]))
    return "\n".join(rows)


def _lookups(found: dict[str, Any], ceiling: float) -> str:
    shares = [
        f"{row['bytes'] / (row['device'] / 1e6) / ceiling:.0%} at batch {batch}"
        for batch, row in found["batches"].items()
    ]
    shape = f"{found['tables']} tables of {found['rows']:,} rows of {found['dim']} float32"
    return f"Lookups in {shape}, as a share of a copy's speed: {', '.join(shares)}."


def _table(found: dict[str, Any], peer: str, ours: str) -> str:
    """Microseconds of ours by model and batch size: device, end to end, and the peer's over it."""
    by_batch = ratios(found, peer, ours, "end_to_end")
    batches = sorted(by_batch)
    title = f"{ours}: `device` / `end_to_end`, µs ({peer} over the latter)"
    rows = [_line([title, *(f"batch {batch}" for batch in batches)])]
    rows.append("|---|" + "---:|" * len(batches))
    for name, model in found["models"].items():
        times = {row["batch"]: row["engines"].get(ours, {}) for row in model.get("rows", ())}
        cells = []
        for batch in batches:
            both = [times.get(batch, {}).get(key) for key in ("device", "end_to_end")]
            shown = MISSING if None in both else " / ".join(f"{time:,.0f}" for time in both)
            ratio = by_batch[batch].get(name)
            cells.append(shown if ratio is None else f"{shown} ({ratio:.2f})")
        rows.append(_line([name, *cells]))
    return "\n".join(rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
