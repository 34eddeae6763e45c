"""Mutants of the method: copies of it with one small slip each, which some test should notice.

mutmut leaves out decorated functions, which here are explainers, properties and all that runs without a graph; and
cosmic-ray starts the whole test line, or one fixed part of it, for each mutant. So the slips are made here.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    **{ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)},
    **{ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)},
}
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
_FORGOTTEN = {"abs", "clamp", "clone", "detach", "double", "contiguous"}  # calls without which numbers still flow


class Mutant(NamedTuple):
    """One slip.

    Attributes:
        path: of its module, from the root of the project.
        place: function or class that it is in, and how many of the same stand before it there.
        line: of the source, from 1.
        around: first and last line of that function or class.
        slip: what became of what.
    """

    path: str
    place: str
    line: int
    around: tuple[int, int]
    slip: str

    @property
    def name(self) -> str:
        """Stays what it is while other lines of the module come and go."""
        return f"{self.path}:{self.place}: {self.slip}"


def method() -> list[Path]:
    """Modules of the method."""
    modules = sorted((ROOT / "xuqlib").rglob("*.py"))
    inside = [path for path in modules if path.relative_to(ROOT).parts[1] not in ("study", "scale", "__main__.py")]
    return [path for path in inside if path.name != "__init__.py"]


def mutants_of(text: str, path: str) -> dict[Mutant, Callable[[], ast.Module]]:
    """Every mutant of a module, and what makes its tree."""
    tree = ast.parse(text)
    found: dict[Mutant, Callable[[], ast.Module]] = {}
    counts: dict[tuple[str, str], int] = {}
    for names, around, node, alternatives in _places(tree, (), (1, len(text.splitlines()))):
        before, scope = _in_short(node), ".".join(names) or "module"
        for alternative in alternatives:
            slip = f"{before} -> {_in_short(alternative)}"
            count = counts[scope, slip] = counts.get((scope, slip), 0) + 1
            place = scope if count == 1 else f"{scope} ({count})"
            found[Mutant(path, place, node.lineno, around, slip)] = partial(_with, tree, node, alternative)
    return found


def _in_short(node: ast.AST) -> str:
    """The code of a node, of a statement its head."""
    return "nothing" if isinstance(node, ast.Pass) else ast.unparse(node).partition("\n")[0]


def _with(tree: ast.Module, old: ast.AST, new: ast.AST) -> ast.Module:
    """A copy of a tree with one node in the place of another."""
    mutated: ast.Module = copy.deepcopy(tree, {id(old): ast.copy_location(new, old)})
    return ast.fix_missing_locations(mutated)


def _places(
    node: ast.AST, scope: tuple[str, ...], around: tuple[int, int]
) -> Iterator[tuple[tuple[str, ...], tuple[int, int], Any, list[ast.AST]]]:
    """Yield scope, its lines, node and what may stand in its place, of all that computes.

    Text is none of it: messages, docstrings and annotations.
    """
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope, around = (*scope, node.name), (node.lineno, node.end_lineno or node.lineno)
    alternatives = list(_alternatives(node))
    if alternatives:
        yield scope, around, node, alternatives
    annotations = {"annotation", "returns", "type_comment"}
    for name, value in ast.iter_fields(node):
        if name not in annotations:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _places(child, scope, around)


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    def changed(**fields: Any) -> ast.AST:
        return type(node)(**{**dict(ast.iter_fields(node)), **fields})

    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            for other in _COMPARISONS[type(operator)]:
                yield changed(ops=[*node.ops[:number], other(), *node.ops[number + 1 :]])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATIONS:
        yield changed(op=_OPERATIONS[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield changed(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0)
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and isinstance(
        node.test, ast.Name | ast.Attribute | ast.Call
    ):
        yield changed(test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FORGOTTEN:
        yield node.func.value
    elif isinstance(node, ast.Break | ast.Continue):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()


def drawn(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """Put mutants in a random order of which every beginning holds about the same share of each module.

    The order of those of one module does not depend on the others, so results stay while other modules change.
    """
    by_module: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_module.setdefault(mutant.path, []).append(mutant)
    placed: list[tuple[float, Mutant]] = []
    for path, each in by_module.items():
        stream = random.Random(f"{seed} {path}")
        stream.shuffle(each)
        start = stream.random()
        placed += [((number + start) / len(each), mutant) for number, mutant in enumerate(each)]
    return [mutant for _, mutant in sorted(placed)]
