from tvm import te, tirx
from graphopt.targets.relax.lowering import lowers

@lowers("Relu")
def relu(lower, node):
    return lower.te(lambda x: te.compute(x.shape, lambda *i: tirx.max(x(*i), tirx.const(0,x.dtype)), name="relu"), lower.expr(node.inputs[0]))

@lowers("Add")
def add(lower, node):
    shape=lower.shape(node.output)
    a,b=node.inputs
    return lower.te(lambda x,y: te.compute(shape, lambda *i: x(*i[len(i)-len(x.shape):])+y(*i[len(i)-len(y.shape):]), name="add"), lower.expr(a), lower.expr(b))
