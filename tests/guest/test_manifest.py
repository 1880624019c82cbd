"""The manifest of the guest files notices every change to what they were built from."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
AGENT_LOCK = 'name = "cobs"\nversion = "'


@pytest.fixture(scope="module")
def manifest() -> ModuleType:
    """guest/manifest.py, which is a script."""
    spec = importlib.util.spec_from_file_location("guest_manifest", ROOT / "guest" / "manifest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path, manifest: ModuleType) -> Path:
    """A copy of what the manifest tells of, as if all of it had been built from this tree."""
    for name in ("Cargo.lock", "Cargo.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("guest", "rust/agent", "rust/proto"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("target"))
    manifest.record(manifest.FILES, tmp_path)
    assert list(manifest.problems(tmp_path)) == []
    return tmp_path


def test_the_committed_files_are_what_the_manifest_says(manifest: ModuleType) -> None:
    assert list(manifest.problems()) == []


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("rust/agent/src/main.rs", ["initramfs"]),
        ("rust/proto/src/frame.rs", ["initramfs"]),
        ("rust/proto/Cargo.toml", ["initramfs"]),
        ("guest/cpio.py", ["initramfs"]),
        ("guest/branches.py", ["initramfs", "Image", "vmlinux"]),
        ("guest/kernel/common.config", ["aarch64/Image", "x86_64/vmlinux"]),
        ("guest/kernel/x86_64.config", ["x86_64/vmlinux"]),
        ("guest/kernel/source.env", ["aarch64/Image", "x86_64/vmlinux"]),
    ],
)
def test_a_changed_source_makes_files_stale(manifest: ModuleType, tree: Path, path: str, stale: list[str]) -> None:
    with (tree / path).open("a") as file:
        file.write("\n# changed\n")
    found = list(manifest.problems(tree))
    assert found and all(path in problem and "make guest-" in problem for problem in found)
    assert all(any(name in problem for problem in found) for name in stale)
    assert all(any(name in problem for name in stale) for problem in found)


def test_only_the_agents_part_of_the_lock_file_counts(manifest: ModuleType, tree: Path) -> None:
    lock = tree / "Cargo.lock"
    before = lock.read_text()
    lock.write_text(before + '\n[[package]]\nname = "unrelated"\nversion = "1.0.0"\n')
    assert list(manifest.problems(tree)) == []
    assert AGENT_LOCK in before
    lock.write_text(before.replace(AGENT_LOCK, AGENT_LOCK + "9"))
    assert len(list(manifest.problems(tree))) == 2


def test_only_the_agents_part_of_the_workspace_counts(manifest: ModuleType, tree: Path) -> None:
    cargo = tree / "Cargo.toml"
    before = cargo.read_text()
    cargo.write_text(before.replace("[workspace.dependencies]\n", '[workspace.dependencies]\nunrelated = "1"\n'))
    assert list(manifest.problems(tree)) == []
    changed = before.replace("\npostcard = {", "\npostcard = { optional = true,")
    assert changed != before
    cargo.write_text(changed)
    assert len(list(manifest.problems(tree))) == 2


def test_a_file_that_is_not_the_recorded_one_or_missing_is_named(manifest: ModuleType, tree: Path) -> None:
    (tree / "guest/aarch64/Image.zst").write_bytes(b"other")
    (tree / "guest/x86_64/initramfs.cpio.zst").unlink()
    first, second = manifest.problems(tree)
    assert "aarch64/Image.zst is not the file" in first
    assert "x86_64/initramfs.cpio.zst is missing" in second
