"""`graphopt check`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from graphopt.cli import console, options
from graphopt.errors import SpecError, VerificationError

WIDE = 100
"""Characters of a terminal that has room for the worst elements beside all else."""

if TYPE_CHECKING:
    from graphopt.checking.comparison import Comparison, OutputComparison


def check(
    a: options.First,
    b: options.Second,
    inputs: options.Inputs = None,
    batch: options.Batches = "1,7,64",
    rtol: options.Rtol = 1e-4,
    atol: options.Atol = 1e-5,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Compare the answers of two models.

    They agree if |a - b| <= atol + rtol * |b| for every element; otherwise the exit status is 3.
    """
    batches = options.batch_sizes(batch)
    if not (math.isfinite(rtol) and math.isfinite(atol)):
        raise SpecError("tolerances must be finite numbers")
    from graphopt import api, arrays

    feeds = arrays.read(inputs) if inputs else None
    with console.progress(quiet=False, verbose=False) as tell:
        tell(f"compare {a.name} with {b.name}")
        found = api.check(a, b, inputs=feeds, batches=batches, rtol=rtol, atol=atol, seed=seed)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found)
    if not found.agrees:
        raise VerificationError(f"{a} and {b} differ: {found}")


def _print(found: Comparison) -> None:
    columns = ("output", ">elements", ">differ", ">abs", ">rel", ">order")
    out, rows = console.stdout(), [_row(output) for output in found.outputs]
    if out.width >= WIDE:
        out.print(console.table((*columns, "worst"), rows))
    else:
        out.print(console.table(columns, (row[:-1] for row in rows)))
        for name, *_, worst in rows:
            out.print(f"{name}: {worst}", soft_wrap=True)
    verdict = "agree" if found.agrees else "differ"
    sets = f"{found.samples} set{'s' if found.samples != 1 else ''} of inputs"
    out.print(f"\nThe answers {verdict} on {sets} (rtol {found.rtol:g}, atol {found.atol:g}).")


def _row(output: OutputComparison) -> tuple[object, ...]:
    from graphopt.checking.comparison import shown

    if output.problem is not None:
        return (output.name, "", "", "", "", "", output.problem)
    order = f"{output.ranking.pairs:.4%}" if output.ranking is not None else ""
    counts = (output.name, output.elements, output.mismatches)
    if output.worst is None:
        return (*counts, "", "", order, "(empty)")
    w = output.worst
    where = f"[{', '.join(map(str, w.index))}] of set {w.sample}: {shown(w.a)} against {shown(w.b)}"
    return (*counts, f"{w.absolute:.2g}", f"{w.relative:.2g}", order, where)
