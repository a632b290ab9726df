"""Models that are no models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from bad_input_cases.case import CLICKS, Case, Edit, Kit

STRINGS = "(string[N] x) => (string[N] y) { y = StringConcat(x, x) }"


def broken(name: str, make: Callable[[Kit], Path], says: str) -> Case:
    return Case(name, lambda kit: ["optimize", make(kit), "--target", "onnxruntime"], says)


def text(name: str, body: str, says: str, inputs: str = "float[N,5] x") -> Case:
    """A graph that breaks a rule; `body` computes y from x."""
    return broken(name, lambda kit: kit.model(f"({inputs}) => (float y) {{ {body} }}"), says)


def edited(name: str, edit: Edit, says: str) -> Case:
    """A good model, changed."""
    return broken(name, lambda kit: kit.model(edit=edit), says)


def external(name: str, says: str, size: int | None = 3200, **data: object) -> Case:
    """A model whose table `users` lies in another file, of `size` bytes (None for no file)."""

    def make(kit: Kit) -> Path:
        if size is not None:
            kit.file(bytes(size), "weights.bin")

        def edit(model: onnx.ModelProto) -> None:
            tensor = next(t for t in model.graph.initializer if t.name == "users")
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": "weights.bin", **data}.items():
                tensor.external_data.add(key=key, value=str(value))

        return kit.model(edit=edit)

    return broken(name, make, says)


def _escape(kit: Kit) -> Path:
    """Weights behind a link that leads out of the model's folder."""
    inner = kit.folder / "inner"
    inner.mkdir()
    (inner / "weights.bin").symlink_to(kit.file(bytes(3200), "secret.bin"))
    case = external("", "")
    path = Path(str(case.args(kit)[1]))
    return path.rename(inner / path.name)


def _loop(kit: Kit) -> Path:
    path = kit.folder / "loop.onnx"
    path.symlink_to(path)
    return path


def _data(kit: Kit) -> bytes:
    return kit.model().read_bytes()


def _truncate_tensor(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = model.graph.node[2].output[0]


def _missing_function(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="acme", version=1)
    model.graph.node[-1].domain = "acme"


FILES = [
    broken("missing file", lambda kit: kit.folder / "model.onnx", "no such file"),
    broken("a directory", lambda kit: kit.folder, "is a directory"),
    broken("an empty file", lambda kit: kit.file(b""), "not an ONNX model"),
    broken("random bytes", lambda kit: kit.file(bytes(range(7, 250)) * 9), "not an ONNX model"),
    broken("a text file", lambda kit: kit.file(b"hello, world\n" * 9), "not an ONNX model"),
    broken("cut in half", lambda kit: kit.file(_data(kit)[: len(_data(kit)) // 2]), "cut short"),
    broken("its last byte missing", lambda kit: kit.file(_data(kit)[:-1]), "cut short"),
    broken("a link to itself", _loop, "cannot be read"),
    broken("a file used as a folder", lambda kit: kit.model() / "x.onnx", "cannot be read"),
]

EXTERNAL = [
    external("weights missing", "missing", size=None),
    external("weights cut short", "cut short", size=3199),
    external("weights of another length", "needs 3200 bytes", length=3204),
    external("weights beyond the end", "cut short", offset=4096),
    external("a negative offset", "offset|bytes", offset=-4),
    external("an offset that is no number", "malformed", offset="four"),
    external("weights in ../", "outside the model's folder", location="../weights.bin"),
    external("weights at an absolute path", "outside the model's folder", location="/etc/passwd"),
    external("weights nowhere", "outside the model's folder", location=""),
    broken("weights behind a link to elsewhere", _escape, "outside the model's folder"),
    edited("a tensor shorter than its shape", _truncate_tensor, "damaged"),
]

MODELS = [
    edited("no graph", lambda m: m.ClearField("graph"), "no graph"),
    edited("no outputs", lambda m: m.graph.ClearField("output"), "no outputs"),
    edited("no opset", lambda m: m.ClearField("opset_import"), "which opset"),
    edited("an opset too new", lambda m: setattr(m.opset_import[0], "version", 99), "newer than"),
    edited("an opset too old", lambda m: setattr(m.opset_import[0], "version", 6), "older than"),
    edited("two inputs of one name", lambda m: m.graph.input.append(m.graph.input[0]), "'ids'"),
    edited("one output twice", lambda m: m.graph.output.append(m.graph.output[0]), "same name"),
    edited("a value computed twice", _twice, "'eu'.*twice|twice.*'eu'"),
    edited("a function that is not there", _missing_function, "acme::Sigmoid"),
]

GRAPHS = [
    text("an unknown op", "y = BloomFilter(x)", "BloomFilter.*'y'.*no such op"),
    text("an op newer than the opset", "y = Swish(x)", "Swish.*opset 20"),
    text("an op of an unknown domain", "y = acme.Foo(x)", "acme"),
    text("a cycle", "a = Add(x, b) b = Relu(a) y = Neg(b)", "cycle"),
    text("a value that nothing computes", "y = Add(x, ghost)", "'ghost', which nothing computes"),
    text("an output that nothing computes", "z = Relu(x)", "'y', which nothing computes"),
    text("sizes that do not multiply", "y = MatMul(x, x)", "MatMul.*'y'", "float[4,5] x"),
    text("sizes that do not fit", "y = Add(x, z)", r"Add.*\[4, 5\]", "float[5] x, float[4] z"),
    text("a reshape that cannot be", "s = Constant<value_ints=[4]>() y = Reshape(x, s)",
         "Reshape.*'y'", "float[5] x"),
    text("two dtypes", "y = Add(x, k)", "Add.*float32, int64", "float[N] x, int64[N] k"),
    text("ids of floats", "y = Gather(x, x)", "Gather.*'y'"),
    text("operands of a wrong rank", "y = Gemm(x, x)", "Gemm.*'y'", "float[N,2,2] x"),
    text("parts of several ranks", "r = ReduceSum<keepdims=0>(x) y = Concat<axis=0>(x, r)",
         "Concat.*rank"),
    text("an unknown attribute", "y = Relu<speed=9>(x)", "Relu.*speed"),
    text("an attribute of another type", 'y = Flatten<axis="last">(x)', "Flatten.*axis"),
    text("an attribute missing", "y = Concat(x, x)", "Concat.*axis"),
    text("an axis out of range", "y = Softmax<axis=7>(x)", "Softmax.*axis"),
    text("a gather along no axis", "i = Constant<value_int=0>() y = Gather<axis=5>(x, i)",
         "Gather.*axis 5"),
    text("an op of ONNX Runtime that is not read", "y = com.microsoft.Inverse(x)",
         "Inverse.*before ONNX Runtime's optimizations"),
    text("a map of scores in another order", "y = ai.onnx.ml.ZipMap<classlabels_int64s=[1, 0]>(x)",
         "zipmap=False"),
    text("a sequence for an output", "y = SplitToSequence<axis=0>(x)", "graph output.*'y'.*seq"),
    text("a sequence for an input", "y = ConcatFromSequence<axis=0>(x)", "graph input.*'x'.*seq",
         "seq(float[N,5]) x"),
    text("too few inputs", "y = Gemm(x)", "Gemm.*'y'"),
    text("too many inputs", "y = Relu(x, x)", "Relu.*'y'"),
    text("an If with one branch", "c = Constant<value_int=1>() d = Cast<to=9>(c)"
         "y = If<then_branch = b () => (float[N,5] z) { z = Relu(x) }>(d)", "If.*else_branch"),
]  # fmt: skip

COMPILED = [
    Case(
        "an op that the target lacks",
        lambda kit: ["optimize", kit.model(STRINGS)],
        "StringConcat.*'y'|string",
    ),
    Case(
        "an input of text that nothing reads",
        lambda kit: ["optimize", kit.model("(float x, string s) => (float y) { y = Neg(x) }")],
        "'s'.*string.*nothing reads it",
    ),
    Case("inspect: a text file", lambda kit: ["inspect", kit.file(b"hello" * 99)], "not an ONNX"),
    Case("run: text", lambda kit: ["run", kit.file(CLICKS.encode()), "--random"], "not an ONNX"),
    Case("check: one model missing",
         lambda kit: ["check", kit.model(), kit.folder / "other.onnx"], "other.onnx: no such file"),
]  # fmt: skip

CASES = [*FILES, *EXTERNAL, *MODELS, *GRAPHS, *COMPILED]
