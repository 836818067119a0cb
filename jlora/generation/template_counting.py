"""Makes a chat template call functions that count what Jinja would compile to plain Python."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class CountingCalls(NodeTransformer):
    """Wraps loops, comparisons, literals, slices and `~` in calls of the environment's functions of these names."""

    def __init__(self, tree: nodes.Template) -> None:
        self.visited = 0
        self.all = sum(1 for _ in tree.find_all(nodes.Node))

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.visited += 1
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        step = self._visit_body(node)
        node.iter = _call("each", node.iter)
        if node.test is not None:  # it runs for the entries that it leaves out, too
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self._visit_body(node)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self._visit_body(node)
        return node

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        self._visit_body(node, 8 * self.all)  # Jinja copies the variables of the whole template
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operators = nodes.Const(tuple(operand.op for operand in node.ops), lineno=node.lineno)
        return _call("compare", operators, node.expr, *(operand.expr for operand in node.ops))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        edges = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("slice", node.node, *(edge or nodes.Const(None) for edge in edges))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _call("count_literal", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        is_plain = node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items)
        return node if is_plain else _call("count_literal", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("count_literal", node)

    def _visit_body(self, node: Any, more: int = 0) -> nodes.Call:
        """Inserts a call of `step` into the body of a loop or macro, with the number of nodes in it."""
        before = self.visited
        self.generic_visit(node)
        step = _call("step", nodes.Const(self.visited - before + more, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return step


def _call(name: str, *args: Any) -> nodes.Call:
    line = args[0].lineno if args else 1
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None, lineno=line)
