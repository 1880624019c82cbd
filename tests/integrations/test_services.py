"""What services are told apart by, and how long one attempt of a wait is, without guests."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from supermachine import Secret
from supermachine.errors import VMTimeout
from supermachine.guest.processes import TimeoutExpired
from supermachine.integrations import pytest_plugin, services
from supermachine.integrations.services import Service, Services
from supermachine.integrations.waits import command, healthy, http, log, port


class Machine:
    """In place of a virtual machine: what it was made of, and whether it was killed."""

    def __init__(self, image: object, **options: object) -> None:
        self.made_of = (image, options)
        self.state: object = None
        self.killed = False

    def start(self) -> Machine:
        return self

    def command(self, *_: object) -> list[str]:
        return ["program"]

    def popen(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(stdout=None, poll=lambda: None)

    def kill(self) -> None:
        self.killed = True


class Template:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.closed = False

    def fork(self) -> Machine:
        image, options = self.machine.made_of
        fork = Machine(image, **options)
        fork.state = self.machine.state
        return fork

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`make` of services of machines that are none; gives the state that a service was prepared with."""
    monkeypatch.setattr(services, "VM", Machine)
    monkeypatch.setattr(services, "Template", Template)
    found = Services()

    def make(*args: Any, **options: Any) -> Any:
        return found.make(*args, **options).vm.state  # type: ignore[attr-defined]

    make.templates = found._templates  # type: ignore[attr-defined]
    yield make
    found.close()


def _sets(state: object) -> Callable[[Service], None]:
    def setup(service: Service) -> None:
        service.vm.state = state  # type: ignore[attr-defined]

    return setup


def test_each_setup_has_the_state_that_it_made(made: Callable[..., Any]) -> None:
    """Functions that nobody else keeps: the next one may have the address of the one before."""
    states = []
    for number in range(20):
        states.append(made("image", setup=_sets(number)))
        gc.collect()
    assert states == list(range(20))


def test_each_condition_is_its_own(made: Callable[..., Any]) -> None:
    heard: list[int] = []
    for number in range(20):
        made("image", wait=lambda _, n=number: heard.append(n) or True, setup=_sets(None))
        made("image", wait=[port_is_open, lambda _, n=number: heard.append(n) or True])
        gc.collect()
    assert heard == [n for number in range(20) for n in (number, number)]


def port_is_open(_: Service) -> bool:
    return True


def test_what_is_the_same_is_prepared_once(made: Callable[..., Any]) -> None:
    setup = _sets("state")
    for _ in range(3):
        options = {"ports": {"80/tcp": None}, "environment": {"A": "b"}, "volumes": [["a", "b"]]}
        assert made("image", ["a", "b"], wait=[port_is_open, log("")], setup=setup, **options) == "state"
    assert len(made.templates) == 1  # type: ignore[attr-defined]
    for other in ({"ports": {"81/tcp": None}}, {"ports": {}}, {"memory": 1}, {"memory": True}, {"memory": "1"}):
        made("image", setup=setup, **other)
    assert len(made.templates) == 6  # type: ignore[attr-defined]


def test_secrets_are_told_apart_though_their_text_is_the_same(made: Callable[..., Any]) -> None:
    setup = _sets("state")
    for value in ("value one", "value two", "value one"):
        made("image", setup=setup, secrets={"TOKEN": Secret(value, hosts=["a.test"])})
    assert len(made.templates) == 2  # type: ignore[attr-defined]


def test_what_cannot_be_compared_is_itself(made: Callable[..., Any]) -> None:
    class Odd:
        """An option whose text is always the same."""

        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __repr__(self) -> str:
            return "Odd()"

    setup, odd = _sets("state"), Odd()
    for option in (odd, odd, Odd(), Odd()):
        made("image", setup=setup, network=option)
    assert len(made.templates) == 3  # type: ignore[attr-defined]


def test_each_machine_of_a_template_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of a fixture that is made anew for a class or a test: the addresses of earlier ones are used again."""
    from supermachine.machine import template

    monkeypatch.setattr(template, "Template", Template)
    made = pytest_plugin._captures()
    of = next(made)
    states = []
    for number in range(20):
        machine = Machine("image")
        machine.state = number
        assert of(machine) is of(machine)  # type: ignore[arg-type]
        states.append(of(machine).fork().state)  # type: ignore[arg-type,attr-defined]
        del machine
        gc.collect()
    assert states == list(range(20))
    with pytest.raises(StopIteration):
        next(made)


class Slow:
    """A guest whose commands take as long as they are let."""

    image = SimpleNamespace(
        reference="image",
        config=SimpleNamespace(healthcheck={"Test": ["CMD", "check"], "Timeout": 3600 * 10**9}),
    )

    def run(self, args: object, *, shell: bool, timeout: float) -> None:
        time.sleep(min(timeout, 20))
        raise TimeoutExpired(args, timeout)


@pytest.mark.parametrize("condition", [healthy(), command("check")])
def test_an_attempt_ends_with_the_wait(condition: Callable[[Service], bool]) -> None:
    service = Service(Slow(), None)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(VMTimeout, match=r"did not hold within 0\.5 seconds"):
        service.wait(condition, 0.5)
    assert time.monotonic() - began < 3


def test_an_answer_that_comes_byte_by_byte_ends_with_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 " + b"O" * 1000:
                    if over.wait(0.1):
                        return
                    connection.sendall(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            vm = SimpleNamespace(ports={"80/tcp": [server.getsockname()]})
            began = time.monotonic()
            with pytest.raises(VMTimeout, match="did not hold within 1 seconds"):
                Service(vm, None).wait(http(80), 1)  # type: ignore[arg-type]
            assert time.monotonic() - began < 4
        finally:
            over.set()
            thread.join(10)


def test_a_status_that_is_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        statuses = ["503 No", "404 Not Found", "200 OK"]
        left = list(statuses)

        def answer() -> None:
            while left:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(f"HTTP/1.1 {left.pop(0)}\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        service = Service(SimpleNamespace(ports={"80/tcp": [server.getsockname()]}), None)  # type: ignore[arg-type]
        service.wait(http(80, status=404), 30)
        assert left == ["200 OK"]
        service.wait(http(80), 30)
        thread.join(10)
        assert not http(80)(service)


def test_outside_of_a_wait_an_attempt_has_its_usual_time() -> None:
    service = Service(Slow(), None)  # type: ignore[arg-type]
    assert service.remaining == float("inf")
    assert port(80).number == 80
