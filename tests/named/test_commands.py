"""Machines with names, as docker's users type them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import supermachine
from supermachine import aio, errors
from supermachine.named.records import Record
from supermachine.named.registry import Registry

from ..vm.guests import answer
from .conftest import CLI, alive, gone, sm, until

pytestmark = pytest.mark.vm

TICKS = "echo begin; echo trouble >&2; n=0; while true; do n=$((n+1)); echo tick $n; sleep 0.1; done"


def start(busybox: str, *options: str, command: str = "sleep 1000", name: str = "web") -> str:
    return sm("run", "-d", "--name", name, *options, busybox, "sh", "-c", command).stdout.strip()


def listed() -> dict[str, dict[str, object]]:
    return {state["name"]: state for state in json.loads(sm("ps", "-a", "--format", "json").stdout)}


def test_a_machine_lives_until_it_is_stopped_and_is_listed_until_it_is_removed(busybox: str, runtime: Path) -> None:
    began = time.monotonic()
    assert start(busybox, "-q", command=TICKS) == "web"
    assert time.monotonic() - began < 60
    assert listed()["web"]["status"] == "running"
    assert sm("ps").stdout.splitlines()[1].startswith("web ")
    assert sm("ps", "-q").stdout == "web\n"

    done = sm("exec", "-e", "WHO=you", "-w", "/tmp", "web", "sh", "-c", "echo $WHO; pwd; hostname; exit 3", check=False)
    assert (done.stdout, done.returncode) == ("you\n/tmp\nweb\n", 3)
    assert sm("exec", "-i", "web", "cat", input="passed on").stdout == "passed on"
    assert sm("exec", "web", "cat", input="not passed on").stdout == ""
    assert sm("exec", "-u", "1000", "web", "id", "-u").stdout == "1000\n"
    assert sm("exec", "web", "no-such-program", check=False).returncode == 127

    assert until(lambda: "tick 3" in sm("logs", "web").stdout)
    logs = sm("logs", "web")
    assert logs.stdout.startswith("begin\ntick 1\ntick 2\n")
    assert logs.stderr == "trouble\n"
    assert sm("logs", "--tail", "1", "-t", "web").stdout.split()[0].endswith("Z")

    again = sm("run", "-d", "--name", "web", busybox, check=False)
    assert again.returncode == 125
    assert "there is a machine web already" in again.stderr
    assert "rm -f web" in again.stderr
    assert sm("rm", "web", check=False).returncode == 1
    assert "supermachine rmi" in sm("rm", "busybox", check=False).stderr
    assert sm("stop", "-t", "1", "web").stdout == "web\n"
    assert listed()["web"]["status"] == "exited"
    assert listed()["web"]["exit_code"] == 128 + 15
    assert "Exited (143)" in sm("ps", "-a").stdout
    assert sm("ps", "-q").stdout == ""
    assert sm("logs", "web").stdout.startswith("begin\n")
    refused = sm("exec", "web", "true", check=False)
    assert refused.returncode == 125
    assert "has ended with 143" in refused.stderr
    assert sm("rm", "web").stdout == "web\n"
    assert listed() == {}
    assert [p.name for p in (runtime / "machines").iterdir()] == [".lock"]


def test_the_exit_code_is_the_main_processs_and_wait_tells_it(busybox: str) -> None:
    start(busybox, command="sleep 0.3; echo last words; exit 7")
    assert sm("wait", "web").stdout == "7\n"
    assert sm("logs", "web").stdout == "last words\n"
    assert listed()["web"]["exit_code"] == 7


def test_a_start_that_fails_leaves_nothing_and_says_why(busybox: str, runtime: Path) -> None:
    for words, code in (
        (["run", "-d", "--name", "web", busybox, "no-such-program"], 127),
        (["run", "-d", "--name", "web", "-m", "1k", busybox], 125),
        (["run", "-d", "--name", "web", "/no/such/image.tar"], 125),
        (["run", "-d", "--name", "-web", busybox], 125),
        (["run", "-d", "--name", "web", "--restart", "often", busybox], 125),
        (["run", "-d", "--name", "web", "--stop-signal", "SIGNONE", busybox], 125),
        (["run", "-d", "--rm", "--restart", "always", busybox], 125),
    ):
        done = sm(*words, check=False)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.strip()
    assert not (runtime / "machines").exists() or listed() == {}


def test_a_made_up_name_can_be_a_host_name(busybox: str) -> None:
    name = sm("run", "-d", "--rm", busybox, "sleep", "1000").stdout.strip()
    assert sm("exec", name, "hostname").stdout.strip() == name
    sm("kill", name)
    assert until(lambda: listed() == {})


def test_rm_option_leaves_nothing(busybox: str, runtime: Path) -> None:
    start(busybox, "--rm", command="sleep 3; exit 4")
    assert sm("wait", "web").stdout == "4\n"
    assert until(lambda: [p.name for p in (runtime / "machines").iterdir()] == [".lock"])


def test_signals_and_the_stop_signal(busybox: str) -> None:
    start(busybox, "--stop-signal", "USR1", command="trap 'echo one; exit 9' USR1; trap 'echo two' USR2; " + TICKS)
    assert until(lambda: "tick" in sm("logs", "web").stdout)
    sm("kill", "-s", "USR2", "web")
    assert until(lambda: "two" in sm("logs", "web").stdout)
    sm("stop", "web")
    assert sm("logs", "web").stdout.endswith("\none\n")
    assert listed()["web"]["exit_code"] == 9


def test_one_that_ignores_its_stop_signal_is_killed(busybox: str) -> None:
    start(busybox, "--stop-timeout", "0.3", command="trap '' TERM; " + TICKS)
    began = time.monotonic()
    sm("stop", "web")
    assert time.monotonic() - began < 20
    assert listed()["web"]["exit_code"] == 128 + 9


def test_restart_on_failure_ends_after_so_many(busybox: str) -> None:
    start(busybox, "--restart", "on-failure:2", command="echo x >> /tmp/n; wc -l < /tmp/n; exit 5")
    assert sm("wait", "web").stdout == "5\n"
    # The same virtual machine and so the same files, as with docker.
    assert sm("logs", "web").stdout == "1\n2\n3\n"
    assert listed()["web"]["restarts"] == 2


def test_always_restarts_one_whose_worker_was_killed_until_it_is_stopped(busybox: str) -> None:
    start(busybox, "--restart", "always", command="echo up; sleep 1000")
    worker = json.loads(sm("inspect", "web").stdout)[0]["worker"]
    os.kill(worker, signal.SIGKILL)
    assert until(lambda: sm("logs", "web").stdout == "up\nup\n")
    assert until(lambda: listed()["web"]["status"] == "running")
    assert sm("exec", "web", "echo", "here").stdout == "here\n"
    sm("stop", "-t", "0", "web")
    assert listed()["web"]["status"] == "exited"


def test_ports_files_snapshots_and_forks(busybox: str, tmp_path: Path) -> None:
    start(busybox, "-p", "8000", command="echo $$ > /tmp/pid; while true; do nc -l -p 8000 -e cat; done")
    host, port = sm("port", "web", "8000").stdout.strip().rsplit(":", 1)
    assert until(lambda: answer((host, int(port)), b"echo") == b"echo")
    assert sm("port", "web", "81", check=False).returncode == 125

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("contents")
    sm("cp", str(tmp_path / "tree"), "web:/root/")
    sm("cp", "web:/root/tree/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "contents"
    assert sm("cp", "web:/a", "web:/b", check=False).returncode == 125

    assert "stood still for" in sm("snapshot", "create", "web", str(tmp_path / "snapshot")).stdout
    with supermachine.VM.restore(tmp_path / "snapshot") as vm:
        assert vm.path("/root/tree/file").read_text() == "contents"

    assert sm("fork", "web", "-n", "2").stdout == "web-1\nweb-2\n"
    for name in ("web-1", "web-2"):
        assert sm("exec", name, "cat", "/root/tree/file").stdout == "contents"
        assert sm("exec", name, "hostname").stdout.strip() == name
        place = sm("port", name, "8000").stdout.strip().rsplit(":", 1)
        assert place[1] != port
        assert until(lambda: answer((place[0], int(place[1])), b"fork") == b"fork")  # noqa: B023
    assert sm("fork", "web", "--name", "other").stdout == "other\n"
    # One whose main process ends has ended, with a code that nobody was told.
    sm("exec", "web-1", "sh", "-c", "kill $(cat /tmp/pid)")
    assert sm("wait", "web-1").stdout == "unknown\n"
    sm("stop", "web", "web-2", "other", "-t", "1")
    assert {state["status"] for state in listed().values()} == {"exited"}


def test_health(busybox: str) -> None:
    command = "sleep 0.5; touch /tmp/ok; sleep 1000"
    quick = ("--health-cmd", "test -e /tmp/ok", "--health-interval", "100ms", "--health-retries", "1000")
    start(busybox, *quick, command=command)
    assert until(lambda: listed()["web"]["health"] == "healthy")
    assert "(healthy)" in sm("ps").stdout
    sm("exec", "web", "rm", "/tmp/ok")
    log = json.loads(sm("inspect", "web").stdout)[0]["health"]["Log"]
    assert 1 <= len(log) <= 5
    start(busybox, *quick[:4], "--health-retries", "2", command="sleep 1000", name="ill")
    assert until(lambda: listed()["ill"]["health"] == "unhealthy")


def test_a_terminal(busybox: str) -> None:
    start(busybox, "-t", command="tty; sleep 1000")
    assert until(lambda: sm("logs", "web").stdout.startswith("/dev/"))
    ours, theirs = pty.openpty()
    with subprocess.Popen([*CLI, "exec", "-it", "web", "sh"], stdin=theirs, stdout=theirs, stderr=theirs) as shell:
        os.close(theirs)
        os.write(ours, b"tty; stty size; exit 6\n")
        said = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                if not (part := os.read(ours, 4096)):
                    break
            except OSError:
                break
            said += part
        assert shell.wait(60) == 6
    os.close(ours)
    assert b"/dev/pts/" in said


def test_logs_are_followed_and_bounded(busybox: str, runtime: Path) -> None:
    start(busybox, command="head -c 3000000 /dev/zero | tr '\\0' x | fold -w 99; printf 'no line end'")
    done = sm("logs", "-f", "web")
    assert done.stdout.endswith("xno line end")
    assert len(done.stdout) == 3000000 + 30303 + 11
    assert sum(f.stat().st_size for f in (runtime / "machines" / "web" / "log").iterdir()) < 20 << 20


def test_what_docker_has_and_we_have_not_says_what_to_type() -> None:
    for command, words in (("create", "run -d"), ("build", "oci:"), ("commit", "snapshot create")):
        done = sm(command, "x", check=False)
        assert done.returncode == 125
        assert words in done.stderr


def test_inspect_of_images_and_a_prune_that_says_what_it_removes(
    busybox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    sm("run", "-q", busybox, "true")
    (said,) = json.loads(sm("inspect", busybox).stdout)
    assert said["platform"] == "linux/arm64"
    assert Path(said["rootfs"]).exists()
    assert "no machine" in sm("exec", "nobody", "true", check=False).stderr
    assert sm("inspect", "no-such-image", check=False).returncode == 125
    lines = sm("prune", "-a").stdout.splitlines()
    assert any(line.startswith(f"baked snapshot of {busybox}, 512 MiB, soft: ") for line in lines)
    assert any(line.startswith("image ") and "busybox" in line for line in lines)
    assert lines[-1].endswith("freed")
    assert sm("prune", "-a").stdout == "0 B freed\n"


def test_names_are_completed(busybox: str) -> None:
    start(busybox, name="web-server")
    environment = {
        **os.environ,
        "_SUPERMACHINE_COMPLETE": "bash_complete",
        "COMP_WORDS": "x exec web",
        "COMP_CWORD": "2",
    }
    assert sm(env={**os.environ, **environment}).stdout == "plain,web-server\n"


def test_the_python_interface(busybox: str, tmp_path: Path) -> None:
    machine = supermachine.start(busybox, ["sh", "-c", TICKS], name="web", ports={"80/tcp": ("127.0.0.1", None)})
    with pytest.raises(FileExistsError):
        supermachine.start(busybox, name="web")
    with pytest.raises(ValueError, match="another process"):
        supermachine.start(busybox, warmup=print)
    assert supermachine.attach("web").ports == machine.ports
    assert machine.ports["80/tcp"][0][0] == "127.0.0.1"
    assert [m.name for m in supermachine.machines()] == ["web"]
    assert machine.running
    assert machine.run("echo $((6*7))", shell=True, text=True).stdout == "42\n"
    machine.path("/tmp/x").write_text("hello")
    assert machine.copy_out("/tmp/x", tmp_path / "x")
    with machine.popen(["cat"], stdin=supermachine.PIPE, stdout=supermachine.PIPE) as process:
        assert process.communicate(b"1") == (b"1", None)
    with pytest.raises(FileNotFoundError):
        machine.run(["no-such-program"])
    assert machine.stats()["memory"] > 1 << 20
    assert b"begin\n" in [entry.data for entry in machine.logs()]
    with pytest.raises(errors.VMTimeout):
        machine.wait(0.1)
    with pytest.raises(errors.MachineRunning):
        machine.remove()

    async def asynchronous() -> None:
        there = await aio.attach("web")
        assert [m.name for m in await aio.machines()] == ["web"]
        assert (await there.run(["echo", "hi"], text=True)).stdout == "hi\n"
        assert await there.path("/tmp/x").read_text() == "hello"
        async for entry in there.logs(tail=1):
            assert entry.stream == "stdout"
        (fork,) = await there.fork()
        await fork.remove(force=True)
        assert await there.stop(0) in (128 + 15, 128 + 9)

    asyncio.run(asyncio.wait_for(asynchronous(), 120))
    assert not machine.running
    assert machine.state.status == "exited"
    assert machine.wait() == machine.state.exit_code
    with pytest.raises(ConnectionError):
        machine.run(["true"])
    machine.remove()
    with pytest.raises(LookupError):
        supermachine.attach("web")
    with pytest.raises(LookupError):
        machine.state  # noqa: B018


def test_waiters_are_told_when_the_machine_dies(busybox: str) -> None:
    start(busybox)
    machine = supermachine.attach("web")
    process = machine.popen(["sleep", "1000"])
    record = Registry().place("web").record()
    assert record is not None
    os.kill(record.keeper, signal.SIGKILL)
    with pytest.raises(supermachine.VMExited):
        process.wait(20)
    assert gone([record.worker or 0])
    assert machine.state.status == "dead"
    assert listed()["web"]["error"] == "its keeper was killed"
    assert "Dead (its keeper was killed)" in sm("ps", "-a").stdout
    assert not (Registry().place("web").socket).exists()
    sm("rm", "web")


def test_a_record_of_an_earlier_boot_is_told_as_such(busybox: str) -> None:
    start(busybox)
    place = Registry().place("web")
    record = place.record()
    assert record is not None
    os.kill(record.keeper, signal.SIGKILL)
    assert gone([record.keeper])
    record.boot = "00000000-0000-0000-0000-000000000000"
    record.write(place.record_path)
    assert listed()["web"]["error"] == "the host was restarted"


def test_a_keeper_that_is_stopped_can_be_ended(busybox: str) -> None:
    start(busybox)
    record = Registry().place("web").record()
    assert isinstance(record, Record)
    os.kill(record.keeper, signal.SIGSTOP)
    sm("rm", "-f", "web")
    assert gone([record.keeper, record.worker or 0])
    assert listed() == {}


def test_a_machine_whose_directory_is_gone_ends(busybox: str, runtime: Path) -> None:
    start(busybox)
    record = Registry().place("web").record()
    assert record is not None
    subprocess.run(["rm", "-r", str(runtime)], check=True)
    assert gone([record.keeper, record.worker or 0])


def test_a_client_that_is_no_client_hurts_nobody(busybox: str) -> None:
    start(busybox)
    place = Registry().place("web")
    fd = os.open(place.path, os.O_RDONLY)
    try:
        for words in (b"", b"\xff\xfe\n", b"[]\n", b'{"ask": "nonsense"}\n', b'{"ask": "connect"}\n', b"{" * 3_000_000):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"/proc/self/fd/{fd}/socket")
                try:
                    client.sendall(words)
                    client.shutdown(socket.SHUT_WR)
                    client.recv(65536)
                except OSError:
                    pass
    finally:
        os.close(fd)
    assert sm("exec", "web", "echo", "well").stdout == "well\n"


def test_the_name_of_a_foreground_machine_is_its_hosts(busybox: str) -> None:
    assert sm("run", "--rm", "--name", "alone", busybox, "hostname").stdout == "alone\n"
    assert sm("run", "--rm", "--init", busybox, "echo", "hi").stdout == "hi\n"
    assert sm("run", "--restart", "always", busybox, "true", check=False).returncode == 125


def test_twenty_machines_at_once(busybox: str) -> None:
    number = int(os.environ.get("SUPERMACHINE_TEST_MACHINES", "20"))
    sm("run", busybox, "true")
    command = [*CLI, "run", "-d", "-q", "-m", "64m"]
    begun = [
        subprocess.Popen([*command, "--name", f"m{n}", busybox, "sh", "-c", f"echo I am {n}; sleep 10000"])
        for n in range(number)
    ]
    assert [process.wait(600) for process in begun] == [0] * number
    found = listed()
    assert {state["status"] for state in found.values()} == {"running"}
    assert len(found) == number
    assert sm("logs", "m7").stdout == "I am 7\n"
    assert sm("exec", f"m{number - 1}", "hostname").stdout == f"m{number - 1}\n"
    pids = [r.keeper for place in Registry().places() if (r := place.record()) is not None]
    assert len([pid for pid in pids if alive(pid)]) == number
    sm("rm", "-f", *found, timeout=600)
    assert listed() == {}
    assert gone(pids)
