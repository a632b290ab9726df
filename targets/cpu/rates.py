"""How fast layers multiply in fewer bits: profiles and floors count in float32 operations."""

from graphopt.ir.graph import Node
from graphopt.targets.cpu.kernels.bfloat16 import Words

_VECTORS = {"words": 2, "data": 4}
_TILES = {"words": 16, "data": 32}
"""Products an instruction, or a cycle of AMX, next to float32 in vectors of as many bytes."""


def rate_of(words: Words) -> int:
    """How many products of bfloat16 take as long as one of float32."""
    return (_VECTORS if words.tiles is None else _TILES)["words"]


def operations(layer: Node, k: int) -> int:
    """Of a sum of `k` products, as many as float32 operations take as long at their peaks."""
    attrs = layer.attrs
    words = attrs.get("words")
    if words is not None:
        rate = rate_of(words)
    elif "data" in attrs or layer.op_type == "IntegerProduct":
        rate = (_VECTORS if attrs.get("amx") is None else _TILES)["data"]
    else:
        rate = 1
    return -(-2 * k // rate)
