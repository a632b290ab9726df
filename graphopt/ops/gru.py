"""`graphopt::GRU`: the state of a GRU after the last step of a sequence, zero before the first.

Inputs, float32, laid out as those of ONNX's GRU: `x` [t, b, i]; `w` [1, 3 * h, i], `r`
[1, 3 * h, h] and `b` [1, 6 * h]; optional `initial_h` [1, b, h]. Output: [1, b, h]. Attributes:
`hidden_size`, and `linear_before_reset` as ONNX has it: the reset gate multiplies what comes of
the state, or (0) the state itself. (Cho et al., "Learning Phrase Representations using RNN
Encoder-Decoder", 2014.)

It exists because no form in standard ONNX is the fastest for every batch: ONNX Runtime's GRU
computes the gates one number after the other, and a Scan pays for each step. So the body asks how
much there is to compute in a step.
"""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "GRU"

ENOUGH = 2048
"""Numbers of a state, all samples together, from which on a Scan is the faster form.

Measured with ONNX Runtime 1.32 for 16 to 256 hidden units and 10 to 50 steps; half or twice as many
make 10 to 20 % of difference.
"""

_WEIGHTS = """
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    w2 = Squeeze (w, first)
    wz, wr, wn = Split <axis = 0, num_outputs = 3> (w2)
    wg = Concat <axis = 0> (wz, wr)
    r2 = Squeeze (r, first)
    rz, rr, rn = Split <axis = 0, num_outputs = 3> (r2)
    rg = Concat <axis = 0> (rz, rr)
    b2 = Squeeze (b, first)
    bz, br, bn, cz, cr, cn = Split <axis = 0, num_outputs = 6> (b2)
    bg = Concat <axis = 0> (bz, br)
    cg = Concat <axis = 0> (cz, cr)
    dg = Add (bg, cg)
    samples = Shape <start = 1, end = 2> (x)
    units = Shape <start = 2> (r)
    numbers = Mul (samples, units)
    enough = Constant <value_ints = [{enough}]> ()
    few_numbers = Less (numbers, enough)
    few = Squeeze (few_numbers)
"""

_ZERO_STATE = """
    size = Concat <axis = 0> (samples, units)
    start = ConstantOfShape (size)
"""

# What the hidden gate takes from the state, after the reset gate or before.
_HIDDEN = {
    True: """
            left = Gemm <transB = 1> (h, rn, cn)
            kept = Mul (reset, left)
            sum = Add (xn, kept)""",
    False: """
            kept = Mul (reset, h)
            left = Gemm <transB = 1> (kept, rn, cn)
            sum = Add (xn, left)""",
}

_SCAN = """
        last = Scan <num_scan_inputs = 1, body = step (float[] h, float[] xt) => (float[] next) {{
            xg = Gemm <transB = 1> (xt, wg, dg)
            xn = Gemm <transB = 1> (xt, wn, bn)
            gates = Gemm <transB = 1> (h, rg, xg)
            shares = Sigmoid (gates)
            z, reset = Split <axis = -1, num_outputs = 2> (shares){hidden}
            n = Tanh (sum)
            change = Sub (h, n)
            held = Mul (z, change)
            next = Add (n, held)
        }}> (start, x)
        scanned = Unsqueeze (last, first)
"""


@type_rule(OP_TYPE, domain=DOMAIN)
def _gru(node: Node) -> list[Type | None]:
    types = [None if value is None else value.type for value in node.inputs]
    tensors = [t for t in types if isinstance(t, TensorType) and t.dtype == "float32"]
    ranks = [t.rank for t in tensors]
    hidden = node.attr("hidden_size")
    fits = len(tensors) == len(types) and ranks in ([3, 3, 3, 2], [3, 3, 3, 2, 3])
    fits = fits and tensors[2].dims == (1, 3 * hidden, hidden)
    if not fits:
        raise failure(
            node,
            f"its inputs must be float32 x [t, b, i], w [1, 3 * h, i], "
            f"r [1, 3 * h, h], b [1, 6 * h] and initial_h [1, b, h], h being {hidden}, "
            f"not {', '.join(map(str, types))}",
        )
    return [tensor_type("float32", [1, tensors[0].dims[1], hidden])]


def is_linear(node: Node) -> bool:
    """True if the reset gate multiplies what comes of the state."""
    return bool(node.attr("linear_before_reset", 0))


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    form = "linear" if is_linear(node) else "reset_first"
    return f"{OP_TYPE}__{form}{'_initial' if node.input(4) is not None else ''}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    linear, initial = is_linear(node), node.input(4) is not None
    attrs = f"hidden_size: int = @hidden_size, linear_before_reset = {int(linear)}"
    given = "x, w, r, b, , initial_h" if initial else "x, w, r, b"
    start = "start = Squeeze (initial_h, first)" if initial else _ZERO_STATE
    body = f"""{_WEIGHTS.format(enough=ENOUGH)}
        y_h = If (few) <
            then_branch = at_once () => (state) {{ all, state = GRU <{attrs}> ({given}) }},
            else_branch = by_steps () => (scanned) {{
                {start}
                {_SCAN.format(hidden=_HIDDEN[linear])}
            }}
        >"""
    name, signature = function_name(node), f"(x, w, r, b{', initial_h' * initial}) => (y_h)"
    defaults = {"linear_before_reset": int(linear)}
    return local_function(node, name, signature, body, ["hidden_size"], defaults)
