"""Targets that need no compiler: the portable `.onnx`, run by ONNX Runtime or onnx's reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import onnx

from graphopt.errors import IdError, InputError, InvalidModelError, SpecError
from graphopt.ir.maps import as_array
from graphopt.ir.types import dtype_from_onnx
from graphopt.ops.dynamic_matmul import EXACT_LEVELS
from graphopt.serving.signature import Signature, TensorSpec
from graphopt.targets import empty_sequences
from graphopt.targets.base import Target


class _PortableTarget(Target):
    """The optimized model as ONNX."""

    portable: ClassVar[bool] = True

    @classmethod
    def parse(cls, argument: str) -> Self:
        if argument:
            raise SpecError(f"target {cls.name} takes no argument, not {argument!r}")
        return cls()


class OnnxRuntimeTarget(_PortableTarget):
    """For ONNX Runtime or any other engine."""

    name: ClassVar[str] = "onnxruntime"
    own_passes: ClassVar[str] = "fixpoint(look-up-codes,part-layer-norms)"

    @property
    def multiplies_bytes(self) -> None:
        """It depends on the CPU, the shape of a layer and what is fused with it."""
        return None

    @property
    def row_levels(self) -> int:
        return EXACT_LEVELS  # it may run on any CPU


class ReferenceTarget(_PortableTarget):
    """For onnx's own reference evaluator."""

    name: ClassVar[str] = "reference"


class OnnxModel:
    """An `.onnx` file that runs, with the interface of a compiled artifact.

    Attributes:
        path: the file.
        signature: what `run` takes and gives; read off the file where the caller has no better.

    Args:
        as_written: ONNX Runtime computes each op as it stands.
    """

    def __init__(
        self,
        path: Path,
        engine: str = "onnxruntime",
        signature: Signature | None = None,
        *,
        as_written: bool = False,
    ) -> None:
        self.path = path
        proto = onnx.load(str(path), load_external_data=False)
        self._rounds = engine == "onnxruntime" and not as_written and _rounds(proto.graph)
        if engine == "reference":
            self._run = _reference(path)
        else:
            self._run = _onnxruntime(path, proto, as_written)
        if signature is not None:
            self.signature = signature
            return
        constants = {tensor.name for tensor in proto.graph.initializer}
        self.signature = Signature(
            tuple(_spec(value) for value in proto.graph.input if value.name not in constants),
            tuple(_spec(value) for value in proto.graph.output),
        )

    def as_written(self) -> OnnxModel:
        """The model to compare answers with: in full, also where it is quantized.

        ONNX Runtime's optimizer rounds more than such a model says: weights in float32 next to
        rounded data, and data next to stored weights (by up to 0.12 in a SASRec with scores of 10).
        """
        if not self._rounds:
            return self
        return OnnxModel(self.path, signature=self.signature, as_written=True)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Compute the outputs for one batch.

        Raises:
            InputError: the arrays do not fit the signature.
            IdError: an id lies outside its table.
        """
        arrays = self.signature.bind(feeds)
        named = {spec.name: array for spec, array in zip(self.signature.inputs, arrays)}
        results = map(as_array, self._run(named))
        return {spec.name: array for spec, array in zip(self.signature.outputs, results)}

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.path}: cannot be pickled or copied when loaded; load it again")


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if value.type.sequence_type.elem_type.HasField("map_type"):
        return TensorSpec(value.name, "float32", (f"{value.name}_0", f"{value.name}_1"))
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_param or (d.dim_value if d.HasField("dim_value") else f"{value.name}_{axis}")
            for axis, d in enumerate(tensor.shape.dim)
        )
    return TensorSpec(value.name, dtype_from_onnx(tensor.elem_type), shape)


# Putting transposes into products of float16 crashes ONNX Runtime 1.32.
_CRASHES_ON_HALF = ["MatmulTransposeFusion"]


def _rounds(graph: onnx.GraphProto) -> bool:
    """True if something is rounded to integers of few bits, or was, subgraphs included."""
    return any("quantize" in node.op_type.lower() for node in _nodes(graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def _onnxruntime(path: Path, proto: onnx.ModelProto, as_written: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    guarded = empty_sequences.guarded(proto)
    if guarded is not None:
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(path.absolute().parent))
    try:
        session = ort.InferenceSession(
            str(path) if guarded is None else guarded.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_CRASHES_ON_HALF if _computes_in_half(proto) else None,
        )
    except Exception as error:
        raise InvalidModelError(f"{path}: ONNX Runtime refuses it: {_first_line(error)}") from None

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return list(session.run(None, feeds))
        except Exception as error:
            if empty_sequences.GUARD in str(error):
                raise InputError(f"{path}: {empty_sequences.COMPLAINT}") from None
            kind = IdError if "out of data bounds" in str(error) else InputError
            raise kind(f"{path}: ONNX Runtime failed: {_first_line(error)}") from None

    return run


def _computes_in_half(proto: onnx.ModelProto) -> bool:
    """True if a weight, an input or a cast of the main graph is float16."""
    half = onnx.TensorProto.FLOAT16
    return (
        any(tensor.data_type == half for tensor in proto.graph.initializer)
        or any(value.type.tensor_type.elem_type == half for value in proto.graph.input)
        or any(a.name == "to" and a.i == half for n in proto.graph.node for a in n.attribute)
    )


def _reference(path: Path) -> Any:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return list(evaluator.run(None, feeds))
        except Exception as error:
            raise InputError(f"{path}: the reference failed: {_first_line(error)}") from None

    return run


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
