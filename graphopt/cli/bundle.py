"""`graphopt bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from graphopt.cli import options


def bundle(
    artifact: options.Compiled,
    output: Annotated[Path, Option("-o", "--output", help="A new folder.")],
) -> None:
    """Put an artifact and its runtime into one folder.

    It is for images that serve the artifact: with the folder on PYTHONPATH, Python needs NumPy and
    typing_extensions besides, but no compiler.
    """
    from graphopt import bundle as bundles

    bundles.bundle(artifact, output)
