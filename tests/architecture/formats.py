"""What is written to disk, or read by a process of another release, and what the code that decides its bytes is now.

A change there changes a format. The test says so, and what to do first; then ``python -m tests.architecture.formats``
writes the new state down.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("formats.json")
POLICY = "docs/concepts/snapshot-versioning.md"

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LAST_COMMA = re.compile(r",(\s*\})")
_ITEM = re.compile(
    r"^ *(?:pub(?:\([^)]*\))?\s+)?(?:const\s+)?(?:struct|enum|fn|const|type)\s+(?P<name>\w+)",
    re.MULTILINE,
)


class Format(NamedTuple):
    """`file` and the names in it that decide the bytes (all types of a Rust file, where none are named)."""

    file: str
    names: tuple[str, ...]
    #: What is done before a change is written down.
    first: str
    #: File and name of the constant that a change has to raise; empty where none has to.
    version: tuple[str, str] | None = None


_PROTO = ("rust/proto/src/lib.rs", "VERSION")
_SECTION = "give the section a new version and keep reading the old one"
FORMATS = {
    "messages with a guest's agent": Format(
        "rust/proto/src/agent.rs",
        (),
        "raise VERSION: a guest in a snapshot has the agent of its time, and is refused then by name",
        _PROTO,
    ),
    "what an agent and the file server say to each other": Format(
        "rust/proto/src/echo.rs",
        ("INTERRUPT", "BEGIN", "END", "ANNOUNCEMENT", "UNDERSTOOD", "OWN", "Step", "encode"),
        "raise VERSION",
        _PROTO,
    ),
    "frames of messages": Format("rust/proto/src/frame.rs", ("MAX_FRAME", "encode"), "raise VERSION", _PROTO),
    "header of a snapshot": Format(
        "rust/snapshot/src/v9/header.rs", ("MAGIC", "BYTES", "DIGESTED", "encode"), _SECTION
    ),
    "head of a section": Format("rust/snapshot/src/v9/section.rs", ("HEAD_BYTES", "ALIGNMENT", "encode"), _SECTION),
    "section identity": Format("rust/snapshot/src/v9/identity.rs", ("KIND", "VERSION", "encode"), _SECTION),
    "section ram-extents": Format("rust/snapshot/src/v9/extents.rs", ("KIND", "VERSION", "encode"), _SECTION),
    "section disk": Format("rust/snapshot/src/v9/disk.rs", ("KIND", "VERSION", "encode"), _SECTION),
    "table of an artifact's frames": Format(
        "rust/snapshot/src/parts/table.rs",
        ("Frame", "Part", "Table", "encode", "encode_runs"),
        "give the artifact a new version: registries hold old ones",
        ("python/supermachine/artifacts/model.py", "_VERSION"),
    ),
    "last block of a volume": Format(
        "rust/storage/src/volume.rs",
        ("MAGIC", "HOLDER", "MARK", "WISH", "Mark", "make"),
        "give it another magic and keep opening the old one: volumes are the user's data",
    ),
    "blocks of disks": Format("rust/storage/src/lib.rs", ("BLOCK",), "keep opening volumes of the old size"),
    "section api of a snapshot": Format(
        "python/supermachine/snapshots/records.py",
        ("Record", "Record.encode"),
        "keep reading what has been written, new keys absent; or raise VERSION",
    ),
    "working set": Format(
        "python/supermachine/snapshots/working_set.py", ("_MAGIC", "_HEAD", "encode"), "give it another magic"
    ),
    "key of a baked snapshot": Format(
        "python/supermachine/snapshots/baking.py",
        ("Baked.place",),
        "raise _FORMAT where what is behind an old key would be used wrongly",
    ),
    "configuration of an artifact": Format(
        "python/supermachine/artifacts/model.py",
        ("ARTIFACT_TYPE", "Base", "Config", "manifest"),
        "keep reading what registries hold; or raise _VERSION",
    ),
    "remembered start": Format(
        "python/supermachine/cli/run/fast.py",
        ("Start.__init__", "Start.encode", "_STRINGS", "_PAIRS", "_LISTS", "_flat", "stamp", "place"),
        "raise _FORMAT",
        ("python/supermachine/cli/run/fast.py", "_FORMAT"),
    ),
    "record of a machine with a name": Format(
        "python/supermachine/named/records.py",
        ("Record",),
        "give a new field a default and leave the meaning of old ones: keepers of the release before are running",
    ),
    "policy of a machine with a name": Format(
        "python/supermachine/named/spec.py", ("Policy", "Fork", "Spec"), "give a new field a default, as in its record"
    ),
    "names in the cache": Format(
        "python/supermachine/cache/store.py",
        ("rootfs_key", "_key"),
        "nothing, as other names are other files; what is behind the old ones is pruned",
    ),
}


def shape(kind: Format) -> str:
    """A digest of the code in question; comments, white space and commas before a closing brace aside."""
    text = (ROOT / kind.file).read_text(encoding="utf-8")
    parts = _python(text, kind.names) if kind.file.endswith(".py") else _rust(text, kind.names)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def version(kind: Format) -> str:
    """The value of the constant, as it is written."""
    if kind.version is None:
        return ""
    file, name = kind.version
    found = re.search(
        rf"^(?:pub const )?{name}\b[^=]*= *([^;\n]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None, f"{file} has no {name}"
    return found[1]


def _python(text: str, names: tuple[str, ...]) -> list[str]:
    known: dict[str, ast.AST] = {}

    def note(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                known[prefix + node.name] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                known[prefix + node.target.id] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                known[prefix + node.targets[0].id] = node
            if isinstance(node, ast.ClassDef):
                note(node.body, f"{node.name}.")

    note(ast.parse(text).body, "")
    return [f"{name}={_code(known[name])}" for name in names]


def _code(node: ast.AST) -> str:
    """What is not a docstring; of a class its fields alone."""
    if isinstance(node, ast.ClassDef):
        return "\n".join(ast.unparse(part) for part in node.body if isinstance(part, (ast.AnnAssign, ast.Assign)))
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        return "\n".join(ast.unparse(part) for part in node.body[1:])
    return ast.unparse(node)


def _rust(text: str, names: tuple[str, ...]) -> list[str]:
    text = _LAST_COMMA.sub(r"\1", _COMMENT.sub("", text.partition("\n#[cfg(test)]")[0]))
    if not names:
        return [
            " ".join(item.split())
            for item in re.findall(r"^(?:pub )?(?:struct|enum|type)[^{;]*(?:\{.*?^\}|[^\n]*;)", text, re.M | re.S)
        ]
    found: dict[str, str] = {}
    for item in _ITEM.finditer(text):
        if item["name"] in names:
            whole = text[item.start() : _end(text, item.end())]
            found[item["name"]] = found.get(item["name"], "") + " ".join(whole.split())
    assert set(names) <= set(found), f"not there any more: {sorted(set(names) - set(found))}"
    return [found[name] for name in names]


def _end(text: str, at: int) -> int:
    """After the semicolon or the brace that ends an item."""
    depth = 0
    for place in range(at, len(text)):
        letter = text[place]
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter in ";}":
            return place + 1
    return len(text)


def states() -> dict[str, dict[str, str]]:
    return {name: {"shape": shape(kind), "version": version(kind)} for name, kind in FORMATS.items()}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(states(), indent=2) + "\n", encoding="utf-8")
