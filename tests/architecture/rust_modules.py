"""Which module of a Rust crate names what of which other one, as far as `use` and paths with `crate` and `super` say.

Tests inside a crate are left out. Between a module and its own parents and children no arrow is drawn: a child names
what its parent lends it, which is how Rust divides a module into files. What a parent hands on by `pub use` is taken
for what it comes from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

Module = tuple[str, ...]

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TEST = re.compile(r"#\[cfg\((?:all\()?test\b[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?mod\s+\w+\s*([{;])")
_USE = re.compile(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);")
_PATH = re.compile(r"\b(?:crate|super)(?:::\w+)+")


class Arrow(NamedTuple):
    """`source` names `name` of `target`; both are siblings, or children of them that need each other."""

    source: Module
    target: Module
    name: str


def arrows(crate: Path) -> set[Arrow]:
    """All arrows of the crate in this folder."""
    texts = _modules(crate / "src")
    uses = {module: list(_uses(module, text, texts)) for module, text in texts.items()}
    handed = {(module, path[-1]): path for module, found in uses.items() for public, path in found if public}
    result: set[Arrow] = set()
    for module, found in uses.items():
        for _, path in found:
            target, name = _home(path, texts, handed)
            shared = min(len(module), len(target))
            if module[:shared] != target[:shared]:
                result.add(Arrow(module, target, name))
    return result


def between_siblings(found: set[Arrow]) -> dict[tuple[str, str], set[Arrow]]:
    """The arrows by the siblings, as crate::path, whose inside they join."""
    result: dict[tuple[str, str], set[Arrow]] = {}
    for arrow in found:
        level = next(i for i, (a, b) in enumerate(zip(arrow.source, arrow.target, strict=False)) if a != b) + 1
        pair = ("::".join(arrow.source[:level]), "::".join(arrow.target[:level]))
        result.setdefault(pair, set()).add(arrow)
    return result


def _modules(source: Path) -> dict[Module, str]:
    texts: dict[Module, str] = {}
    for file in sorted(source.rglob("*.rs")):
        module = file.relative_to(source).with_suffix("").parts
        if module[-1] in ("mod", "lib", "main"):
            module = module[:-1]
        if "tests" not in module and "bin" not in module:
            texts[module] = texts.get(module, "") + _code(file.read_text(encoding="utf-8"))
    return texts


def _code(text: str) -> str:
    """Without comments, strings and the modules of its tests."""
    text = _STRING.sub('""', _COMMENT.sub("", text))
    kept, at = [], 0
    for test in _TEST.finditer(text):
        if test.start() < at:
            continue
        kept.append(text[at : test.start()])
        at, depth = test.end(), test[1] == "{"
        while depth and at < len(text):
            depth += (text[at] == "{") - (text[at] == "}")
            at += 1
    return "".join([*kept, text[at:]])


def _uses(module: Module, text: str, known: dict[Module, str]) -> list[tuple[bool, Module]]:
    """What it names, from the crate's root, and whether it hands that on."""
    said = [(bool(use[1]), path) for use in _USE.finditer(text) for path in _leaves(re.sub(r"\s+", "", use[2]))]
    said += [(False, path) for path in _PATH.findall(_USE.sub("", text))]
    result = []
    for public, path in said:
        first, *rest = path.split("::")
        if first == "crate":
            start: Module = ()
        elif first == "self" or (*module, first) in known:
            start = module
            rest = rest if first == "self" else [first, *rest]
        elif first == "super":
            start = module[:-1]
            while rest and rest[0] == "super":
                start, rest = start[:-1], rest[1:]
        else:
            continue
        if rest and rest[-1] == "self":
            rest.pop()
        if rest:
            result.append((public, (*start, *rest)))
    return result


def _leaves(tree: str) -> list[str]:
    """`a::{b,c::{d,e}}` as its paths. A new name (`as`) has no blank before it any more, and is of no matter."""
    head, brace, inner = tree.partition("{")
    if not brace:
        return [re.sub(r"as\w+$", "", tree) if re.search(r"[a-z0-9_]as[A-Z_]", tree) else tree]
    parts, depth, part = [], 0, ""
    for letter in inner[: inner.rindex("}")]:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [head + leaf for one in [*parts, part] if one for leaf in _leaves(one)]


def _home(path: Module, known: dict[Module, str], handed: dict[tuple[Module, str], Module]) -> tuple[Module, str]:
    """The module that a path leads to, and what it names there."""
    for _ in range(8):
        module = path
        while module not in known:
            module = module[:-1]
        rest = path[len(module) :]
        if not rest or (on := handed.get((module, rest[0]))) is None or on == path:
            break
        path = (*on, *rest[1:])
    return module, "::".join(rest)
