"""Branches whose sizes are known only at run time."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


@mutator
class _Sizes(PyExprMutator):
    """Binds sizes of branches outside of dataflow: FuseOps has no group for them within."""

    def visit_if_(self, op: relax.If) -> relax.Expr:
        return relax.If(op.cond, _parted(op.true_branch), _parted(op.false_branch))


def _parted(branch: relax.SeqExpr) -> relax.SeqExpr:
    """`branch` with the sizes that it finds in blocks of their own, those of inner branches too."""
    blocks: list[relax.BindingBlock] = []
    for block in branch.blocks:
        if not isinstance(block, relax.DataflowBlock):
            blocks.append(relax.BindingBlock([_inner(binding) for binding in block.bindings]))
            continue
        sizes = [b for b in block.bindings if _binds_sizes(b)]
        if sizes:
            named = [(relax.Var(b.var.name, b.ty), b) for b in sizes]
            blocks.append(relax.BindingBlock([relax.MatchCast(v, b.value, b.ty) for v, b in named]))
        rest = [b for b in block.bindings if not _binds_sizes(b)]
        if rest:
            blocks.append(relax.DataflowBlock(rest))
    return relax.SeqExpr(blocks, branch.body)


def _binds_sizes(binding: relax.Binding) -> bool:
    return isinstance(binding, relax.MatchCast) and isinstance(binding.ty, relax.ShapeType)


def _inner(binding: relax.Binding) -> relax.Binding:
    if isinstance(binding, relax.VarBinding) and isinstance(binding.value, relax.If):
        value = binding.value
        value = relax.If(value.cond, _parted(value.true_branch), _parted(value.false_branch))
        return relax.VarBinding(binding.var, value)
    return binding


def with_sizes_apart(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with the sizes that its branches find bound outside of dataflow."""
    main = module["main"]
    changed = _Sizes().visit_expr(main)
    if changed.same_as(main):
        return module
    result = tvm.IRModule(module.functions, attrs=module.attrs)
    result.update_func(result.get_global_var("main"), changed)
    return result


def has_branches(module: tvm.IRModule) -> bool:
    """True if `module` chooses between branches when it runs."""
    found: list[relax.Expr] = []

    def note(expr: relax.Expr) -> None:
        if isinstance(expr, relax.If):
            found.append(expr)

    relax.analysis.post_order_visit(module["main"], note)
    return bool(found)
