"""What the cells of a notebook define, for tests of functions that stand in a notebook."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def definitions(name: str, **given: object) -> SimpleNamespace:
    """Imports, functions, classes and literal constants of a notebook's cells, without running its experiments.

    Args:
        name: of the notebook, or how its file name begins, such as "11".
        given: values of names that the definitions use and that the notebook's experiments would have made.
    """
    (path,) = sorted(NOTEBOOKS.glob(f"{name}*.ipynb"))
    space: dict[str, object] = {"__name__": f"notebook_{path.stem[:2]}", **given}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code" or "solution" in cell["metadata"].get("tags", []):
            continue
        kept = [node for node in ast.parse("".join(cell["source"])).body if _defines(node)]
        for node in kept:
            names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
            if not names & set(given):
                exec(compile(ast.Module([node], []), str(path), "exec", dont_inherit=True), space)
    return SimpleNamespace(**space)


def _defines(node: ast.stmt) -> bool:
    """Whether a statement imports, defines, or names a constant made of literals, functions and what is imported."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if not isinstance(node, ast.Assign) or any(isinstance(target, ast.Subscript) for target in node.targets):
        return False  # an entry of what an experiment made
    parts = list(_at_once(node.value))
    calls = [part for part in parts if isinstance(part, ast.Call)]
    known = all(isinstance(call.func, ast.Name) and call.func.id == "partial" for call in calls)
    upper = all(isinstance(target, ast.Name) and (target.id.isupper()) for target in node.targets)
    literal = not any(isinstance(part, ast.Name | ast.Call | ast.Attribute) for part in parts)
    return literal or (upper and known)


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of an expression that run where it stands: not the bodies of its lambdas."""
    yield node
    if not isinstance(node, ast.Lambda):
        for part in ast.iter_child_nodes(node):
            yield from _at_once(part)
