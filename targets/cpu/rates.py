"""By which instruction layers multiply fewer bits."""

from graphopt.analysis.cost import done_by
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.targets.cpu.kernels.byte_products import byte_products


def operations(layer: Node, k: int) -> Dim:
    """Those of a sum of `k` products, by the instruction that does them."""
    words = layer.attrs.get("words")
    if words is not None:
        return done_by(words.name, 2 * k)
    if "data" in layer.attrs or layer.op_type == "IntegerProduct":
        if "amx" in layer.attrs:
            return done_by("tdpbusd", 2 * k)
        if "lanes" in layer.attrs:  # those of a GPU have none
            return done_by(byte_products(layer.attrs["lanes"]).name, 2 * k)
    return 2 * k
