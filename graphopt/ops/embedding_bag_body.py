"""Function bodies of `graphopt::EmbeddingBag`: standard ONNX, opset 18 and later, without loops."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

Mode = Literal["sum", "mean", "max"]

NARROW = 16
"""Rows up to this wide are scattered into their bags one by one: in ONNX Runtime as fast as the
exported Loop at batch 1, and 5 to 20 times faster at batch 64. Per element that is slow, so wider
rows (measured at 64 and 128) are first pooled in chunks, which costs 10 us more at batch 1."""

CHUNK = 16
"""Ids in a chunk, at most; 16 measures best for bags of 1 to 1000 ids."""


@dataclass(frozen=True)
class Variant:
    """What decides the form of a body; numbers are read from the caller's attributes.

    Attributes:
        fixed: ids are [b, k], there are no offsets.
        wide: rows are wider than `NARROW`, or of unknown width.
        weighted: there are weights.
        padded: there is a `padding_idx`.
        csr: offsets end with the end of the last bag.
        filled: an empty bag is something else than what pooling starts from.
        half: the table has 16-bit floats, which are pooled in 32 bits.
        by_id: there is a `padding_idx`, and only this very id is padding; only if fixed.
    """

    mode: Mode
    fixed: bool
    wide: bool
    weighted: bool
    padded: bool
    csr: bool
    filled: bool
    half: bool
    by_id: bool = False

    @property
    def name(self) -> str:
        """What the function is called, such as `EmbeddingBag__mean_wide_weighted`."""
        flags = [f.name for f in fields(self) if f.name != "mode" and getattr(self, f.name)]
        return "_".join(["EmbeddingBag_", self.mode, *flags])


class Body:
    """The text of a function body; methods append to it and return the names of their results.

    Rows are combined by ScatterElements, which takes its updates in order. ScatterND would be
    faster, but ONNX Runtime 1.32 lets threads race where two of its updates meet.
    """

    CONSTANTS: ClassVar[dict[str, str]] = {
        "zero": "value_int = 0",
        "one": "value_int = 1",
        "axis0": "value_ints = [0]",
        "axis1": "value_ints = [1]",
        "axis2": "value_ints = [2]",
        "last": "value_ints = [-1]",
        "to_end": "value_ints = [9223372036854775807]",
        "chunk": f"value_int = {CHUNK}",
        "chunk_less_one": f"value_int = {CHUNK - 1}",
        "padding": "value_int: int = @padding_idx",
        "empty_f32": "value_float: float = @empty",
        "nothing_f32": "value_float = 0.0",
        "lowest_f32": "value_float = -inf",
    }

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.lines: list[str] = []
        self.counts = variant.mode == "mean" or variant.filled
        is_max = variant.mode == "max"
        self.reduce, self.combine = ("ReduceMax", "max") if is_max else ("ReduceSum", "add")
        start = "lowest_f32" if is_max else "nothing_f32"
        self.add(f"nothing = CastLike ({start}, {'nothing_f32' if variant.half else 'table'})")

    def add(self, lines: str) -> None:
        self.lines += [line.strip() for line in lines.strip().splitlines()]

    @property
    def text(self) -> str:
        used = set(re.findall(r"\w+", " ".join(self.lines)))
        constants = [
            f"{name} = Constant <{text}> ()"
            for name, text in self.CONSTANTS.items()
            if name in used
        ]
        return "\n".join(constants + self.lines)

    def build(self) -> str:
        """Write the whole body; returns the name of its result."""
        if self.variant.fixed:
            return self.fixed()
        return self.chunked() if self.variant.wide else self.scattered()

    def fixed(self) -> str:
        """ids [b, k]: look up, mask, reduce."""
        rows, other = self.rows("ids", "weights", 2)
        if self.variant.by_id:
            return self.masked(rows)
        if other:
            self.add(f"mask = Unsqueeze ({other}, axis2)")
            self.add(f"kept = Where (mask, {rows}, nothing)")
            rows = "kept"
        self.add(f"pooled = {self.reduce} <keepdims = 0> ({rows}, axis1)")
        if self.counts and other:
            self.add(f"counted = Cast <to = 7> ({other})")
            self.add("count = ReduceSum <keepdims = 1> (counted, axis1)")
        elif self.counts:
            self.add("count = Shape <start = 1> (ids)")
        return self.result("pooled")

    def masked(self, rows: str) -> str:
        """Multiply with a row of ones and zeros, the fastest of all in ONNX Runtime."""
        self.add(f"""
            own_padding = CastLike (padding, ids)
            is_padding = Equal (ids, own_padding)
            is_other = Not (is_padding)
            other = CastLike (is_other, {rows})
            mask = Unsqueeze (other, axis1)
            sums = MatMul (mask, {rows})
            pooled = Squeeze (sums, axis1)""")
        if self.counts:
            self.add("count = ReduceSum <keepdims = 1> (other, axis1)")
        return self.result("pooled")

    def scattered(self) -> str:
        """ids [n], narrow rows: find the bag of every id and scatter the rows into the bags."""
        self.add("""
            bounds = Cast <to = 7> (offsets)
            n = Shape (ids)""")
        self.owners("bounds", "n")
        # Slot 0 takes the ids before the first offset; with CSR, one more those after the last.
        self.add("slots = Add (bound_count, one)")
        rows, other = self.rows("ids", "weights", 1)
        if other:
            self.add(f"mask = Unsqueeze ({other}, axis1)")
            self.add(f"kept = Where (mask, {rows}, nothing)")
            rows = "kept"
        self.add("end = " + ("Identity (bound_count)" if self.variant.csr else "Identity (slots)"))
        self.scatter("begun", rows, "slots", "scattered")
        self.add("pooled = Slice (scattered, axis1, end, axis0)")
        if self.counts:
            each = f"Cast <to = 7> ({other})" if other else "Expand (one, n)"
            self.add(f"""
                counted = {each}
                no_counts = ConstantOfShape <value = int64[1] {{0}}> (slots)
                counts = ScatterElements <axis = 0, reduction = "add"> (no_counts, begun, counted)
                bag_count = Slice (counts, axis1, end, axis0)
                count = Unsqueeze (bag_count, axis1)""")
        return self.result("pooled")

    def chunked(self) -> str:
        """ids [n], wide rows: pool chunks of ids, scatter the pooled chunks into the bags.

        The chunks [c, CHUNK] are dense, so that one Gather and one reduction do most of the work,
        and at most CHUNK times as large as ids and bags, however different the bags are.
        """
        self.bounds()
        self.chunks()
        self.add("""
            position = Add (chunk_start_column, lane)
            inside = Less (position, chunk_end_column)
            safe = Where (inside, position, zero)
            wanted = Gather (ids, safe)""")
        if self.variant.weighted:
            self.add("wanted_weights = Gather (weights, safe)")
        rows, other = self.rows("wanted", "wanted_weights", 2)
        counts = "inside"
        if other:
            self.add(f"counting = And (inside, {other})")
            counts = "counting"
        self.add(f"""
            mask = Unsqueeze ({counts}, axis2)
            kept = Where (mask, {rows}, nothing)
            pooled_chunk = {self.reduce} <keepdims = 0> (kept, axis1)""")
        self.scatter("bag", "pooled_chunk", "bags", "pooled")
        if self.counts and other:
            self.add("""
                counted = Cast <to = 7> (counting)
                chunk_count = ReduceSum <keepdims = 0> (counted, axis1)
                no_counts = ConstantOfShape <value = int64[1] {0}> (bags)
                counts = ScatterElements <axis = 0, reduction = "add"> (no_counts, bag, chunk_count)
                count = Unsqueeze (counts, axis1)""")
        elif self.counts:
            self.add("count = Unsqueeze (length, axis1)")
        return self.result("pooled")

    def bounds(self) -> None:
        """`start`, `end` and `length` of every bag [b]."""
        self.add("bounds = Cast <to = 7> (offsets)")
        if self.variant.csr:
            self.add("""
                start = Slice (bounds, axis0, last)
                end = Slice (bounds, axis1, to_end)""")
        else:
            self.add("""
                n = Shape (ids)
                start = Identity (bounds)
                closed = Concat <axis = 0> (bounds, n)
                end = Slice (closed, axis1, to_end)""")
        self.add("length = Sub (end, start)")

    def chunks(self) -> None:
        """`bag`, start and end of every chunk [c]; `lane` [k] counts up to the longest chunk."""
        self.add("""
            padded_length = Add (length, chunk_less_one)
            chunks = Div (padded_length, chunk)
            chunks_so_far = CumSum (chunks, zero)
            first_chunk = Sub (chunks_so_far, chunks)
            total = ReduceSum <keepdims = 1> (chunks, axis0)""")
        self.owners("first_chunk", "total")
        self.add("""
            bags = Identity (bound_count)
            bag = Sub (begun, one)
            chunk_total = Squeeze (total, axis0)
            number = Range (zero, chunk_total, one)
            number_of_first = Gather (first_chunk, bag)
            rank = Sub (number, number_of_first)
            skipped = Mul (rank, chunk)
            bag_start = Gather (start, bag)
            bag_end = Gather (end, bag)
            chunk_start = Add (bag_start, skipped)
            chunk_limit = Add (chunk_start, chunk)
            chunk_end = Min (chunk_limit, bag_end)
            chunk_length = Sub (chunk_end, chunk_start)
            longest = ReduceMax <keepdims = 0> (chunk_length, axis0)
            lane = Range (zero, longest, one)
            chunk_start_column = Unsqueeze (chunk_start, axis1)
            chunk_end_column = Unsqueeze (chunk_end, axis1)""")

    def owners(self, starts: str, count: str) -> None:
        """`begun` [count]: how many of `starts` lie at or before each place."""
        self.add(f"""
            places = Add ({count}, one)
            no_marks = ConstantOfShape <value = int64[1] {{0}}> (places)
            bound_count = Shape ({starts})
            ones = ConstantOfShape <value = int64[1] {{1}}> (bound_count)
            marks = ScatterElements <axis = 0, reduction = "add"> (no_marks, {starts}, ones)
            begun_or_at_end = CumSum (marks, zero)
            begun = Slice (begun_or_at_end, axis0, {count})""")

    def rows(self, ids: str, weights: str, rank: int) -> tuple[str, str | None]:
        """The rows of `ids`, of that rank, and which of them are not padding (None: all)."""
        self.add(f"looked_up = Gather <axis = 0> (table, {ids})")
        rows = "looked_up"
        if self.variant.half:
            self.add("exact = Cast <to = 1> (looked_up)")
            rows = "exact"
        if self.variant.weighted:
            self.add(f"""
                weight_column = Unsqueeze ({weights}, axis{rank})
                weight = CastLike (weight_column, {rows})
                weighted = Mul ({rows}, weight)""")
            rows = "weighted"
        return rows, self.is_other(ids) if self.variant.padded else None

    def is_other(self, ids: str) -> str:
        """Which of `ids` are not padding."""
        # Mod has the sign of the divisor: a negative id and the row it reads become one number.
        self.add(f"""
            size = Shape <end = 1> (table)
            ids_64 = Cast <to = 7> ({ids})
            row = Mod (ids_64, size)
            padding_row = Mod (padding, size)
            is_padding = Equal (row, padding_row)
            is_other = Not (is_padding)""")
        return "is_other"

    def scatter(self, targets: str, updates: str, count: str, result: str) -> None:
        """`result` [count, dim]: the rows of `updates` combined where `targets` says."""
        self.add(f"""
            dim = Shape <start = 1> ({updates})
            {result}_shape = Concat <axis = 0> ({count}, dim)
            unpooled = Expand (nothing, {result}_shape)
            target_column = Unsqueeze ({targets}, axis1)
            update_shape = Shape ({updates})
            target = Expand (target_column, update_shape)
            {result} = ScatterElements <axis = 0, reduction = "{self.combine}">
                (unpooled, target, {updates})""")

    def result(self, pooled: str) -> str:
        """`pooled` [b, dim] and, where it matters, `count` [b, 1] → what the op gives."""
        if self.variant.mode == "mean":
            self.add(f"""
                least = CastLike (one, count)
                at_least_one = Max (count, least)
                divisor = CastLike (at_least_one, {pooled})
                mean = Div ({pooled}, divisor)""")
            pooled = "mean"
        if self.variant.filled:
            self.add(f"""
                empty = CastLike (empty_f32, {pooled})
                none = CastLike (zero, count)
                is_empty = Equal (count, none)
                filled = Where (is_empty, empty, {pooled})""")
            pooled = "filled"
        if self.variant.half:
            self.add(f"rounded = CastLike ({pooled}, table)")
            pooled = "rounded"
        return pooled
