"""Models of the shapes that production ranking uses, with random weights, as exporters write them.

26 tables of 100,000 rows, looked up by the columns of one matrix of ids. Sources: MLPerf's DLRM
(bottom 512-256-128, top 1024-1024-512-256-1), DCN-V2 (three full-rank cross layers), DIN (attention
over the history from [q, h, q-h, q*h]), MMoE (8 experts, two tasks), two towers compared by cosine,
SASRec (two blocks, two heads, 50 positions), xDeepFM (two layers of 200 maps, as DeepCTR has them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphopt.ir.graph import Graph
from graphopt.testing import parse

ROWS, TABLES, DENSE = 100_000, 26, 13


class Text:
    """A graph in ONNX text, written line by line; every weight is declared where it is used."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: list[str] = []

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        """A new value: what `op` makes of values."""
        name = f"v{len(self.lines)}"
        self.put(name, op, *inputs, **attributes)
        return name

    def put(self, name: str, op: str, *inputs: str, **attributes: object) -> None:
        """The same for a value that has a name, such as an output."""
        given = ", ".join(f"{key}={value}" for key, value in attributes.items())
        self.lines.append(f"{name} = {op}{f'<{given}>' if given else ''}({', '.join(inputs)})")

    def weight(self, *shape: int) -> str:
        """A new float weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(f"float[{','.join(map(str, shape))}] {name}")
        return name

    def ints(self, *values: int) -> str:
        """A vector of integers."""
        return self._constant(f"int64[{len(values)}]", ", ".join(map(str, values)))

    def scalar(self, value: float) -> str:
        """A number: int64 or float."""
        return self._constant("int64" if isinstance(value, int) else "float", str(value))

    def _constant(self, kind: str, values: str) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(f"{kind} {name} = {{{values}}}")
        return name

    def graph(self, signature: str) -> Graph:
        """The finished graph, its matrices scaled so that activations keep their size."""
        header = f"{signature} <{', '.join(self.weights)}>"
        graph = parse(f"{header} {{ {' '.join(self.lines)} }}")
        for value in graph.constants():
            if value.dtype == "float32" and value.const is not None and value.const.ndim == 2:
                fan_in = value.const.shape[0]
                scale = 0.2 if fan_in == ROWS else 2 / np.sqrt(fan_in)
                value.const = value.const * np.float32(scale)
        return graph

    # ---- layers

    def dense(self, x: str, k: int, n: int, activation: str = "Relu") -> str:
        """A layer [.., k] -> [.., n]."""
        total = self.op("Add", self.op("MatMul", x, self.weight(k, n)), self.weight(n))
        return self.op(activation, total) if activation else total

    def mlp(self, x: str, k: int, sizes: Sequence[int], last: str = "Relu") -> str:
        """Layers of the given sizes; `last` is the activation of the last one."""
        for place, n in enumerate(sizes):
            x, k = self.dense(x, k, n, last if place == len(sizes) - 1 else "Relu"), n
        return x

    def lookups(self, dim: int, count: int = TABLES, first: int = 0) -> list[str]:
        """The rows of `count` tables for columns of the input `ids`."""
        found = []
        for column in range(first, first + count):
            ids = self.op("Gather", "ids", self.scalar(column), axis=1)
            found.append(self.op("Gather", self.weight(ROWS, dim), ids))
        return found

    def concat(self, parts: Sequence[str], axis: int = -1) -> str:
        return self.op("Concat", *parts, axis=axis)

    def unsqueeze(self, x: str, axis: int) -> str:
        return self.op("Unsqueeze", x, self.ints(axis))

    def total(self, x: str, axis: int) -> str:
        return self.op("ReduceSum", x, self.ints(axis), keepdims=0)


INPUTS = f"int64[N,{TABLES}] ids, float[N,{DENSE}] dense"


def dlrm_mlperf(dim: int = 128) -> Graph:
    t = Text()
    bottom = t.mlp("dense", DENSE, (512, 256, dim))
    rows = [t.unsqueeze(x, 1) for x in (bottom, *t.lookups(dim))]
    vectors, n = t.concat(rows, 1), TABLES + 1
    products = t.op("MatMul", vectors, t.op("Transpose", vectors, perm=[0, 2, 1]))
    flat = t.op("Reshape", products, t.ints(-1, n * n))
    below = [i * n + j for i in range(n) for j in range(i)]
    pairs = t.op("Gather", flat, t.ints(*below), axis=1)
    top = t.mlp(t.concat([bottom, pairs]), dim + len(below), (1024, 1024, 512, 256))
    t.put("y", "Sigmoid", t.dense(top, 256, 1, ""))
    return t.graph(f"({INPUTS}) => (float[N,1] y)")


def dcnv2(dim: int = 64) -> Graph:
    t = Text()
    start, width = t.concat(["dense", *t.lookups(dim)]), DENSE + TABLES * dim
    x = start
    for _ in range(3):
        x = t.op("Add", t.op("Mul", start, t.dense(x, width, width, "")), x)
    deep = t.mlp(start, width, (1024, 512, 256))
    t.put("y", "Sigmoid", t.dense(t.concat([x, deep]), width + 256, 1, ""))
    return t.graph(f"({INPUTS}) => (float[N,1] y)")


def din(dim: int = 64, history: int = 100) -> Graph:
    """One candidate a row, each row with a history of its own."""
    t = Text()
    items = t.weight(ROWS, dim)
    query, keys = t.op("Gather", items, "item"), t.op("Gather", items, "history")
    wide = t.op("Expand", t.unsqueeze(query, 1), t.op("Shape", keys))
    pooled = _attended(t, wide, keys, "history", dim, 1)
    joined = t.concat([pooled, query, "dense", *t.lookups(dim, TABLES - 1)])
    width = (TABLES + 1) * dim + DENSE
    t.put("y", "Identity", t.mlp(joined, width, (200, 80, 1), "Sigmoid"))
    return t.graph(f"({INPUTS}, int64[N] item, int64[N,{history}] history) => (float[N,1] y)")


def din_candidates(dim: int = 64, history: int = 100, candidates: int = 200) -> Graph:
    """Many candidates a row, which share its history."""
    t = Text()
    items = t.weight(ROWS, dim)
    query, keys = t.op("Gather", items, "item"), t.op("Gather", items, "history")
    every = t.ints(1, candidates, history, 1)
    left = t.op("Expand", t.unsqueeze(query, 2), every)
    right = t.op("Expand", t.unsqueeze(keys, 1), every)
    pooled = _attended(t, left, right, t.unsqueeze("history", 1), dim, 2)
    scores = t.mlp(t.concat([pooled, query]), 2 * dim, (200, 80, 1), "Sigmoid")
    t.put("y", "Squeeze", scores, t.ints(2))
    inputs = f"int64[N,{candidates}] item, int64[N,{history}] history"
    return t.graph(f"({inputs}) => (float[N,{candidates}] y)")


def _attended(t: Text, query: str, keys: str, ids: str, dim: int, axis: int) -> str:
    """The sum of `keys` over `axis`, weighted by a network over (query, key); id 0 is padding."""
    parts = [query, keys, t.op("Sub", query, keys), t.op("Mul", query, keys)]
    score = t.dense(t.mlp(t.concat(parts), 4 * dim, (80, 40), "Sigmoid"), 40, 1, "")
    real = t.op("Cast", t.op("Greater", ids, t.scalar(0)), to=1)
    weight = t.op("Mul", score, t.unsqueeze(real, -1))
    return t.total(t.op("Mul", weight, keys), axis)


def mmoe(dim: int = 64, experts: int = 8) -> Graph:
    t = Text()
    x, width = t.concat(["dense", *t.lookups(dim)]), DENSE + TABLES * dim
    rows = [t.unsqueeze(t.mlp(x, width, (512, 256)), 1) for _ in range(experts)]
    mixed = t.concat(rows, 1)
    for task in ("click", "buy"):
        gate = t.op("Softmax", t.dense(x, width, experts, ""), axis=1)
        chosen = t.total(t.op("Mul", mixed, t.unsqueeze(gate, 2)), 1)
        t.put(task, "Identity", t.mlp(chosen, 256, (64, 1), "Sigmoid"))
    return t.graph(f"({INPUTS}) => (float[N,1] click, float[N,1] buy)")


def two_tower(dim: int = 64) -> Graph:
    t, half = Text(), TABLES // 2
    sides = []
    for first in (0, half):
        x = t.mlp(t.concat(t.lookups(dim, half, first)), half * dim, (512, 256, 128), "")
        sides.append(t.op("Div", x, t.op("ReduceL2", x, t.ints(1))))
    t.put("y", "ReduceSum", t.op("Mul", *sides), t.ints(1), keepdims=0)
    return t.graph(f"(int64[N,{TABLES}] ids) => (float[N] y)")


def sasrec(dim: int = 64, positions: int = 50, heads: int = 2, candidates: int = 100) -> Graph:
    t = Text()
    items = t.weight(ROWS, dim)
    x = t.op("Add", t.op("Gather", items, "history"), t.weight(positions, dim))
    ones = t.op("ConstantOfShape", t.ints(positions, positions), value="int64[1] {1}")
    future = t.op("Cast", t.op("Trilu", ones, t.scalar(1), upper=1), to=9)
    for _ in range(2):
        x = _block(t, x, future, dim, positions, heads)
    last = t.op("Gather", _normalized(t, x, dim), t.ints(positions - 1), axis=1)
    wanted = t.op("Transpose", t.op("Gather", items, "item"), perm=[0, 2, 1])
    t.put("y", "Squeeze", t.op("MatMul", last, wanted), t.ints(1))
    inputs = f"int64[N,{positions}] history, int64[N,{candidates}] item"
    return t.graph(f"({inputs}) => (float[N,{candidates}] y)")


def xdeepfm(dim: int = 16, maps: Sequence[int] = (200, 200)) -> Graph:
    """Half of the maps of each layer but the last go to the result, the others to the next one."""
    t = Text()
    rows = t.lookups(dim)
    features = t.concat([t.unsqueeze(x, 1) for x in rows], 1)
    x, count, found = features, TABLES, []
    for place, k in enumerate(maps):
        outer = t.op("Einsum", x, features, equation='"bhd,bmd->bhmd"')
        flat = t.op("Reshape", outer, t.ints(-1, count * TABLES, dim))
        x = t.op("Relu", t.op("Conv", flat, t.weight(k, count * TABLES, 1), t.weight(k)))
        if place < len(maps) - 1:
            count = k // 2
            parts = [
                t.op("Slice", x, t.ints(a), t.ints(b), t.ints(1))
                for a, b in ((0, count), (count, k))
            ]
            x, k = parts[0], k - count
            found.append(t.total(parts[1], 2))
        else:
            found.append(t.total(x, 2))
    crossed = sum(k - k // 2 for k in maps[:-1]) + maps[-1]
    deep = t.mlp(t.concat(["dense", *rows]), DENSE + TABLES * dim, (256, 128))
    joined = t.concat([*found, deep])
    t.put("y", "Sigmoid", t.dense(joined, crossed + 128, 1, ""))
    return t.graph(f"({INPUTS}) => (float[N,1] y)")


def _normalized(t: Text, x: str, dim: int) -> str:
    return t.op("LayerNormalization", x, t.weight(dim), t.weight(dim))


def _block(t: Text, x: str, future: str, dim: int, positions: int, heads: int) -> str:
    """Masked self-attention and a feed-forward layer, each with its residual."""
    parted = t.ints(-1, positions, heads, dim // heads)
    query = _normalized(t, x, dim)
    sides = []
    for source, perm in ((query, [0, 2, 1, 3]), (x, [0, 2, 3, 1]), (x, [0, 2, 1, 3])):
        projected = t.op("Reshape", t.dense(source, dim, dim, ""), parted)
        sides.append(t.op("Transpose", projected, perm=perm))
    scale = t.scalar(float(np.sqrt(dim // heads)))
    scores = t.op("Div", t.op("MatMul", sides[0], sides[1]), scale)
    masked = t.op("Where", future, t.scalar(-1e9), scores)
    mixed = t.op("MatMul", t.op("Softmax", masked, axis=-1), sides[2])
    joined = t.op("Transpose", mixed, perm=[0, 2, 1, 3])
    flat = t.op("Reshape", joined, t.ints(-1, positions, dim))
    x = t.op("Add", query, t.dense(flat, dim, dim, ""))
    inner = _normalized(t, x, dim)
    return t.op("Add", inner, t.mlp(inner, dim, (dim, dim), ""))


MODELS: dict[str, tuple[Callable[[], Graph], int]] = {
    "dlrm_mlperf": (dlrm_mlperf, 2048),
    "dcnv2": (dcnv2, 2048),
    "din_history100": (din, 2048),
    "din_candidates200": (din_candidates, 8),
    "mmoe_8_experts": (mmoe, 2048),
    "two_tower": (two_tower, 2048),
    "sasrec": (sasrec, 2048),
}
"""How each is made, and the largest batch that is measured."""
