"""The first process of a guest does for others what docker does for theirs."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import supermachine
from supermachine import VM, errors

from ..real import require, run
from .conftest import BUSYBOX
from .guests import wait_for

pytestmark = pytest.mark.vm

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/var/www:/bin/false\nnohome:x:40:40::/nonexistent:/bin/sh\n"
GROUP = "root:x:0:\nstaff:x:50:web,other\nvideo:x:44:other\nwww:x:34:\n"


@pytest.fixture(scope="module")
def people(busybox: str) -> Iterator[VM]:
    """A guest with more users than one."""
    with VM(busybox) as vm:
        vm.path("/etc/passwd").write_text(PASSWD)
        vm.path("/etc/group").write_text(GROUP)
        yield vm


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        (None, "0:0:0", "/root"),
        ("", "0:0:0", "/root"),
        ("root", "0:0:0", "/root"),
        ("web", "33:34:34 50", "/var/www"),
        ("33", "33:34:34 50", "/var/www"),
        (33, "33:34:34 50", "/var/www"),
        ("web:staff", "33:50:50", "/var/www"),
        ("web:44", "33:44:44", "/var/www"),
        ("1234", "1234:0:0", "/"),
        ("1234:77", "1234:77:77", "/"),
        ("4294967294:4294967294", "4294967294:4294967294:4294967294", "/"),
        (":44", "0:44:44", "/root"),
        ("nohome", "40:40:40", "/nonexistent"),
    ],
)
def test_users(people: VM, user: str | int | None, ids: str, home: str) -> None:
    script = "grep -E '^(Uid|Gid|Groups):' /proc/self/status; echo $HOME"
    lines = people.run(["sh", "-c", script], user=user, text=True, check=True).stdout.splitlines()
    real = lines[0].split()[1], lines[1].split()[1]
    assert (f"{real[0]}:{real[1]}:{' '.join(lines[2].split()[1:])}", lines[3]) == (ids, home)
    # Real, effective, saved and file system ids are all the same: nothing is left to come back to.
    assert len(set(lines[0].split()[1:])) == len(set(lines[1].split()[1:])) == 1


@pytest.mark.parametrize("user", ["nobody-of-that-name", "web:no-such-group", "-1", "4294967296", "0x10", "web:"])
def test_users_that_are_not_there(people: VM, user: str) -> None:
    if user == "web:":
        # An empty group is none, as docker reads it.
        assert people.run(["id", "-u"], user=user, text=True).stdout == "33\n"
        return
    with pytest.raises(errors.UnknownUser) as caught:
        people.run(["true"], user=user)
    assert user.split(":")[-1] in str(caught.value)


def test_the_environment(people: VM) -> None:
    def variables(**options: object) -> dict[str, str]:
        out = people.run(["env"], text=True, check=True, **options).stdout  # type: ignore[arg-type]
        return dict(line.split("=", 1) for line in out.splitlines())

    usual = variables()
    assert usual["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert usual["HOME"] == "/root"
    assert usual["HOSTNAME"] == people.run(["hostname"], text=True).stdout.strip()
    assert "TERM" not in usual
    assert variables(env={"HOME": "/elsewhere", "PATH": "/usr/bin"}) | {"HOSTNAME": ""} == {
        "HOME": "/elsewhere",
        "PATH": "/usr/bin",
        "HOSTNAME": "",
    }
    process = people.popen(["sh", "-c", "echo $TERM; tty"], tty=(24, 80), stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    assert re.fullmatch(r"xterm\n/dev/pts/\d+\n", out)


def test_path_is_searched_as_by_a_shell(people: VM) -> None:
    people.run(["mkdir", "-p", "/p/a", "/p/b"])
    people.path("/p/a/tool").write_text("no program")
    people.path("/p/b/tool").write_text("#!/bin/sh\necho found\n")
    people.path("/p/b/tool").chmod(0o755)
    # The one that may not be executed is passed over.
    assert people.run(["tool"], env={"PATH": "/p/a:/p/b:/bin"}, text=True).stdout == "found\n"
    with pytest.raises(errors.CommandNotExecutable):
        people.run(["tool"], env={"PATH": "/p/a"})
    with pytest.raises(errors.CommandNotFound):
        people.run(["tool"], env={"PATH": "/p"})
    assert people.run(["./tool"], cwd="/p/b", text=True).stdout == "found\n"
    assert people.run(["tool"], cwd="/p/b", env={"PATH": "::/nowhere"}, text=True).stdout == "found\n"
    people.path("/p/b/no-interpreter").write_text("#!/no/such/interpreter\n")
    people.path("/p/b/no-interpreter").chmod(0o755)
    with pytest.raises(errors.CommandNotFound, match="interpreter"):
        people.run(["/p/b/no-interpreter"])


def test_arguments_of_any_bytes(people: VM) -> None:
    words: list[bytes] = [b"", b" ", b"\xff\xfe", b"new\nline", "ü".encode(), b"'\"\\$(x)`"]
    script = 'for x in "$@"; do printf "[%s]" "$x"; done'
    done = people.run([b"sh", b"-c", script.encode(), b"sh", *words])
    assert done.stdout == b"".join(b"[" + word + b"]" for word in words)
    with pytest.raises(ValueError, match="null byte"):
        people.run(["echo", "a\0b"])
    # Half of what a Linux argument may have.
    assert len(people.run(["echo", "x" * 65536]).stdout) == 65537


@pytest.mark.parametrize("length", [129 << 10, 200 << 10, 1 << 20, 3 << 20])
def test_arguments_that_are_too_long(people: VM, length: int) -> None:
    """Of one argument Linux takes 128 KiB, of all together what a message to the agent holds."""
    for words, options in ((["x" * length], {}), ([], {"env": {"LONG": "x" * length}})):
        with pytest.raises(errors.ArgumentsTooLong, match="Argument list too long") as caught:
            people.run(["echo", *words], **options)
        assert caught.value.errno == errno.E2BIG
        assert caught.value.code == "command.arguments-too-long"
        assert "input=" in str(caught.value.hint)
    assert people.run(["true"]).returncode == 0


def test_a_working_directory_that_is_not_there(people: VM) -> None:
    for kind in (FileNotFoundError, errors.BadWorkingDirectory):
        with pytest.raises(kind, match="/no/such/directory"):
            people.run(["true"], cwd="/no/such/directory")
    assert not people.path("/no").exists()
    for file in ("/etc/passwd", "/etc/passwd/inside"):
        with pytest.raises(NotADirectoryError, match=file):
            people.run(["true"], cwd=file)
    assert people.run(["pwd"], cwd="tmp", text=True).stdout == "/tmp\n"
    people.path("/root/closed").mkdir(0o700)
    with pytest.raises(errors.BadWorkingDirectory, match="Permission denied"):
        people.run(["true"], cwd="/root/closed", user="33")


def test_the_image_says_what_to_run(tmp_path: Path) -> None:
    """ENTRYPOINT and CMD in both forms, ENV, WORKDIR, USER."""
    require("skopeo", "umoci")
    oci = tmp_path / "oci"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{BUSYBOX}", f"oci:{oci}:plain")

    def image(tag: str, *config: str) -> str:
        words = [word for option in config for word in ("--config." + option.split("=", 1)[0], option.split("=", 1)[1])]
        run("umoci", "config", "--image", f"{oci}:plain", "--tag", tag, *words)
        return f"oci:{oci}:{tag}"

    def output(reference: str, args: list[str] | None = None, entrypoint: list[str] | None = None) -> str:
        return str(supermachine.run(reference, args, entrypoint=entrypoint, text=True, check=True).stdout)

    both = image("both", "entrypoint=echo", "entrypoint=entry", "cmd=one", "cmd=two words")
    assert output(both) == "entry one two words\n"
    assert output(both, ["given"]) == "entry given\n"
    assert output(both, ["given"], ["echo", "other"]) == "other given\n"
    assert output(both, None, ["echo", "other"]) == "other\n"
    shell = image("shell", "entrypoint=/bin/sh", "entrypoint=-c", "entrypoint=echo $WHERE $PWD $(id -u) $HOME",
                  "env=WHERE=here", "workingdir=/made/by it", "user=12:34")  # fmt: skip
    assert output(shell) == "here /made/by it 12 /\n"
    with VM(shell) as vm:
        status = vm.path("/made/by it")
        vm.run(["true"])
        assert (status.stat().st_uid, status.stat().st_mode & 0o7777) == (0, 0o755)


# Processes.


def running(vm: VM, command: str) -> int:
    """Processes with this command line, those that have ended and not been collected aside."""
    script = 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " < $f 2>/dev/null; echo; done'
    lines = vm.run(["sh", "-c", script], text=True, check=True).stdout.splitlines()
    assert any(line.startswith("sh -c for") for line in lines)
    return [line.strip() for line in lines].count(command)


def test_a_timeout_kills_the_group_and_what_it_started(guest: VM) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        guest.run("sleep 1234 & (sleep 1234 | sleep 1234) & sh -c 'sleep 1234'; wait", shell=True, timeout=1)
    assert running(guest, "sleep 1234") == 0


def test_a_caller_that_leaves_takes_its_process_along(guest: VM) -> None:
    process = guest.popen("sleep 4321 & sleep 4321", shell=True)
    wait_for(lambda: running(guest, "sleep 4321") == 2, "the two processes")
    process._exec.close()
    assert process.wait(60) == -signal.SIGKILL
    wait_for(lambda: not running(guest, "sleep 4321"), "an end of both processes")


def test_signals_reach_the_group(guest: VM) -> None:
    child = """trap 'echo child; exit' USR1; echo up; while :; do sleep 0.1; done"""
    script = f"trap 'echo parent; wait; exit 0' USR1; sh -c {shlex.quote(child)} & wait"
    process = guest.popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert sorted(out.split()) == ["child", "parent"]
    assert process.returncode == 0


def test_stopping_and_going_on(guest: VM) -> None:
    process = guest.popen(["sh", "-c", "while :; do echo tick; sleep 0.05; done"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"tick\n"
    process.send_signal(signal.SIGSTOP)
    state = ["grep", "State:", f"/proc/{process.pid}/status"]
    wait_for(lambda: b"T (stopped)" in guest.run(state).stdout, "a process that is stopped")
    assert process.poll() is None
    process.send_signal(signal.SIGCONT)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()


def test_orphans_are_reaped_and_not_waited_for(guest: VM) -> None:
    started = time.monotonic()
    done = guest.run("for i in $(seq 100); do (sleep 2 &) ; done; (sleep 1000 &); echo done", shell=True, timeout=60)
    assert done.stdout == b"done\n"
    assert time.monotonic() - started < 60
    zombies = "grep -l 'Z (zombie)' /proc/[0-9]*/status"
    wait_for(lambda: not running(guest, "sleep 2"), "an end of the orphans")
    wait_for(lambda: not guest.run(zombies, shell=True).stdout, "a guest without zombies")
    assert running(guest, "sleep 1000") == 1


def test_a_service_in_the_background_goes_on_and_its_output_is_discarded(guest: VM) -> None:
    # More than a pipe holds, to both streams that it has from its shell, when the caller has long had its answer.
    writes = "head -c 300000 /dev/zero && head -c 300000 /dev/zero >&2 && touch /tmp/written"
    waits = "until test -e /tmp/{0}; do sleep 0.05; done"
    service = f"{waits.format('begin')}; {writes}; {waits.format('end')}; touch /tmp/ended"
    done = guest.run(f"({service}) & echo started", shell=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"started\n", b"")
    for told, does in (("begin", "written"), ("end", "ended")):
        assert not guest.path(f"/tmp/{does}").exists()
        guest.run(["touch", f"/tmp/{told}"], check=True)
        wait_for(guest.path(f"/tmp/{does}").exists, f"a service that has {does}")


def test_two_hundred_at_once(guest: VM) -> None:
    def begin(number: int) -> supermachine.Popen:
        return guest.popen(
            ["sh", "-c", f"read line; echo {number} $line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    with ThreadPoolExecutor(20) as pool:
        processes = list(pool.map(begin, range(200)))
    assert all(process.poll() is None for process in processes)
    # None of them ends before all of them run.
    for number, process in enumerate(processes):
        assert process.communicate(b"line\n", timeout=120)[0] == b"%d line\n" % number
        assert process.returncode == 0


def test_fifty_at_once(guest: VM) -> None:
    def one(number: int) -> bool:
        text = f"number {number}\n".encode() * 1000
        done = guest.run(["sh", "-c", f"cat; echo {number} >&2; exit {number}"], input=text)
        return (done.stdout, done.stderr, done.returncode) == (text, f"{number}\n".encode(), number)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(one, range(50)))


def test_nothing_is_left_of_those_that_ended(guest: VM) -> None:
    def resources() -> tuple[int, int]:
        fds = int(guest.run("ls /proc/1/fd | wc -l", shell=True).stdout)
        return fds, int(guest.run("ls /proc/1/task | wc -l", shell=True).stdout)

    before = resources()
    for number in range(100):
        guest.run(["true"], input=b"not read" * number)
        with pytest.raises(FileNotFoundError):
            guest.run(["no-such-program"])
    deadline = time.monotonic() + 60
    while (now := resources()) > before:
        assert time.monotonic() < deadline, f"{before} became {now}"
        time.sleep(0.1)


# Streams.


def high_water(pid: int | None) -> int:
    """Most bytes of memory that a process has had at once, without its guest's RAM (which is shared or huge)."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10  # type: ignore[index]


def test_hundreds_of_megabytes_stream_without_a_copy_in_memory(busybox: str) -> None:
    size = 256 << 20
    block = os.urandom(1 << 20)
    with VM(busybox, memory="128m") as vm:
        vm.run(["cat"], input=bytes(1 << 20), check=True)
        ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        process = vm.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None

        def feed() -> None:
            assert process.stdin is not None
            for _ in range(size >> 20):
                view = memoryview(block)
                while view:
                    view = view[process.stdin.write(view) :]
            process.stdin.close()

        thread = threading.Thread(target=feed)
        thread.start()
        digest, count = hashlib.sha256(), 0
        while data := process.stdout.read(1 << 20):
            digest.update(data)
            count += len(data)
        thread.join(60)
        assert process.wait(60) == 0
        assert count == size
        expected = hashlib.sha256()
        for _ in range(size >> 20):
            expected.update(block)
        assert digest.digest() == expected.digest()
        # Kilobytes on Linux.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - ours < 64 << 10


def test_a_reader_that_does_not_read_stops_the_writer(busybox: str) -> None:
    with VM(busybox, memory="128m") as vm:
        script = "while head -c 65536 /dev/zero; do echo >> /tmp/blocks; done"
        process = vm.popen(["sh", "-c", script], stdout=subprocess.PIPE)
        time.sleep(2)
        before = high_water(os.getpid())

        def written() -> int:
            return vm.path("/tmp/blocks").stat().st_size << 16

        # What lies between both ends fills as fast as the host lets it; then nothing moves any more.
        first, deadline = -1, time.monotonic() + 60
        while first != (now := written()):
            assert time.monotonic() < deadline, "it is never stopped"
            first = now
            time.sleep(1)
        assert first < 16 << 20
        assert high_water(os.getpid()) - before < 16 << 20
        # Others are not held up by it.
        assert vm.run(["echo", "through"]).stdout == b"through\n"
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) in (-signal.SIGKILL, -signal.SIGPIPE)


def test_a_process_that_does_not_read_its_input(guest: VM) -> None:
    assert guest.run(["true"], input=bytes(8 << 20)).returncode == 0
    done = guest.run(["head", "-c", "10"], input=bytes(8 << 20))
    assert (done.returncode, done.stdout) == (0, bytes(10))


# Files.


def test_many_files_in_one_directory(guest: VM) -> None:
    guest.run("mkdir /tmp/many && cd /tmp/many && seq 3000 | xargs touch", shell=True, check=True)
    assert len(list(guest.path("/tmp/many").iterdir())) == 3000
    guest.path("/tmp/many").rmtree()
    assert not guest.path("/tmp/many").exists()


def test_names_that_are_no_text(guest: VM) -> None:
    name = os.fsdecode(b"/tmp/\xff\xfe \n")
    guest.path(name).write_bytes(b"odd")
    assert guest.path(name).read_bytes() == b"odd"
    assert guest.path(name) in list(guest.path("/tmp").iterdir())
    guest.path(name).unlink()


# Shutdown.


def test_a_clean_shutdown(busybox: str) -> None:
    vm = VM(busybox).start()
    polite = vm.popen(["sh", "-c", "trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.1; done"],
                      stdout=subprocess.PIPE)  # fmt: skip
    deaf = vm.popen(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"], stdout=subprocess.PIPE)
    for process in (polite, deaf):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    vm.stop(timeout=2)
    assert vm.wait(60) == "shutdown"
    assert polite.stdout is not None
    assert polite.stdout.read() == b"bye\n"
    with pytest.raises(errors.VMExited):
        vm.run(["true"])
    vm.start()
    assert vm.run(["echo", "again"]).stdout == b"again\n"
    vm.kill()
