"""The ONNX project's own node tests through the CPU target.

    python bench/onnx_backend.py --recommender --json results.json

Each case runs in a child process and ends as `pass`, `refused` (an error that names the op and the
reason), `wrong` (an answer, and not the expected one), `crashed` (the process died or hung) or
`error` (any other exception). Outputs are compared at the case's own tolerances, with dtype and
shape.
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from isolation import Lost, isolated_map, run_script
from onnx import numpy_helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

STATUSES = ("pass", "refused", "wrong", "crashed", "error")

# The ops of 18 exports of real ranking models, and what models of the same kinds also use.
_EXPORTED = """
Add And BatchNormalization Cast CastLike Clip Concat ConcatFromSequence Constant ConstantOfShape
Conv Div Einsum Equal Erf Expand Flatten GRU Gather GatherElements GatherND Gemm Greater Identity
If LayerNormalization LeakyRelu Less Loop MatMul Max Mod Mul NonZero Not OneHot Pow Range
Reciprocal ReduceMean ReduceProd ReduceSum Relu Reshape ScatterElements ScatterND SequenceEmpty
SequenceInsert Shape Sigmoid Size Slice Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose
Trilu Unsqueeze Where
"""
_RELATED = """
Celu CumSum DequantizeLinear Elu Exp Gelu HardSigmoid HardSwish LSTM Log LogSoftmax Mish Neg PRelu
QuantizeLinear ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMin ReduceSumSquare Selu Softplus
Softsign Sum ThresholdedRelu
"""
RECOMMENDER_OPS = frozenset(_EXPORTED.split())
RELATED_OPS = frozenset(_RELATED.split())
COMMON_DTYPES = frozenset(
    ["BOOL", "FLOAT16", "FLOAT", "DOUBLE", "BFLOAT16"]
    + [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
)


@dataclass(frozen=True)
class Case:
    """One node test, in a form that can be sent to another process.

    Attributes:
        ops: the op types of its nodes.
        dtypes: of its inputs and outputs; "SEQUENCE" and the like for what is no tensor.
        data_sets: pairs of inputs and expected outputs.
    """

    name: str
    model: bytes
    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    data_sets: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float

    @property
    def is_common(self) -> bool:
        """True if all data is bool, integer of 8 to 64 bits, or float of 16 to 64."""
        return set(self.dtypes) <= COMMON_DTYPES


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `op` and `reason` say why unless it passed."""

    name: str
    ops: tuple[str, ...]
    status: str
    op: str = ""
    reason: str = ""
    seconds: float = 0.0
    is_common: bool = True


def collect_cases() -> list[Case]:
    """All node tests of the installed onnx, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests divide by zero to make infinities
        return sorted(map(_case, collect_testcases(None)), key=lambda case: case.name)


def _case(source: Any) -> Case:
    graph = source.model.graph
    return Case(
        name=source.name,
        model=source.model.SerializeToString(),
        ops=tuple(sorted({node.op_type for node in graph.node})),
        dtypes=tuple(sorted({_dtype(info.type) for info in (*graph.input, *graph.output)})),
        data_sets=tuple(
            ([_value(v) for v in inputs], [_value(v) for v in outputs])
            for inputs, outputs in source.data_sets
        ),
        rtol=source.rtol,
        atol=source.atol,
    )


def _dtype(type_: onnx.TypeProto) -> str:
    kind = str(type_.WhichOneof("value"))
    if kind != "tensor_type":
        return kind.removesuffix("_type").upper()
    return str(onnx.TensorProto.DataType.Name(type_.tensor_type.elem_type))


def _value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


# ------------------------------------------------------------------------ running


def run_case(case: Case) -> Outcome:
    """Compile and run a case in this process."""
    from graphopt.errors import UnsupportedOpError

    started = time.perf_counter()
    status, op, reason = "pass", "", ""
    try:
        status, reason = _compare(case)
    except UnsupportedOpError as error:
        status, op, reason = "refused", error.op, error.reason
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        status, reason = "error", f"{type(error).__name__}: {lines[0][:200]}"
    seconds = round(time.perf_counter() - started, 3)
    return Outcome(case.name, case.ops, status, op, reason, seconds, case.is_common)


def _compare(case: Case) -> tuple[str, str]:
    from graphopt.testing import run_compiled

    model = onnx.load_from_string(case.model)
    names = [info.name for info in model.graph.input]
    for inputs, expected in case.data_sets:
        outputs = list(run_compiled(model, dict(zip(names, inputs))).values())
        if len(outputs) != len(expected):
            return "wrong", f"{len(outputs)} outputs instead of {len(expected)}"
        for found, wanted in zip(outputs, expected):
            if difference := _difference(found, wanted, case.rtol, case.atol):
                return "wrong", difference
    return "pass", ""


def _difference(found: np.ndarray, wanted: Any, rtol: float, atol: float) -> str:
    """What tells `found` from `wanted`, "" if nothing does."""
    if not isinstance(wanted, np.ndarray):
        return f"an array instead of a {type(wanted).__name__}"
    if found.dtype != wanted.dtype:
        return f"dtype {found.dtype} instead of {wanted.dtype}"
    if found.shape != wanted.shape:
        return f"shape {found.shape} instead of {wanted.shape}"
    if found.dtype.kind in "OSU":
        return "" if np.array_equal(found, wanted) else "other strings"
    if found.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # two units in the last place, as in the ONNX project's own runner
    if found.dtype.kind not in "biufc":  # bfloat16 and the like
        found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    close = np.isclose(found, wanted, rtol, atol, equal_nan=True)
    if close.all():
        return ""
    at = tuple(int(k) for k in np.argwhere(~close)[0])
    return f"{int((~close).sum())} elements, {found[at]} instead of {wanted[at]} at {list(at)}"


def run_cases(cases: Sequence[Case], jobs: int, timeout: float) -> Iterator[Outcome]:
    """The outcomes of cases, each run in a child process."""
    for case, result in isolated_map(run_case, cases, jobs, timeout):
        if isinstance(result, Lost):
            yield Outcome(
                case.name, case.ops, "crashed", "", result.reason, timeout, case.is_common
            )
        else:
            yield result


# ---------------------------------------------------------------------- selection


def ops_of(folder: Path) -> frozenset[str]:
    """The op types in the models of a folder, subgraphs and functions included."""
    found: set[str] = set()
    for path in folder.rglob("*.onnx"):
        model = onnx.load(str(path), load_external_data=False)
        pending = [*model.graph.node, *(node for f in model.functions for node in f.node)]
        while pending:
            node = pending.pop()
            found.add(node.op_type)
            for attribute in node.attribute:
                pending.extend(attribute.g.node)
    return frozenset(found)


def select(cases: Iterable[Case], only: str, ops: frozenset[str] | None) -> list[Case]:
    """The cases whose name matches `only`; with `ops`, only single nodes of these ops."""
    pattern = re.compile(only)
    return [
        case
        for case in cases
        if pattern.search(case.name)
        and (ops is None or (len(case.ops) == 1 and case.ops[0] in ops))
    ]


# ---------------------------------------------------------------------- reporting


def table_by_op(outcomes: Sequence[Outcome]) -> Table:
    """Counts per op of the cases that consist of one op."""
    table = Table(title="by op", title_justify="left")
    table.add_column("op")
    for status in STATUSES:
        table.add_column(status, justify="right")
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        label = outcome.ops[0] if len(outcome.ops) == 1 else "(several ops)"
        counts.setdefault(label, Counter())[outcome.status] += 1
    for op, count in sorted(counts.items()):
        table.add_row(op, *(str(count[s] or "") for s in STATUSES))
    return table


def table_of_totals(outcomes: Sequence[Outcome], dtypes: bool) -> Table:
    """Counts of all cases and, if asked, of those with common and with other dtypes."""
    table = Table(title="totals", title_justify="left")
    for column in ("cases", *STATUSES, "total", "passed"):
        table.add_column(column, justify="left" if column == "cases" else "right")
    groups = {"all": list(outcomes)}
    if dtypes:
        groups["bool, int8-64, float16-64, bfloat16"] = [o for o in outcomes if o.is_common]
        groups["other data"] = [o for o in outcomes if not o.is_common]
    for name, group in groups.items():
        count = Counter(outcome.status for outcome in group)
        share = f"{100 * count['pass'] / len(group):.1f} %" if group else ""
        table.add_row(name, *(str(count[s]) for s in STATUSES), str(len(group)), share)
    return table


def table_of_failures(outcomes: Sequence[Outcome]) -> Table:
    """What was refused and why, then each case that ended badly."""
    table = Table(title="not passed", title_justify="left")
    for column in ("count", "status", "op or case", "reason"):
        table.add_column(column, justify="right" if column == "count" else "left")
    rows: Counter[tuple[str, str, str]] = Counter()
    for outcome in outcomes:
        if outcome.status != "pass":
            what = outcome.op if outcome.status == "refused" else outcome.name
            rows[(outcome.status, what, outcome.reason)] += 1
    for (status, what, reason), count in sorted(rows.items(), key=lambda row: (row[0][0], -row[1])):
        table.add_row(str(count), status, what, reason)
    return table


def main(
    only: Annotated[str, typer.Option(help="Regular expression on case names.")] = "",
    recommender: Annotated[bool, typer.Option(help="Single nodes of recommenders' ops.")] = False,
    ops_of_models: Annotated[
        Path | None, typer.Option("--ops-of", help="--recommender with the ops of these models.")
    ] = None,
    dtypes: Annotated[bool, typer.Option(help="Totals by kind of data too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write outcomes here.")] = None,
    jobs: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds a case may take.")] = 60,
) -> None:
    """Run the ONNX node tests on the CPU target and count how they end."""
    for variable in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    ops = None
    if recommender or ops_of_models:
        ops = RELATED_OPS | (ops_of(ops_of_models) if ops_of_models else RECOMMENDER_OPS)
    cases = select(collect_cases(), only, ops)
    progress = track(
        run_cases(cases, jobs, timeout),
        total=len(cases),
        description="node tests",
        console=Console(stderr=True),
    )
    outcomes: list[Outcome] = []
    with suppress(KeyboardInterrupt):  # what is done by then is reported
        for outcome in progress:
            outcomes.append(outcome)
    outcomes.sort(key=lambda outcome: outcome.name)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    for table in (
        table_by_op(outcomes),
        table_of_failures(outcomes),
        table_of_totals(outcomes, dtypes),
    ):
        console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))


if __name__ == "__main__":
    run_script(main)
