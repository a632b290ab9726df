"""The options of tuning, together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import options

if TYPE_CHECKING:
    from graphopt.targets.tuning.options import Tuning


def read(
    seconds: float | None,
    trials: int | None,
    rpc: str | None,
    batches: str,
    cache: Path | None,
    read_only: bool,
    error_on_miss: bool,
    meta_schedule: bool,
) -> Tuning | None:
    """The tuning that options describe, None if they ask for none.

    Raises:
        SpecError: they do not make sense together, or one of them alone.
    """
    asked = (seconds, trials, rpc, cache) != (None,) * 4
    if not (asked or error_on_miss or meta_schedule):
        return None
    from graphopt.targets.tuning.options import Tuning
    from graphopt.targets.tuning.remote import Remote

    return Tuning(
        cache=cache,
        seconds=seconds,
        trials=trials,
        batches=options.batch_sizes(batches, "--tune-batches"),
        read_only=read_only,
        error_on_miss=error_on_miss,
        meta_schedule=meta_schedule,
        remote=None if rpc is None else Remote.parse(rpc),
    )
