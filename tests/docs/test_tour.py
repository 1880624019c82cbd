"""docs/getting-started/tour.md: each command says what the page says that it does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "getting-started" / "tour.md"


def steps(text: str) -> list[tuple[str, str]]:
    """Commands of the page's ``console`` blocks, each with what it says."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            # A command of several lines goes on for as long as a quotation is open.
            for count in range(1, len(lines) + 1):
                command = "".join(lines[:count])
                try:
                    shlex.split(command)
                except ValueError:
                    continue
                found.append((command, "".join(lines[count:])))
                break
    return found


def matches(said: str, expected: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, said, re.DOTALL) is not None


def test_what_is_compared() -> None:
    assert steps("```console\n$ a 'x\ny'\nsaid\n$ b\n```\n") == [("a 'x\ny'\n", "said\n"), ("b\n", "")]
    assert matches("one 5 ms\n", "one … ms\n")
    assert not matches("two 5 ms\n", "one … ms\n")
    assert not matches("one\nand more\n", "one\n")


@pytest.mark.vm
def test_every_command_says_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "bin").mkdir()
    for name, words in (("supermachine", f"{sys.executable} -m supermachine"), ("python", sys.executable)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SUPERMACHINE_CACHE": str(tmp_path / "cache"),
        "SUPERMACHINE_RUNTIME": str(tmp_path / "run"),
    }
    found = steps(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 15
    try:
        for command, expected in found:
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, timeout=300, check=False, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            # What a first start has to say of itself is for people alone.
            said = "".join(
                line
                for line in done.stdout.splitlines(keepends=True)
                if not line.startswith(("supermachine: warning: the soft engine", "supermachine: converting"))
            )
            assert matches(said, expected), f"$ {command}{said}"
    finally:
        for name in ("tour", "tour-1"):
            subprocess.run(
                ["bash", "-c", f"supermachine rm -f {name}"], env=environment, capture_output=True, check=False
            )
