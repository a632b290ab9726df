"""Makes what a GPU machine needs of a model to check and time it, on any machine.

A case is a folder: `fp32.gopt` and `tf32.gopt`, compiled for GPUs; for each batch size
`inputs_bN.npz` with `expected_bN.npz`; `case.json`, which says what a run costs at least. Inputs
and outputs that lie beside the model are taken; those of other batch sizes are drawn here, and ONNX
Runtime says what comes out. Production shapes have tables of gigabytes: the rows of their weights
repeat, so that they can be packed, which changes neither what is computed nor what is read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import production
from gpu_timing import arrays_of, batches_of, repeated

import graphopt
from graphopt import api
from graphopt.analysis.cost import costs, dtype_bits
from graphopt.errors import InputError
from graphopt.ir import dims, onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Value
from graphopt.targets.base import Precision
from graphopt.targets.portable import OnnxModel

DRAWN = 8192
"""The largest batch that is drawn; larger ones repeat it, if samples do not depend on each other.
Sources with loops take minutes for more, or memory that grows with its square."""
LARGEST = 256 << 20
"""Bytes that the inputs and outputs of a batch may take; larger batches are left out."""
KEPT = 2 << 20
"""Bytes of an expected output that are kept, by rows."""
PERIOD = 61
"""Rows after which the weights of production shapes repeat: a prime, so that an offset that is
wrong by a power of two shows."""
_TIMES = 32
"""How much larger the batches are that a GPU gets of a production shape than those of a CPU."""


def make_case(
    model: Path,
    case: Path,
    architectures: str,
    precisions: Sequence[Precision],
    batches: Sequence[int],
    most: int | None = None,
) -> None:
    """Compile `model/model.onnx` and collect inputs.

    Args:
        most: the largest batch to measure, if there is one.

    Raises:
        graphopt.GraphoptError: the model cannot be compiled.
    """
    case.mkdir(parents=True)
    source = model / "model.onnx"
    for precision in precisions:
        graphopt.compile(
            source,
            f"cuda:{architectures}" if architectures else "cuda",
            precision=precision,
            output=case / f"{precision}.gopt",
            verify=False,
        )
    for stored in sorted(model.glob("inputs_b*.npz")):
        shutil.copy(stored, case / stored.name)
        expected = stored.with_name(stored.name.replace("inputs", "expected"))
        shutil.copy(expected, case / expected.name)
    optimized = graphopt.load(case / f"{precisions[0]}.gopt" / "model.onnx")
    assert isinstance(optimized, Graph)
    manifest = json.loads((case / f"{precisions[0]}.gopt" / "manifest.json").read_text())
    grow = manifest["batch_inputs"]
    left_out = _drawn(source, case, [batch for batch in batches if batch <= DRAWN])
    if grow is None:
        left_out |= {b: "samples may depend on each other" for b in batches if b > DRAWN}
    costs = {
        batch: _cost(optimized, arrays_of(case, "inputs", batch)) for batch in batches_of(case)
    }
    largest = max(costs)
    for batch in batches:
        if grow is not None and batch > largest and batch % largest == 0:
            given = arrays_of(case, "inputs", largest)
            ordered = {value.name: given[value.name] for value in optimized.inputs}
            costs[batch] = _cost(optimized, repeated(ordered, grow, batch // largest))
    described = {"left_out": left_out, "costs": costs, "most": most}
    (case / "case.json").write_text(json.dumps(described, indent=1) + "\n")


def make_production_case(
    name: str,
    case: Path,
    architectures: str,
    precisions: Sequence[Precision],
    batches: Sequence[int],
) -> None:
    """The same for one of `production.MODELS`. Inputs are drawn up to what a CPU is given at once;
    larger batches repeat them.

    Raises:
        graphopt.GraphoptError: the model cannot be compiled.
    """
    make, most = production.MODELS[name]
    graph = make()
    for value in graph.constants():
        if value.const is not None and value.const.ndim == 2 and len(value.const) > PERIOD:
            value.const = np.resize(value.const[:PERIOD], value.const.shape)
    drawn = sorted({*(batch for batch in batches if batch <= most), min(most, max(batches))})
    with tempfile.TemporaryDirectory() as scratch:
        onnx_io.save(graph, Path(scratch) / "model.onnx")
        make_case(Path(scratch), case, architectures, precisions, drawn, _TIMES * most)


def _drawn(source: Path, case: Path, batches: Sequence[int]) -> dict[int, str]:
    """Inputs and outputs of the batch sizes that are missing; why some cannot be had."""
    reference = OnnxModel(source)
    left_out: dict[int, str] = {}
    if not any(
        spec.shape and isinstance(spec.shape[0], str) for spec in reference.signature.inputs
    ):
        return {
            batch: "the batch size is fixed" for batch in batches if batch not in batches_of(case)
        }
    for batch in batches:
        if batch in batches_of(case):
            continue
        try:
            drawn = api.random_inputs(source, reference, batch, seed=1)
        except InputError as error:
            left_out[batch] = str(error)
            continue
        # Few digits compress well, and are as good as any.
        inputs = {name: _rounded(array) for name, array in drawn.items()}
        expected = reference.run(inputs)
        nbytes = sum(array.nbytes for array in (*inputs.values(), *expected.values()))
        if nbytes > LARGEST:
            left_out[batch] = f"inputs and outputs take {nbytes >> 20} MiB"
            continue
        np.savez_compressed(case / f"inputs_b{batch}.npz", **inputs)
        kept = {name: _first_rows(array) for name, array in expected.items()}
        np.savez_compressed(case / f"expected_b{batch}.npz", **kept)
    return left_out


def _rounded(array: np.ndarray) -> np.ndarray:
    return np.round(array * 16) / array.dtype.type(16) if array.dtype.kind == "f" else array


def _first_rows(array: np.ndarray) -> np.ndarray:
    rows = max(1, KEPT * len(array) // max(array.nbytes, 1)) if array.ndim else 0
    return array[:rows] if array.ndim else array


def _cost(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, int]:
    """Operations of a run, and the bytes that have to be moved at least.

    These are inputs, outputs and weights, each once; of a table, what is read of it. Nothing where
    they depend on more than the sizes of inputs.
    """
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        for dim, size in zip(value.tensor.dims, inputs[value.name].shape):
            if isinstance(dim, Sym):
                sizes[dim.text] = size
    flops, read = 0, Counter[Value]()
    for node, cost in costs(graph, sizes):
        if cost is None:
            return {}
        flops += int(cost.flops)
        for value in node.inputs:
            if value is not None and value.const is not None:
                read[value] += min(value.const.nbytes, int(cost.read))
    weights = sum(min(value.const.nbytes, nbytes) for value, nbytes in read.items())
    ends = sum(array.nbytes for array in inputs.values())
    for value in graph.outputs:
        elements = dims.substitute(value.tensor.elements, sizes.get)
        if not isinstance(elements, int):
            return {}
        ends += elements * dtype_bits(value.dtype) // 8
    return {"flops": flops, "bytes": ends + weights}
