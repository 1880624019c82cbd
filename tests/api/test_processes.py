"""Processes keep the contract of `subprocess`: each case runs on both sides and must end alike."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest
import supermachine
from supermachine import PIPE, STDOUT, CalledProcessError, TimeoutExpired, VMExited
from supermachine.errors import AgentError, CommandNotExecutable, CommandNotFound, VMTimeout

SH = ["/bin/sh", "-c"]
BIG = bytes(range(256)) * 8192

CASES = [
    ([*SH, "echo out; echo err >&2; exit 3"], {}),
    ([*SH, "cat"], {"input": b"some input\r\n"}),
    ([*SH, "cat"], {"input": BIG}),
    ([*SH, "cat; echo done"], {"input": "text\n", "text": True}),
    ([*SH, "printf 'a\\r\\nb\\rc\\n'"], {"universal_newlines": True}),
    ([*SH, "printf '\\303\\251'"], {"encoding": "utf-8"}),
    ([*SH, "printf '\\377'"], {"encoding": "utf-8", "errors": "replace"}),
    ([*SH, "kill -9 $$"], {}),
    ([*SH, "kill -TERM $$"], {}),
    ([*SH, "echo gone; exit 255"], {"check": True}),
    ([*SH, "kill -HUP $$"], {"check": True}),
    ("echo $((6 * 7)); exit 1", {"shell": True}),
    ("/bin/pwd", {"cwd": "/usr"}),
    ("pwd", {"cwd": b"/"}),
    (["env"], {"env": {"PATH": "/usr/bin:/bin", "FROM_IMAGE": "2", "A": "ü"}}),
    ([b"/bin/echo", "mixed", b"\xff"], {}),
    ([*SH, "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"], {}),
    ([*SH, "exit 0"], {"input": BIG}),
    ([*SH, "echo part; sleep 60"], {"timeout": 0.5}),
    ([*SH, "echo part; sleep 60"], {"timeout": 0.5, "text": True}),
    ([*SH, "sleep 60 & echo $0 >&2; wait"], {"timeout": 0.5}),
    (["a\0b"], {}),
    (["true"], {"input": b"", "stdin": PIPE}),
    (["true"], {"capture_output": True, "stdout": PIPE}),
    ([*SH, "echo one; echo two"], {"stdout": PIPE}),
    ([*SH, "echo two >&2"], {"stderr": PIPE}),
    ([*SH, "echo two >&2"], {"stdout": PIPE, "stderr": STDOUT}),
    (["cat"], {"input": "text", "encoding": "utf-16"}),
]


def outcome(run, args, options):
    try:
        done = run(args, **options)
    except Exception as error:
        kind = next(c for c in type(error).__mro__ if c.__module__ in ("builtins", "subprocess"))
        return kind, [getattr(error, a, None) for a in ("cmd", "returncode", "output", "stderr", "timeout")]
    return type(done), [done.args, done.returncode, done.stdout, done.stderr]


@pytest.mark.parametrize(("args", "options"), CASES, ids=[f"{n}-{a!r:.30}" for n, (a, _) in enumerate(CASES)])
def test_run_ends_as_subprocess_run_does(guest, args, options):
    here = dict(options)
    here.setdefault("env", {"PATH": "/usr/bin:/bin", "FROM_IMAGE": "1"})
    here.setdefault("cwd", "/")
    if not {"stdout", "stderr", "capture_output"} & set(options):
        here["capture_output"] = True
    if "input" not in options:
        here["stdin"] = subprocess.DEVNULL
    assert outcome(guest.run, args, options) == outcome(subprocess.run, args, here)


def test_a_command_that_is_not_there_is_both_errors(guest):
    with pytest.raises(CommandNotFound) as caught:
        guest.run(["/no/such/program"])
    assert isinstance(caught.value, FileNotFoundError)


def test_no_command_at_all(guest):
    with pytest.raises(ValueError, match="program"):
        guest.run([])


def test_a_command_that_is_no_program(guest):
    with pytest.raises(CommandNotExecutable) as caught:
        guest.run(["/etc/passwd"])
    assert isinstance(caught.value, PermissionError)


def test_popen_has_real_files_in_both_directions(guest):
    with guest.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as process:
        for word in ("one", "two", "three"):
            process.stdin.write(word + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == word + "\n"
        assert process.poll() is None
        assert os.fstat(process.stdout.fileno())
        process.stdin.close()
        assert process.wait() == 0


def test_popen_signals(guest):
    with guest.popen(["sleep", "60"]) as process:
        with pytest.raises(TimeoutExpired):
            process.wait(timeout=0.05)
        process.terminate()
        assert process.wait() == -signal.SIGTERM
        process.kill()
    assert process.returncode == -signal.SIGTERM


def test_communicate_goes_on_after_a_timeout(guest):
    process = guest.popen([*SH, "echo early; read x; echo late $x"], stdin=PIPE, stdout=PIPE)
    process.stdin.write(b"")
    with pytest.raises(TimeoutExpired):
        guest.run([*SH, "sleep 60"], timeout=0.2)
    out, err = process.communicate(b"word\n")
    assert (out, err) == (b"early\nlate word\n", None)


def test_a_closed_reader_ends_the_writer(guest):
    with guest.popen(["yes"], stdout=PIPE) as process:
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait() == -signal.SIGPIPE


def test_output_goes_to_files(guest, tmp_path):
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "in", "w+b") as source:
        source.write(b"from a file\n")
        source.seek(0)
        done = guest.run(["cat"], stdin=source, stdout=out)
    assert (done.stdout, (tmp_path / "out").read_bytes()) == (None, b"from a file\n")


def test_many_at_once(guest):
    results = {}

    def one(n):
        results[n] = guest.run([*SH, f"sleep 0.1; echo {n}"], text=True).stdout

    threads = [threading.Thread(target=one, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(24)}


@pytest.mark.parametrize("end", ["kill", "!vanish", "!panic"])
def test_the_end_of_the_vm_wakes_whoever_waits(guest, end):
    waiting = [
        guest.popen(["sleep", "600"]),
        guest.popen(["cat"], stdin=PIPE, stdout=PIPE),
        guest.popen(["yes"], stdout=PIPE),
    ]
    caught = []

    def wait(process):
        try:
            process.wait()
        except VMExited as error:
            caught.append(error.reason)

    threads = [threading.Thread(target=wait, args=(p,)) for p in waiting]
    for thread in threads:
        thread.start()
    if end == "kill":
        guest.kill()
    else:
        with pytest.raises(VMExited):
            guest.run([end])
    for thread in threads:
        thread.join(30)
    assert len(caught) == 3
    expected = {"kill": "killed", "!vanish": "crashed", "!panic": "panic"}[end]
    assert set(caught) == {expected}
    with pytest.raises(VMExited) as again:
        guest.run(["true"])
    assert again.value.reason == expected
    if end == "!panic":
        assert "Kernel panic" in again.value.console_tail


def test_an_agent_that_hangs_up_is_not_the_end_of_the_vm(guest):
    with pytest.raises(AgentError):
        guest.run(["!hang-up"])
    assert guest.run(["true"]).returncode == 0


def test_a_guest_that_does_not_start_a_process_is_not_waited_for_without_end(guest, monkeypatch):
    with pytest.raises(TimeoutExpired):
        guest.run(["!mute"], timeout=0.1)
    monkeypatch.setattr("supermachine.guest.process_context.START_TIMEOUT", 0.1)
    with pytest.raises(VMTimeout, match="did not start"):
        guest.popen(["!mute"])
    assert guest.run(["true"]).returncode == 0


def test_run_of_an_image_uses_entrypoint_and_cmd(stand_in):
    assert supermachine.run("stand-in", text=True).stdout == "from cmd\n"
    assert supermachine.run("stand-in", ["given"], text=True).stdout == "given\n"
    assert supermachine.run("stand-in", ["5"], entrypoint=["expr", "1", "+"], text=True).stdout == "6\n"
    with pytest.raises(CalledProcessError):
        supermachine.run("stand-in", entrypoint=["false"], check=True)


def test_stop_is_clean_and_the_vm_starts_again(guest):
    guest.stop()
    assert guest.wait() == "shutdown"
    assert not guest.running
    guest.start()
    assert guest.run(["true"]).returncode == 0
