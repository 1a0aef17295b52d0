"""The package's own source, parsed once for all tests of its architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "ckpt_tools"


@dataclass(frozen=True, eq=False)
class Module:
    """One file of the package; ``place`` is its path inside it (``"cli/app.py"``)."""

    place: str
    text: str
    tree: ast.Module

    @property
    def folder(self) -> str:
        return self.place.rpartition("/")[0]

    @property
    def stem(self) -> str:
        return self.place.rpartition("/")[2].removesuffix(".py")

    def inside(self, *places: str) -> bool:
        """Return whether this is one of ``places``: a file, a folder (``"cli/"``), or a beginning of a file's name."""
        return self.place.startswith(places)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the file."""
        return tuple(ast.walk(self.tree))

    def where(self, node: ast.AST) -> str:
        return f"ckpt_tools/{self.place}:{getattr(node, 'lineno', 1)}: {ast.unparse(node)[:100]}"

    def imports(self, *, run_time: bool = False) -> Iterator[tuple[str, ast.AST]]:
        """Yield the dotted name of every import, wherever it stands (``run_time``: not those for types alone)."""
        typing_only = {
            inner
            for node in self.nodes
            if run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in self.nodes:
            if node in typing_only:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, node) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import: {self.where(node)}"
                yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """Return a name as it is written, ``()`` for what is none in front of a dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Module(path.relative_to(PACKAGE).as_posix(), text, ast.parse(text, str(path))))
    return tuple(found)


@cache
def folders() -> frozenset[str]:
    return frozenset(module.folder for module in modules() if module.folder)
