"""The options of an error budget, together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import SpecError

if TYPE_CHECKING:
    from graphopt.accuracy.budget import Budget


def read(
    data: Path | None,
    metric: str | None,
    max_drop: float | None,
    labels: str,
    group: str,
    score: str | None,
    columns: Sequence[str],
    trace: Path | None,
) -> Budget | None:
    """The budget that options describe, None if they ask for none.

    Raises:
        SpecError: they do not make sense together.
    """
    if data is None or max_drop is None:
        if any(option is not None for option in (data, metric, max_drop, score, trace)) or columns:
            raise SpecError("an error budget takes both --data and --max-drop")
        return None
    from graphopt.accuracy.budget import Budget

    made = [entry.partition("=") for entry in columns]
    for name, _, parts in made:
        if not name or not parts:
            raise SpecError(f"--columns wants INPUT=NAME,…, not {name!r}")
    return Budget(
        data,
        max_drop,
        metric or "mean-error",
        score,
        labels,
        group,
        {name: parts.split(",") for name, _, parts in made},
        trace,
    )
