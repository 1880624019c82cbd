"""What clients and keepers do with each other where one stands still, fails or has gone."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import supermachine
from supermachine import errors, local_sockets
from supermachine.named import attached, client, launch, protocol
from supermachine.named.moment import Moment
from supermachine.named.records import Record
from supermachine.named.registry import Place, Registry
from supermachine.named.server import Server

from .conftest import until


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ANSWER", 0.5)
    monkeypatch.setattr(client, "_LOOK", 0.1)
    monkeypatch.setattr(client, "_GLANCE", 0.5)


@pytest.fixture
def web(runtime: Path) -> Iterator[Place]:
    """A machine that this process keeps, as far as anybody can tell."""
    place, fd = Registry(runtime).create("web")
    Record("web", "x", "image", started=1.0, policy={"stop_timeout": 0.1}).write(place.record_path)
    yield place
    os.close(fd)


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


# Clients that look on.


def test_who_has_gone_makes_room_for_others() -> None:
    """Of a machine that says nothing, so that nothing is sent to them."""
    looked = attached.Attached(lambda _data: None)
    before = descriptors()
    for _ in range(3):
        for fd in [looked.add() for _ in range(attached.MAX_CLIENTS)]:
            os.close(fd)
        assert until(lambda: not looked._clients, 20)
    assert until(lambda: descriptors() == before, 20)


def test_the_limit_of_those_who_look_on_is_told_as_what_it_is() -> None:
    looked = attached.Attached(lambda _data: None)
    held = [looked.add() for _ in range(attached.MAX_CLIENTS)]
    with pytest.raises(errors.ConfigurationError, match="that is the limit"):
        looked.add()
    looked.close()
    with pytest.raises(errors.MachineNotRunning):
        looked.add()
    for fd in held:
        assert os.read(fd, 1) == b""
        os.close(fd)


def test_who_has_ended_its_input_still_looks_on() -> None:
    typed: list[bytes] = []
    looked = attached.Attached(typed.append)
    with socket.socket(fileno=looked.add()) as one:
        one.settimeout(20)
        one.sendall(b"words")
        one.shutdown(socket.SHUT_WR)
        assert until(lambda: typed == [b"words"])
        time.sleep(0.3)
        looked.write("stdout", b"seen")
        looked.close()
        assert list(attached.frames(one)) == [(1, b"seen")]
    assert not looked._clients


def test_frames_of_both_streams_do_not_mix() -> None:
    looked = attached.Attached(lambda _data: None)
    with socket.socket(fileno=looked.add()) as one:
        writers = [
            threading.Thread(target=lambda name=name: [looked.write(name, name.encode() * 9000) for _ in range(50)])
            for name in attached.STREAMS
        ]
        for writer in writers:
            writer.start()
        seen: dict[int, bytes] = {1: b"", 2: b""}
        for stream, data in attached.frames(one):
            seen[stream] += data
            if sum(map(len, seen.values())) == 2 * 6 * 9000 * 50:
                break
        assert seen == {1: b"stdout" * 450_000, 2: b"stderr" * 450_000}
        for writer in writers:
            writer.join()
    looked.close()


# Errors of the keeper's.


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(110, "too slow"),
        PermissionError(13, "not yours"),
        BrokenPipeError("gone"),
        ValueError("no"),
        errors.HostShortage("none left", hint="end something"),
        errors.MachineNotRunning("over"),
    ],
)
def test_errors_are_raised_again_as_what_they_are(error: Exception) -> None:
    again = protocol.error_from_json(json.loads(json.dumps(protocol.error_to_json(error))))
    assert type(again) is type(error)
    assert str(error) in str(again)
    assert getattr(again, "errno", None) == getattr(error, "errno", None)


@contextlib.contextmanager
def answering(place: Place, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """A keeper that answers so."""
    listener = local_sockets.listen(place.socket)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                channel = protocol.Channel(connection)
                while (request := channel.receive()) is not None:
                    channel.send(answer(request))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("error", [errors.MachineNotRunning("it has ended"), errors.HostShortage("none left")])
def test_no_connection_to_a_guest_is_told_as_what_it_is(web: Place, error: Exception) -> None:
    machine = supermachine.attach("web")
    with answering(web, lambda _request: {"error": protocol.error_to_json(error)}):
        for ask in (lambda: machine._dial(80), machine._attached):
            with pytest.raises(type(error), match=str(error)):
                ask()


def test_a_keeper_that_goes_while_it_is_asked_leaves_nothing_here(web: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    send = protocol.Channel.send

    def broken(channel: protocol.Channel, message: dict[str, Any], fd: int | None = None) -> None:
        if message.get("ask") == "watch":
            raise BrokenPipeError(32, "Broken pipe")
        send(channel, message, fd)

    monkeypatch.setattr(protocol.Channel, "send", broken)
    context = {"environment": {}, "working_dir": "/", "user": "root"}
    machine = supermachine.attach("web")
    with answering(web, lambda _request: {"ok": True, "phase": "running", "context": context}):
        with pytest.raises(errors.KeeperLost, match="has gone"):
            machine.run(["true"])
        gc.collect()
        before = descriptors()
        for _ in range(5):
            with pytest.raises(errors.KeeperLost):
                machine.run(["true"])
        # Those that the thread here has accepted and not closed yet are on their way.
        assert until(lambda: descriptors() <= before, 10)


# Keepers that stand still.


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_a_keeper_that_stands_still(web: Place) -> None:
    machine = supermachine.attach("web")
    with local_sockets.listen(web.socket):
        for ask in (
            machine.wait,
            lambda: machine.wait(timeout=600),
            machine.stop,
            lambda: machine.stop(0),
            machine.kill,
            machine.pause,
            lambda: machine.run(["true"]),
            lambda: machine._dial(80),
        ):
            began = time.monotonic()
            with pytest.raises(errors.KeeperLost, match="did not answer") as lost:
                ask()
            assert time.monotonic() - began < 10
            assert "rm -f web" in str(lost.value.hint)
        with pytest.raises(errors.VMTimeout):
            machine.wait(timeout=0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["wait", "stop"])
def test_a_keeper_that_is_alive_is_waited_for(web: Place, how: str) -> None:
    over = Moment()
    record = SimpleNamespace(exit_code=7, error="")
    asked = []
    keeper = SimpleNamespace(place=web, over=over, record=record, stop=lambda *grace: asked.append(grace))
    server = Server(keeper).start()  # type: ignore[arg-type]
    later = threading.Timer(2.0, over.set)
    later.start()
    try:
        machine = supermachine.attach("web")
        began = time.monotonic()
        assert (machine.wait() if how == "wait" else machine.stop(0)) in (7, None)
        assert machine._last_exit_code == 7
        assert time.monotonic() - began >= 1.9
        assert asked == ([] if how == "wait" else [(0.0, None)])
    finally:
        later.join()
        server.close()


@pytest.mark.usefixtures("impatient")
def test_a_start_ends_with_a_keeper_that_says_nothing() -> None:
    reader, writer = os.pipe()
    os.write(writer, b'{"alive": true}\n{"say": "a li')
    said: list[str] = []
    with pytest.raises(errors.KeeperLost, match="has said nothing for"):
        launch.wait(reader, said.append)
    os.close(writer)

    reader, writer = os.pipe()

    def slow() -> None:
        for _ in range(10):
            time.sleep(0.1)
            os.write(writer, b'{"alive": true}\n{"say": "a line"}\n')
        os.write(writer, b'{"name": "web"}\n')

    thread = threading.Thread(target=slow)
    thread.start()
    assert launch.wait(reader, said.append) == {"name": "web"}
    thread.join()
    os.close(writer)
    assert said == ["a line"] * 10


@pytest.mark.vm
@pytest.mark.usefixtures("runtime")
def test_a_machine_whose_keeper_is_stopped(busybox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = supermachine.start(busybox, ["sleep", "1000"], name="web", stop_timeout=0)
    keeper = machine.inspect()["keeper"]
    monkeypatch.setattr(protocol, "ANSWER", 1.0)
    monkeypatch.setattr(client, "_LOOK", 0.5)
    monkeypatch.setattr(client, "_GLANCE", 1.0)
    os.kill(keeper, signal.SIGSTOP)
    for ask in (machine.stop, machine.wait, machine.kill):
        with pytest.raises(errors.KeeperLost, match="did not answer"):
            ask()
    machine.remove(force=True)
    assert supermachine.machines(all=True) == []
