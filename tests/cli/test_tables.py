"""Tables that are as wide as the terminal at most."""

from __future__ import annotations

import pytest

from graphopt.cli.console import fitted

COLUMNS = (">µs", ">flops", "kernel", "from")
ROWS = [
    ("0.49", "16.4 k", "dense", "bottom/linear, bottom/relu"),
    ("1.24", "67.6 k", "dense1", "x"),
]


def test_what_fits_stays() -> None:
    wide = sum(map(len, ROWS[0])) + 1 + 3 * 2
    assert fitted(wide, COLUMNS, ROWS, (">flops",)) == (list(COLUMNS), [list(row) for row in ROWS])


@pytest.mark.parametrize(
    ("width", "spare", "first"),
    [
        (40, (), ["0.49", "16.4 k", "dense", "bottom…bottom/relu"]),
        (30, (">flops",), ["0.49", "dense", "botto…ottom/relu"]),
        (30, (), ["0.49", "16.4 k", "dense", "bot…relu"]),
        (1, (">flops", ">µs"), ["…", "…"]),
    ],
)
def test_narrow(width: int, spare: tuple[str, ...], first: list[str]) -> None:
    columns, rows = fitted(width, COLUMNS, ROWS, spare)
    assert rows[0] == first
    assert columns == [c for c in COLUMNS if c not in spare]
    if width > 1:
        widest = [max(map(len, column)) for column in zip(*rows)]
        assert sum(widest) + 2 * (len(columns) - 1) <= width


def test_no_rows() -> None:
    assert fitted(80, COLUMNS, []) == (list(COLUMNS), [])
