"""Slots of the workspace: never shared by values that live at the same time, and used again."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from graphopt.targets.relax.primfunc import int64
from graphopt.targets.relax.workspace import Workspace

n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")


def value(expr: Any, **sizes: int) -> int:
    bound = {"n": n, "m": m}
    function = tirx.PrimFunc([n, m], tirx.Evaluate(expr))
    specialized = function.specialize({bound[k]: int64(v) for k, v in sizes.items()})
    return int(specialized.body.value)


def test_sizes_are_rounded_to_cache_lines() -> None:
    workspace = Workspace([n, m])
    workspace.take(4)
    workspace.take(n * 20)
    _, (end,) = workspace.layout()
    assert value(end.value, n=3, m=0) == 64 + 64


def test_a_slot_is_used_again() -> None:
    workspace = Workspace([n, m])
    first = workspace.take(n * 256)
    workspace.give_back(first)
    assert workspace.take(n * 128) is first
    assert value(workspace.layout()[1][0].value, n=10, m=0) == 2560


def test_the_smallest_slot_that_fits() -> None:
    workspace = Workspace([n, m])
    large, small = workspace.take(n * 512), workspace.take(n * 256)
    workspace.give_back(small)
    workspace.give_back(large)
    assert workspace.take(n * 64) is small


def test_a_slot_that_is_too_small_grows() -> None:
    workspace = Workspace([n, m])
    slot = workspace.take(n * 64)
    workspace.give_back(slot)
    assert workspace.take(n * 640) is slot
    assert value(workspace.layout()[1][0].value, n=2, m=0) == 1280


def test_sizes_are_compared_before_they_are_rounded() -> None:
    workspace = Workspace([n, m])
    other = workspace.take(n * 4)
    slot = workspace.take(n * 20)
    workspace.give_back(slot)
    workspace.give_back(other)
    assert workspace.take(n * 12) is slot  # which `other`, freed last, cannot hold
    workspace.give_back(slot)
    assert workspace.take(n * 36) is slot
    assert value(workspace.layout()[1][0].value, n=17, m=0) == 128 + 640  # 17 * 4 and 17 * 36


def test_sizes_that_cannot_be_compared() -> None:
    workspace = Workspace([n, m])
    slot = workspace.take(n * 64)
    workspace.give_back(slot)
    assert workspace.take(m * 128) is slot
    (end,) = workspace.layout()[1]
    assert value(end.value, n=100, m=1) == 6400
    assert value(end.value, n=1, m=100) == 12800


def test_offsets_leave_room_for_what_lives() -> None:
    workspace = Workspace([n, m])
    a, b = workspace.take(n * 4), workspace.take(n * 4)
    offsets, (end,) = workspace.layout()
    assert value(offsets[b], n=17, m=0) - value(offsets[a], n=17, m=0) >= 17 * 4
    assert value(end.value, n=17, m=0) - value(offsets[b], n=17, m=0) >= 17 * 4


def test_no_slot_depends_on_a_size_before_it_is_found() -> None:
    found = tirx.Var("m", "int64")
    workspace = Workspace([n], [[found]])
    early = workspace.take(n * 64)
    workspace.give_back(early)
    late = workspace.take(found * 64)
    assert late is not early
    workspace.give_back(late)
    assert workspace.take(n * 128 + found * 64) is late
    assert workspace.take(n * 128) is early
    offsets, ends = workspace.layout()
    assert not tirx.analysis.undefined_vars(offsets[early])
    assert set(tirx.analysis.undefined_vars(ends[0].value)) == {n}
    assert set(tirx.analysis.undefined_vars(ends[1].value)) == {n, found, ends[0].var}


def test_sizes_below_0_take_nothing() -> None:
    """Such as of inputs that do not fit, until the kernel that checks them has said so."""
    workspace = Workspace([n, m])
    a, b = workspace.take((n - 3) * 64), workspace.take(m * 64)
    offsets, (end,) = workspace.layout()
    assert value(offsets[a], n=1, m=2) == value(offsets[b], n=1, m=2) == 0
    assert value(end.value, n=1, m=2) == 128
