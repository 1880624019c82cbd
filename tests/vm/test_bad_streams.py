"""`supermachine run` and the library where standard streams are closed, full, or have nobody who reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from supermachine import VM

from ..processes import children

pytestmark = pytest.mark.vm

CLI = [sys.executable, "-m", "supermachine"]
#: A frame, as a worker's control socket would take it: a request to end.
FRAME = r"printf '\1\0\0\0\2'"


def with_streams(command: Sequence[str], redirections: str) -> subprocess.CompletedProcess[bytes]:
    """Runs it as a shell does that has been told this of its streams; those not named are pipes, and stdin is empty."""
    words = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]
    return subprocess.run(words, input=b"", capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_ones_are_as_dev_null(busybox: str, closed: str) -> None:
    script = f"cat; echo out; echo err >&2; {FRAME}; {FRAME} >&2; exit 7"
    # The first goes the whole way, and the second may be remembered.
    for _ in range(2):
        done = with_streams([*CLI, "run", "-q", busybox, "sh", "-c", script], closed)
        assert done.returncode == 7
        assert (b"out\n" in done.stdout) == ("1>&-" not in closed)
        assert (b"err\n" in done.stderr) == ("2>&-" not in closed)


#: Open, but not in the direction that is wanted; full; or a file that takes nothing of what is written.
ODD = ["0>/dev/null", "1</dev/null", "2</dev/null", "1</dev/null 2</dev/null", "2>/dev/full", "2>/proc/self/mem"]


@pytest.mark.parametrize("odd", ODD)
def test_what_cannot_be_written_there_is_dropped(busybox: str, odd: str) -> None:
    # Each is written to twice, for what becomes of the first is heard of at the second.
    lines = "echo out; echo err >&2; sleep 0.3"
    done = with_streams([*CLI, "run", "-q", busybox, "sh", "-c", f"cat; {lines}; {lines}; exit 7"], odd)
    assert done.returncode == 7
    assert done.stdout == (b"" if "1<" in odd else b"out\n" * 2)
    assert done.stderr == (b"" if "2" in odd else b"err\n" * 2)


def test_a_command_whose_output_finds_no_room_is_ended(busybox: str) -> None:
    """As by a reader that has gone: nothing is lost without a word."""
    script = "while echo out; do sleep 0.01; done"
    done = with_streams([*CLI, "run", "-q", busybox, "sh", "-c", script], "1>/dev/full")
    assert done.returncode == 128 + 13


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"),
    [(["images"], 0), (["ps"], 0), (["doctor"], 0), (["rmi", "no-such-image"], None), (["--no-such-option"], 125)],
)
def test_other_commands_are_not_kept_from_their_work(words: list[str], status: int | None, closed: str) -> None:
    done = with_streams([*CLI, *words], closed)
    assert b"Traceback" not in done.stdout + done.stderr
    if status is not None:
        assert done.returncode == status


#: What stderr is then, to a shell; the last has nobody who reads it.
DEAF = ["2>/dev/full", "2>&-", "2>&9"]


@pytest.fixture
def broken() -> int:
    """The end of a pipe that nobody reads, as descriptor 9."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def deaf(command: Sequence[str], stderr: str, writer: int) -> subprocess.CompletedProcess[bytes]:
    words = ["sh", "-c", f'exec "$@" {stderr} 9>&-', "sh", *command]
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
        pass_fds=(9,),
        preexec_fn=lambda: os.dup2(writer, 9),
    )


@pytest.mark.parametrize("stderr", DEAF)
def test_a_diagnostic_that_cannot_be_printed_fails_nothing(
    busybox: str, stderr: str, broken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's warning, which is due in a new cache, and the times that are asked for."""
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    for more in ((), ("--timings",), ("--timings",)):
        done = deaf([*CLI, "run", *more, busybox, "echo", "hi"], stderr, broken)
        assert (done.returncode, done.stdout) == (0, b"hi\n")
    # An error keeps its status.
    assert deaf([*CLI, "run", busybox, "no-such-program"], stderr, broken).returncode == 127
    assert deaf([*CLI, "run", "--no-such-option"], stderr, broken).returncode == 125
    assert deaf([*CLI, "run", str(tmp_path / "no-such-image")], stderr, broken).returncode == 125


LIBRARY = """
import os, socket, sys, supermachine
place = sys.argv[2]
socket.socket(socket.AF_UNIX).bind(place + "/socket")
if sys.argv[3] == "closed":
    sys.stderr.close()
elif sys.argv[3] == "none":
    sys.stderr = None
with supermachine.VM(sys.argv[1], memory="128m") as vm:
    print(vm.run(["echo", "hi"], text=True).stdout, end="")
    # What is left out of a copy is warned of.
    vm.copy_in(place, "/tmp/copied")
    print(vm.path("/tmp/copied").is_dir(), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("stderr", "how"), [*((way, "open") for way in DEAF), ("", "closed"), ("", "none")])
def test_a_warning_of_the_library_fails_nothing(
    busybox: str, stderr: str, how: str, broken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tree").mkdir()
    done = deaf([sys.executable, "-c", LIBRARY, busybox, str(tmp_path / "tree"), how], stderr, broken)
    assert (done.returncode, done.stdout) == (0, b"hi\nTrue\n")


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_no_process_of_a_machine_has_what_its_owner_leaves_open_for_others(busybox: str) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    pipe = f"pipe:[{os.fstat(write).st_ino}]"
    try:
        with VM(busybox) as vm:
            # The policy process is there from then on.
            vm.run(["nc", "-w", "5", "10.0.2.2", "9"], stdin=subprocess.DEVNULL, check=False)
            processes = children("supermachine-")
            assert len(processes) >= 2
            for process in processes:
                open_there = [os.readlink(fd) for fd in Path(f"/proc/{process}/fd").iterdir()]
                assert pipe not in open_there
    finally:
        os.close(read)
        os.close(write)
