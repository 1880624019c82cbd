"""Machines that are started again, renamed, and whose events are told."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import supermachine
from supermachine import errors
from supermachine.named import events

from ..processes import pipes
from .conftest import CLI, sm, until

pytestmark = pytest.mark.vm

LINE = "echo $0 $1; echo more >> /kept/file; test -e /root/gone && echo still there; touch /root/gone; exec sleep 1000"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Another working directory than that in which a machine is started."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    yield directory


def test_one_that_has_ended_is_started_again_as_it_was(busybox: str, tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "image.tar").symlink_to(os.path.abspath(busybox))
    options = ("-v", "./kept:/kept", "-p", "127.0.0.1:0:80", "-l", "team=red", "-e", "WHO=you", "--stop-timeout", "0.1")
    sm("run", "-q", "-d", "--name", "web", *options, "image.tar", "sh", "-c", LINE, "one", "two", cwd=tmp_path)
    assert until(lambda: sm("logs", "web").stdout == "one two\n")
    before = supermachine.attach("web").state
    assert sm("start", "web").stdout == "web\n"  # as docker has it: it runs already
    assert supermachine.attach("web").state.started == before.started
    sm("stop", "web")
    assert sm("start", "web", cwd=elsewhere).stdout == "web\n"

    # Its logs go on, and what a directory of the host has; its root is the image's.
    assert until(lambda: sm("logs", "web").stdout == "one two\none two\n")
    assert (tmp_path / "kept" / "file").read_text() == "more\nmore\n"
    after = supermachine.attach("web").state
    assert (after.id, after.created, after.labels) == (before.id, before.created, before.labels)
    assert (after.status, after.exit_code, after.finished) == ("running", None, None)
    assert list(after.ports) == ["80/tcp"]
    assert sm("exec", "web", "sh", "-c", "echo $WHO; hostname").stdout == "you\nweb\n"

    # So does `restart` with one that has ended.
    sm("kill", "web")
    assert sm("restart", "web", cwd=elsewhere).stdout == "web\n"
    assert supermachine.attach("web").running


def test_a_start_that_fails_leaves_it_as_it_was(busybox: str, tmp_path: Path) -> None:
    image = tmp_path / "image.tar"
    image.symlink_to(os.path.abspath(busybox))
    sm("run", "-q", "-d", "--name", "web", str(image), "sh", "-c", "echo words; exit 3")
    assert sm("wait", "web").stdout == "3\n"
    image.unlink()
    said = sm("start", "web", "nobody", check=False)
    assert said.returncode == 1
    assert str(image) in said.stderr
    assert "there is no machine nobody" in said.stderr
    state = supermachine.attach("web").state
    assert (state.status, state.exit_code) == ("exited", 3)
    assert sm("logs", "web").stdout == "words\n"


def test_a_fork_is_not_started_again(busybox: str) -> None:
    machine = supermachine.start(busybox, ["sleep", "1000"], name="web", stop_timeout=0)
    (fork,) = machine.fork()
    fork.stop(0)
    with pytest.raises(errors.NotSupported, match="was a fork"):
        fork.start()


def test_a_machine_is_renamed(busybox: str, runtime: Path) -> None:
    sm("run", "-q", "-d", "--name", "old", busybox, "sh", "-c", "while true; do echo line; sleep 0.1; done")
    other = supermachine.start(busybox, ["sleep", "1000"], name="other")
    machine = supermachine.attach("old")
    sm("rename", "old", "new")
    assert sm("ps", "-q").stdout == "new\nother\n"
    # Also for who had it by its former name, a moment ago.
    with pytest.raises(errors.NoSuchMachine):
        _ = machine.state
    assert sm("exec", "new", "echo", "here").stdout == "here\n"
    count = len(sm("logs", "new").stdout)
    assert until(lambda: len(sm("logs", "new").stdout) > count)

    taken = sm("rename", "new", "other", check=False)
    assert taken.returncode == 125
    assert "there is a machine other already" in taken.stderr
    assert sm("rename", "new", "-x", check=False).returncode == 125
    other.rename("third")
    assert other.name == "third"
    assert other.running
    # Its keeper looks every two seconds whether its directory is there.
    with pytest.raises(errors.VMTimeout):
        other.wait(timeout=5)

    sm("stop", "-t", "0", "new")
    sm("rename", "new", "last")
    assert sm("ps", "-a", "--format", "{{.Names}} {{.State}}").stdout == "last exited\nthird running\n"
    sm("start", "last")
    assert sorted(path.name for path in (runtime / "machines").iterdir()) == [".lock", "last", "third"]


def test_events_are_told_as_they_happen(busybox: str) -> None:
    with subprocess.Popen(
        [*CLI, "events", "--format", "{{.Action}} {{.Name}}", "--filter", "name=web"], stdout=subprocess.PIPE, text=True
    ) as listener:
        try:
            health = ("--health-cmd", "true", "--health-interval", "0.1s")
            sm("run", "-q", "-d", "--name", "web", *health, busybox, "sleep", "1000")
            assert until(lambda: any(event.action.startswith("health") for event in events.read()))
            sm("pause", "web")
            sm("unpause", "web")
            sm("restart", "-t", "0", "web")
            sm("stop", "-t", "0", "web")
            sm("start", "web")
            sm("kill", "web")
            sm("rename", "web", "other")
            sm("rm", "other")
            wanted = ["start", "health_status: healthy", "pause", "unpause", "restart", "die", "start", "kill", "die"]
            assert listener.stdout is not None
            heard: list[str] = []
            while heard != wanted:
                action, _, _name = listener.stdout.readline().strip().rpartition(" ")
                # Each main process is found healthy.
                if action not in heard or not action.startswith("health"):
                    heard.append(action)
                assert heard == wanted[: len(heard)]
        finally:
            listener.terminate()
    rest = sm("events", "--since", "10m", "--until", "0s", "--filter", "name=other", "--format", "json").stdout
    renamed, destroyed = (json.loads(line) for line in rest.splitlines())
    assert renamed["Actor"]["Attributes"] == {"image": busybox, "name": "other", "oldName": "web"}
    assert destroyed["Action"] == "destroy"
    (die, _killed) = [
        json.loads(line)
        for line in sm(
            "events", "--since", "10m", "--until", "0s", "-f", "event=die", "--format", "json"
        ).stdout.splitlines()
    ]
    assert die["Actor"]["Attributes"]["exitCode"] in ("137", "143")
    assert " container start " in sm("events", "--since", "10m", "--until", "0s").stdout
    assert "NAME=VALUE" in sm("events", "--filter", "colour=red", check=False).stderr


def test_events_are_bounded(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_BYTES", 10_000)
    for number in range(1000):
        events.note("start", f"machine-{number}", "0" * 64, "image")
    assert sum(file.stat().st_size for file in (runtime / "events").iterdir()) < 25_000
    names = [event.name for event in events.read()]
    assert names == [f"machine-{number}" for number in range(1000 - len(names), 1000)]
    assert len(names) > 30


@pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows")
def test_machines_that_nobody_has_any_more_leave_nothing_here(busybox: str) -> None:
    def work() -> None:
        machine = supermachine.attach("kept")
        assert machine.run(["echo", "x"], text=True).stdout == "x\n"
        del machine
        gc.collect()

    def left() -> tuple[int, int]:
        return pipes(), threading.active_count()

    def idle() -> bool:
        """Threads that have what is left of a command end beside this one."""
        return all(now <= then for now, then in zip(left(), before, strict=True))

    supermachine.start(busybox, ["sleep", "1000"], name="kept")
    # What all commands of this process share is there after the first.
    work()
    before = left()
    for _ in range(3):
        work()
    assert until(idle)


def test_clients_that_have_gone_leave_nothing_at_the_keeper(busybox: str) -> None:
    """More of them than a keeper has connections at once."""
    machine = supermachine.start(busybox, ["sleep", "1000"], name="waited")
    for _ in range(300):
        with pytest.raises(errors.VMTimeout):
            machine.wait(timeout=0.001)
    for _ in range(30):
        other = supermachine.attach("waited")
        assert other.run(["true"]).returncode == 0
        del other
        gc.collect()
    assert machine.run(["echo", "x"], text=True).stdout == "x\n"
    if sys.platform == "linux":
        tasks = Path(f"/proc/{machine.inspect()['keeper']}/task")
        assert until(lambda: sum(1 for _ in tasks.iterdir()) < 30)


def test_a_connection_that_is_handed_over_is_no_programs(busybox: str) -> None:
    machine = supermachine.start(busybox, ["sleep", "1000"], name="handed")
    connection, _tty, _interactive = machine._attached()
    with connection:
        assert not os.get_inheritable(connection.fileno())


def test_arguments_that_no_keeper_takes_are_refused_as_such(busybox: str) -> None:
    machine = supermachine.start(busybox, ["sleep", "1000"], name="wordy")
    for words, env in ((["echo", *["x" * 1000] * 1100], {}), (["true"], {"LONG": "x" * (2 << 20)})):
        with pytest.raises(errors.ArgumentsTooLong):
            machine.spawn(words, env=env)
    assert machine.spawn(["true"]) > 0
