"""Everything that a user can get wrong, with what graphopt must say about it."""

from __future__ import annotations

from bad_inputs import arguments, arrays, artifacts, machine, models
from bad_inputs.case import Case, Kit

CASES: list[Case] = [
    *models.CASES,
    *arguments.CASES,
    *arrays.CASES,
    *artifacts.CASES,
    *machine.CASES,
]

__all__ = ["CASES", "Case", "Kit"]
