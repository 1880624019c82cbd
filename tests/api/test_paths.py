"""Paths keep the contract of `pathlib`: the same steps on both sides, on the same files."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest


def both(guest, place: Path):
    """The directory `place` as either kind of path, apart from each other."""
    for name in ("host", "guest"):
        (place / name).mkdir()
    return place / "host", guest.path(str(place / "guest"))


STEPS = {
    "text": lambda p: ((p / "a").write_text("é\n", encoding="utf-8"), (p / "a").read_text(encoding="utf-8")),
    "bytes": lambda p: ((p / "a").write_bytes(b"\0" * 700_000), len((p / "a").read_bytes())),
    "empty": lambda p: ((p / "a").write_bytes(b""), (p / "a").read_bytes(), (p / "a").stat().st_size),
    "append": lambda p: [(p / "a").open("a").write("x") for _ in range(3)] + [(p / "a").read_text()],
    "exclusive": lambda p: ((p / "a").touch(), (p / "a").open("x")),
    "missing": lambda p: (p / "no").read_bytes(),
    "missing-stat": lambda p: ((p / "no").exists(), (p / "no").is_dir(), (p / "no").stat()),
    "below-a-file": lambda p: ((p / "a").touch(), (p / "a/b").exists(), (p / "a/b").read_text()),
    "mkdir": lambda p: ((p / "d").mkdir(), (p / "d").is_dir(), (p / "d").mkdir(exist_ok=True), (p / "d").mkdir()),
    "mkdir-parents": lambda p: ((p / "d/e/f").mkdir(parents=True), (p / "d/e/f").is_dir(), (p / "x/y").mkdir()),
    "mkdir-on-file": lambda p: ((p / "d").touch(), (p / "d").mkdir(exist_ok=True)),
    "rmdir": lambda p: ((p / "d").mkdir(), (p / "d/x").touch(), (p / "d").rmdir()),
    "unlink": lambda p: ((p / "a").touch(), (p / "a").unlink(), (p / "a").unlink(missing_ok=True), (p / "a").unlink()),
    "rename": lambda p: ((p / "a").write_text("1"), (p / "a").rename(p / "b").name, (p / "b").read_text()),
    "symlink": lambda p: (
        (p / "l").symlink_to("nowhere"),
        (p / "l").is_symlink(),
        (p / "l").exists(),
        str((p / "l").readlink()),
    ),
    "hardlink": lambda p: (
        (p / "a").write_text("1"),
        (p / "b").hardlink_to(p / "a"),
        (p / "b").stat().st_nlink,
        (p / "b").read_text(),
    ),
    "chmod": lambda p: ((p / "a").touch(), (p / "a").chmod(0o640), oct((p / "a").stat().st_mode)),
    "touch": lambda p: ((p / "a").touch(), (p / "a").touch(exist_ok=False)),
    "resolve": lambda p: ((p / "l").symlink_to("."), (p / "l/l/x").resolve().name, (p / "no").resolve(strict=True)),
    "read-directory": lambda p: ((p / "d").mkdir(), (p / "d").open()),
    "seek": lambda p: ((p / "a").write_text("0123456789"), _seek(p / "a")),
    "lines": lambda p: ((p / "a").write_text("x\ny\n"), list((p / "a").open())),
    "mode-refused": lambda p: p.joinpath("a").open("rw"),
}


def _seek(path):
    with path.open("rb") as file:
        return file.seek(-3, io.SEEK_END), file.read(2), file.tell(), file.seek(1), file.read()


def outcome(step, path):
    try:
        return step(path)
    except OSError as error:
        return type(error), error.errno, os.path.basename(error.filename or "")
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", STEPS)
def test_steps_end_as_with_pathlib(guest, tmp_path, name):
    here, there = both(guest, tmp_path)
    assert outcome(STEPS[name], there) == outcome(STEPS[name], here)


@pytest.mark.parametrize("pattern", ["*", "*.py", "**/*.py", "a/*", "**", "a/b/c.py", "?/b", "[ab]*", "none*"])
def test_glob(guest, tmp_path, pattern):
    here, there = both(guest, tmp_path)
    for base in (here, there):
        (base / "a/b").mkdir(parents=True)
        for name in ("x.py", "a/y.py", "a/b/c.py", "a/b/d.txt"):
            (base / name).touch()

    def found(base, way):
        return sorted(str(p)[len(str(base)) :] for p in getattr(base, way)(pattern))

    assert found(there, "glob") == found(here, "glob")
    assert found(there, "rglob") == found(here, "rglob")


def test_trees_go_in_and_out(guest, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub/empty").mkdir(parents=True)
    (tree / "sub/data").write_bytes(os.urandom(300_000))
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("sub/data")
    (tree / "dangling").symlink_to("/nowhere/at/all")
    os.utime(tree / "sub/data", ns=(10**18, 10**18 + 5))
    guest.copy_in(tree, str(tmp_path / "inside"))
    guest.copy_out(str(tmp_path / "inside"), tmp_path / "back")

    def listing(base: Path):
        return {
            str(p.relative_to(base)): (
                os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None,
                p.lstat().st_mode,
                0 if p.is_symlink() else p.stat().st_mtime_ns,
            )
            for p in base.rglob("*")
        }

    assert listing(tmp_path / "back") == listing(tree)
    guest.copy_in(tree / "script", str(tmp_path / "inside"))
    assert (tmp_path / "inside/script").exists()


def test_derived_paths_stay_in_the_guest(guest):
    path = guest.path("/usr", "bin") / "env"
    for derived in (path, path.parent, path.with_name("sh"), path.parents[0], path.resolve(), "/x" / path):
        assert type(derived) is type(path)
        assert isinstance(derived.exists(), bool)
