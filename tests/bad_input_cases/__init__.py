"""Everything that a user can get wrong, with what graphopt must say about it."""

from __future__ import annotations

from bad_input_cases import arguments, arrays, artifacts, machine, models
from bad_input_cases.case import Case, Kit

CASES: list[Case] = [
    *models.CASES,
    *arguments.CASES,
    *arrays.CASES,
    *artifacts.CASES,
    *machine.CASES,
]

__all__ = ["CASES", "Case", "Kit"]
