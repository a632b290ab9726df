"""Symbolic dimensions: integer polynomials over named sizes.

A `Dim` is an `int` or a `Sym`. Arithmetic keeps a canonical form, so that two dims are equal
exactly when they are the same polynomial: `N * 20 // 20 == N`, while two different unknown sizes
never compare equal. What is not a polynomial (a floor division with a remainder, a minimum) becomes
an opaque atom that remembers its operands, so that a target can still compute it at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import TypeGuard, Union

Dim = Union[int, "Sym"]


@dataclass(frozen=True)
class Atom:
    """A named size (`fn == ""`), or `fn` ("floordiv", "min", "max") of two dims."""

    name: str
    fn: str = ""
    args: tuple[Dim, ...] = ()


Monomial = tuple[Atom, ...]


class Sym:
    """An immutable polynomial with integer coefficients and at least one named size."""

    __slots__ = ("__dict__", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: dict[Monomial, int] = dict(terms)

    @staticmethod
    def named(name: str) -> Sym:
        """The size called `name`."""
        return Sym({(Atom(name),): 1})

    @cached_property
    def text(self) -> str:
        """The canonical text, such as `20*N + 1`."""
        parts = []
        for monomial, coefficient in sorted(self.terms.items(), key=_term_order):
            factors = [atom.name for atom in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            parts.append("*".join(factors))
        return " + ".join(parts)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Sym({self.text})"

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sym) and self.terms == other.terms

    def __add__(self, other: Dim) -> Dim:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _simplest(terms)

    def __mul__(self, other: Dim) -> Dim:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in _terms(other).items():
                key = tuple(sorted(left + right, key=lambda atom: atom.name))
                terms[key] = terms.get(key, 0) + a * b
        return _simplest(terms)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - floordiv(self, other) * other


def _term_order(term: tuple[Monomial, int]) -> tuple[int, str]:
    monomial, _ = term
    return -len(monomial), "*".join(atom.name for atom in monomial)


def _terms(dim: Dim) -> dict[Monomial, int]:
    return dim.terms if isinstance(dim, Sym) else {(): int(dim)}


def _simplest(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: c for monomial, c in terms.items() if c != 0}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Sym(kept)


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """`a / b` when `b` divides `a` as a polynomial, else None."""
    if b == 0:
        return None
    divisor = _terms(b)
    lead = min(divisor, key=_division_order)
    rest, quotient = dict(_terms(a)), {}
    while any(rest.values()):
        monomial = min((m for m, c in rest.items() if c), key=_division_order)
        factor = _without(monomial, lead)
        if factor is None or rest[monomial] % divisor[lead]:
            return None
        count = quotient[factor] = rest[monomial] // divisor[lead]
        for other, coefficient in divisor.items():
            key = tuple(sorted(factor + other, key=lambda atom: atom.name))
            rest[key] = rest.get(key, 0) - count * coefficient
    return _simplest(quotient)


def _division_order(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    """Largest first, in an order that multiplication keeps (graded lexicographic)."""
    return -len(monomial), tuple(atom.name for atom in monomial)


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    """`monomial / divisor`, None if that is no monomial."""
    rest = list(monomial)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _opaque(fn: str, a: Dim, b: Dim) -> Dim:
    return Sym({(Atom(f"{fn}({a}, {b})", fn, (a, b)),): 1})


def floordiv(a: Dim, b: Dim) -> Dim:
    """`a // b` rounded down; exact where the polynomials divide."""
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int) and b > 0:
        # Multiples of b come out whole, and so do those in the constant term.
        whole = _simplest({m: c // b for m, c in _terms(a).items() if c % b == 0 or not m})
        a = a - whole * b
        if whole != 0:
            return whole + floordiv(a, b)
    return _opaque("floordiv", a, b)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """`a / b` rounded up."""
    return floordiv(a + b - 1, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two dims; decided where that does not depend on the named sizes."""
    return _extreme("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two dims; decided where that does not depend on the named sizes."""
    return _extreme("max", a, b)


@lru_cache(maxsize=4096)
def _extreme(fn: str, a: Dim, b: Dim) -> Dim:
    """`fn` of all operands of nested `fn`s, each once: recurrent nets double them at each step."""
    sign = 1 if fn == "max" else -1
    kept: list[Dim] = []
    for dim in (*_operands(fn, a), *_operands(fn, b)):
        if not any(is_nonnegative((other - dim) * sign) for other in kept):
            kept = [other for other in kept if not is_nonnegative((dim - other) * sign)]
            kept.append(dim)
    return reduce(lambda x, y: _opaque(fn, x, y), sorted(kept, key=str))


def _operands(fn: str, dim: Dim) -> Iterator[Dim]:
    monomial, coefficient = next(iter(_terms(dim).items()))
    if coefficient == 1 and len(_terms(dim)) == 1 and [atom.fn for atom in monomial] == [fn]:
        for operand in monomial[0].args:
            yield from _operands(fn, operand)
    else:
        yield dim


def is_nonnegative(dim: Dim) -> bool:
    """True if `dim >= 0` for all sizes >= 0 (every named size counts something)."""
    return all(
        coefficient >= 0 and all(_is_count(atom) for atom in monomial)
        for monomial, coefficient in _terms(dim).items()
    )


def _is_count(atom: Atom) -> bool:
    if not atom.fn:
        return True
    enough = any if atom.fn == "max" else all
    return enough(is_nonnegative(operand) for operand in atom.args)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def symbols(dim: Dim) -> set[str]:
    """The named sizes that `dim` depends on."""
    found: set[str] = set()
    for monomial in _terms(dim):
        for atom in monomial:
            if atom.fn:
                found.update(*(symbols(arg) for arg in atom.args))
            else:
                found.add(atom.name)
    return found


def is_name(dim: Dim) -> TypeGuard[Sym]:
    """True for one named size, as it is."""
    return isinstance(dim, Sym) and symbols(dim) == {dim.text}


def substitute(dim: Dim, values: Callable[[str], Dim | None]) -> Dim:
    """`dim` with each named size replaced by `values(name)`, where that is not None."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms.items():
        factor: Dim = coefficient
        for atom in monomial:
            factor = factor * _substitute_atom(atom, values)
        total = total + factor
    return total


def _substitute_atom(atom: Atom, values: Callable[[str], Dim | None]) -> Dim:
    if not atom.fn:
        value = values(atom.name)
        return Sym({(atom,): 1}) if value is None else value
    a, b = (substitute(arg, values) for arg in atom.args)
    return {"floordiv": floordiv, "min": minimum, "max": maximum}[atom.fn](a, b)
