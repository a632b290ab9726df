"""Nodes of opsets 7 to 17 written in the forms of opset 18.

The rest of graphopt sees one form of each op: axes as inputs, `Softmax` along one axis, and so on.
The tables and functions below are all that changed in what a form *means*. The other versions
between 7 and 18 only widened their op (more dtypes, negative axes, attributes whose default is the
old behaviour): their nodes are valid as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType, dtype_to_numpy, dtype_to_onnx

MIN_OPSET = 18


@dataclass
class OpCall:
    """An op about to become a node.

    Attributes:
        inputs: its operands, None where omitted.
        outputs: names for its results.
        origin: the source nodes it stands for.
    """

    op_type: str
    domain: str
    inputs: list[Value | None]
    attrs: dict[str, Any]
    outputs: list[str]
    origin: tuple[str, ...]

    def invalid(self, reason: str) -> InvalidModelError:
        """The error of a call that breaks ONNX's rules."""
        where = ", ".join(repr(name) for name in self.origin[:3])
        return InvalidModelError(f"{self.op_type} (node {where}): {reason}")

    def unsupported(self, reason: str) -> UnsupportedOpError:
        """The error of a call that is valid and that graphopt does not handle."""
        return UnsupportedOpError(self.op_type, reason, self.origin)


class Moved(NamedTuple):
    """An attribute that became an input of the op in version `until`.

    Attributes:
        dtype: of the new input; "" for the dtype of input 0.
        default: what the attribute meant where it was absent; None for nothing.
        rank: of the new input.
    """

    until: int
    attr: str
    slot: int
    dtype: str = "int64"
    default: Any = None
    rank: int = 1


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

_MOVED: dict[str, tuple[Moved, ...]] = {
    **{f"Reduce{kind}": (Moved(18, "axes", 1),) for kind in _REDUCTIONS},
    "ReduceSum": (Moved(13, "axes", 1),),
    "Squeeze": (Moved(13, "axes", 1),),
    "Unsqueeze": (Moved(13, "axes", 1),),
    "Split": (Moved(13, "split", 1),),
    "Slice": (Moved(10, "starts", 1), Moved(10, "ends", 2), Moved(10, "axes", 3)),
    "Pad": (Moved(11, "pads", 1), Moved(11, "value", 2, dtype="", rank=0)),
    "Clip": (
        # The limits of float32 were the defaults: an infinity is clipped to them.
        Moved(11, "min", 1, "", float(np.finfo(np.float32).min), rank=0),
        Moved(11, "max", 2, "", float(np.finfo(np.float32).max), rank=0),
    ),
    "TopK": (Moved(10, "k", 1),),
    "Upsample": (Moved(9, "scales", 1, "float32"),),
}
# An empty list in these places means the same as none at all.
_EMPTY_IS_ABSENT = frozenset(["axes", "split"])

Adapter = Callable[[Graph, OpCall, int], Sequence[Value]]


def upgrade(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    """Insert `call`, written in opset `version`, in the form of opset 18; returns its results.

    Raises:
        InvalidModelError: the call does not fit its op.
        UnsupportedOpError: it has no counterpart in opset 18.
    """
    if call.domain or version >= MIN_OPSET:
        return insert(graph, call)
    for moved in _MOVED.get(call.op_type, ()):
        if version < moved.until:
            _move(graph, call, moved)
    until, adapter = _ADAPTERS.get(call.op_type, (0, None))
    if adapter is None or version >= until:
        return insert(graph, call)
    return adapter(graph, call, version)


def insert(graph: Graph, call: OpCall) -> Sequence[Value]:
    """Insert `call` as it is."""
    node = graph.insert(
        call.op_type,
        call.inputs,
        call.attrs,
        domain=call.domain,
        outputs=call.outputs,
        origin=call.origin,
    )
    return node.outputs


def check_form(call: OpCall, version: int) -> None:
    """Refuse an op whose subgraphs could not be read in today's form.

    Raises:
        UnsupportedOpError: a `Scan` of opset 8.
    """
    if call.op_type == "Scan" and not call.domain and version < 9:
        raise call.unsupported(
            "in opset 8 it has a batch axis, which later versions lack; export with opset 9 or up"
        )


def _move(graph: Graph, call: OpCall, moved: Moved) -> None:
    attr = call.attrs.pop(moved.attr, moved.default)
    if attr is None or (moved.attr in _EMPTY_IS_ABSENT and not attr):
        return
    dtype = dtype_to_numpy(moved.dtype or _data(call).dtype)
    with np.errstate(over="ignore"):
        array = np.array(attr, dtype=dtype).reshape((-1,) * moved.rank)
    call.inputs += [None] * (moved.slot + 1 - len(call.inputs))
    call.inputs[moved.slot] = graph.constant(array)


def _data(call: OpCall) -> TensorType:
    """The type of input 0, which must be a tensor."""
    value = call.inputs[0] if call.inputs else None
    if value is None or not isinstance(value.type, TensorType):
        raise call.invalid("input 0 must be a tensor")
    return value.type


def _step(
    graph: Graph, call: OpCall, op_type: str, inputs: Sequence[Value | None], **attrs: Any
) -> Value:
    """One of several nodes that stand for `call`."""
    return graph.insert(op_type, inputs, attrs, origin=call.origin).output


def _restored(graph: Graph, call: OpCall, flat: Value) -> Sequence[Value]:
    """`flat` in the shape of input 0, as the result of `call`."""
    shape = _step(graph, call, "Shape", call.inputs[:1])
    attrs = {"allowzero": 1}  # the sizes are meant as they are, and one of them may be 0
    return insert(graph, OpCall("Reshape", "", [flat, shape], attrs, call.outputs, call.origin))


# ----------------------------------------------------------------------- adapters


def _flattened(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    """Softmax and its like worked on `[product(shape[:axis]), product(shape[axis:])]`."""
    axis = call.attrs.get("axis", 1)
    shape = _data(call).shape
    if shape is not None:
        if not -len(shape) <= axis <= len(shape):
            raise call.invalid(f"axis {axis} is out of range for rank {len(shape)}")
        axis = axis + len(shape) if axis < 0 else axis
        long = [k for k in range(axis, len(shape)) if shape[k] != 1]
        if axis < len(shape) and len(long) <= 1:
            call.attrs["axis"] = (long or [axis])[0] - len(shape)
            return insert(graph, call)
    flat = _step(graph, call, "Flatten", call.inputs, axis=axis)
    return _restored(graph, call, _step(graph, call, call.op_type, [flat], axis=-1))


def _batch_normalization(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    if len(call.outputs) > 1:
        raise call.unsupported(
            "more than one output means training mode; export the model for inference"
        )
    if call.attrs.pop("spatial", 1):
        return insert(graph, call)
    # Statistics per element instead of per channel: each element becomes a channel.
    flat = _step(graph, call, "Flatten", call.inputs[:1], axis=1)
    everything = graph.constant(np.array([-1]))
    per_element = [_step(graph, call, "Reshape", [value, everything]) for value in call.inputs[1:]]
    normalized = _step(graph, call, "BatchNormalization", [flat, *per_element], **call.attrs)
    return _restored(graph, call, normalized)


def _dropout(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    """In inference the ratio means nothing, and a mask is empty and has the data's dtype at first.

    The specification leaves that mask open; this is what ONNX Runtime gives.
    """
    call.attrs.pop("ratio", None)
    if len(call.outputs) < 2:
        return insert(graph, call)
    output, mask = call.outputs
    call.outputs = [output, graph.fresh_name(mask)]
    data, kept = insert(graph, call)
    dropped = _step(graph, call, "Not", [kept])
    to = {"to": dtype_to_onnx("bool" if version >= 10 else _data(call).dtype)}
    return data, *insert(graph, OpCall("Cast", "", [dropped], to, [mask], call.origin))


def _split(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    if len(call.inputs) < 2 or call.inputs[1] is None:
        call.attrs["num_outputs"] = len(call.outputs)
    return insert(graph, call)


def _roi_align(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    call.attrs["coordinate_transformation_mode"] = "output_half_pixel"
    return insert(graph, call)


def _scatter(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    call.op_type = "ScatterElements"
    return insert(graph, call)


def _upsample(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    return _resize_10(graph, call, version, smaller=False)


def _resize(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    if version == 10:
        scales = call.inputs[1].const if len(call.inputs) > 1 and call.inputs[1] else None
        nearest = call.attrs.get("mode", "nearest") == "nearest"
        if nearest and (scales is None or scales.min() < 1 < scales.max()):
            raise call.unsupported(
                "nearest mode of opset 10 rounds up where it shrinks and down where it grows, and "
                "the scales do not all do the same; export with opset 11 or newer"
            )
        return _resize_10(graph, call, version, smaller=scales is not None and scales.min() < 1)
    if call.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise call.unsupported("ONNX dropped coordinate mode 'tf_half_pixel_for_nn' in opset 13")
    # An empty roi or list of scales was how to leave them out.
    call.inputs = [None if v is None or _is_empty(v) else v for v in call.inputs]
    while call.inputs[-1] is None:
        call.inputs.pop()
    return insert(graph, call)


def _resize_10(graph: Graph, call: OpCall, version: int, smaller: bool) -> Sequence[Value]:
    attrs = {
        "mode": call.attrs.get("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "ceil" if smaller else "floor",
    }
    data, *rest = call.inputs
    return insert(
        graph, OpCall("Resize", "", [data, None, *rest], attrs, call.outputs, call.origin)
    )


def _is_empty(value: Value) -> bool:
    return value.const is not None and value.const.size == 0


# The adapter of an op serves the versions below the number.
_ADAPTERS: dict[str, tuple[int, Adapter]] = {
    "BatchNormalization": (14, _batch_normalization),
    "Dropout": (12, _dropout),
    "Hardmax": (13, _flattened),
    "LogSoftmax": (13, _flattened),
    "Resize": (13, _resize),
    "RoiAlign": (16, _roi_align),
    "Scatter": (11, _scatter),
    "Softmax": (13, _flattened),
    "Split": (18, _split),
    "Upsample": (10, _upsample),
}
