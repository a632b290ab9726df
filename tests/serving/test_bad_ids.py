"""Errors of ids name the element of the input that is wrong, where it comes straight from one."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.errors import IdError
from graphopt.testing import parse

TABLES = """g (int64[N,3] ids, float[N,2] codes, int64[N] base, int64[N] other) => (float[N,9] y)
<float[10,2] t, float[20,2] u, float[5,2] v, int64 first = {0}, int64 second = {1}> {
    i = Gather<axis=1>(ids, first)
    j = Gather<axis=1>(ids, second)
    a = Gather(t, i)
    b = Gather(u, j)
    k = Cast<to=7>(codes)
    l = Gather<axis=1>(k, second)
    c = Gather(v, l)
    m = Add(base, base)
    d = Gather(t, m)
    axes = Constant<value_ints=[1]>()
    mark = Unsqueeze(other, axes)
    e = Cast<to=1>(mark)
    y = Concat<axis=1>(a, b, c, d, e)
}"""


@pytest.fixture(scope="module")
def artifact() -> graphopt.Artifact:
    return graphopt.compile(parse(TABLES))


def complaint(artifact: graphopt.Artifact, name: str, place: tuple[int, ...], bad: float) -> str:
    feeds = {
        "ids": np.zeros((4, 3), np.int64),
        "codes": np.zeros((4, 2), np.float32),
        "base": np.zeros(4, np.int64),
        "other": np.full(4, 99),  # looked up nowhere
    }
    feeds["ids"][:, 2] = 99  # nor is this column
    feeds[name][place] = bad
    said = []
    for given in (feeds, {name: np.asfortranarray(array) for name, array in feeds.items()}):
        with pytest.raises(IdError, match="an id is out of range: ") as raised:
            artifact.run(given)
        said.append(str(raised.value))
    assert said[0] == said[1]
    return said[0].partition("; ")[2]


def test_the_element_is_named(artifact: graphopt.Artifact) -> None:
    assert complaint(artifact, "ids", (2, 0), 10) == "ids[2, 0] is 10, valid are -10 to 9"
    assert complaint(artifact, "ids", (3, 1), -21) == "ids[3, 1] is -21, valid are -20 to 19"
    assert complaint(artifact, "codes", (1, 1), 5.5) == "codes[1, 1] is 5.5, valid are -5 to 4"
    assert complaint(artifact, "codes", (0, 1), np.nan) == "codes[0, 1] is nan, valid are -5 to 4"


def test_computed_ids_are_not_in_any_input(artifact: graphopt.Artifact) -> None:
    assert complaint(artifact, "base", (1,), 7) == ""


def test_fields_of_one_matrix_are_told_apart() -> None:
    """They are looked up at once, and the kernel only knows that one of them is wrong."""
    lookups = "".join(
        f"n{k} = Constant<value_int={k}>()\n i{k} = Gather<axis=1>(ids, n{k})\n"
        f" r{k} = Gather(t{k}, i{k})\n"
        for k in range(10)
    )
    tables = ", ".join(f"float[{10 + k},2] t{k}" for k in range(10))
    rows = ", ".join(f"r{k}" for k in range(10))
    body = f"{lookups} y = Concat<axis=1>({rows})"
    text = f"g (int64[N,10] ids) => (float[N,20] y) <{tables}> {{\n{body}\n}}"
    artifact = graphopt.compile(parse(text))
    for column in range(10):
        ids = np.zeros((3, 10), np.int64)
        ids[1, column] = 10 + column
        with pytest.raises(IdError, match=rf"and 9 more; ids\[1, {column}\] is {10 + column}, "):
            artifact.run({"ids": ids})


def test_what_never_raises_has_no_valid_ids() -> None:
    """A class that OneHot does not have gives zeros."""
    text = """g (int64[N] ids, int64[N] rows) => (float[N,8] y)
    <float[7,4] t, int64 depth = {4}, float[2] marks = {0, 1}> {
        a = OneHot(ids, depth, marks)
        b = Gather(t, rows)
        y = Concat<axis=1>(a, b)
    }"""
    manifest = graphopt.compile(parse(text)).manifest
    assert [entry["input"] for entry in manifest["ids"]] == ["rows"]
    assert "ids" not in graphopt.compile(parse(text), oob="clamp").manifest
