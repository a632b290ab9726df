"""Activations applied to a float32 expression where a kernel stores it."""

from dataclasses import dataclass
from math import pi
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.kernels.elementary import clip, erf, fast_exp, sigmoid, tanh

_DEFAULTS: dict[str, tuple[float, float]] = {  # alpha, beta; the defaults of the ONNX operators
    "none": (0.0, 0.0),
    "affine": (1.0, 0.0),
    "clip": (0.0, 6.0),
    "elu": (1.0, 0.0),
    "gelu": (1.0, 0.0),
    "hard_sigmoid": (0.2, 0.5),
    "hard_swish": (0.0, 0.0),
    "leaky_relu": (0.01, 0.0),
    "relu": (0.0, 0.0),
    "scaled_tanh": (1.0, 1.0),
    "sigmoid": (0.0, 0.0),
    "silu": (0.0, 0.0),
    "softplus": (0.0, 0.0),
    "softsign": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "tanh_gelu": (1.0, 0.0),
    "thresholded_relu": (1.0, 0.0),
}

KINDS = tuple(_DEFAULTS)
COLUMNS = {"prelu": 1, "gated": 4}
"""Kinds whose constants differ from column to column, and how many a column has."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function of float32: `kind` and its constants, called on an expression.

    affine: alpha * x + beta          clip: limited to [alpha, beta]
    elu: x, alpha * (e**x - 1) if x < 0           gelu: alpha * x * Phi(x), by erf
    hard_sigmoid: alpha * x + beta limited to [0, 1]     hard_swish: x * hard_sigmoid(x; 1/6, 1/2)
    leaky_relu: x, alpha * x if x < 0             scaled_tanh: alpha * tanh(beta * x)
    silu: x * sigmoid(x)              softplus: log(1 + e**x)       softsign: x / (1 + |x|)
    tanh_gelu: alpha * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2
    thresholded_relu: x, 0 if x <= alpha
    prelu: x, a * x if x < 0          gated: x * (a + b * sigmoid(c * x + d))
    A constant left out has the default of the ONNX operator; a to d come with each column.  NaN
    stays NaN.
    """

    kind: str = "none"
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _DEFAULTS and self.kind not in COLUMNS:
            known = ", ".join((*KINDS, *COLUMNS))
            raise ValueError(f"unknown activation {self.kind!r}; known: {known}")
        alpha, beta = _DEFAULTS.get(self.kind, (0.0, 0.0))
        object.__setattr__(self, "alpha", alpha if self.alpha is None else float(self.alpha))
        object.__setattr__(self, "beta", beta if self.beta is None else float(self.beta))

    @property
    def columns(self) -> int:
        """Constants that come with each column."""
        return COLUMNS.get(self.kind, 0)

    def __call__(self, x: Any, *column: Any) -> Any:
        """The function of a float32 expression, which may be repeated: give it a simple one.

        Args:
            column: the constants of its column.
        """
        alpha, beta, zero, one = map(T.float32, (self.alpha, self.beta, 0, 1))
        match self.kind:
            case "none":
                return x
            case "affine":
                return x * alpha + beta
            case "clip":
                return clip(x, alpha.value, beta.value)
            case "elu":
                return T.Select(x < zero, alpha * (fast_exp(x) - one), x)
            case "gated":
                a, b, c, d = column
                return x * (a + b * sigmoid(c * x + d))
            case "gelu":
                return x * (alpha * T.float32(0.5)) * (one + erf(x * T.float32(0.5**0.5)))
            case "hard_sigmoid":
                return clip(x * alpha + beta, 0.0, 1.0)
            case "hard_swish":
                return x * clip(x * T.float32(1 / 6) + T.float32(0.5), 0.0, 1.0)
            case "leaky_relu":
                return T.Select(x < zero, alpha * x, x)
            case "prelu":
                return T.Select(x < zero, column[0] * x, x)
            case "relu":
                return T.Select(x < zero, zero, x)
            case "scaled_tanh":
                return alpha * tanh(beta * x)
            case "sigmoid":
                return sigmoid(x)
            case "silu":
                return x * sigmoid(x)
            case "softplus":  # log is a scalar call: rare enough
                return T.Select(x < zero, zero, x) + T.log(one + fast_exp(zero - T.abs(x)))
            case "softsign":
                return x / (one + T.abs(x))
            case "tanh":
                return tanh(x)
            case "tanh_gelu":
                inner = (x + T.float32(0.044715) * x * x * x) * T.float32((2 / pi) ** 0.5)
                return x * (alpha * T.float32(0.5)) * (one + tanh(inner))
            case "thresholded_relu":
                return T.Select(x <= alpha, zero, x)
        raise AssertionError(self.kind)
