"""The text form: what golden files are made of."""

from __future__ import annotations

from graphopt.ir.printer import to_text
from graphopt.testing import parse


def test_the_whole_format() -> None:
    graph = parse(
        """(float[N,4] input.1, bool flag) => (float[N,8] probability)
    <float[4,8] layer.weight, int64[2] shape = {-1, 8}, float half = {0.5}> {
        h = MatMul("input.1", "layer.weight")
        r = Reshape<allowzero=0>(h, shape)
        c = Clip(r, , half)
        s = Softmax<axis=-1>(c)
        t = Softmax<axis=0>(s)
        probability = If(flag) <
            then_branch = a () => (float[N,8] p) { p = Relu(t) },
            else_branch = b () => (float[N,8] q) { q = Mul(t, half) }
        >
    }""".replace("input.1", '"input.1"', 1)
        .replace(" layer.weight", ' "layer.weight"', 1)
        .replace("Clip(r, , half)", 'Clip(r, "", half)')
    )
    assert (
        to_text(graph)
        == """graph opset=18 {
  in    %input.1 : f32[N, 4]
  in    %flag : bool[]
  const %c0 : f32[4, 8]
  %0 : f32[N, 8] = MatMul(%input.1, %c0)
  %1 : f32[N, 8] = Reshape(%0, [-1, 8])
  %2 : f32[N, 8] = Clip(%1, _, 0.5)
  %3 : f32[N, 8] = Softmax(%2)
  %4 : f32[N, 8] = Softmax(%3) {axis=0}
  %5 : f32[N, 8] = If(%flag)
    else_branch {
      %6 : f32[N, 8] = Mul(%4, 0.5)
      out   %6 : f32[N, 8]
    }
    then_branch {
      %7 : f32[N, 8] = Relu(%4)
      out   %7 : f32[N, 8]
    }
  out   %probability = %5 : f32[N, 8]
}
"""
    )


def test_names_of_the_source_do_not_show() -> None:
    texts = [
        to_text(parse(f"(float[N] x) => (float[N] y) {{ {a} = Exp(x) y = Neg({a}) }}"))
        for a in ("hidden", "onnx_name_17")
    ]
    assert texts[0] == texts[1]


def test_an_input_called_like_a_constant_does_not_shift_numbers() -> None:
    text = to_text(
        parse("(float[N,4] category) => (float[N,8] y) <float[4,8] w> { y = MatMul(category, w) }")
    )
    assert "const %c0 : f32[4, 8]" in text


def test_loops_show_what_they_carry() -> None:
    graph = parse("""(float[4] x, int64 n) => (float[4] y) <bool yes = {1}> {
        y = Loop(n, yes, x) <
            body = b (int64 i, bool c, float[4] u) => (bool c2, float[4] v) {
                c2 = Identity(c)
                v = Relu(u)
            }
        >
    }""")
    lines = to_text(graph).splitlines()
    assert lines[3] == "  %0 : f32[4] = Loop(%n, True, %x)"
    assert lines[5:8] == [
        "      in    %1 : i64[]",
        "      in    %2 : bool[]",
        "      in    %3 : f32[4]",
    ]
    assert lines[-2] == "  out   %y = %0 : f32[4]"
