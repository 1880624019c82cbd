"""The copy of the sources that wheels for emulated hosts are built from, as Cargo sees it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.hosts import site
from tests.real import require

MANIFEST = '[package]\nname = "one"\nversion = "1.0.0"\nedition = "2024"\n'
SECOND = 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source tree, as old as the project's may be."""
    (tmp_path / "root" / "src").mkdir(parents=True)
    (tmp_path / "root" / "Cargo.toml").write_text(MANIFEST)
    write(tmp_path / "root" / "src" / "main.rs", "first", -3600 * SECOND)
    return tmp_path / "root"


def write(path: Path, word: str, later: int = 0) -> None:
    """A program that prints the word, written so many nanoseconds from now."""
    path.write_text(f'fn main() {{ println!("{word}"); }}')
    time = path.stat().st_mtime_ns + later
    os.utime(path, ns=(time, time))


def said(root: Path, copy: Path) -> str:
    """What the program says when its copy was renewed and built."""
    site.renew(copy, root, ("Cargo.toml", "src"))
    command = ["cargo", "run", "--quiet", "--target-dir", str(copy.with_name("target"))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARGO_")}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_source_that_changes_after_it_was_copied_is_built_the_next_time(root: Path, tmp_path: Path) -> None:
    require("cargo")
    copy = tmp_path / "copy"
    assert said(root, copy) == "first\n"
    # As if between the copy and the compiler's start.
    write(root / "src" / "main.rs", "second", -60 * SECOND)
    assert said(root, copy) == "second\n"
    # And as if it came from elsewhere: of an older checkout, with its time.
    write(root / "src" / "main.rs", "third", -7200 * SECOND)
    assert said(root, copy) == "third\n"


def test_what_is_the_same_keeps_its_time_and_what_is_gone_goes(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (root / "src" / "old.rs").write_text("")
    (root / "src" / "target").mkdir()
    (root / "src" / "module.so").write_bytes(b"made")
    site.renew(copy, root, ("Cargo.toml", "src"))
    before = (copy / "src" / "main.rs").stat().st_mtime_ns
    (copy / "src" / "_bin").mkdir()
    (copy / "src" / "_bin" / "worker").write_bytes(b"made")
    (root / "src" / "old.rs").unlink()
    (root / "src" / "new.rs").write_text("")
    # The same contents at another time, as after a branch was left and come back to.
    os.utime(root / "src" / "main.rs")
    (root / "src" / "main.rs").chmod(0o755)
    site.renew(copy, root, ("Cargo.toml", "src"))
    assert sorted(path.name for path in (copy / "src").iterdir()) == ["main.rs", "new.rs"]
    status = (copy / "src" / "main.rs").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o777) == (before, 0o755)
