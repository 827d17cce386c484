"""Rewrite a tool so that it reports what it compares: every comparison, lookup and text test calls a hook.

The hooks are those of `agentrl.mining.probe`. A `Site` describes one such place in the code: which parameters flow into
either side, and whether the place guards a statement that holds the gold answer.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass

METHODS = {
    "get", "pop", "setdefault", "find", "index", "count", "startswith", "endswith", "strptime", "match", "fullmatch",
    "search", "issubset", "issuperset", "intersection", "isdisjoint",
}  # fmt: skip
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "in",
    ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One comparison in the code: the parameters that flow into each side, and whether it guards the gold answer."""

    left: frozenset[str]
    right: frozenset[str]
    guards_gold: bool
    parts: tuple[frozenset[str], ...] = ()  # if the left side is a tuple: the parameters that flow into each item


def instrument(source: str, parameters: set[str], is_gold: Callable[[str], bool]) -> tuple[str, list[Site]]:
    """Return the rewritten source and its sites. The hooks get the index of a site in this list.

    Raises:
        SyntaxError, ValueError: the source cannot be parsed.
    """
    tree = ast.parse(source)
    tuples = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    rewriter = _Rewriter(flows(tree, parameters), tuples, is_gold)
    return ast.unparse(ast.fix_missing_locations(rewriter.visit(tree))), rewriter.sites


def flows(tree: ast.AST, parameters: set[str]) -> dict[str, frozenset[str]]:
    """Map each variable to the parameters whose values reach it through assignments and loops, anywhere in the code."""
    reach = {name: frozenset([name]) for name in parameters}
    nothing: frozenset[str] = frozenset()
    edges: list[tuple[set[str], set[str]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            assigned = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None:
                edges.append((_names(node.value), {name for target in assigned for name in _names(target)}))
        elif isinstance(node, ast.For | ast.comprehension):
            edges.append((_names(node.iter), _names(node.target)))
    changed = True
    while changed:
        changed = False
        for sources, targets in edges:
            arriving = nothing.union(*(reach.get(name, nothing) for name in sources))
            for target in targets:
                if not arriving <= reach.get(target, nothing):
                    reach[target] = reach.get(target, nothing) | arriving
                    changed = True
    return reach


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


class _Rewriter(ast.NodeTransformer):
    def __init__(
        self, reach: dict[str, frozenset[str]], tuples: dict[str, ast.Tuple], is_gold: Callable[[str], bool]
    ) -> None:
        self.reach, self.tuples, self.is_gold = reach, tuples, is_gold
        self.sites: list[Site] = []
        self.loops: list[str] = []  # loop variables in scope; they hold the record that is compared
        self.guards_gold = False

    def _site(self, left: ast.AST, right: ast.AST | None) -> ast.Constant:
        items = left.elts if isinstance(left, ast.Tuple) else ()
        if isinstance(left, ast.Name) and left.id in self.tuples:
            items = self.tuples[left.id].elts
        parts = tuple(map(self._parameters_in, items))
        self.sites.append(Site(self._parameters_in(left), self._parameters_in(right), self.guards_gold, parts))
        return ast.Constant(len(self.sites) - 1)

    def _parameters_in(self, side: ast.AST | None) -> frozenset[str]:
        """Return the parameters that flow into an expression."""
        names = _names(side) if side is not None else set()
        return frozenset().union(*(self.reach.get(name, frozenset()) for name in names))

    def _hook(self, name: str, *arguments: ast.expr, keywords: Iterable[ast.keyword] = ()) -> ast.Call:
        return ast.Call(ast.Name(f"__{name}__", ast.Load()), list(arguments), list(keywords))

    # -- what calls a hook
    # -----------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        operands = [node.left, *node.comparators]
        parts: list[ast.expr] = []
        for left, operation, right in zip(operands, node.ops, operands[1:], strict=False):
            site = self._site(left, right)
            context = ast.Tuple([ast.Name(name, ast.Load()) for name in self.loops], ast.Load())
            kind = ast.Constant(_OPERATORS[type(operation)])
            # the middle operand is evaluated twice, as two separate nodes
            copies = [ast.parse(ast.unparse(side), mode="eval").body for side in (left, right)]
            parts.append(self._hook("compare", site, kind, *(self.visit(side) for side in copies), context))
        return parts[0] if len(parts) == 1 else ast.BoolOp(ast.And(), parts)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if not isinstance(node.ctx, ast.Load) or isinstance(node.slice, ast.Slice | ast.Tuple | ast.Starred):
            if not (isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Tuple)):
                return self.generic_visit(node)
            if any(isinstance(part, ast.Slice | ast.Starred) for part in node.slice.elts):
                return self.generic_visit(node)
        site = self._site(node.slice, None)
        self.generic_visit(node)
        return self._hook("item", site, node.value, node.slice)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        hooked = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and node.args
        if not hooked or any(isinstance(argument, ast.Starred) for argument in node.args):
            return self.generic_visit(node)
        assert isinstance(node.func, ast.Attribute)
        holder_first = node.func.attr not in ("get", "pop", "setdefault", "strptime", "match", "fullmatch", "search")
        sides = [node.func.value if holder_first else node.args[0], node.args[0] if holder_first else None]
        if node.func.attr in ("match", "fullmatch", "search") and len(node.args) > 1:
            sides = [node.args[1], node.args[0]]
        if node.func.attr in ("find", "index", "count"):
            sides = sides[::-1]
        assert sides[0] is not None
        site = self._site(sides[0], sides[1])
        self.generic_visit(node)
        name = ast.Constant(node.func.attr)
        return self._hook("method", site, name, node.func.value, *node.args, keywords=node.keywords)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        node.values = [self._truth(value) for value in node.values]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        node.operand = self._truth(node.operand) if isinstance(node.op, ast.Not) else self.visit(node.operand)
        return node

    def _truth(self, node: ast.expr) -> ast.expr:
        """Hook a parameter that is tested by itself; visit anything else."""
        if isinstance(node, ast.Name) and node.id in self.reach:
            return self._hook("truth", self._site(node, None), node)
        visited: ast.expr = self.visit(node)
        return visited

    # -- what surrounds a comparison
    # -------------------------------------------------------------------------------------

    def visit_If(self, node: ast.If) -> ast.AST:
        outer, self.guards_gold = self.guards_gold, self._holds_gold(node.body)
        node.test = self._truth(node.test)
        self.guards_gold = outer
        node.body = [self.visit(statement) for statement in node.body]
        node.orelse = [self.visit(statement) for statement in node.orelse]
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        outer, self.guards_gold = self.guards_gold, self._holds_gold([node.body])
        node.test = self._truth(node.test)
        self.guards_gold = outer
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node

    def _holds_gold(self, nodes: Iterable[ast.AST]) -> bool:
        constants = (n.value for node in nodes for n in ast.walk(node) if isinstance(n, ast.Constant))
        return any(not isinstance(value, bool | None) and self.is_gold(str(value)) for value in constants)

    def visit_For(self, node: ast.For) -> ast.AST:
        node.iter = self.visit(node.iter)
        known = len(self.loops)
        self.loops += sorted(_names(node.target))
        node.body = [self.visit(statement) for statement in node.body]
        del self.loops[known:]
        node.orelse = [self.visit(statement) for statement in node.orelse]
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return super().generic_visit(node)
        known = len(self.loops)
        for generator in node.generators:
            generator.iter = self.visit(generator.iter)
            self.loops += sorted(_names(generator.target))
            generator.ifs = [self.visit(condition) for condition in generator.ifs]
        for part in ("elt", "key", "value"):
            if hasattr(node, part):
                setattr(node, part, self.visit(getattr(node, part)))
        del self.loops[known:]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # a helper may be called after the loop, when the loop's variables are unbound
        outer, self.loops = self.loops, []
        self.generic_visit(node)
        self.loops = outer
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        outer, self.loops = self.loops, []
        self.generic_visit(node)
        self.loops = outer
        return node
