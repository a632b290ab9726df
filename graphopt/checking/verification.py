"""The source model: what it takes, how it runs, and whether a result agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from graphopt.analysis.ids import SAME_ELEMENTS
from graphopt.checking import midpoints
from graphopt.checking.comparison import Comparison, compare
from graphopt.checking.feeds import random_feeds
from graphopt.errors import InputError, InvalidModelError, UnsupportedOpError, VerificationError
from graphopt.ir import onnx_io
from graphopt.ir.atomic import scratch_folder
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType
from graphopt.pipeline.report import Report
from graphopt.serving.artifact import Artifact
from graphopt.serving.signature import Runnable, Signature, TensorSpec
from graphopt.targets.portable import OnnxModel


class Verifier(Protocol):
    """Says whether results are as good as was agreed."""

    def verify(self, results: Sequence[Runnable], report: Report) -> None: ...


def signature_of(graph: Graph) -> Signature:
    """What a graph takes and gives.

    Raises:
        UnsupportedOpError: it takes or gives something else than tensors.
    """

    def spec(name: str, value: Value) -> TensorSpec:
        if not isinstance(value.type, TensorType):
            what = "graph input" if value.producer is None else "graph output"
            reason = f"it is {value.type}, no tensor; give the model inputs and outputs of tensors"
            raise UnsupportedOpError(what, reason, (name,))
        shape = value.shape
        known = None if shape is None else tuple(d if isinstance(d, int) else str(d) for d in shape)
        return TensorSpec(name, value.dtype, known)

    return Signature(
        tuple(spec(value.name, value) for value in graph.inputs),
        tuple(spec(name, value) for name, value in zip(graph.output_names, graph.outputs)),
    )


_EPSILON = dict.fromkeys(("float16", "fp16", "tf32"), 2.0**-10) | dict.fromkeys(
    ("bfloat16", "bf16"), 2.0**-7
)


def tolerances(graph: Graph, precision: str = "fp32") -> tuple[float, float]:
    """(rtol, atol) for the answers of `graph` with its float operations in another order.

    Where it computes in half precision, eight units in the last place: results are rounded after
    every op, or only at the end of several that an engine fuses, and both is right. So it is where
    dense layers multiply in `precision` tf32, fp16 or bf16.
    """
    found = [_EPSILON.get(value.dtype, 0.0) for value in _computed(graph)]
    half = 8 * max([*found, _EPSILON.get(precision, 0.0)])
    return max(1e-4, half), max(1e-5, half)


def _computed(graph: Graph) -> Iterator[Value]:
    """The tensors that are results of arithmetic."""
    for node in graph.walk():
        if node.op not in SAME_ELEMENTS and node.op != "Concat":
            yield from (value for value in node.outputs if isinstance(value.type, TensorType))


@contextmanager
def original_model(graph: Graph, file: Path | None) -> Iterator[OnnxModel]:
    """The source in ONNX Runtime, op by op where it is quantized.

    The graph, as it was read, if there is no file, or none that any engine runs.
    """
    if graph.metadata.get("of_no_engine"):
        file = None
    with scratch_folder() as folder:
        source = file or Path(folder) / "source.onnx"
        if file is None:
            onnx_io.save(graph, source)
        yield OnnxModel(source, signature=signature_of(graph)).as_written()


def _precision(result: Runnable) -> str:
    return result.precision if isinstance(result, Artifact) else "fp32"


_MIDDLE = (
    "some numbers lie in the middle of two codes, and were rounded to either; "
    "rows of answers were compared within what that makes of them"
)
_RANDOM = "random inputs (if these make no sense to the model, try --inputs real.npz)"


class Original:
    """The source model in ONNX Runtime, to compare results with.

    Where there is a file it is run as it is, so that a misread model shows too. A verifier given
    as `other` has the say instead.
    """

    def __init__(
        self,
        graph: Graph,
        file: Path | None,
        inputs: Mapping[str, np.ndarray] | None,
        other: Verifier | None,
    ) -> None:
        self.graph, self.file, self.inputs = graph, file, inputs
        self.other = other

    def verify(
        self, optimized: Graph, opened: Callable[[], Sequence[Runnable]], report: Report
    ) -> None:
        """Compare each result with the source; the first one's outcome is reported.

        Args:
            opened: gives the results; called when the source runs, so that what ONNX Runtime
                refuses in both is said of the source.

        Raises:
            InvalidModelError: ONNX Runtime refuses the source.
            VerificationError: names the worst element.
            whatever `other` raises.
        """
        if self.other is not None:
            self.other.verify(opened(), report)
            return
        with ExitStack() as stack:
            try:
                original = stack.enter_context(original_model(self.graph, self.file))
            except InvalidModelError as error:
                error.args = (f"{error}; --no-verify still compiles it for CPUs and GPUs",)
                raise
            feeds = self._feeds(optimized, original, report)
            if not feeds:
                report.verification = {"agrees": None, "reason": "no inputs to verify on"}
                return
            results = opened()
            slack = None
            outcomes = self._outcomes(original, results, feeds, slack)
            if not all(outcome.agrees for outcome in outcomes):
                source = [original.run(feed) for feed in feeds]
                slack = midpoints.slack(self.graph, source, feeds, self._opened)
            if slack is not None:
                outcomes = self._outcomes(original, results, feeds, slack)
                report.warnings.append(_MIDDLE)
        report.verification = outcomes[0].to_json()
        hint = "" if self.inputs is not None else f" on {_RANDOM}"
        for outcome in outcomes:
            if not outcome.agrees:
                raise VerificationError(f"the result differs from the source{hint}: {outcome}")

    def _outcomes(
        self,
        original: OnnxModel,
        results: Sequence[Runnable],
        feeds: Sequence[Mapping[str, np.ndarray]],
        slack: Sequence[Mapping[str, np.ndarray]] | None,
    ) -> list[Comparison]:
        return [
            compare(original, result, feeds, *tolerances(self.graph, _precision(result)), slack)
            for result in results
        ]

    def _opened(self, path: Path) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
        return OnnxModel(path, signature=signature_of(self.graph)).as_written().run

    def _feeds(
        self, optimized: Graph, original: OnnxModel, report: Report
    ) -> Sequence[Mapping[str, np.ndarray]]:
        if self.inputs is not None:
            return [self.inputs]
        try:
            feeds, refused = random_feeds(optimized, original.run)
        except InputError as error:
            report.warnings.append(f"not verified, as the source refuses random inputs: {error}")
            return []
        report.warnings += [f"not verified at {reason}" for reason in refused]
        return feeds
