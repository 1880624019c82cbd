"""Descriptors are made in one place of the Python package, which keeps them off 0, 1 and 2."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "python" / "supermachine"
HOME = PACKAGE / "descriptors.py"

#: Calls that give a descriptor which stays, as ``module.name``.
MAKERS = {
    *(f"os.{name}" for name in ("open", "pipe", "pipe2", "dup", "memfd_create", "eventfd", "pidfd_open", "openpty")),
    *(f"socket.{name}" for name in ("create_connection", "create_server", "socketpair", "fromfd")),
    "tempfile.mkstemp",
}
#: A descriptor of somebody else is given in these, not made.
GIVEN = "descriptors.raised"


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""


def makers(tree: ast.Module) -> Iterator[ast.Call]:
    """The calls that make one, but for those whose descriptor is closed, or raised, at once."""
    passing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name_of(node.func) in ("os.close", GIVEN)
        for inner in node.args
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in passing:
            continue
        name = name_of(node.func)
        fileno = any(word.arg == "fileno" for word in node.keywords)
        if name in MAKERS or (name == "socket.socket" and not fileno):
            yield node


def test_descriptors_are_made_in_one_place() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path != HOME:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node.func)}" for node in makers(tree)]
    assert found == []


def test_that_place_has_them() -> None:
    assert len(list(makers(ast.parse(HOME.read_text(encoding="utf-8"))))) >= 5
