"""Converters for a GPU, which come before those for any target."""


def register() -> None:
    """Import the modules in this package, which registers their converters."""
    from graphopt.targets.cuda.ops import (  # noqa: F401
        control,
        dense,
        embedding,
        images,
        interaction,
        lines,
        lookup,
        movement,
        places,
        products,
        recurrent,
        rows,
        scatter,
        trees,
    )
