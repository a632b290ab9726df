"""`graphopt bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from graphopt.errors import SpecError


def bundle(
    output: Annotated[
        Path,
        Option(
            "-o", "--output", metavar="FOLDER", help="A new folder; for a wheel an existing one."
        ),
    ],
    artifact: Annotated[
        Path | None, Argument(metavar="ARTIFACT", help="A .gopt folder.", show_default=False)
    ] = None,
    wheel: Annotated[
        bool, Option("--wheel", help="The runtime alone, as a wheel for pip to install.")
    ] = False,
) -> None:
    """Put an artifact and its runtime into one folder.

    With --wheel, put the runtime alone into a wheel. Both are for images that serve artifacts: with
    the folder on PYTHONPATH, or the wheel installed, Python needs NumPy and typing_extensions too,
    but no compiler.
    """
    from graphopt.deployment import bundle as bundles
    from graphopt.deployment import runtime_wheel

    if wheel != (artifact is None):
        raise SpecError("bundle takes either an ARTIFACT or --wheel")
    if artifact is None:
        print(runtime_wheel.write_wheel(output))
    else:
        bundles.bundle(artifact, output)
        print(output)
