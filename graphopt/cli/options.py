"""The options and arguments of the verbs, with what `--help` says of them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from graphopt.errors import SpecError


class Oob(enum.StrEnum):
    """What an id outside its table does."""

    ERROR = "error"
    CLAMP = "clamp"
    ZERO = "zero"


class PrecisionName(enum.StrEnum):
    """What dense layers multiply."""

    FP32 = "fp32"
    TF32X3 = "tf32x3"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


class EngineName(enum.StrEnum):
    """What runs an artifact."""

    COMPILED = "compiled"
    AUTO = "auto"


# What is worked on.
Model = Annotated[Path, Argument(metavar="MODEL", help="The .onnx file.")]
Runnable = Annotated[
    Path, Argument(metavar="MODEL|ARTIFACT", help="An .onnx file or a .gopt folder.")
]
Compiled = Annotated[Path, Argument(metavar="ARTIFACT", help="A .gopt folder.")]
First = Annotated[Path, Argument(metavar="A", help="A model or artifact.")]
Second = Annotated[Path, Argument(metavar="B", help="What to compare it with.")]
PassName = Annotated[str | None, Argument(metavar="NAME", help="A pass or preset to read about.")]
Output = Annotated[
    Path | None,
    Option(
        "-o",
        "--output",
        metavar="PATH",
        help="Where to write; default: MODEL.gopt, or MODEL.opt.onnx, beside the model.",
    ),
]

# How it is optimized and compiled.
Target = Annotated[
    str,
    Option(
        metavar="TARGET",
        help="cpu, cpu:NAME (an LLVM CPU name), cuda, cuda:sm_80,…, onnxruntime or reference.",
    ),
]
Level = Annotated[
    int | None,
    Option("-O", min=0, max=3, metavar="N", help="The preset of passes; default: 2."),
]
Passes = Annotated[
    str | None,
    Option(
        metavar="SPEC",
        help="Run these passes instead, such as 'canonicalize,dce' or 'O2,-fuse-gemm'.",
    ),
]
OobPolicy = Annotated[
    Oob, Option(metavar="|".join(Oob), help="What happens to an id outside its table.")
]
Precision = Annotated[
    PrecisionName,
    Option(
        metavar="|".join(PrecisionName),
        help="What wide dense layers multiply: bf16 keeps 2 to 3 digits; on GPUs, tf32 and fp16 "
        "keep 3, and tf32x3 keeps 6.",
    ),
]
Verify = Annotated[bool, Option(help="Compare with the source model before anything is kept.")]

# How much worse it may answer.
Data = Annotated[
    Path | None, Option(metavar="FILE", help="Evaluation data: .npz, .csv or .parquet.")
]
MetricName = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="auc, gauc, logloss, ne, mse, ndcg@K or hit@K; without labels mean-error (the "
        "default), max-error, top@K or kendall; or MODULE:FUNCTION.",
    ),
]
MaxDrop = Annotated[
    float | None,
    Option(min=0, metavar="X", help="Compress the model; the metric may get this much worse."),
]
Sweep = Annotated[
    str | None,
    Option(metavar="X,X,…", help="Compare several values of --max-drop; writes no model."),
]
Plot = Annotated[
    Path | None,
    Option(metavar="FILE", help="Write a plot of the sweep to this .png, .svg or .pdf."),
]
Labels = Annotated[str, Option(metavar="NAME", help="What the labels are called in the data.")]
Group = Annotated[
    str, Option(metavar="NAME", help="What the groups (users, queries) are called in the data.")
]
Score = Annotated[
    str | None,
    Option(
        metavar="OUTPUT[:COLUMN]", help="The output that the metric judges; default: the first one."
    ),
]
Columns = Annotated[
    list[str],
    Option(metavar="INPUT=NAME,…", help="Which columns of the data make up an input; repeatable."),
]
Trace = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Logged requests; table rows that none of them reads may be merged into one.",
    ),
]

VerifyLatency = Annotated[
    str | None,
    Option(metavar="N,N,…", help="Measure at these batch sizes whether ONNX Runtime is faster."),
]
Tune = Annotated[
    float | None,
    Option(min=0, metavar="SECONDS", help="Tune kernels on this machine for up to this long."),
]
Trials = Annotated[
    int | None, Option(min=1, metavar="N", help="Tune kernels with at most N measurements.")
]
Rpc = Annotated[
    str | None,
    Option(metavar="HOST:PORT", help="Tune on the GPU of the TVM RPC server at this address."),
]
TuneBatches = Annotated[str, Option(metavar="N,N,…", help="The batch sizes to tune for.")]
MetaSchedule = Annotated[
    bool, Option("--meta-schedule", help="Also search schedules for kernels without a template.")
]
TuningCache = Annotated[
    Path | None,
    Option(metavar="FILE", help="Keep measurements in this file, and use those that it has."),
]
CacheReadOnly = Annotated[
    bool, Option("--tuning-cache-read-only", help="Never write to the tuning cache.")
]
ErrorOnMiss = Annotated[
    bool, Option("--error-on-cache-miss", help="Fail if the cache lacks a kernel.")
]
Engine = Annotated[
    EngineName,
    Option(
        metavar="|".join(EngineName),
        help="Run the compiled code, or whichever engine was measured to be faster.",
    ),
]

# What is run on.
Inputs = Annotated[
    Path | None,
    Option(metavar="FILE.npz", help="Inputs, one array each, instead of random ones."),
]
Random = Annotated[bool, Option("--random", help="Use random valid inputs.")]
Batch = Annotated[int, Option(min=1, metavar="N", help="The batch size.")]
Batches = Annotated[str, Option(metavar="N,N,…", help="Sizes of random batches.")]
Sizes = Annotated[
    list[str], Option(metavar="NAME=N", help="The value of another symbolic size; repeatable.")
]
Seed = Annotated[int, Option(min=0, metavar="N", help="Seed of the random inputs.")]
Rtol = Annotated[float, Option(min=0, metavar="X", help="Relative tolerance.")]
Atol = Annotated[float, Option(min=0, metavar="X", help="Absolute tolerance.")]

# What is measured.
Source = Annotated[
    Path | None,
    Option(
        metavar="MODEL", help="The model that the peers run; default: MODEL, or the artifact's own."
    ),
]
Peers = Annotated[str, Option(metavar="NAME,…", help="Engines: onnxruntime, openvino.")]
Seconds = Annotated[float, Option(min=0, metavar="X", help="How long to measure at each batch.")]

# What is shown.
Results = Annotated[
    Path | None,
    Option("-o", "--output", metavar="FILE.npz", help="Write the outputs to this file."),
]
ReportFile = Annotated[
    Path | None,
    Option("--report", metavar="FILE", help="Also write the report to this file, as JSON."),
]
PrintIR = Annotated[
    str | None,
    Option(metavar="PASS|all|change", help="Print the graph after this pass, to stdout."),
]
DumpIR = Annotated[
    Path | None, Option(metavar="DIR", help="Write the graph after every pass that changes it.")
]
TimePasses = Annotated[bool, Option("--time-passes", help="Show the time per pass.")]
Explain = Annotated[bool, Option("--explain", help="Show what the rules left alone, and why.")]
Json = Annotated[bool, Option("--json", help="Print everything as JSON.")]
Verbose = Annotated[bool, Option("-v", "--verbose", help="Show every pass and rule.")]
Quiet = Annotated[bool, Option("-q", "--quiet", help="Show errors only.")]


def pipeline(level: int | None, passes: str | None) -> str | None:
    """What to run: a preset or a pipeline's text, None for the default.

    Raises:
        SpecError: both are given.
    """
    if level is not None and passes is not None:
        raise SpecError("give either -O or --passes, not both")
    return passes if level is None else f"O{level}"


def batch_sizes(text: str, option: str = "--batch") -> tuple[int, ...]:
    """The batch sizes in the text of an option.

    Raises:
        SpecError: it does not list positive numbers.
    """
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise SpecError(f"{option} takes positive numbers such as 1,7,64, not {text!r}")
    return sizes
