"""Lives of containers whose machines are none: starts, ends and stops that meet, and what fails meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from supermachine.docker import container as containers
from supermachine.docker import documents, guests, processes, serving, session, specification
from supermachine.docker.container import Container
from supermachine.docker.errors import ApiError, Conflict, NotModified
from supermachine.docker.logs import Log
from supermachine.docker.session import Session
from supermachine.errors import CommandNotFound, CopyTooLarge, HostShortage, SupermachineError
from supermachine.guest.processes import TimeoutExpired


class Machine:
    """In place of a virtual machine."""

    def __init__(self) -> None:
        self.running = False
        self.killed = False
        self.pid = 1
        self.segments: set[str] = set()
        self.network = SimpleNamespace(
            join=lambda segment, *_, **__: self.segments.add(segment),
            leave=lambda segment: self.segments.discard(segment),
        )
        #: What is called in place of `stop`, and of copying out.
        self.stops: Callable[[], None] = lambda: None
        self.tree: Callable[[Path], None] = lambda _: None

    def start(self) -> Machine:
        self.running = True
        return self

    def stop(self) -> None:
        self.stops()
        self.running = False

    def kill(self) -> None:
        self.running, self.killed = False, True

    def __enter__(self) -> Machine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def path(self, *_: str) -> Any:
        return SimpleNamespace(is_dir=lambda: True)

    def copy_out(self, _: str, target: Path, *, max_bytes: int) -> None:
        assert max_bytes
        target.mkdir()
        self.tree(target)


class Command:
    """In place of a process."""

    stdin = stdout = stderr = None
    pid = 7

    def __init__(self) -> None:
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.loop = asyncio.get_running_loop()

    async def wait(self) -> int:
        return await asyncio.shield(self.code)

    def end(self, code: int = 0) -> None:
        if not self.code.done():
            self.code.set_result(code)

    def signal(self, number: int) -> None:
        self.loop.call_soon_threadsafe(self.end, 128 + number)

    def resize(self, *_: int) -> None: ...
    def close(self) -> None: ...


class Lived(Container):
    """A container that has such a machine, and runs such a command."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.machines: list[Machine] = []
        self.commands: list[Command] = []
        #: Waited for by each start, and what it raises.
        self.gate = asyncio.Event()
        self.gate.set()
        self.opening = asyncio.Event()
        self.trouble: Exception | None = None

    def _new_machine(self, mounts: Any) -> Any:
        self.machines.append(Machine())
        return self.machines[-1]

    def _segments(self, _: object) -> dict[str, list[str]]:
        return {"segment": [self.name]}

    @property
    def command(self) -> list[str]:
        return ["program"]

    def _health_test(self) -> None:
        return None

    async def _open(self) -> Any:
        vm = await self.machine()
        self._join(vm)
        self.opening.set()
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.commands.append(Command())
        return self.commands[-1]


def alone(test: Callable[[Session, Path], Coroutine[Any, Any, None]], directory: Path) -> None:
    async def run() -> None:
        found = Session(directory)
        try:
            await asyncio.wait_for(test(found, directory), 60)
        finally:
            await asyncio.wait_for(found.close(), 30)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def no_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests.group, "kill", lambda _: None)
    monkeypatch.setattr(containers.group, "freeze", lambda *_: None)


def lived(found: Session, directory: Path, name: str = "one", **host: Any) -> Lived:
    wanted = specification.parse({"Image": "image", "HostConfig": host}, found.platform)
    logs = directory / "of-tests" / name
    logs.mkdir(parents=True)
    image: Any = SimpleNamespace(labels={}, said=SimpleNamespace(stop_signal=None, exposed_ports=(), healthcheck=None))
    made = Lived(found, name.ljust(64, "0"), name, wanted, image, Log(logs))
    found.containers._containers[made.id] = made
    return made


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["stop", "kill", "remove"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_stopped_while_it_restarts_does_not_run(how: str, fails: bool, tmp_path: Path) -> None:
    """The restart is within its start, which is not to complete after the stop has been answered."""

    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory, RestartPolicy={"Name": "always"})
        await one.start()
        one.gate.clear()
        one.opening.clear()
        one.commands[0].end(1)
        await one.opening.wait()
        assert one.status == "restarting"
        if fails:
            one.trouble = SupermachineError("no")
        work = {"stop": one.stop, "kill": one.kill, "remove": lambda: one.remove(force=True, volumes=False)}[how]
        stopping = asyncio.create_task(work())
        await asyncio.sleep(0.05)
        one.gate.set()
        try:
            await stopping
        except (NotModified, Conflict):
            assert fails
        assert not one.alive
        await asyncio.sleep(0.3)
        assert not one.alive
        assert all(command.code.done() for command in one.commands)
        if how == "remove":
            assert one.removed and not any(machine.running for machine in one.machines)

    alone(test, tmp_path)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_is_stopped_between_two_tries_is_not_tried_again(how: str, tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory, RestartPolicy={"Name": "always"})
        await one.start()
        one.commands[0].end(1)
        await until(lambda: one.status == "restarting")
        with pytest.raises(Conflict, match="is restarting, wait until"):
            await one.pause()
        await getattr(one, how)()
        assert one.status == "exited"
        await asyncio.sleep(0.4)
        assert len(one.commands) == 1
        # Of its files.
        assert one.id in found._parked
        await one.start()
        one.commands[1].end(1)
        # A start by hand has the policy hold again.
        await until(lambda: len(one.commands) == 3)

    alone(test, tmp_path)


@pytest.mark.parametrize(
    "host, codes, tries",
    [
        ({"Name": "always"}, (0, 1, 0), 4),
        ({"Name": "unless-stopped"}, (0, 1, 0), 4),
        ({"Name": "on-failure", "MaximumRetryCount": 2}, (1, 1, 1), 3),
        ({"Name": "on-failure"}, (1, 1, 0), 3),
        ({"Name": "no"}, (1,), 1),
    ],
)
def test_how_often_a_policy_starts_it(host: dict[str, Any], codes: tuple[int, ...], tries: int, tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory, RestartPolicy=host)
        await one.start()
        for number, code in enumerate(codes):
            await until(lambda number=number: len(one.commands) > number)  # type: ignore[misc]
            one.commands[number].end(code)
        await until(lambda: one.ends == len(codes))
        await until(lambda: len(one.commands) == tries)
        # Longer than the pause before another try would be.
        await asyncio.sleep(0.0 if one.alive else 1.0)
        assert len(one.commands) == tries
        assert one.alive == (tries > len(codes))
        await found.containers.all()[0].remove(force=True, volumes=False)
        assert not found.containers.all()

    alone(test, tmp_path)


def test_a_machine_whose_command_did_not_start_waits_as_one_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(found: Session, directory: Path) -> None:
        monkeypatch.setattr(session, "MAX_PARKED", 3)
        many = []
        for number in range(8):
            one = lived(found, directory, f"c{number}")
            one.trouble = CommandNotFound("no such program")
            with pytest.raises(ApiError):
                await one.start()
            assert not one.machines[0].segments
            many.append(one)
        await until(lambda: sum(c.machines[0].running for c in many) == 3)
        # One that is started again is not ended as one that waits.
        last = many[-1]
        last.trouble = None
        await last.start()
        assert last.id not in found._parked
        await last.drop_parked()
        assert last.machines[-1].running

    alone(test, tmp_path)


def test_one_that_begins_while_it_is_to_be_ended_for_others_runs(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory)
        await one.start()
        one.commands[0].end()
        await until(lambda: one.id in found._parked)
        one.gate.clear()
        one.opening.clear()
        starting = asyncio.create_task(one.start())
        await one.opening.wait()
        dropping = asyncio.create_task(one.drop_parked())
        await asyncio.sleep(0.02)
        one.gate.set()
        await asyncio.gather(starting, dropping)
        assert one.status == "running" and one.machines[0].running and len(one.machines) == 1

    alone(test, tmp_path)


def test_a_machine_that_does_not_stop_is_killed_and_its_container_goes(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory)
        one._volume = lambda _: SimpleNamespace(disk=True, filled=True)  # type: ignore[assignment,method-assign]
        one.mounts = [specification.VolumeMount("volume", "", "/data", False)]
        await one.start()

        def stops() -> None:
            raise HostShortage("no descriptor is left")

        one.machines[0].stops = stops
        with pytest.raises(ApiError, match="did not end cleanly: no descriptor is left"):
            await one.remove(force=True, volumes=False)
        assert one.machines[0].killed
        assert one.removed and not found.containers.all()
        await one.remove(force=True, volumes=False)

    alone(test, tmp_path)


def test_a_command_that_ends_while_it_is_paused_is_not_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory)
        await one.start()
        freezing, over = threading.Event(), threading.Event()
        frozen: list[bool] = []

        def freeze(_: object, whether: bool) -> None:
            if whether:
                freezing.set()
                assert over.wait(20)
            frozen.append(whether)

        monkeypatch.setattr(containers.group, "freeze", freeze)
        pausing = asyncio.create_task(one.pause())
        await until(freezing.is_set)
        one.commands[0].end()
        await until(lambda: one.status == "exited")
        over.set()
        with pytest.raises(Conflict, match="is not running"):
            await pausing
        assert one.status == "exited"
        # What is started next is not born frozen.
        assert frozen == [True, False]
        await one.start()
        assert one.status == "running"
        await one.pause()
        assert one.status == "paused"
        one.commands[1].end(137)
        await until(lambda: one.status == "exited")
        assert frozen[-1] is False
        await one.start()
        # The end is heard of while it is being let go on.
        await one.pause()

        def ends(*_: object) -> None:
            one.commands[2].loop.call_soon_threadsafe(one.commands[2].end)
            deadline = time.monotonic() + 20
            while one.status == "paused" and time.monotonic() < deadline:
                time.sleep(0.005)

        monkeypatch.setattr(guests, "thaw", lambda _: None)
        monkeypatch.setattr(containers.group, "freeze", ends)
        await one.unpause()
        assert one.status == "exited"

    alone(test, tmp_path)


def test_a_pause_meanwhile_outlasts_what_holds_the_processes_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a commit does."""

    async def test(found: Session, directory: Path) -> None:
        frozen: list[bool] = []
        monkeypatch.setattr(containers.group, "freeze", lambda _, whether: frozen.append(whether))
        one = lived(found, directory)
        await one.start()
        async with one.still():
            pausing = asyncio.create_task(one.pause())
            await asyncio.sleep(0.05)
            assert frozen == [True]
        await pausing
        assert (one.status, frozen) == ("paused", [True, False, True])
        async with one.still():
            pass
        assert frozen == [True, False, True]
        await one.unpause()
        with pytest.raises(OSError, match="full"):
            async with one.still():
                raise OSError("full")
        assert frozen[-2:] == [True, False]

    alone(test, tmp_path)


def test_a_port_of_an_image_that_is_none_keeps_no_list_from_being_given(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory)
        one.image.said.exposed_ports = ("", "80", "x/tcp", "53/udp")
        await one.start()
        assert documents._published(one) == {"80/tcp": None, "53/udp": None}

    alone(test, tmp_path)


class Popen:
    """A process of a guest whose end nothing tells of, as there are no descriptors."""

    pid = 1
    stdin = stdout = stderr = None

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.looks = 0
        self._exec = self

    def done_fd(self) -> int:
        raise OSError(24, "Too many open files")

    def wait(self, timeout: float) -> int:
        self.looks += 1
        time.sleep(max(0.0, min(timeout, self.end - time.monotonic())))
        if time.monotonic() < self.end:
            raise TimeoutExpired("program", timeout)
        return -9


def test_an_end_that_nothing_tells_of_is_found(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        popen: Any = Popen(2.5)
        assert await processes.Process(popen, tty=False).wait() == 137
        assert popen.looks < 60
        # Of many at once, whatever threads there are.
        many: list[Any] = [Popen(1.5) for _ in range(50)]
        began = time.monotonic()
        codes = await asyncio.gather(*(processes.Process(one, tty=False).wait() for one in many))
        assert set(codes) == {137} and time.monotonic() - began < 10
        one = lived(found, directory)
        command: Any = processes.Process(Popen(2.0), tty=False)  # type: ignore[arg-type]
        await one.start()
        await one._supervise(command)
        assert (one.status, one.exit_code) == ("exited", 137)

    alone(test, tmp_path)


def test_a_command_of_exec_whose_end_nothing_tells_of_is_found(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        one = lived(found, directory)
        await one.start()
        execution = found.executions.create(one, {"Cmd": ["program"]})
        execution.started = True
        process = processes.Process(Popen(1.5), tty=False)  # type: ignore[arg-type]
        ending = asyncio.create_task(found.executions._end(execution, process))
        duplex: Any = SimpleNamespace()
        await asyncio.wait_for(found.executions.talk(execution, process, duplex), 20)
        await ending
        assert (execution.exit_code, execution.running) == (137, False)

    alone(test, tmp_path)


def _fill(number: int) -> Callable[[Path], None]:
    def fill(target: Path) -> None:
        for name in range(number):
            (target / str(name)).touch()
            time.sleep(0.01)

    return fill


def test_a_new_volume_is_filled_once_and_nobody_sees_it_before(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        volume = found.volumes.ensure("data", {})
        many = []
        for number in range(6):
            one = lived(found, directory, f"c{number}")
            one.mounts = [specification.VolumeMount("volume", str(volume.path), "/data", False)]
            many.append(one)
        fillers: list[Machine] = []
        seen: list[int] = []

        def filler(one: Lived, mounts: Any) -> Machine:
            machine = Machine()
            if mounts:
                start = machine.start

                def started() -> Machine:
                    seen.append(len(list(volume.path.iterdir())))
                    return start()

                machine.start = started  # type: ignore[method-assign]
            else:
                fillers.append(machine)
                machine.tree = _fill(30)
            return machine

        for one in many:
            one._new_machine = lambda mounts, one=one: filler(one, mounts)  # type: ignore[method-assign,misc]

        async def later(number: int) -> None:
            await asyncio.sleep(0.05 * number)
            await many[number].start()

        await asyncio.gather(*map(later, range(6)))
        assert seen == [30] * 6
        assert sum(machine.killed for machine in fillers) == 1

    alone(test, tmp_path)


def test_a_volume_that_cannot_be_filled_is_an_error_and_is_tried_again(tmp_path: Path) -> None:
    async def test(found: Session, directory: Path) -> None:
        volume = found.volumes.ensure("data", {})
        one = lived(found, directory)
        one.mounts = [specification.VolumeMount("volume", str(volume.path), "/data", False)]
        broken = True

        def machine(_: Any) -> Any:
            made = Machine()

            def tree(target: Path) -> None:
                (target / "half").touch()
                if broken:
                    raise CopyTooLarge("/data of the guest has more than 1 bytes")

            made.tree = tree
            return made

        one._new_machine = machine  # type: ignore[method-assign]
        with pytest.raises(
            ApiError, match=r"volume data cannot have what the image has at /data: .* more than 1 bytes"
        ):
            await one.start()
        assert "more than 1 bytes" in one.error
        assert not volume.filled
        assert [path.name for path in volume.path.parent.iterdir()] == ["_data"]
        assert not list(volume.path.iterdir())
        broken = False
        await one.start()
        assert [path.name for path in volume.path.iterdir()] == ["half"]

    alone(test, tmp_path)


def test_a_session_that_begins_is_not_taken_for_one_that_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another session looks for what was left at each step of it."""
    # A path that is short enough for a socket's.
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(serving.tempfile, "tempdir", str(place))
    steps: list[str] = []

    def around(module: Any, name: str) -> None:
        real = getattr(module, name)

        def called(*args: Any, **options: Any) -> Any:
            monkeypatch.setattr(module, name, real)
            serving._remove_left()
            found = real(*args, **options)
            serving._remove_left()
            steps.append(name)
            return found

        monkeypatch.setattr(module, name, called)

    async def run() -> None:
        around(serving.fcntl, "flock")
        around(Path, "rename")
        async with serving.served() as socket:
            assert socket.exists()
            serving._remove_left()
            assert socket.exists()

    asyncio.run(run())
    assert steps == ["flock", "rename"]
    place.rmdir()
