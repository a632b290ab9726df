"""Families of kernels: one template, its parameters, and how to try them."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

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
    """

    name: ClassVar[str]

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

    def tolerance(self, problem: Problem) -> float:
        """How much results may differ, as a share of the largest element.

        By default, what another order of float32 additions can change.
        """
        return 1e-3

    def version(self) -> str:
        """Changes with the template's code, so that nothing measured with other code is used."""
        code = hashlib.sha256()
        for function in type(self).kernel_sources():
            module = inspect.getmodule(function)
            assert module is not None
            code.update(inspect.getsource(module).encode())
        return code.hexdigest()[:16]

    @staticmethod
    @abstractmethod
    def kernel_sources() -> Sequence[Any]:
        """The functions that make the kernel; their modules are the template's code."""
