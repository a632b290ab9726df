"""One bad input, and the good things that it is made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from command import Outcome, graphopt

Edit = Callable[[onnx.ModelProto], object]

ROWS = 100
CLICKS = f"""<ir_version: 9, opset_import: ["" : 20]>
clicks (int64[N,3] ids, float[N,4] dense) => (float[N,1] score)
<float[{ROWS},8] users, float[{ROWS},8] items, float[12,1] w, float[1] b,
 int64 zero = {{0}}, int64 one = {{1}}> {{
    user = Gather<axis=1>(ids, zero)
    item = Gather<axis=1>(ids, one)
    eu = Gather(users, user)
    ei = Gather(items, item)
    e = Mul(eu, ei)
    x = Concat<axis=1>(e, dense)
    z = Gemm(x, w, b)
    score = Sigmoid(z)
}}"""


@dataclass
class Kit:
    """A folder to work in, and good models, arrays and artifacts to spoil there.

    Attributes:
        folder: empty at first; whatever is made there before the command runs may stay.
        compiled: makes the folder of a compiled artifact of `CLICKS`, once.
    """

    folder: Path
    compiled: Callable[[], Path]

    def model(self, text: str = CLICKS, edit: Edit | None = None) -> Path:
        """A model file; declared weights get random values."""
        if not text.startswith("<"):
            text = '<ir_version: 9, opset_import: ["" : 20]>\ng ' + text
        proto = onnx.parser.parse_model(text)
        rng = np.random.default_rng(0)
        for info in proto.graph.value_info:
            shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
            array = rng.normal(size=shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        if edit is not None:
            edit(proto)
        return self.file(proto.SerializeToString())

    def file(self, data: bytes, name: str = "model.onnx") -> Path:
        """A file."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def arrays(self, **changed: np.ndarray | None) -> Path:
        """Good inputs for `CLICKS`, some of them changed, or left out (None)."""
        arrays: dict[str, np.ndarray | None] = {
            "ids": np.ones((2, 3), np.int64),
            "dense": np.ones((2, 4), np.float32),
        }
        arrays |= changed
        kept = {name: array for name, array in arrays.items() if array is not None}
        path = self.folder / "inputs.npz"
        np.savez(path, **kept)  # type: ignore[arg-type]
        return path

    def artifact(self) -> Path:
        """A compiled artifact of `CLICKS`, free to be spoilt."""
        path = self.folder / "model.gopt"
        if not path.exists():
            shutil.copytree(self.compiled(), path)
        return path


def in_process(kit: Kit, args: Sequence[object]) -> Outcome:
    """Run the command in this process."""
    return graphopt(*args)


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: what is wrong.
        args: makes the bad input and says which command meets it.
        says: a pattern that the one line of error must match.
        status: the exit status it must have.
        run: how the command is run.
    """

    name: str
    args: Callable[[Kit], Sequence[object]]
    says: str
    status: int = 1
    run: Callable[[Kit, Sequence[object]], Outcome] = in_process
