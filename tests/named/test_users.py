"""Machines of users who are not root, and of two on one host."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import supermachine

from ..real import require_root
from ..vm.conftest import BUSYBOX

pytestmark = pytest.mark.vm

ONE, TWO = 61001, 61002
#: Where this package and those that it needs are; not the standard library of this interpreter.
MODULES = os.pathsep.join(
    dict.fromkeys([str(Path(supermachine.__file__).parents[1]), str(Path(click.__file__).parents[1])])
)


@pytest.fixture(scope="module")
def interpreter() -> str:
    """A Python that other users may start: the one that runs this may lie in root's home."""
    require_root("another user")
    for found in (sys.executable, shutil.which("python3", path="/usr/bin")):
        if found is not None:
            command = [found, "-c", "import click, supermachine._core"]
            with contextlib.suppress(PermissionError):
                tried = subprocess.run(command, env={"PYTHONPATH": MODULES}, user=ONE, group=ONE, cwd="/", check=False)
                if tried.returncode == 0:
                    return found
    pytest.skip("no Python here that another user may start")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like /tmp, which all may write to."""
    path = Path(tempfile.mkdtemp(prefix="supermachine-users-"))
    path.chmod(0o1777)
    shutil.copy(BUSYBOX, path / "image.oci.tar")
    (path / "image.oci.tar").chmod(0o644)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


class User:
    """Runs the command line as another user, with a home that cannot be written to."""

    def __init__(self, interpreter: str, shared: Path, uid: int, runtime: Path) -> None:
        self.interpreter, self.shared, self.uid = interpreter, shared, uid
        home = shared / f"home-{uid}"
        home.mkdir(mode=0o755, exist_ok=True)  # root's
        temporary = shared / f"tmp-{uid}"
        temporary.mkdir(exist_ok=True)
        os.chown(temporary, uid, uid)
        self.environment = {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": MODULES,
            "SUPERMACHINE_RUNTIME": str(runtime),
        }

    def __call__(
        self, *words: str, check: bool = True, within: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*within, self.interpreter, "-m", "supermachine", *words],
            env=self.environment, user=self.uid, group=self.uid, extra_groups=[], cwd=self.shared,
            capture_output=True, text=True, input="", timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert not check or done.returncode == 0, done.stderr
        return done


def test_two_users_with_read_only_homes_do_not_meet(interpreter: str, shared: Path) -> None:
    users = [User(interpreter, shared, uid, shared / f"run-{uid}") for uid in (ONE, TWO)]
    try:
        for user in users:
            assert user("run", "-d", "-q", "--name", "web", "image.oci.tar", "sleep", "1000").stdout == "web\n"
            assert user("exec", "web", "echo", "hi").stdout == "hi\n"
            assert user("ps", "-q").stdout == "web\n"
            assert stat.S_IMODE((shared / f"run-{user.uid}").stat().st_mode) == 0o700
        # What is the other's is refused by its name, whatever its mode says.
        intruder = User(interpreter, shared, TWO, shared / f"run-{ONE}")
        (shared / f"run-{ONE}").chmod(0o755)
        for words in (("ps",), ("exec", "web", "true"), ("run", "-d", "--name", "mine", "image.oci.tar", "true")):
            done = intruder(*words, check=False)
            assert done.returncode == 125
            assert f"run-{ONE} belongs to user {ONE}" in done.stderr
    finally:
        for user in users:
            user("rm", "-f", "web", check=False)
    assert [user("ps", "-aq").stdout for user in users] == ["", ""]


def test_a_directory_that_others_can_write_to_is_refused(interpreter: str, shared: Path) -> None:
    (shared / "open").mkdir()
    os.chown(shared / "open", ONE, ONE)
    (shared / "open").chmod(0o777)
    done = User(interpreter, shared, ONE, shared / "open")("run", "-d", "image.oci.tar", "true", check=False)
    assert done.returncode == 125
    assert "open can be written by other users" in done.stderr


def test_a_limit_of_processes_is_named_wherever_it_is_met(interpreter: str, shared: Path) -> None:
    """Of a user's processes and threads each number is one too few at another step of a start."""
    user = User(interpreter, shared, ONE, shared / f"run-{ONE}")
    assert user("run", "-q", "image.oci.tar", "echo", "hi").stdout == "hi\n"
    refused = 0
    for number in range(1, 40):
        within = ("prlimit", f"--nproc={number}")
        done = user("run", "-q", "image.oci.tar", "echo", "hi", check=False, within=within)
        if done.returncode == 0:
            assert done.stdout == "hi\n"
            break
        assert done.returncode == 125, (number, done)
        assert f"this user may have {number} processes and threads" in done.stderr, (number, done.stderr)
        assert "ulimit -u" in done.stderr
        refused += 1
    assert done.returncode == 0
    assert refused > 0
    # Nothing is left that the next start would meet.
    assert user("run", "-q", "image.oci.tar", "echo", "hi").stdout == "hi\n"
