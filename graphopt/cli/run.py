"""`graphopt run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli import console, options
from graphopt.errors import OutputError, SpecError

if TYPE_CHECKING:
    import numpy as np

SHOWN = 6


def run(
    model: options.Runnable,
    inputs: options.Inputs = None,
    output: options.Results = None,
    random: options.Random = False,
    batch: options.Batch = 1,
    seed: options.Seed = 0,
    engine: options.Engine = options.EngineName.COMPILED,
) -> None:
    """Run an artifact or a model on one batch.

    A model file is run by ONNX Runtime. Shows the first values of each output, or writes them all.
    """
    if (inputs is None) == (not random):
        raise SpecError("give either --inputs or --random")
    from graphopt import api, arrays

    if output is not None and output.exists() and model.exists() and output.samefile(model):
        raise OutputError(f"{output}: would overwrite the model; choose another name")
    runnable = api.runnable(model, engine.value)
    feeds = arrays.read(inputs) if inputs else api.random_inputs(model, runnable, batch, seed)
    results = runnable.run(feeds)
    if output is not None:
        arrays.write(output, results)
    else:
        rows = [(n, a.dtype, list(a.shape), _preview(a)) for n, a in results.items()]
        console.stdout().print(console.table(("output", "dtype", "shape", "values"), rows))


def _preview(array: np.ndarray) -> str:
    values = [f"{x:.7g}" if array.dtype.kind in "fV" else str(x) for x in array.flat[:SHOWN]]
    return ", ".join(values) + (", …" if array.size > SHOWN else "")
