"""The licences of the crates that are compiled into a wheel, as one text to put into it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What a crate's licence files are called.
PATTERNS = ("LICENSE*", "LICENCE*", "COPYING*", "COPYRIGHT*", "NOTICE*", "UNLICENSE*")
HEADING = """\
The executable and the extension module of this package are compiled from crates that others wrote, listed here with
their licences; where there is a choice, we take the Apache License 2.0. The texts that come with them follow.
"""


def collect(root: Path, packages: list[str], target: str | None) -> str:
    """The text for what these packages of the workspace are made of, on this target or on the machine's own."""
    found = sorted(crates(metadata(root, target), packages), key=lambda crate: (crate["name"], crate["version"]))
    lines, texts = [HEADING], {}
    for crate in found:
        lines.append(f"{crate['name']} {crate['version']}: {crate['license'] or 'see its text'}")
        for file in _files(crate):
            text = file.read_text(errors="replace").strip()
            digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
            texts.setdefault(digest, ([], text))[0].append(f"{crate['name']} {crate['version']}")
    for owners, text in texts.values():
        lines += ["", "-" * 80, ", ".join(dict.fromkeys(owners)), "-" * 80, "", text]
    return "\n".join(lines) + "\n"


def metadata(root: Path, target: str | None) -> dict[str, Any]:
    """What Cargo says of the workspace, on this target or on all."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    command += ["--filter-platform", target] if target else []
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def crates(metadata: dict[str, Any], packages: list[str]) -> Iterator[dict[str, Any]]:
    """All that these packages are linked with, and the macros that write code for them; not what only builds them."""
    by_id = {package["id"]: package for package in metadata["packages"]}
    needs = {node["id"]: node["deps"] for node in metadata["resolve"]["nodes"]}
    waiting = [identity for identity, package in by_id.items() if package["name"] in packages]
    seen: set[str] = set()
    while waiting:
        identity = waiting.pop()
        if identity in seen:
            continue
        seen.add(identity)
        # The workspace's own have no source.
        if by_id[identity]["source"] is not None:
            yield by_id[identity]
        waiting += [need["pkg"] for need in needs[identity] if any(kind["kind"] is None for kind in need["dep_kinds"])]


def _files(crate: dict[str, Any]) -> list[Path]:
    directory = Path(crate["manifest_path"]).parent
    found = [path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file()]
    if crate["license_file"] and (named := directory / crate["license_file"]).is_file():
        found.append(named)
    return sorted(set(found))
