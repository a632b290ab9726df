"""Families of kernels: one template, its parameters, and how to try them."""

from __future__ import annotations

import ast
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

_PACKAGE = "graphopt.targets."
Problem = TypeVar("Problem")
Params = TypeVar("Params")


@dataclass(frozen=True)
class Trial:
    """One size at which parameters are tried.

    Attributes:
        inputs: the arrays to call the kernel with, in order.
        output: shape and dtype of what it writes, as its last argument.
    """

    inputs: Sequence[np.ndarray]
    output: tuple[tuple[int, ...], str]


class KernelFamily(ABC, Generic[Problem, Params]):
    """A kernel template; problems and parameters are frozen dataclasses of numbers and texts.

    Attributes:
        name: as the database and messages call it.
        compiler: the module that makes code of kernels, beside TVM.
    """

    name: ClassVar[str]
    compiler: ClassVar[str] = "graphopt.targets.relax.scratch"

    @abstractmethod
    def default(self, problem: Problem) -> Params:
        """The parameters where nothing was measured."""

    @abstractmethod
    def candidates(self, problem: Problem) -> Iterable[Params]:
        """All parameters worth trying, the more promising ones first."""

    @abstractmethod
    def parse(self, fields: dict[str, Any]) -> Params:
        """The parameters with these fields, as the database holds them."""

    @abstractmethod
    def kernel(self, problem: Problem, params: Params) -> Any:
        """The kernel, a PrimFunc."""

    @abstractmethod
    def trials(self, problem: Problem, params: Params) -> list[Trial]:
        """What to call the kernel with, for each size that the problem is tuned at."""

    def described(self, problem: Problem) -> str:
        """The problem in messages."""
        fields = asdict(problem)  # type: ignore[call-overload]
        return " ".join(f"{name}={value}" for name, value in fields.items())

    def tolerance(self, problem: Problem) -> float:
        """How much results may differ, as a share of the largest element.

        By default, what another order of float32 additions can change.
        """
        return 1e-3

    def version(self) -> str:
        """Changes with the code that decides the kernel's, so that no other is taken for it."""
        code = hashlib.sha256()
        for source in _sources(type(self).__module__, self.compiler):
            code.update(source.encode())
        return code.hexdigest()[:16]


def in_short(error: Exception) -> str:
    """What went wrong, in one line; of TVM's errors the last one says so."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


@cache
def _sources(*modules: str) -> list[str]:
    """The sources of modules of `targets` and of those that they import, in order of names."""
    found: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in found or not name.startswith(_PACKAGE) or (spec := _found(name)) is None:
            continue
        found[name] = Path(spec.origin or "").read_text()
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.ImportFrom) and node.module:
                pending += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [found[name] for name in sorted(found)]


def _found(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except ModuleNotFoundError:  # what is imported is a name in a module
        return None
