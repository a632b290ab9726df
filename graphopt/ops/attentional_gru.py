"""`graphopt::AttentionalGRU`: a GRU whose update gate is scaled by attention (DIEN's AUGRU).

Inputs, float32: `x` [t, b, i]; `w` [1, 3 * h, i], `r` [1, 3 * h, h] and `b` [1, 6 * h], laid out as
those of ONNX's GRU with `linear_before_reset`; `initial_h` [1, b, h]; `attention` [t, b, 1].
Output: the state after the last step, [1, b, h]. A step computes ONNX's z, r and n, and then
`h + attention * z * (n - h)`: z is the share of the *new* state here.
(Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", 2019, eq. 5.)
"""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "AttentionalGRU"

_BODY = """
    first = Constant <value_ints = [0]> ()
    w2 = Squeeze (w, first)
    wt = Transpose <perm = [1, 0]> (w2)
    r2 = Squeeze (r, first)
    rt = Transpose <perm = [1, 0]> (r2)
    b2 = Squeeze (b, first)
    wb, rb = Split <axis = 0, num_outputs = 2> (b2)
    start = Squeeze (initial_h, first)
    product = MatMul (x, wt)
    projected = Add (product, wb)
    last = Scan <num_scan_inputs = 2, body = step (float[] h, float[] xt, float[] at)
        => (float[] next) {
            q = MatMul (h, rt)
            p = Add (q, rb)
            xz, xr, xn = Split <axis = -1, num_outputs = 3> (xt)
            hz, hr, hn = Split <axis = -1, num_outputs = 3> (p)
            sz = Add (xz, hz)
            z = Sigmoid (sz)
            sr = Add (xr, hr)
            reset = Sigmoid (sr)
            left = Mul (reset, hn)
            sn = Add (xn, left)
            n = Tanh (sn)
            share = Mul (at, z)
            change = Sub (n, h)
            move = Mul (share, change)
            next = Add (h, move)
        }> (start, projected, attention)
    y_h = Unsqueeze (last, first)
"""


@type_rule(OP_TYPE, domain=DOMAIN)
def _attentional_gru(node: Node) -> list[Type | None]:
    types = [None if value is None else value.type for value in node.inputs]
    ranks = [t.rank if isinstance(t, TensorType) and t.dtype == "float32" else None for t in types]
    if ranks != [3, 3, 3, 2, 3, 3]:
        found = ", ".join(str(t) for t in types)
        raise failure(
            node,
            f"its inputs must be float32 x [t, b, i], w, r, b, "
            f"initial_h [1, b, h] and attention [t, b, 1], not {found}",
        )
    state = types[4]
    assert isinstance(state, TensorType)
    return [tensor_type("float32", state.dims)]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return OP_TYPE


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    return local_function(node, OP_TYPE, "(x, w, r, b, initial_h, attention) => (y_h)", _BODY)
