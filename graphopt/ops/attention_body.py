"""Function bodies of `graphopt::Attention`: standard ONNX, opset 18 and later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ONE_BY_ONE = 4
"""Up to so many heads are computed one by one. In ONNX Runtime that takes 0.7 to 0.95 of the time
from batch 64 on, since heads need not be turned to the front, and 0.9 to 1.2 at batch 1; eight
heads take 1.3 of the time at batch 1."""

SOFTMAX = "softmax"
POINTWISE = {
    "relu": ["activated{h} = Relu (scores{h})"],
    "sigmoid": ["activated{h} = Sigmoid (scores{h})"],
    "silu": ["gates{h} = Sigmoid (scores{h})", "activated{h} = Mul (scores{h}, gates{h})"],
}
"""Activations of scores one by one."""
_GUARDED = [
    "plain{h} = Softmax <axis = -1> (scores{h})",
    "unknown{h} = IsNaN (plain{h})",
    "shares{h} = Where (unknown{h}, none, plain{h})",
]

Beside = Literal["", "flat", "shared", "each"]
"""What is broadcast to scores: nothing, a tensor without an axis for heads, with one of size 1, or
with an element of it for each head."""


@dataclass(frozen=True)
class Variant:
    """What decides the form of a body; numbers are read from the caller's attributes.

    Attributes:
        parts: of which of q, k and v some columns only are read.
        heads: how many are computed one by one; 0 if all are computed at once.
        activation: `SOFTMAX`, or one of `POINTWISE`.
    """

    parts: tuple[bool, bool, bool]
    heads: int
    bias: Beside
    factor: Beside
    guarded: bool
    activation: str

    @property
    def name(self) -> str:
        """What the function is called, such as `Attention__whole_whole_whole_by_2_bias_each`."""
        words = ["part" if part else "whole" for part in self.parts]
        words += [f"by_{self.heads}"] * (self.heads > 0)
        words += ["bias", self.bias] * bool(self.bias) + ["guarded"] * self.guarded
        words += [self.activation] * (self.activation != SOFTMAX)
        words += ["factor", self.factor] * bool(self.factor)
        return f"Attention__{'_'.join(words)}"

    @property
    def inputs(self) -> str:
        """The parameters of the function."""
        optional = ["bias"] * bool(self.bias or self.factor) + ["factor"] * bool(self.factor)
        return ", ".join(["q", "k", "v", *optional])

    @property
    def text(self) -> str:
        """The statements, which compute `result`."""
        lines = [
            "heads = Constant <value_int: int = @heads> ()",
            "dim = Constant <value_int: int = @dim> ()",
            "scale = Constant <value_float: float = @scale> ()",
            "columns = Constant <value_ints: ints = @columns> ()",
            "first = Constant <value_ints = [0]> ()",
            "last = Constant <value_ints = [2]> ()",
            "minus = Constant <value_ints = [-1]> ()",
            "none = Constant <value_float = 0.0> ()",
            "h = Reshape (heads, minus)",
            "d = Reshape (dim, minus)",
            "width = Mul (h, d)",
        ]
        return "\n".join(lines + (self._one_by_one() if self.heads else self._at_once()))

    def _at_once(self) -> list[str]:
        lines = [
            "copied = Concat <axis = 0> (first, first)",
            "apart = Concat <axis = 0> (copied, h, d)",
            "beside = Concat <axis = 0> (copied, width)",
        ]
        for slot, (name, perm) in enumerate(zip("qkv", ("0, 2, 1, 3", "0, 2, 3, 1", "0, 2, 1, 3"))):
            rows = name
            if self.parts[slot]:
                rows = f"{name}_part"
                lines += [*_start(name, slot), *_cut(rows, name, "from", "width")]
            lines += [
                f"{name}_apart = Reshape ({rows}, apart)",
                f"{name}_heads = Transpose <perm = [{perm}]> ({name}_apart)",
            ]
        bias, factor = "bias" if self.bias else "", "factor" if self.factor else ""
        lines += self._mixed("", "q_heads", "k_heads", "v_heads", bias, factor)
        return [
            *lines,
            "turned = Transpose <perm = [0, 2, 1, 3]> (mixed)",
            "result = Reshape (turned, beside)",
        ]

    def _one_by_one(self) -> list[str]:
        lines = ["before_last = Constant <value_ints = [-3]> ()"]
        for slot, name in enumerate("qkv"):
            lines += self._heads_of(name, slot)
        lines += self._each("bias", self.bias) + self._each("factor", self.factor)
        for h in range(self.heads):
            bias, factor = (
                "" if not kind else f"{name}_{h}" if kind == "each" else f"{name}_{kind}"
                for name, kind in (("bias", self.bias), ("factor", self.factor))
            )
            lines.append(f"k_turned_{h} = Transpose <perm = [0, 2, 1]> (k_{h})")
            lines += self._mixed(f"_{h}", f"q_{h}", f"k_turned_{h}", f"v_{h}", bias, factor)
        mixed = ", ".join(f"mixed_{h}" for h in range(self.heads))
        return [*lines, f"result = Concat <axis = 2> ({mixed})"]

    def _heads_of(self, name: str, slot: int) -> list[str]:
        """The columns of each head, `q_0`, `q_1` and so on."""
        if not self.parts[slot]:
            return [self._split(name, 2, [f"{name}_{h}" for h in range(self.heads)])]
        lines = _start(name, slot)
        for h in range(self.heads):
            lines += _cut(f"{name}_{h}", name, f"{h - 1}_to" if h else "from", "d")
        return lines

    def _each(self, name: str, kind: Beside) -> list[str]:
        """What is beside scores, without an axis for heads, and for each head if they differ."""
        if kind == "flat":
            return [f"{name}_flat = Identity ({name})"]
        if kind == "shared":
            return [f"{name}_shared = Squeeze ({name}, before_last)"]
        if not kind:
            return []
        whole = [f"{name}_whole_{h}" for h in range(self.heads)]
        squeezed = [f"{name}_{h} = Squeeze ({w}, before_last)" for h, w in enumerate(whole)]
        return [self._split(name, -3, whole), *squeezed]

    def _split(self, value: str, axis: int, names: list[str]) -> str:
        if len(names) == 1:
            return f"{names[0]} = Identity ({value})"
        return f"{', '.join(names)} = Split <axis = {axis}, num_outputs = {len(names)}> ({value})"

    def _mixed(self, h: str, q: str, k: str, v: str, bias: str, factor: str) -> list[str]:
        """The statements that compute `mixed`, with `h` behind it, of heads and turned keys."""
        if self.activation != SOFTMAX:
            last = f"Mul (activated{{h}}, {factor})" if factor else "Identity (activated{h})"
            shares = [*POINTWISE[self.activation], f"shares{{h}} = {last}"]
        else:
            shares = _GUARDED if self.guarded else ["shares{h} = Softmax <axis = -1> (scores{h})"]
        return [
            f"products{h} = MatMul ({q}, {k})",
            f"scaled{h} = Mul (products{h}, scale)",
            f"scores{h} = Add (scaled{h}, {bias})" if bias else f"scores{h} = Identity (scaled{h})",
            *(line.format(h=h) for line in shares),
            f"mixed{h} = MatMul (shares{h}, {v})",
        ]


def _start(name: str, slot: int) -> list[str]:
    """`q_from`, the first column that is read."""
    return [
        f"{name}_at = Constant <value_ints = [{slot}]> ()",
        f"{name}_from = Gather (columns, {name}_at)",
    ]


def _cut(result: str, name: str, start: str, width: str) -> list[str]:
    """`result`, some columns of `name`, and `result_to`, where they end."""
    return [
        f"{result}_to = Add ({name}_{start}, {width})",
        f"{result} = Slice ({name}, {name}_{start}, {result}_to, last)",
    ]
