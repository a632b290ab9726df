"""The passes there are: one per module of `graphopt.passes`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import lru_cache

from graphopt.errors import SpecError
from graphopt.pipeline.base import Pass


@lru_cache(maxsize=1)
def passes() -> dict[str, type[Pass]]:
    """Every pass by name, in alphabetical order.

    Raises:
        ImportError: a module does not define exactly the one pass that it is named after.
    """
    import graphopt.passes as package

    found: dict[str, type[Pass]] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        classes = [
            cls
            for _, cls in inspect.getmembers(module, inspect.isclass)
            if issubclass(cls, Pass) and cls.__module__ == module.__name__
        ]
        expected = info.name.replace("_", "-")
        if [getattr(cls, "name", None) for cls in classes] != [expected]:
            raise ImportError(f"{module.__name__} must define one pass, named {expected!r}")
        found[expected] = classes[0]
    return found


def find(name: str) -> type[Pass]:
    """The pass called `name`.

    Raises:
        SpecError: there is none; suggests the one that was probably meant.
    """
    found = passes().get(name)
    if found is None:
        close = difflib.get_close_matches(name, passes(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`graphopt passes` lists them"
        raise SpecError(f"no pass is called {name!r}; {hint}")
    return found
