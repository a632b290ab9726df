"""The checks that passes are tested with can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from graphopt.checking.random_inputs import DEFAULT_SIZE
from graphopt.errors import InputError
from graphopt.ir.graph import Graph
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.dce import Dce
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.testing import (
    assert_keeps_outputs,
    assert_rewrites,
    assert_same_outputs,
    assert_unchanged,
    dump,
    parse,
    random_inputs,
    run_onnxruntime,
)

TEXT = "(float[N,4] x) => (float[N,4] y) <float[4] w> { h = Identity(x) y = Add(h, w) }"
CLEAN = "(float[N,4] x) => (float[N,4] y) <float[4] w> { y = Add(x, w) }"


@dataclass(frozen=True)
class Custom(Pass):
    """Does what the test wants."""

    act: Callable[[Graph], bool]
    name = "custom"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        return self.act(graph)


def test_a_short_text_is_a_graph() -> None:
    graph = parse(TEXT)
    assert graph.opset() == 18 and len(graph) == 2
    assert parse(TEXT, opset=21).opset() == 21
    named = f'<ir_version: 9, opset_import: ["": 17]> agraph {TEXT}'
    assert len(parse(named)) == 2


def test_weights_depend_on_their_names_only() -> None:
    (first,), (second,) = parse(TEXT).constants(), parse(CLEAN).constants()
    np.testing.assert_array_equal(first.const, second.const)
    (other,) = parse(TEXT.replace("] w", "] v").replace(", w", ", v")).constants()
    assert not np.array_equal(first.const, other.const)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(float[N] x) => (float[N] y) { y = Relu(x", "does not parse"),
        ("(float[N] x) => (float[N] y) <float[N] w> { y = Add(x, w) }", "'w' needs a static shape"),
    ],
)
def test_texts_that_are_no_graphs(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_weights_of_every_dtype() -> None:
    graph = parse("""(bool[3] c, double[3] x) => (double[3] y)
    <bool[3] b, int32[3] i, double[3] d, float16[3] h> {
        e = Cast<to=11>(i)
        f = Cast<to=11>(h)
        g = Cast<to=11>(b)
        s = Sum(e, f, g, d, x)
        y = Where(c, s, x)
    }""")
    feeds = random_inputs(graph)
    assert feeds["c"].dtype == bool and feeds["x"].dtype == np.float64
    assert np.isfinite(run_onnxruntime(graph, feeds)["y"]).all()


def test_inputs_are_reproducible_and_sized_as_asked() -> None:
    graph = parse("(float[N,M] x, string[N] s) => (float[N,M] y) { y = Relu(x) }")
    first, again = random_inputs(graph, {"N": 2}), random_inputs(graph, {"N": 2})
    assert first["x"].shape == (2, DEFAULT_SIZE) and first["s"].shape == (2,)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], random_inputs(graph, {"N": 2}, seed=1)["x"])


def test_ids_lie_within_every_table() -> None:
    graph = parse("""(int64[N,2] ids, float[N,3] x) => (float[] y)
    <float[7,4] t, float[3,4] u, int64 i0 = {0}, int64 i1 = {1}, int64[1] v2 = {2},
     int64[1] v3 = {3}, int64[1] one = {1}> {
        a = Gather<axis=1>(ids, i0)
        p = Gather(t, a)
        b = Gather<axis=1>(ids, i1)
        q = Gather(u, b)
        c = Slice(x, v2, v3, one)
        d = Cast<to=7>(c)
        r = Gather(t, d)
        y = Concat<axis=0>(p, q)
    }""")
    feeds = random_inputs(graph, {"N": 400})
    assert set(feeds["ids"][:, 0]) == set(range(7)) and set(feeds["ids"][:, 1]) == set(range(3))
    assert set(feeds["x"][:, 2]) == set(range(7))
    assert not np.array_equal(feeds["x"][:, :2], np.round(feeds["x"][:, :2]))


def test_where_no_id_is_valid_the_input_is_named() -> None:
    graph = parse("""(int64[N] ids) => (float[] y) <float[3,4] t, int64 ten = {10}> {
        p = Gather(t, ids)
        i = Sub(ids, ten)
        q = Gather(t, i)
        y = Add(p, q)
    }""")
    with pytest.raises(InputError, match="input 'ids': no id is valid everywhere"):
        random_inputs(graph)


def test_inputs_without_a_shape_cannot_be_drawn() -> None:
    graph = parse("(float[N] x) => (float[N] y) { y = Relu(x) }")
    graph.inputs[0].type = type(graph.inputs[0].type)("float32")
    with pytest.raises(InputError, match=r"input 'x': .* has no shape"):
        random_inputs(graph)


@pytest.mark.parametrize(
    ("a", "b", "fidelity", "same"),
    [
        (np.float32([1]), np.float32([1]), Fidelity.EXACT, True),
        (np.float32([1]), np.float32([1.0000001]), Fidelity.EXACT, False),
        (np.float32([1]), np.float32([1.00001]), Fidelity.REASSOCIATES, True),
        (np.float32([1]), np.float32([1.001]), Fidelity.REASSOCIATES, False),
        (np.float32([0]), np.float32([-0.0]), Fidelity.EXACT, False),
        (np.float32([np.nan]), np.float32([np.nan]), Fidelity.EXACT, True),
        (np.float32([np.nan]), np.float32([1]), Fidelity.REASSOCIATES, False),
        (np.float32([1]), np.float64([1]), Fidelity.REASSOCIATES, False),
        (np.float32([1]), np.float32([[1]]), Fidelity.REASSOCIATES, False),
        (np.int64([100001]), np.int64([100000]), Fidelity.REASSOCIATES, False),
    ],
)
def test_what_is_the_same(a: np.ndarray, b: np.ndarray, fidelity: Fidelity, same: bool) -> None:
    if same:
        assert_same_outputs({"y": a}, {"y": b}, fidelity)
    else:
        with pytest.raises(AssertionError):
            assert_same_outputs({"y": a}, {"y": b}, fidelity)


def test_outputs_of_other_names_are_not_the_same() -> None:
    with pytest.raises(AssertionError):
        assert_same_outputs({"y": np.ones(1)}, {"z": np.ones(1)}, Fidelity.EXACT)


def test_a_rewrite_is_checked_by_its_result() -> None:
    ctx = assert_rewrites(Canonicalize(), TEXT, CLEAN)
    assert ctx.stats.hits == {"op_of_one_value": 1}
    with pytest.raises(AssertionError, match="expected:"):
        assert_rewrites(Dce(), TEXT, CLEAN)
    with pytest.raises(AssertionError, match="expected:"):
        assert_rewrites(Canonicalize(), TEXT, CLEAN.replace("Add", "Sub"))


def swap_sub(graph: Graph) -> bool:
    """Changes the answers, and changes them back the next time."""
    node = next(node for node in graph.nodes if node.op == "Add")
    made = graph.insert("Sub", node.inputs, before=node)
    graph.replace_uses(node.output, made.output)
    graph.erase(node)
    return True


def lie(graph: Graph) -> bool:
    Canonicalize().run(graph, PassContext())
    return False


def rename(graph: Graph) -> bool:
    changed = graph.output_names != ["z"]
    graph.output_names = ["z"]
    return changed


def restless(graph: Graph) -> bool:
    graph.insert("Exp", [graph.inputs[0]])
    return True


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (swap_sub, "Not equal|Mismatched"),
        (lie, "did not say so"),
        (rename, "changed what the model takes or gives"),
        (restless, "a second run of custom changes something"),
    ],
)
def test_a_bad_pass_is_found_out(act: Callable[[Graph], bool], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_keeps_outputs(Custom(act), parse(TEXT))


def test_leaving_alone_is_checked() -> None:
    assert_unchanged(Dce(), TEXT)
    with pytest.raises(AssertionError):
        assert_unchanged(Canonicalize(), TEXT)
    with pytest.raises(AssertionError, match="no refusal says 'because'"):
        assert_unchanged(Dce(), TEXT, "because")
    with pytest.raises(AssertionError, match="says it changed"):
        assert_unchanged(Custom(lambda graph: True), TEXT)


def test_dumps_do_not_depend_on_the_order_of_unrelated_nodes() -> None:
    template = "(float[N] x) => (float[N] y) {{ {} y = Add(a, b) }}"
    one, other = "a = Exp(x)", "b = Abs(x)"
    first, second = (parse(template.format(f"{p} {q}")) for p, q in ((one, other), (other, one)))
    assert dump(first) == dump(second)
    assert [node.op for node in second.nodes] == ["Abs", "Exp", "Add"], "the graph itself stays"


def test_dumps_do_not_depend_on_made_up_sizes() -> None:
    text = "(float[N] x, int64[1] s) => (float[M] y) {{ {} r = Reshape(x, s) y = Relu(r) }}"
    graph, other = parse(text.format("")), parse(text.format("u = Expand(x, s) v = Relu(u)"))
    Dce().run(other, PassContext())
    assert dump(graph) == dump(other)
