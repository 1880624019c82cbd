"""Debian's docker, unchanged."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import IMAGE, Session

pytestmark = pytest.mark.vm

Cli = Callable[..., str]
COUNT = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done"


def test_run_passes_output_status_and_input_on(cli: Cli) -> None:
    assert cli("run", "--rm", IMAGE, "echo", "hello") == "hello\n"
    assert sorted(cli("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 3", status=3).split()) == [
        "err",
        "out",
    ]
    assert cli("run", "--rm", "-i", IMAGE, "tr", "a-z", "A-Z", input="piped\n") == "PIPED\n"
    assert (
        cli("run", "--rm", "-e", "A=b c", "-w", "/somewhere", IMAGE, "sh", "-c", "echo $A; pwd") == "b c\n/somewhere\n"
    )
    assert cli("run", "--rm", "--entrypoint", "echo", IMAGE, "other") == "other\n"
    assert "executable file not found" in cli("run", "--rm", IMAGE, "no-such-program", status=127)
    assert cli("ps", "-aq") == ""


def test_a_container_s_life(cli: Cli, tmp_path: Path) -> None:
    name = cli("run", "-d", "--name", "web", "--label", "a=b", "-p", "8080", IMAGE, "sh", "-c", COUNT).strip()
    assert re.fullmatch("[0-9a-f]{64}", name)
    assert cli("ps", "--format", "{{.Names}} {{.State}}", "--filter", "label=a=b") == "web running\n"
    assert re.fullmatch(r"8080/tcp -> 127\.0\.0\.1:\d+\n", cli("port", "web"))
    assert cli("exec", "web", "sh", "-c", "cat; hostname", input="") == name[:12] + "\n"
    assert cli("exec", "-i", "web", "cat", input="in\n") == "in\n"
    assert "not found" in cli("exec", "web", "no-such-program", status=127)
    cli("exec", "-d", "web", "touch", "/tmp/detached")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("copied\n")
    cli("cp", str(tmp_path / "there"), "web:/tmp/there")
    cli("cp", "web:/tmp/there/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "copied\n"
    assert "web:/nowhere" in cli("cp", "web:/nowhere", str(tmp_path), status=1)
    assert "sh -c" in cli("top", "web")
    assert re.search(r"[0-9.]+MiB / 1GiB", cli("stats", "--no-stream", "web"))
    assert "already in use" in cli("create", "--name", "web", IMAGE, status=1)
    cli("rename", "web", "other")
    cli("stop", "-t", "1", "other")
    state = json.loads(cli("inspect", "other"))[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 143)
    # The files of one that has ended are there, and are there when it is started again.
    cli("cp", "other:/tmp/there/file", str(tmp_path / "again"))
    cli("start", "other")
    assert cli("exec", "other", "ls", "/tmp/there") == "file\n"
    cli("pause", "other")
    assert "is paused" in cli("exec", "other", "true", status=1)
    cli("unpause", "other")
    cli("kill", "other")
    assert cli("wait", "other") == "137\n"
    cli("rm", "other")
    assert "No such container" in cli("rm", "other", status=1)
    actions = cli(
        "events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}", "--filter", f"container={name}"
    )
    assert actions.split("\n")[0] == "create"


def test_what_is_put_into_a_container_before_it_is_started(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before\n")
    cli("create", "--name", "early", IMAGE, "cat", "/etc/early")
    cli("cp", str(tmp_path / "file"), "early:/etc/early")
    assert cli("start", "-a", "early") == "before\n"


def test_logs(cli: Cli, session: Session, docker_program: str) -> None:
    cli("run", "-d", "--name", "talks", IMAGE, "sh", "-c", "echo one; echo two >&2; echo three")
    cli("wait", "talks")
    assert sorted(cli("logs", "talks").split()) == ["one", "three", "two"]
    assert cli("logs", "--tail", "1", "talks") in ("three\n", "two\n")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ", cli("logs", "-t", "talks"))
    assert cli("logs", "--since", "2038-01-01T00:00:00", "talks") == ""
    cli("run", "-d", "--name", "counts", IMAGE, "sh", "-c", COUNT)
    follower = subprocess.Popen(
        [docker_program, "logs", "-f", "counts"],
        env={**os.environ, "DOCKER_HOST": session.host},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    assert [follower.stdout.readline() for _ in range(5)] == [f"line {i}\n" for i in range(5)]
    cli("rm", "-f", "counts")
    follower.stdout.read()
    assert follower.wait(30) == 0


def _at_terminal(command: list[str], host: str, script: list[tuple[str, str]]) -> tuple[str, int]:
    """Runs a command on a terminal: waits for each text, then types; gives what was shown and the status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(DOCKER_HOST=host, TERM="xterm")
        os.execv(command[0], command)
    shown = ""
    deadline = time.monotonic() + 60
    steps = list(script)
    while time.monotonic() < deadline:
        while steps and steps[0][0] in shown:
            os.write(terminal, steps.pop(0)[1].encode())
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data.decode()
    os.close(terminal)
    return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_terminals(cli: Cli, session: Session, docker_program: str) -> None:
    shell = [docker_program, "run", "--rm", "-it", IMAGE, "sh"]
    shown, status = _at_terminal(shell, session.host, [("# ", "tty; stty size; exit 4\r")])
    assert "/dev/pts/" in shown
    assert status == 4
    cli("run", "-d", "--name", "stays", IMAGE, "sleep", "1000")
    shell = [docker_program, "exec", "-it", "stays", "sh"]
    shown, status = _at_terminal(shell, session.host, [("# ", "echo $((6*7))\r"), ("42", "exit 5\r")])
    assert status == 5


def test_networks_volumes_and_binds(cli: Cli, tmp_path: Path) -> None:
    cli("network", "create", "--label", "x", "net")
    assert "already exists" in cli("network", "create", "net", status=1)
    cli("run", "-d", "--name", "member", "--network", "net", "--network-alias", "db", IMAGE, "sleep", "1000")
    found = json.loads(cli("inspect", "member"))[0]["NetworkSettings"]["Networks"]["net"]
    assert found["Gateway"] == "127.0.0.1"
    assert "db" in found["Aliases"]
    assert "active endpoints" in cli("network", "rm", "net", status=1)
    cli("network", "disconnect", "net", "member")
    cli("network", "rm", "net")
    cli("volume", "create", "data")
    cli("run", "--rm", "-v", "data:/data", IMAGE, "sh", "-c", "echo kept > /data/file")
    assert cli("run", "--rm", "-v", "data:/data:ro", IMAGE, "cat", "/data/file") == "kept\n"
    # A new volume has what the image has in its place.
    assert "busybox" in cli("run", "--rm", "-v", "bin:/bin", IMAGE, "/bin/ls", "/bin")
    assert cli("volume", "ls", "-q").split() == ["bin", "data"]
    cli("volume", "rm", "data", "bin")
    (tmp_path / "shared").mkdir()
    cli("run", "--rm", "-v", f"{tmp_path}/shared:/host", IMAGE, "sh", "-c", "echo from guest > /host/file")
    assert (tmp_path / "shared" / "file").read_text() == "from guest\n"


def test_images(cli: Cli, tmp_path: Path) -> None:
    assert cli("images", "-q", "--no-trunc", IMAGE).strip() == cli("inspect", "-f", "{{.Id}}", IMAGE).strip()
    cli("tag", IMAGE, "renamed:2")
    assert cli("run", "--rm", "renamed:2", "echo", "x") == "x\n"
    assert "Untagged: renamed:2" in cli("rmi", "renamed:2")
    cli("inspect", "renamed:2", status=1)
    assert cli("version", "--format", "{{.Server.Platform.Name}}") == "supermachine\n"
    assert "erofs" in cli("info")
