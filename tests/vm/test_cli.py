"""`supermachine run` as a user and a shell script see it, on real guests."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from supermachine import VM

from ..processes import line, running
from ..real import RealRegistry
from .conftest import BUSYBOX

pytestmark = pytest.mark.vm

CLI = [sys.executable, "-m", "supermachine"]


def cli(*words: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("input", "")
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=timeout, check=False, **options)


def started(*words: str, **options: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    return running([*CLI, *words], stdin=pipe, stdout=pipe, stderr=pipe, **options)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["sh", "-c", "kill -KILL $$"], 128 + 9),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
)
def test_exit_statuses(busybox: str, words: list[str], status: int) -> None:
    done = cli("run", busybox, "--", *words)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["--memory", "1", "busybox"], ["--nonsense"], ["/no/such/image.tar"], ["--engine", "warp", "busybox"]]
)
def test_failures_of_ones_own_are_sentences_and_125(words: list[str]) -> None:
    done = cli("run", *words)
    assert done.returncode == 125
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_streams_are_separate_and_whole(busybox: str) -> None:
    script = "cat; echo to stderr >&2; seq 1 100000"
    done = cli("run", busybox, "sh", "-c", script, input="to stdin\n")
    assert done.stdout == "to stdin\n" + "".join(f"{n}\n" for n in range(1, 100001))
    assert done.stderr.splitlines()[-1] == "to stderr"


def test_stdin_streams(busybox: str) -> None:
    """What is typed arrives line by line, not at the end."""
    with started("run", busybox, "sh", "-c", "while read x; do echo got $x; done; echo end") as process:
        assert process.stdin is not None
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            assert line(process) == b"got " + word + b"\n"
        process.stdin.close()
        assert line(process) == b"end\n"
        assert process.wait(60) == 0


def test_no_stdin(busybox: str) -> None:
    with started("run", "--no-stdin", busybox, "cat") as process:
        assert process.wait(60) == 0


def test_a_reader_that_leaves_ends_the_command(busybox: str) -> None:
    with started("run", busybox, "yes") as process:
        assert line(process) == b"y\n"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_the_guests(busybox: str, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught {name}; exit 7' {name}; echo ready; while :; do sleep 0.1; done"
    with started("run", busybox, "sh", "-c", script) as process:
        assert line(process) == b"ready\n"
        process.send_signal(number)
        assert line(process) == f"caught {name}\n".encode()
        assert process.wait(60) == 7


#: The command line, which goes on after a command has started only when it is told so.
SLOW = """
import os, runpy, sys
from supermachine.cli.run import foreground
started, go_on = foreground.wait_started, int(sys.argv.pop(1))
def wait_started(*words):
    started(*words)
    os.read(go_on, 1)
foreground.wait_started = wait_started
runpy.run_module("supermachine", run_name="__main__")
"""


def test_a_signal_while_a_command_starts_is_the_commands(busybox: str) -> None:
    script = "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    go_on, tell = os.pipe()
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", SLOW, str(go_on), "run", busybox, "sh", "-c", script]
    with running(words, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[go_on]) as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == b"caught\n"
        os.write(tell, b"x")
        assert process.wait(60) == 7
    os.close(go_on)
    os.close(tell)


def test_a_signal_that_whoever_started_us_ignores_stays_ignored(busybox: str) -> None:
    """As in background jobs of shells without job control, and under nohup."""
    script = "trap 'echo caught' INT; echo ready; read x; echo read $x"
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with started("run", busybox, "sh", "-c", script, preexec_fn=ignore) as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdin is not None
        process.stdin.write(b"on\n")
        assert line(process) == b"read on\n"
        assert process.wait(60) == 0


def test_a_signal_ends_what_does_not_catch_it(busybox: str) -> None:
    with started("run", busybox, "sh", "-c", "echo ready; exec sleep 1000") as process:
        assert line(process) == b"ready\n"
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_command(tmp_path: Path, number: signal.Signals) -> None:
    """While the image is fetched from a registry that does not answer."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, started("run", f"127.0.0.1:{server.getsockname()[1]}/app", "true") as process:
        server.accept()
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_timeout(busybox: str) -> None:
    done = cli("run", "--timeout", "1", busybox, "sh", "-c", "echo partial; sleep 1000")
    assert done.returncode == 124
    assert done.stdout == "partial\n"
    assert "still ran after 1 seconds" in done.stderr


def test_the_timeout_of_a_remembered_start_too(busybox: str) -> None:
    # The second or third start of its kind goes the short way.
    assert [cli("run", "--timeout", "0.5", busybox, "sleep", "1000").returncode for _ in range(3)] == [124] * 3


def test_a_program_for_another_machine_is_named_as_such(busybox: str, tmp_path: Path) -> None:
    foreign = b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + (62).to_bytes(2, "little") + bytes(100)
    (tmp_path / "foreign").write_bytes(foreign)
    (tmp_path / "script").write_text("echo no interpreter\n")
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    share = ["-v", f"{tmp_path}:/x:ro"]
    done = cli("run", *share, busybox, "/x/foreign")
    assert done.returncode == 126
    assert "/x/foreign is a program for amd64, and the guest is arm64: Exec format error" in done.stderr
    assert "--platform linux/amd64" in done.stderr
    done = cli("run", *share, "-e", "PATH=/x", busybox, "script")
    assert done.returncode == 126
    assert "script is neither a program nor a script with an interpreter" in done.stderr
    with VM(busybox, volumes=[f"{tmp_path}:/x:ro"]) as vm, pytest.raises(PermissionError, match="for amd64"):
        vm.run(["foreign"], cwd="/x", env={"PATH": "."})


def test_the_engine_is_warned_of_once_a_boot_and_never_when_quiet(
    busybox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    run = ("run", "--engine", "soft")
    said = [
        cli(*run, *more, busybox, "true").stderr.count("isolates in software only") for more in ((), ("-q",), (), ())
    ]
    assert said == [1, 0, 0, 0]
    (tmp_path / "cache" / "said-soft").write_text("another boot")
    assert [cli(*run, "-q", busybox, "true").stderr for _ in range(2)] == ["", ""]
    said = [cli(*run, busybox, "true").stderr.count("isolates in software only") for _ in range(3)]
    assert said == [1, 0, 0]
    # A note that cannot be made fails no start.
    (tmp_path / "cache" / "said-soft").unlink()
    (tmp_path / "cache" / "said-soft").mkdir()
    assert cli(*run, busybox, "echo", "well").stdout == "well\n"


def test_what_the_command_is_given(busybox: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\nFROM_FILE=a b=c\n\nINHERITED\nOVERRIDDEN=file\n")
    words = ["--env-file", str(file), "-e", "OVERRIDDEN=option", "-e", "ALSO", "-w", "/made/for/it", "-u", "12:34"]
    script = 'echo "$FROM_FILE|$INHERITED|$OVERRIDDEN|$ALSO|$(pwd)|$(id -u):$(id -g)|$(hostname)|$1"'
    environment = {**os.environ, "INHERITED": "yes", "ALSO": "too"}
    more = ["--hostname", "somebody", "--entrypoint", "sh", busybox, "-c", script, "sh", "one two"]
    done = cli("run", *words, *more, env=environment)
    assert done.stdout == "a b=c|yes|option|too|/made/for/it|12:34|somebody|one two\n", done.stderr


# Terminals.


#: busybox's shell asks behind it where the cursor is, as it may.
PROMPT = rb"[#$] (\x1b\[6n)?$"


class Terminal:
    """A command on a terminal of its own, read and typed at as a person would."""

    def __init__(self, *words: str, rows: int = 24, columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [*CLI, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=_control
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def until(self, pattern: bytes, timeout: float = 60) -> re.Match[bytes]:
        """Reads until the pattern has come up, and forgets what was before its end."""
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.seen)) is None:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.ours], [], [], left)[0]:
                self.seen += os.read(self.ours, 65536)
        self.seen = self.seen[found.end() :]
        return found

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)

    def restored(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.before


def _control() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_is_passed_on(busybox: str) -> None:
    with Terminal("run", busybox, "sh", rows=33, columns=99) as terminal:
        terminal.until(PROMPT)
        terminal.type(b"stty size; tty; echo $TERM is set\r")
        terminal.until(rb"33 99\r\n/dev/pts/\d+\r\n\S+ is set\r\n")
        terminal.resize(40, 120)
        terminal.process.send_signal(signal.SIGWINCH)
        time.sleep(0.2)
        terminal.type(b"stty size\r")
        terminal.until(rb"40 120\r\n")
        # Control-C is for what runs in the guest, whose shell goes on.
        terminal.type(b"echo sleeping; sleep 1000\r")
        terminal.until(rb"\r\nsleeping\r\n")
        time.sleep(0.3)
        terminal.type(b"\x03")
        terminal.until(PROMPT)
        terminal.type(b"echo $?; exit 5\r")
        terminal.until(rb"\r\n130\r\n")
        assert terminal.process.wait(60) == 5
        assert terminal.restored()


def test_a_terminal_is_restored_after_a_kill(busybox: str) -> None:
    with Terminal("run", busybox, "sh") as terminal:
        terminal.until(PROMPT)
        terminal.type(b"kill -9 $$\r")
        assert terminal.process.wait(60) == 128 + 9
        assert terminal.restored()


def test_a_hang_up_ends_it_with_129_and_a_restored_terminal(busybox: str) -> None:
    with Terminal("run", busybox, "sh") as terminal:
        terminal.until(PROMPT)
        assert not terminal.restored()
        terminal.process.send_signal(signal.SIGHUP)
        assert terminal.process.wait(60) == 128 + signal.SIGHUP
        assert terminal.restored()


def test_a_terminal_that_goes_away_ends_it_with_129(busybox: str) -> None:
    """As when a window is closed, or a connection lost: the kernel sends the signal, and every write fails."""
    with Terminal("run", busybox, "sh", "-c", "while :; do echo on; sleep 0.1; done") as terminal:
        terminal.until(rb"on\r\n")
        os.close(terminal.ours)
        terminal.ours = os.open(os.devnull, os.O_RDWR)
        assert terminal.process.wait(60) == 128 + signal.SIGHUP


def test_control_d_ends_the_input(busybox: str) -> None:
    with Terminal("run", busybox, "cat") as terminal:
        terminal.type(b"typed\r")
        terminal.until(rb"typed\r\ntyped\r\n")
        terminal.type(b"\x04")
        assert terminal.process.wait(60) == 0


def test_no_terminal_when_told_so(busybox: str) -> None:
    with Terminal("run", "-T", busybox, "sh", "-c", "test -t 0 || echo none; cat") as terminal:
        terminal.until(rb"none\r\n")
        # The terminal's own control-C signals us, and we pass that on.
        terminal.type(b"\x03")
        assert terminal.process.wait(60) == 128 + 2


# Progress, doctor, neighbours.


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for a pipe, moving bars for a terminal, nothing when quiet; each from a cache of its own."""
    registry = RealRegistry(tmp_path / "registry")
    try:
        registry.push(f"oci-archive:{BUSYBOX}", "app:v1")
        reference = f"{registry.host}/app:v1"
        monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "piped"))
        done = cli("pull", reference)
        assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.stdout)
        assert re.search(r"^supermachine: downloading [0-9a-f]{12} \(\d+\.\d MB\)$", done.stderr, re.MULTILINE)
        assert "\x1b" not in done.stderr
        monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "quiet"))
        assert cli("pull", "--quiet", reference).stderr == ""
        monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "terminal"))
        monkeypatch.setenv("TERM", "xterm")
        with Terminal("pull", reference) as terminal:
            terminal.until(rb"sha256:[0-9a-f]{64}\r\n")
            assert terminal.process.wait(60) == 0
        listed = json.loads(cli("images", "--json").stdout)
        assert [image["references"] for image in listed] == [[reference]]
    finally:
        registry.close()


def test_doctor() -> None:
    done = cli("doctor")
    assert done.returncode == 0
    assert "soft  usable, software isolation" in done.stdout
    report = json.loads(cli("doctor", "--json").stdout)
    assert report["usable"] is True
    assert {engine["name"] for engine in report["engines"]} == {"hvf", "kvm", "soft"}
    assert report["cache"] == os.environ["SUPERMACHINE_CACHE"]


def test_a_broken_installation_shows_in_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMACHINE_WORKER", "/no/such/worker")
    done = cli("doctor")
    assert done.returncode == 1
    assert "/no/such/worker does not exist" in done.stdout


def test_one_image_in_several_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busybox: str) -> None:
    """None of them finds it in the cache at first; it is converted once."""
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    with ExitStack() as stack:
        processes = [stack.enter_context(started("run", busybox, "echo", str(n))) for n in range(5)]
        outputs = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in outputs] == [f"{n}\n".encode() for n in range(5)]
    assert [process.returncode for process in processes] == [0] * 5
    assert len(list((tmp_path / "cache" / "rootfs").iterdir())) == 1
    assert not list((tmp_path / "cache" / "tmp").iterdir())


# What it costs; measured in benches/, judged here only when it is far off.


@pytest.fixture
def idle(busybox: str) -> Iterator[int]:
    """The process id of a worker whose guest has worked and has nothing to do."""
    from supermachine import VM

    with VM(busybox, memory="512m") as vm:
        vm.run("for i in 1 2 3 4 5; do seq 1 20000 | sort -r | sha256sum; done", shell=True, check=True)
        assert vm.pid is not None
        yield vm.pid


def test_a_worker_needs_little_memory_beyond_its_guests(idle: int) -> None:
    beyond = 0
    size = 0
    for text in Path(f"/proc/{idle}/smaps").read_text().splitlines():
        if (header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", text)) is not None:
            size = int(header[2], 16) - int(header[1], 16)
        elif text.startswith("Rss:") and size != 512 << 20:
            beyond += int(text.split()[1]) << 10
    print(f"{beyond / (1 << 20):.1f} MiB beyond the guest's memory")
    assert 0 < beyond < 100 << 20


def test_an_idle_guest_costs_next_to_nothing(idle: int) -> None:
    def used() -> float:
        fields = Path(f"/proc/{idle}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(1)
    before, started = used(), time.monotonic()
    time.sleep(3)
    share = (used() - before) / (time.monotonic() - started)
    print(f"{share * 100:.2f} % of a core")
    assert share < 0.2
