"""What scripts of this project import, read off their source: imports inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT


def modules(path: Path) -> set[Path]:
    """Files of this project, from its root, that a script imports: itself, and what others do."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        for name in _imported_names(current):
            module = ROOT / (name.replace(".", "/") + ".py")
            if module.exists():
                waiting.append(module)
    return {module.relative_to(ROOT) for module in found}


def packages(path: Path) -> set[str]:
    """Top-level names of others' packages that a script, or what it imports of ours, imports."""
    names = (name for module in modules(path) for name in _imported_names(ROOT / module))
    found = {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"stages", "tools", "tests"}


def _imported_names(path: Path) -> Iterator[str]:
    """Modules, and what may be one: `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
