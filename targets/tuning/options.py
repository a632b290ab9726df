"""What a compilation is told about tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    progress: Callable[[int, int, str], None] = lambda done, total, problem: None

    def __post_init__(self) -> None:
        if self.cache is None and (self.read_only or self.error_on_miss):
            raise SpecError("reading a tuning cache needs its file (--tuning-cache)")
        if self.measures and (self.read_only or self.error_on_miss):
            raise SpecError("a cache that is only read cannot take measurements; tune without it")
        if self.remote is not None and not self.measures:
            raise SpecError("--rpc is where kernels are measured; say how long (--tune, --trials)")

    @property
    def measures(self) -> bool:
        """True if something may be measured."""
        return self.seconds is not None or self.trials is not None
