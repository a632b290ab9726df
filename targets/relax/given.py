"""The arrays that a caller gives to a program, checked some at a time.

TVM checks the arrays of a function inside of it: dtype, rank, sizes and strides of each. That is
some 150 lines of LLVM code an array, for which LLVM takes longer than in proportion to them. So a
program of many arrays takes them as they come, and passes groups of them on to functions that check
them and say what sizes they have. These serve all functions that take the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from graphopt.targets.relax.direct import at
from graphopt.targets.relax.primfunc import int64, sequence

GROUP = 64
"""Arrays that one function checks. With fewer, calls of functions outweigh what LLVM takes."""

_DATA = 1  # TVM's number of a description's address of the elements


@dataclass(frozen=True)
class _Group:
    """Some arrays.

    Attributes:
        known: sizes that arrays of groups before this one have.
        found: sizes that those of this one are the first to have.
        notes: receives `found`.
    """

    name: str
    buffers: Sequence[Any]
    known: Sequence[Any]
    found: Sequence[Any]
    notes: Any


class GivenArrays:
    """What takes the place of `buffers` in the parameters of a function.

    Attributes:
        params: the parameters.
    """

    def __init__(self, buffers: Sequence[Any]) -> None:
        groups = _groups(buffers) if len(buffers) > GROUP else None
        self._groups = groups or []
        self.params = [tirx.Var(buffer.name, "handle") for buffer in buffers] if groups else buffers

    def declared(self) -> list[Any]:
        """The statements after which the buffers and their sizes can be used."""
        statements: list[Any] = []
        params = iter(self.params)
        for group in self._groups:
            arrays = [next(params) for _ in group.buffers]
            notes = [group.notes] if group.found else []
            call = tirx.call_cpacked(group.name, *group.known, *arrays, *notes)
            statements += [*map(tirx.AllocBuffer, notes), tirx.Evaluate(call)]
            statements += [
                tirx.Bind(size, group.notes[int64(k)]) for k, size in enumerate(group.found)
            ]
            statements += [at(buffer, _data(array)) for buffer, array in zip(group.buffers, arrays)]
        return statements

    def functions(self) -> dict[str, tirx.PrimFunc]:
        """Those that check the arrays."""
        return {group.name: _checking(group) for group in self._groups}


def _groups(buffers: Sequence[Any]) -> list[_Group] | None:
    """The buffers in groups; None if a dim is computed from sizes that a later group has."""
    groups: list[_Group] = []
    known: dict[Any, None] = {}
    for k in range(0, len(buffers), GROUP):
        some = buffers[k : k + GROUP]
        dims = [dim for buffer in some for dim in buffer.ty.shape]
        own = dict.fromkeys(dim for dim in dims if isinstance(dim, tirx.Var))
        used = {var for dim in dims for var in tirx.analysis.undefined_vars(dim)}
        if used - own.keys() - known.keys():
            return None
        found = [size for size in own if size not in known]
        notes = tirx.decl_buffer((int64(max(1, len(found))),), "int64", "notes", scope="local")
        groups.append(_Group(f"graphopt_given{len(groups)}", some, list(known), found, notes))
        known.update(own)
    return groups


def _checking(group: _Group) -> tirx.PrimFunc:
    """A function of the sizes that are known, the arrays and perhaps the notes."""
    notes = tirx.decl_buffer(group.notes.shape, "int64", "notes", data_alignment=8)
    stores = [tirx.BufferStore(notes, size, [int64(k)]) for k, size in enumerate(group.found)]
    params = [*group.known, *group.buffers, *([notes] if stores else [])]
    function = tirx.PrimFunc(params, sequence(stores or [tirx.Evaluate(int64(0))]))
    return function.with_attr({"global_symbol": group.name, "s_tir": True, "tirx.noalias": True})


def _data(array: Any) -> Any:
    """Where the elements of an array lie that is given as DLPack's description of it."""
    return tirx.tvm_struct_get(array, 0, _DATA, "handle")
