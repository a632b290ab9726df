"""Command lines that make no sense, and outputs that must not be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bad_input_cases.case import CLICKS, Case, Kit


def options(name: str, *args: object, says: str, status: int = 2) -> Case:
    """A good model with bad options."""
    return Case(name, lambda kit: ["optimize", kit.model(), *args], says, status)


def words(name: str, *args: str, says: str) -> Case:
    """A command line that needs no model."""
    return Case(name, lambda kit: args, says, 2)


def output(name: str, make: Callable[[Kit], Sequence[object]], says: str) -> Case:
    return Case(name, lambda kit: ["optimize", kit.model(), *make(kit)], says, 1)


def _full_folder(kit: Kit) -> list[object]:
    (kit.folder / "mine.gopt").mkdir()
    (kit.folder / "mine.gopt" / "thesis.tex").write_text("years of work")
    return ["-o", kit.folder / "mine.gopt"]


def _foreign_model(kit: Kit) -> list[object]:
    kit.file(b"", "theirs.onnx")
    return ["--target", "onnxruntime", "-o", kit.folder / "theirs.onnx"]


def _same_file(kit: Kit) -> list[object]:
    (kit.folder / "link.onnx").symlink_to("model.onnx")
    return ["--target", "onnxruntime", "-o", kit.folder / "link.onnx"]


def _run_over_model(kit: Kit) -> list[object]:
    return ["run", kit.model(), "--inputs", kit.arrays(), "-o", kit.folder / "model.onnx"]


WORDS = [
    words("no such verb", "optimise", "model.onnx", says="optimise.*Did you mean 'optimize'"),
    words("no model", "optimize", says="Missing argument 'MODEL'"),
    words("no such option", "inspect", "m.onnx", "--batches", "3", says="--batches"),
    words("run on nothing", "run", "model.onnx", says="--inputs or --random"),
    words("run on two things", "run", "m", "--inputs", "f", "--random", says="or --random"),
    words("a batch of nothing", "inspect", "m.onnx", "--batch", "0", says="--batch"),
    words("batches that are no numbers", "check", "a", "b", "--batch", "1,x", says="1,x"),
    words("a negative tolerance", "check", "a", "b", "--rtol", "-1", says="--rtol"),
    words("a tolerance that is no number", "check", "a", "b", "--atol", "nan", says="--atol"),
    words("a size without a number", "inspect", "m.onnx", "--size", "N", says="NAME=N"),
    words("no such pass to read about", "passes", "dcee", says="did you mean 'dce'"),
]

OPTIONS = [
    options("no such pass", "--passes", "dce,cannonicalize", says="did you mean 'canonicalize'"),
    options("no such option of a pass", "--passes", "fold-constants{growth=1}", says="max_growth"),
    options("an option that is no number", "--passes", "fold-constants{max_growth=big}",
            says="expected int, not 'big'"),
    options("an open bracket", "--passes", "fixpoint(dce", says=r"expected '\)'"),
    options("a stray character", "--passes", "dce;cse", says="expected ','"),
    options("a level too high", "-O7", says="-O"),
    options("a level that is no number", "-Ofast", says="-O"),
    options("a level and passes", "-O2", "--passes", "dce", says="either -O or --passes"),
    options("no such target", "--target", "onnxruntine", says="did you mean 'onnxruntime'"),
    options("no such CPU", "--target", "cpu:z80", says="'z80'"),
    options("an argument too many", "--target", "onnxruntime:fast", says="takes no argument"),
    options("no such policy", "--oob", "wrap", says="wrap"),
    options("no such pass to print after", "--print-ir-after", "dcee", says="did you mean 'dce'"),
    options("a portable target to a folder", "--target", "onnxruntime", "-o", "x.gopt",
            says="should end in .onnx"),
    options("a folder called like a model", "-o", "x.onnx", says="should end in .gopt"),
]  # fmt: skip

OUTPUTS = [
    output("a folder that is not there", lambda kit: ["-o", kit.folder / "a/b.gopt"], "no such"),
    output("a folder of the user's", _full_folder, "not made by graphopt"),
    output("a file of the user's", _foreign_model, "not made by graphopt"),
    output("the source itself", lambda kit: ["-o", kit.folder / "model.onnx"], "source model"),
    output("a link to the source", _same_file, "source model"),
    output("an output below a file", lambda kit: ["-o", kit.model() / "x.gopt"], "no such folder"),
    Case("run: the model itself", _run_over_model, "would overwrite"),
    Case("run: a device",
         lambda kit: ["run", kit.model(), "--inputs", kit.arrays(), "-o", "/dev/null"],
         "not a regular file"),
    Case("run: a folder that is not there",
         lambda kit: ["run", kit.model(), "--inputs", kit.arrays(), "-o", kit.folder / "a/b.npz"],
         "no such folder"),
    Case("a report where no folder is",
         lambda kit: ["optimize", kit.model(), "--report", kit.folder / "a/r.json"],
         "no such folder"),
]  # fmt: skip

AMISS = [
    Case("no name for a model", lambda kit: ["optimize", ""], "is a directory"),
    Case("profile: a model", lambda kit: ["profile", kit.model()], "`graphopt optimize` makes one"),
    Case("profile: nothing", lambda kit: ["profile", kit.folder / "a.gopt"], "no such folder"),
    Case("run: more samples than numbers",
         lambda kit: ["run", kit.model(), "--random", "--batch", 10**20], "out of memory"),
]  # fmt: skip

DIFFERENT = [
    Case("check: other weights",
         lambda kit: ["check", kit.model(), _other(kit, CLICKS.replace("Sigmoid", "Tanh"))],
         r"differ: output 'score'\[\d", 3),
    Case("check: other outputs",
         lambda kit: ["check", kit.model(), _other(kit, CLICKS.replace("score", "rate"))],
         "different outputs", 3),
    Case("check: other inputs",
         lambda kit: ["check", kit.model(), _other(kit, CLICKS.replace("dense", "sparse"))],
         "'sparse'", 1),
]  # fmt: skip


def _other(kit: Kit, text: str) -> object:
    keep = (kit.folder / "model.onnx").read_bytes()
    other = kit.model(text).rename(kit.folder / "other.onnx")
    kit.file(keep)
    return other


CASES = [*WORDS, *OPTIONS, *OUTPUTS, *AMISS, *DIFFERENT]
