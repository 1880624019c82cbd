"""Docker's daily commands on machines with names: in the foreground, detached, paused, started again, shown."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
import supermachine
from supermachine.cli.moments import moment
from supermachine.cli.templates import Template
from supermachine.errors import MachineNotRunning
from supermachine.settings.durations import duration

from .conftest import CLI, sm, until

pytestmark = pytest.mark.vm


class Screen:
    """What has been shown at a terminal that does not block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.said = b""

    def says(self, wanted: bytes) -> bool:
        try:
            self.said += os.read(self._fd, 4096)
        except (BlockingIOError, OSError):
            pass
        return wanted in self.said


def state(name: str) -> str | None:
    return next((m.state.status for m in supermachine.machines(all=True) if m.name == name), None)


def test_a_name_in_the_foreground_is_listed_until_it_is_removed(busybox: str, tmp_path: Path) -> None:
    script = "echo out; echo trouble >&2; cat; exit 3"
    done = sm("run", "-q", "--name", "front", "-l", "team=red", busybox, "sh", "-c", script, input="in", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\nin", "trouble\n", 3)
    assert "Exited (3)" in sm("ps", "-a", "--filter", "label=team=red").stdout
    logs = sm("logs", "front")
    assert (logs.stdout, logs.stderr) == ("out\nin", "trouble\n")
    taken = sm("run", "-q", "--name", "front", busybox, "true", check=False)
    assert taken.returncode == 125
    assert "supermachine rm front" in taken.stderr
    sm("rm", "front")
    # With --rm nothing stays, and its output is its own.
    assert sm("run", "-q", "--rm", "--name", "front", busybox, "hostname").stdout == "front\n"
    assert state("front") is None
    slow = sm("run", "-q", "--rm", "--name", "front", "--timeout", "0.5", busybox, "sleep", "1000", check=False)
    assert slow.returncode == 124
    assert "0.5 seconds" in slow.stderr
    assert state("front") is None


def test_a_machine_in_the_foreground_is_reached_from_elsewhere_and_ends_with_its_command(busybox: str) -> None:
    script = "trap 'echo told; exit 7' TERM; echo up; while true; do sleep 0.1; done"
    words = [*CLI, "run", "-q", "--name", "front", busybox, "sh", "-c", script]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert until(lambda: state("front") == "running")
        assert sm("exec", "front", "hostname").stdout == "front\n"
        assert sm("logs", "front").stdout == "up\n"
        # A signal that comes here is the command's.
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "told\n"
        assert process.wait(60) == 7
    assert supermachine.attach("front").state.exit_code == 7
    sm("rm", "front")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert until(lambda: state("front") == "running")
        sm("rm", "-f", "front")
        assert process.wait(60) != 0
    # Whoever kills the program kills the machine.
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert until(lambda: state("front") == "running")
        process.kill()
    assert until(lambda: state("front") == "dead")


def test_a_terminal_in_the_foreground_is_the_guests(busybox: str) -> None:
    main, other = pty.openpty()
    script = "test -t 0 && stty size; read x; echo got:$x"
    words = [*CLI, "run", "-q", "-it", "--rm", "--name", "term", busybox, "sh", "-c", script]
    os.set_blocking(main, False)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    screen = Screen(main)

    with subprocess.Popen(words, stdin=other, stdout=other, stderr=other, start_new_session=True) as process:
        assert until(lambda: screen.says(b"33 77")), screen.said
        os.write(main, b"word\r")
        assert until(lambda: screen.says(b"got:word")), screen.said
        assert process.wait(60) == 0
    before = termios.tcgetattr(other)
    assert before[3] & termios.ICANON  # the terminal is as it was
    os.close(main)
    os.close(other)


def test_detached_commands_pauses_and_restarts(busybox: str) -> None:
    sm("run", "-q", "-d", "--name", "web", busybox, "sh", "-c", "echo up; echo x >> /count; exec sleep 1000")
    web = supermachine.attach("web")
    words = ["exec", "-d", "-e", "WHO=you", "-w"]
    script = ["web", "sh", "-c", "pwd > /o; echo $WHO >> /o; exec sleep 999"]
    # As with subprocess, the directory must be there.
    assert sm(*words, "/srv/none", *script, check=False).returncode == 125
    sm(*words, "/tmp", *script)
    assert until(lambda: web.run(["cat", "/o"], text=True).stdout == "/tmp\nyou\n")
    assert "sleep 999" in sm("top", "web").stdout
    refused = sm("exec", "-d", "web", "no-such-program", check=False)
    assert refused.returncode == 127

    assert sm("pause", "web").stdout == "web\n"
    assert "(Paused)" in sm("ps").stdout
    assert "unpause web" in sm("exec", "web", "true", check=False).stderr
    with pytest.raises(MachineNotRunning):
        supermachine.attach("web").pause()
    sm("unpause", "web")
    assert sm("exec", "web", "echo", "goes on").stdout == "goes on\n"

    before = time.time()
    assert sm("restart", "-t", "1", "web").stdout == "web\n"
    assert sm("exec", "web", "cat", "/count").stdout == "x\nx\n"
    assert until(lambda: sm("logs", "web").stdout == "up\nup\n")
    assert sm("logs", "--since", f"{before:.6f}", "web").stdout == "up\n"
    assert sm("logs", "--until", f"{before:.6f}", "web").stdout == "up\n"
    assert sm("logs", "--since", "10m", "--tail", "1", "web").stdout == "up\n"
    # One that stands still is stopped all the same.
    sm("pause", "web")
    sm("stop", "-t", "5", "web")
    assert state("web") == "exited"


def test_formats_and_filters_are_dockers(busybox: str) -> None:
    sm("run", "-q", "-d", "--name", "one", "--label", "tier=front", busybox, "sleep", "1000")
    sm("run", "-q", "-d", "--name", "two", busybox, "sh", "-c", "exit 4")
    assert until(lambda: state("two") == "exited")
    assert sm("ps", "--filter", "label=tier", "--format", "{{.Names}}|{{.State}}|{{.Labels}}").stdout == (
        "one|running|tier=front\n"
    )
    assert sm("ps", "-q", "--filter", "exited=4").stdout == "two\n"
    assert sm("ps", "-q", "--filter", "status=exited").stdout == "two\n"
    assert sm("ps", "-q", "-l").stdout == "two\n"
    assert sm("ps", "-aq", "--filter", "name=o").stdout == "one\ntwo\n"
    assert sm("ps", "--filter", "colour=red", check=False).returncode == 125
    lines = sm("ps", "-a", "--format", "table {{.Names}}\\t{{.Image}}").stdout.splitlines()
    assert lines[0].split() == ["NAMES", "IMAGE"]
    assert len(lines) == 3
    assert sm("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}", "two").stdout == (
        "exited 4 false\n"
    )
    assert sm("inspect", "-f", '{{index .Config.Labels "tier"}}', "one").stdout == "front\n"
    assert "running" in sm("inspect", "-f", "{{.Nothing}}", "one", check=False).stderr
    assert json.loads(sm("inspect", "--format", "{{json .}}", "one").stdout)["name"] == "one"
    assert "%" in sm("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}}", "one").stdout
    assert sm("images", "-q").stdout.startswith("sha256:")


def test_attached_clients_see_and_type(busybox: str) -> None:
    script = "while read line; do echo got:$line; echo seen >&2; test $line = last && exit 5; done"
    sm("run", "-q", "-d", "-i", "--name", "web", busybox, "sh", "-c", script)
    with subprocess.Popen([*CLI, "attach", "--no-stdin", "web"], stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        # Until it is attached, and sees what another client has typed.
        with supermachine.attach("web")._attached()[0] as typist:
            while not select.select([watcher.stdout], [], [], 0.5)[0]:
                typist.sendall(b"zero\n")
        done = sm("attach", "web", input="one\ntwo\nlast\n", check=False)
        assert done.returncode == 5
        assert done.stdout.endswith("got:one\ngot:two\ngot:last\n")
        assert done.stderr.endswith("seen\n" * 3)
        assert watcher.stdout.read().endswith("got:one\ngot:two\ngot:last\n")
        assert watcher.wait(60) == 5
    assert sm("logs", "web").stdout.endswith(done.stdout)
    assert "has ended with 5" in sm("attach", "web", check=False).stderr


def test_a_signal_to_an_attached_client_is_the_main_processs(busybox: str) -> None:
    script = "trap 'echo told; exit 6' INT; echo up; while true; do sleep 0.1; done"
    sm("run", "-q", "-d", "--name", "web", busybox, "sh", "-c", script)
    with subprocess.Popen([*CLI, "attach", "web"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        # Once it is attached what the process says is shown; nothing is said before the signal.
        assert until(lambda: len(json.loads(sm("inspect", "web").stdout)) == 1)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.read() == b"told\n"
        assert process.wait(60) == 6


def test_a_terminal_is_left_and_taken_up_again(busybox: str) -> None:
    sm("run", "-q", "-d", "-it", "--name", "term", busybox, "sh")
    main, other = pty.openpty()
    os.set_blocking(main, False)
    screen = Screen(main)

    for keys, answer in ((b"x=6; echo $((x+1))00\r", b"700"), (b"echo $((x*7))00\r", b"4200")):
        words = [*CLI, "attach", "term"]
        with subprocess.Popen(words, stdin=other, stdout=other, stderr=other, start_new_session=True) as process:
            os.write(main, keys)
            assert until(lambda answer=answer: screen.says(answer)), screen.said
            os.write(main, b"\x10\x11")
            assert process.wait(60) == 0
        assert state("term") == "running"
    os.close(main)
    os.close(other)


def test_docker_s_long_forms(busybox: str) -> None:
    sm("run", "-q", "-d", "--name", "web", busybox, "sh", "-c", "trap 'exit 9' USR1; while true; do sleep 0.1; done")
    assert sm("container", "ls", "-q").stdout == "web\n"
    assert "busybox" in sm("image", "ls").stdout
    assert sm("container", "stop", "-s", "USR1", "web").stdout == "web\n"
    assert supermachine.attach("web").state.exit_code == 9
    sm("container", "rm", "-v", "web")
    assert "freed" in sm("system", "prune", "-f").stdout


def test_what_there_is_not_says_what_to_type(busybox: str) -> None:
    for words, wanted in [
        (["swarm", "init"], "Fleet"),
        (["network", "ls"], "--network"),
        (["run", "--privileged", busybox], "kernel"),
        (["run", "--gpus", "all", busybox], "GPUs"),
        (["run", "-P", busybox], "-p PORT"),
        (["cp", "web:/etc/motd", "-"], "tar"),
    ]:
        said = sm(*words, check=False)
        assert said.returncode == 125, words
        assert wanted in said.stderr, said.stderr


def test_times_are_read_as_docker_reads_them() -> None:
    assert duration("1m30.5s") == 90.5
    assert moment("1700000000.25") == 1700000000.25
    assert moment("2023-11-14T22:13:20Z") == 1700000000
    assert moment("2023-11-14T22:13:20.5+00:00") == 1700000000.5
    assert moment("2023-11-14T22:13:20.123456789Z") == pytest.approx(1700000000.123456)
    assert moment("10m") == pytest.approx(time.time() - 600, abs=5)
    with pytest.raises(Exception, match="is not a time"):
        moment("yesterday")


def test_templates_print_fields_as_go_does() -> None:
    row = {"name": "web", "exit_code": None, "labels": {"b": "2", "a": "1"}, "args": ["x", "y"], "up": True}
    for text, wanted in [
        ("{{.Name}}-{{ .Up }}", "web-true"),
        ("{{.ExitCode}}", "<no value>"),
        ("{{.Labels}} {{index .Labels `a`}}".replace("`", '"'), "map[a:1 b:2] 1"),
        ('{{.Args}} {{join .Args "+"}} {{len .Args}} {{index .Args 1}}', "[x y] x+y 2 y"),
        ("{{upper .Name}}{{json .Args}}", 'WEB["x", "y"]'),
        ("a\\tb", "a\tb"),
    ]:
        assert Template(text).row(row) == wanted
    for text in ("{{.Name", "{{range .Args}}{{.}}{{end}}", "{{}}", "{{json}}"):
        with pytest.raises(Exception, match="--format"):
            Template(text).row(row)
    assert Template("table {{.Name}}\\t{{.State.ExitCode}}").titles().split("\t") == ["NAME", "STATE.EXITCODE"]
