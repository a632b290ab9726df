"""What a compilation is told about tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt.errors import SpecError
from graphopt.targets.tuning.remote import Remote

BATCHES = (1, 64, 512)


@dataclass(frozen=True)
class Tuning:
    """How the parameters of kernels are found; the defaults are taken where nothing is known.

    Attributes:
        cache: the file that keeps measurements; None to forget them.
        seconds, trials: no measurement begins after so many seconds, or so many measurements; None
            for no limit. With neither, nothing is measured and only the cache is asked.
        batches: what layers are measured at; the geometric mean over them is what counts.
        read_only: never write to the cache.
        error_on_miss: a kernel of which the cache knows nothing is an error.
        remote: a machine with a GPU that measures, if this one is not to.
        meta_schedule: search schedules for kernels that have no template, at each of `batches`. Of
            the limits half is then for those that have one, and what is left for the search.
        progress: called with the number of measurements done, of all, and the present problem.

    Raises:
        SpecError: the options contradict each other.
    """

    cache: Path | None = None
    seconds: float | None = None
    trials: int | None = None
    batches: tuple[int, ...] = BATCHES
    read_only: bool = False
    error_on_miss: bool = False
    remote: Remote | None = None
    meta_schedule: bool = False
    progress: Callable[[int, int, str], None] = lambda done, total, problem: None

    def __post_init__(self) -> None:
        if self.cache is None and (self.read_only or self.error_on_miss):
            raise SpecError("reading a tuning cache needs its file (--tuning-cache)")
        if self.measures and (self.read_only or self.error_on_miss):
            raise SpecError("a cache that is only read cannot take measurements; tune without it")
        if self.remote is not None and not self.measures:
            raise SpecError("--rpc is where kernels are measured; say how long (--tune, --trials)")

        if self.meta_schedule and not self.measures and self.cache is None:
            raise SpecError(
                "--meta-schedule is a part of tuning: say how long (--tune, --trials), "
                "or where results are (--tuning-cache)"
            )

    @property
    def measures(self) -> bool:
        """True if something may be measured."""
        return self.seconds is not None or self.trials is not None

    @property
    def of_templates(self) -> Tuning:
        """The part for kernels that have a template."""
        if not self.meta_schedule:
            return self
        seconds = None if self.seconds is None else self.seconds / 2
        return replace(self, seconds=seconds, trials=self.trials and -(-self.trials // 2))

    def less(self, seconds: float, trials: int) -> Tuning:
        """What is left after so many seconds and measurements."""
        left = None if self.seconds is None else max(0.0, self.seconds - seconds)
        return replace(self, seconds=left, trials=self.trials and self.trials - trials)
