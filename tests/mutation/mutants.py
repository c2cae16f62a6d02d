"""Mutants: all the small changes of a module that could be mistakes.

They are edits of its syntax tree: another comparison, a condition that is negated or left out, a
number that is off by one, a statement, an argument, a field or a default that is missing, and so
on. Left alone is what has no effect (annotations of variables and arguments, docstrings), what
can't go unnoticed (imports, decorators), and the words of what is raised.
"""

from __future__ import annotations

import ast
import itertools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """An edit: `new` instead of a node, which is a field, or an item of a field, of `parent`."""

    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST
    outer: tuple[ast.AST, ...]
    """All that the node is in, the module first."""
    line: int
    text: str

    def plant(self) -> None:
        """Make the edit."""
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new

    @property
    def body(self) -> ast.FunctionDef | None:
        """The function in whose body it is; None if it takes effect when the module is imported."""
        for node, below in itertools.pairwise((*self.outer, None)):
            if isinstance(node, ast.FunctionDef):
                itself = below is None and self.field == "body"
                return node if itself or below in node.body else None
        return None


def mutants(module: ast.Module) -> list[Mutant]:
    """Return all mutants of a module, without repetitions."""
    found = {}
    for mutant in _below(module, ()):
        found.setdefault((mutant.parent, mutant.field, mutant.index, mutant.text), mutant)
    return list(found.values())


def _below(parent: ast.AST, outer: tuple[ast.AST, ...]) -> Iterator[Mutant]:
    outer = (*outer, parent)
    for field, value in ast.iter_fields(parent):
        if field in {"decorator_list", "returns"} or (
            field == "annotation" and not _declares(outer)
        ):
            continue
        several = isinstance(value, list)
        for index, node in enumerate(value if several else [value]):
            if not isinstance(node, ast.AST) or _is_left_alone(node):
                continue
            line = next(one.lineno for one in (node, *outer[::-1]) if hasattr(one, "lineno"))
            for new in _instead(node, outer, field):
                ast.copy_location(new, node)
                ast.fix_missing_locations(new)
                text = f"{_short(node)}  →  {_short(new)}"
                yield Mutant(parent, field, index if several else None, new, outer, line, text)
            yield from _below(node, outer)


def _declares(outer: tuple[ast.AST, ...]) -> bool:
    """Tell whether this is a field of a class."""
    return isinstance(outer[-1], ast.AnnAssign) and isinstance(outer[-2], ast.ClassDef)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()):
            return True
        case ast.If(ast.Name("TYPE_CHECKING")):
            return True
    return False


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _instead(node: ast.AST, outer: tuple[ast.AST, ...], field: str) -> Iterator[ast.AST]:
    """Yield what may be there instead of a node."""
    parent = outer[-1]
    if isinstance(node, ast.stmt):
        yield from _statements(node, parent)
    elif isinstance(node, ast.expr):
        if field == "test" or (field == "ifs" and isinstance(parent, ast.comprehension)):
            yield from _conditions(node)
        yield from _expressions(node, outer)
    elif isinstance(node, ast.comprehension):
        for condition in node.ifs:
            yield _but(node, ifs=[one for one in node.ifs if one is not condition])
    elif isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple):
        for one in node.type.elts:
            others = [other for other in node.type.elts if other is not one]
            yield _but(node, type=ast.Tuple(others, ast.Load()))
    elif isinstance(node, ast.ExceptHandler) and node.type:
        yield _but(node, type=ast.Tuple([], ast.Load()))


def _statements(node: ast.stmt, parent: ast.AST) -> Iterator[ast.stmt]:
    match node:
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Raise() | ast.Assert():
            yield ast.Pass()
        case ast.AnnAssign(value=None) if not isinstance(parent, ast.ClassDef):
            return
        case ast.AnnAssign():
            yield ast.Pass()
            if node.value and isinstance(parent, ast.ClassDef):
                yield _but(node, value=None)
        case ast.Return(ast.expr() as value) if not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Return(None):
            yield ast.Pass()
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.ClassDef():
            for keyword in node.keywords:
                # What the class above says is inherited; it is repeated for the type checker.
                if keyword.arg != "frozen" or not isinstance(node.bases[0], ast.Name):
                    yield _but(node, keywords=[one for one in node.keywords if one is not keyword])
    if isinstance(node, ast.AugAssign) and type(node.op) in _COMPUTED:
        yield _but(node, op=_COMPUTED[type(node.op)]())


def _conditions(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the negation, unless there is one among the other mutants."""
    if not isinstance(node, ast.Compare) and not _is_negated(node):
        yield ast.UnaryOp(ast.Not(), node)


def _expressions(node: ast.expr, outer: tuple[ast.AST, ...]) -> Iterator[ast.expr]:
    match node:
        case ast.Compare():
            for n, op in enumerate(node.ops):
                for new in _COMPARED[type(op)]:
                    yield _but(node, ops=[*node.ops[:n], new(), *node.ops[n + 1 :]])
        case ast.BinOp(op=ast.BitOr()) if _is_type(outer):
            yield node.left
            yield node.right
        case ast.BinOp() if type(node.op) in _COMPUTED:
            yield _but(node, op=_COMPUTED[type(node.op)]())
        case ast.BoolOp():
            yield _but(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for n in range(len(node.values)):
                rest = [*node.values[:n], *node.values[n + 1 :]]
                yield _but(node, values=rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.Slice():
            if node.lower:
                yield _but(node, lower=None)
            if node.upper:
                yield _but(node, upper=None)
        case ast.Call(ast.Name(name)) if name in _CALLED:
            yield _but(node, func=ast.Name(_CALLED[name], ast.Load()))
        case ast.Constant(bool()) if isinstance(outer[-1], ast.keyword):
            return  # it is left out as well
        case ast.Constant() if not _is_wording(outer) and not _is_cast(outer[-1]):
            yield from map(ast.Constant, _constants(node.value))
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            yield _but(node, keywords=[one for one in node.keywords if one is not keyword])
    if isinstance(outer[-1], ast.Slice) and not isinstance(node, ast.Constant | ast.UnaryOp):
        for op in (ast.Add(), ast.Sub()):
            yield ast.BinOp(node, op, ast.Constant(1))


def _constants(value: object) -> list[object]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case str():
            return ["" if value else "mutant"]
        case bytes():
            return [b"" if value else b"mutant"]
    return []


def _is_wording(outer: tuple[ast.AST, ...]) -> bool:
    return any(isinstance(node, ast.Raise | ast.Assert) for node in outer) and isinstance(
        outer[-1], ast.JoinedStr | ast.Call | ast.Assert
    )


def _is_cast(parent: ast.AST) -> bool:
    return isinstance(parent, ast.Call) and ast.unparse(parent.func) == "cast"


def _is_type(outer: tuple[ast.AST, ...]) -> bool:
    """Tell whether this is one of several types, in an annotation or for `isinstance`."""
    if any(isinstance(node, ast.FunctionDef) for node in outer):
        return isinstance(outer[-1], ast.Call)
    return True


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_negated(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _but(node: ast.AST, **fields: object) -> ast.AST:
    """Return a copy of a node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})
