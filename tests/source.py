"""What source files import. Not a test itself."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ecggen"
TYPES_ONLY = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file imports at any depth, but for type checking; `from a import b`: a and a.b."""
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in TYPES_ONLY:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute in this project"
            # b may be a module or something inside of a.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        todo += ast.iter_child_nodes(node)
    return frozenset(names)


def packages(*paths: Path) -> set[str]:
    """The top packages that files import."""
    return {name.partition(".")[0] for path in paths for name in imports(path)}
