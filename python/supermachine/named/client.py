"""Machines with names, as programs and the command line see them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import local_sockets, shortage
from ..errors import (
    ArgumentsTooLong,
    ConfigurationError,
    HostShortage,
    KeeperLost,
    MachineNotRunning,
    MachineRunning,
    NoSuchMachine,
)
from ..guest.process_context import START_TIMEOUT, Context
from ..host import process_stat
from ..host.boots import boot_id
from . import logs, protocol
from .records import Record
from .registry import Place, Registry
from .spec import STOP_TIMEOUT, Policy, Spec, policy_of, restart_policy, signal_number

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from typing_extensions import Unpack

    from .._core import Remote, Watched
    from ..guest.paths import FileSystem, GuestPath
    from ..guest.processes import Args, Popen
    from ..settings.machine import MachineOptions
    from .logs import Entry

#: Seconds that a snapshot or a fork may take, as its keeper has it, and a little.
_CAPTURE = 130.0
#: Seconds in which a keeper says what it is doing, for the list of all machines.
_GLANCE = 5.0
#: Seconds between looks at whether a keeper is there of which an answer is waited for that may take long.
_LOOK = 10.0
_ALIVE = {"ask": "alive"}
#: Keepers that are asked at once, each with a descriptor.
_AT_ONCE = 128


@dataclass(frozen=True)
class State:
    """How a machine fares, at one moment."""

    name: str
    id: str
    #: "starting", "running", "paused", "restarting", "stopping", "exited", or "dead": keeper killed, or host restarted.
    status: str
    image: str
    command: list[str]
    #: Seconds since 1970.
    created: float
    started: float | None
    finished: float | None
    #: Of the main process, as a shell has it; ``None`` while it runs and where nobody was told.
    exit_code: int | None
    #: What ended it, or why nobody knows.
    error: str
    #: "starting", "healthy" or "unhealthy"; empty without a health check.
    health: str
    restarts: int
    ports: dict[str, list[tuple[str, int]]]
    labels: dict[str, str]

    @property
    def running(self) -> bool:
        """Whether there is a virtual machine, or is about to be."""
        return self.status in ("starting", "running", "paused", "restarting", "stopping")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Said:
    """What processes of a machine inherit; the keeper says it."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.environment: Mapping[str, str] = said["environment"]
        self.working_dir: str = said["working_dir"]
        self.user: str = said["user"]
        self.entrypoint: Sequence[str] = ()
        self.cmd: Sequence[str] = ()


class Machine:
    """A machine with a name, which lives in a process of its own; made by :func:`supermachine.attach`.

    What runs in it is asked for as with :class:`supermachine.VM`. The object may go; the machine stays.
    """

    def __init__(self, place: Place, registry: Registry) -> None:
        self._place = place
        self._registry = registry
        self._lock = threading.Lock()
        self._remote: Remote | None = None
        self._said: _Said | None = None
        self._filesystem: FileSystem | None = None
        self._paused = False

    @property
    def name(self) -> str:
        return self._place.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # How it fares.

    @property
    def state(self) -> State:
        """How it fares now. Raises NoSuchMachine when it has been removed."""
        found = state_of(self._place)
        if found is None:
            raise NoSuchMachine(f"there is no machine {self.name}")
        return found

    @property
    def running(self) -> bool:
        found = state_of(self._place)
        return found is not None and found.running

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        """Published ports while it runs: "80/tcp" to the addresses and ports of the host that lead there."""
        return self.state.ports

    def inspect(self) -> dict[str, Any]:
        """All that is known of it, for people and JSON; what it is called may change between versions."""
        record = self._place.record()
        state = self.state
        said: dict[str, Any] = {**state.as_dict(), "running": state.running}
        if record is not None:
            said |= {"options": record.options, "policy": record.policy, "keeper": record.keeper}
        if said["status"] in ("running", "paused", "stopping", "restarting"):
            live = self._ask({"ask": "inspect"})
            names = ("worker", "main_pid", "engine", "isolation", "health", "context", "dropped")
            said |= {name: live[name] for name in names}
        return {**said, "directory": str(self._place.path)}

    def stats(self) -> dict[str, Any]:
        """The worker's process id, its memory in bytes, its processor time in seconds, and the guest's exits."""
        said = self._ask({"ask": "stats"})
        pid = int(said["pid"])
        memory, cpu = _usage(pid)
        return {
            "pid": pid,
            "memory": memory,
            "memory_limit": said["memory_limit"],
            "cpu_seconds": cpu,
            "instructions": said["instructions"],
            "exits": said["exits"],
        }

    def top(self) -> list[dict[str, str]]:
        """Its processes, without those of the guest's system: columns of ``ps -ef`` by their titles."""
        from ..guest.process_table import TITLES, processes

        return [dict(zip(TITLES, row, strict=True)) for row in processes(self)]

    def logs(
        self,
        *,
        tail: int | None = None,
        follow: bool = False,
        since: float | None = None,
        until: float | None = None,
    ) -> Iterator[Entry]:
        """What its main process has written, line by line; with `follow`, until the machine has ended.

        `since` and `until` are seconds since 1970; of what is between them, `tail` takes the last lines.
        """
        follow_while = self._place.kept if follow else None
        return logs.read(self._place.log, tail=tail, follow=follow_while, since=since, until=until)

    # Its life.

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for its end; the exit code of its main process, ``None`` where nobody was told.

        Raises `VMTimeout` when it still runs after `timeout` seconds, and KeeperLost where its keeper stands still.
        """
        return self._until_over({"ask": "wait"}, timeout, _LOOK)

    def stop(self, timeout: float | None = None, *, signal: int | str | None = None) -> int | None:
        """Sends the stop signal, or `signal`, to its main process, SIGKILL after `timeout` seconds (default: as it was
        started with, or 10), and waits for its end. Does nothing when it has ended.
        """
        number = None if signal is None else signal_number(str(signal))
        patience = self._grace(timeout) + _LOOK
        return self._until_over({"ask": "stop", "timeout": timeout, "signal": number}, None, patience)

    def _grace(self, timeout: float | None) -> float:
        """Seconds that its main process has between the stop signal and SIGKILL."""
        record = self._place.record()
        return timeout if timeout is not None else policy_of(record.policy if record else {}).stop_timeout

    def start(self) -> None:
        """Starts it again, with what it was started with, when it has ended; does nothing while it runs.

        Its guest is a new one: of what the last one wrote there is what volumes and shared directories have. Its logs
        go on. Raises NotSupported for a fork, and what :func:`supermachine.start` does.
        """
        from ..errors import NotSupported
        from ..host.warnings import say
        from . import launch

        if self.state.running:
            return
        record = self._place.record()
        if record is None or not record.command:
            raise MachineNotRunning(f"it is not known how {self.name} was started", hint="remove it, and run it again")
        if record.parent:
            raise NotSupported(
                f"{self.name} was a fork, and what it went on from is gone",
                hint=f"supermachine rm {self.name}; then supermachine fork {record.parent}",
            )
        policy = policy_of(record.policy)
        spec = Spec(record.image, self.name, record.options, record.command, [], policy, again=record.directory or "/")
        launch.start(spec, lambda line: say(line.removeprefix("supermachine: ")))
        self._last_exit_code = None

    def restart(self, timeout: float | None = None) -> None:
        """Ends its main process as `stop` does, and starts it again in the same guest, whose files are as they were;
        one that has ended is started as by `start`. Raises NotSupported for a fork.
        """
        if not self.state.running:
            self.start()
            return
        self._ask({"ask": "restart", "timeout": timeout}, timeout=self._grace(timeout) + _CAPTURE)

    def rename(self, name: str) -> None:
        """Gives it another name, by which alone it is known from then on; its host name stays.

        Raises NameInUse, and ConfigurationError for what can be no name.
        """
        from . import events, names

        names.check(name)
        old = self._place.name
        try:
            self._place = self._registry.rename(self._place, name)
        except MachineRunning:
            self._ask({"ask": "rename", "name": name})
            self._place = self._registry.place(name)
            return
        record = self._place.record()
        if record is not None:
            record.name = name
            record.write(self._place.record_path)
            events.note("rename", name, record.id, record.image, oldName=old)

    def pause(self) -> None:
        """Stops all its processes where they are. Raises MachineNotRunning when they do already."""
        self._ask({"ask": "freeze", "frozen": True})

    def unpause(self) -> None:
        """Lets them go on. Raises MachineNotRunning when they are not paused."""
        self._ask({"ask": "freeze", "frozen": False})

    def kill(self, signal: int | str = "KILL") -> None:
        """Sends a signal to its main process, and for SIGKILL waits for its end."""
        number = signal_number(str(signal))
        self._ask({"ask": "signal", "signal": number})
        if number == 9:
            self.wait()

    def _until_over(self, request: dict[str, Any], timeout: float | None, patience: float) -> int | None:
        try:
            with contextlib.closing(self._open()) as channel:
                self._last_exit_code = self._end(channel, request, timeout, patience).get("exit_code")
        except MachineNotRunning:
            pass
        except KeeperLost:
            if self._place.kept():
                raise
        except TimeoutError:
            from ..errors import VMTimeout

            raise VMTimeout(f"the machine {self.name} still runs after {timeout:g} seconds") from None
        found = state_of(self._place)
        return found.exit_code if found is not None else self._last_exit_code

    _last_exit_code: int | None = None

    def remove(self, *, force: bool = False) -> None:
        """Removes what is left of it. Raises `MachineRunning` unless `force` ends it first."""
        if force and self._place.kept():
            with contextlib.suppress(OSError):
                self._ask({"ask": "signal", "signal": 9}, timeout=_GLANCE)
                deadline = time.monotonic() + _GLANCE
                while self._place.kept() and time.monotonic() < deadline:
                    time.sleep(0.005)
            self._registry.end_keeper(self._place)
        record = self._place.record()
        self._registry.remove(self._place)
        if record is not None:
            from . import events

            events.note("destroy", self.name, record.id, record.image)

    def snapshot(self, path: str | os.PathLike[str], *, diff: bool = False) -> dict[str, Any]:
        """Takes a snapshot into a new file, from which `VM.restore` goes on: its path, id, bytes of RAM and pause."""
        absolute = os.path.abspath(path)  # noqa: PTH100 - the keeper is elsewhere
        said = self._ask({"ask": "snapshot", "path": absolute, "diff": diff}, timeout=_CAPTURE)
        return {name: value for name, value in said.items() if name != "ok"}

    def fork(self, n: int = 1, *, names: Sequence[str] | None = None) -> list[Machine]:
        """`n` machines that go on where this one is, with keepers and ports of their own.

        Unless `names` says otherwise they are called after this one. When one cannot be made, none is.

        Their main process is no child of theirs: its output is not noted, and its exit code not known.
        """
        if n < 1:
            raise ConfigurationError(f"fork() makes 1 or more machines, not {n}")
        if names is not None and len(names) != n:
            raise ConfigurationError(f"{n} forks need {n} names, not {len(names)}")
        chosen = None if names is None else list(names)
        said = self._ask({"ask": "fork", "count": n, "names": chosen}, timeout=_CAPTURE + n)
        return [Machine(self._registry.place(name), self._registry) for name in said["names"]]

    # What runs in it.

    def run(self, args: Args, **options: Any) -> CompletedProcess[Any]:
        """`subprocess.run` in the guest, with the arguments of :meth:`supermachine.VM.run`."""
        from ..guest.processes import run

        return run(self._context(), args, **options)

    def popen(self, args: Args, **options: Any) -> Popen:
        """`subprocess.Popen` in the guest, with the arguments of :meth:`supermachine.VM.popen`."""
        from ..guest.processes import Popen

        return Popen(self._context(), args, **options)

    def spawn(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
    ) -> int:
        """Starts a process that goes on when this program has ended, without its output; its pid in the guest.

        It ends with the machine. Raises what :meth:`popen` does.
        """
        request = {"ask": "exec", "command": list(args), "env": dict(env or {}), "cwd": cwd, "user": user, "tty": tty}
        return int(self._ask(request, timeout=START_TIMEOUT + protocol.ANSWER)["pid"])

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        """A path in the guest, with the interface of `pathlib.Path`."""
        from ..guest.paths import FileSystem, GuestPath

        if self._filesystem is None:
            self._filesystem = FileSystem(self._reach, lambda: self._context().user)
        return GuestPath(*(parts or ("/",)), filesystem=self._filesystem)

    def copy_in(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> GuestPath:
        """See :meth:`supermachine.VM.copy_in`."""
        from ..guest.copying import copy_in

        slash = os.fspath(target).endswith("/")
        return copy_in(source, self.path(target), into=slash, max_bytes=max_bytes, timeout=timeout)

    def copy_out(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """See :meth:`supermachine.VM.copy_out`."""
        from ..guest.copying import copy_out

        return copy_out(self.path(source), target, max_bytes=max_bytes, timeout=timeout)

    def _context(self, user: str | None = None, working_dir: str | None = None) -> Context:
        self._reach()
        assert self._said is not None
        if self._paused:
            raise MachineNotRunning(
                f"the machine {self.name} is paused", hint=f"let it go on: supermachine unpause {self.name}"
            )
        return Context(self._reach, self._said, environment={}, working_dir=working_dir, user=user)

    # Its keeper.

    def _open(self) -> protocol.Channel:
        """A connection to the keeper. Raises MachineNotRunning, KeeperLost or HostShortage."""
        try:
            return protocol.Channel(local_sockets.connect(self._place.socket, protocol.ANSWER))
        except OSError as error:
            if (lacking := shortage.named(error, f"the machine {self.name} cannot be reached")) is not None:
                raise lacking from None
            found = state_of(self._place)
            if found is None:
                raise NoSuchMachine(f"there is no machine {self.name}") from None
            if not found.running:
                raise MachineNotRunning(
                    f"the machine {self.name} {_ending(found)}",
                    hint=f"start it again: supermachine start {self.name}; what it said: supermachine logs {self.name}",
                ) from None
            if found.status == "starting":
                raise MachineNotRunning(f"the machine {self.name} is still starting", hint="try again") from None
            raise KeeperLost(
                f"the keeper of the machine {self.name} cannot be reached",
                cause=str(error),
                hint=f"end it: supermachine rm -f {self.name}",
            ) from error

    def _ask(self, request: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """What the keeper answers within `timeout` seconds, or what it takes for what takes no time.

        Raises KeeperLost, and what the keeper raised.
        """
        with contextlib.closing(self._open()) as channel:
            return self._asked(channel, request, timeout)

    def _asked(
        self, channel: protocol.Channel, request: dict[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        timeout = protocol.ANSWER if timeout is None else timeout
        self._say(channel, request)
        if not channel.ready(timeout):
            raise self._silent(timeout)
        return self._heard(channel)

    def _end(
        self, channel: protocol.Channel, request: dict[str, Any], timeout: float | None, patience: float
    ) -> dict[str, Any]:
        """What is said of the machine's end, which may take as long as the machine lives: after `patience` seconds the
        keeper is asked now and then whether it is there. Raises TimeoutError, and what `_ask` does.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        said, wait = request, patience
        while True:
            self._say(channel, said)
            left = wait if deadline is None else min(wait, deadline - time.monotonic())
            if channel.ready(left):
                answer = self._heard(channel)
                if not answer.get("alive"):
                    return answer
                # It has left its wait for what it was asked.
                said, wait = {"ask": "wait"}, _LOOK
            elif deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
            elif said is _ALIVE:
                raise self._silent(wait)
            else:
                said, wait = _ALIVE, protocol.ANSWER

    def _say(self, channel: protocol.Channel, request: dict[str, Any]) -> None:
        try:
            channel.send(request)
        except TimeoutError:
            raise self._silent(protocol.ANSWER) from None
        except ArgumentsTooLong:
            raise
        except OSError as error:
            raise self._gone(str(error)) from error

    def _heard(self, channel: protocol.Channel) -> dict[str, Any]:
        """The next answer. Raises KeeperLost, and what the keeper raised."""
        try:
            answer = channel.receive()
        except TimeoutError:
            raise self._silent(protocol.ANSWER) from None
        except HostShortage:
            raise
        except (OSError, ValueError) as error:
            raise self._gone(str(error)) from error
        if answer is None:
            raise self._gone()
        if isinstance(answer.get("error"), dict):
            raise protocol.error_from_json(answer["error"])
        return answer

    def _silent(self, seconds: float) -> KeeperLost:
        return KeeperLost(
            f"the keeper of the machine {self.name} did not answer within {seconds:g} seconds",
            hint=f"end it: supermachine rm -f {self.name}",
        )

    def _gone(self, cause: str | None = None) -> KeeperLost:
        return KeeperLost(f"the keeper of the machine {self.name} has gone", cause=cause)

    def _attached(self) -> tuple[socket.socket, bool, bool]:
        """A connection of `attached`'s frames, whether the main process has a terminal, and whether it reads input."""
        connection, said = self._handed({"ask": "attach"})
        return connection, bool(said["tty"]), bool(said["interactive"])

    def _dial(self, port: int) -> socket.socket:
        """A connection to a port of the guest, which the keeper hands over."""
        return self._handed({"ask": "connect", "port": port})[0]

    def _handed(self, request: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
        """A connection that the keeper hands over, and what it says of it."""
        with contextlib.closing(self._open()) as channel:
            answer = self._asked(channel, request)
            fd = channel.take_fd()
        if fd is None:
            raise KeeperLost(f"the keeper of the machine {self.name} gave no connection")
        return socket.socket(fileno=fd), answer

    def _reach(self) -> Remote:
        """What stands for the worker, of the virtual machine that runs now."""
        from .._core import Remote

        with self._lock:
            if self._remote is not None and self._remote.exit is None:
                return self._remote
            if self._filesystem is not None:
                self._filesystem.forget()
            said = self._ask({"ask": "inspect"})
            if said["context"] is None:
                raise MachineNotRunning(f"the machine {self.name} is {said['phase']}", hint="try again")
            self._paused = said["phase"] == "paused"
            self._said = _Said(said["context"])
            channel = self._open()
            try:
                self._say(channel, {"ask": "watch"})
                channel._socket.settimeout(None)
            except BaseException:
                channel.close()
                raise
            # The extension's objects are not looked into for cycles, so that this one does not hold the machine.
            dial = weakref.WeakMethod(self._dial)
            remote = Remote(partial(_dialled, dial, self.name))
            thread = threading.Thread(
                target=_watch, args=(channel, remote.watched(), self.name), name="supermachine-watch", daemon=True
            )
            try:
                shortage.start(thread, f"the machine {self.name} cannot be reached")
            except BaseException:
                channel.close()
                raise
            self._remote = remote
            return remote


def _dialled(dial: Callable[[], Callable[[int], socket.socket] | None], name: str, port: int) -> socket.socket:
    """A connection to a port of the guest. Raises KeeperLost when nobody has the machine's object any more."""
    if (method := dial()) is None:
        raise KeeperLost(f"the machine {name} is not attached any more")
    return method(port)


def _watch(channel: protocol.Channel, watched: Watched, name: str) -> None:
    """A thread: wakes whoever waits for something in the guest when its virtual machine ends, while there is one."""
    try:
        if not channel.wait(watched):
            return
        said = channel.receive()
    except (OSError, ValueError):
        said = None
    finally:
        channel.close()
    if said is None or "reason" not in said:
        watched.ended("crashed", f"the keeper of the machine {name} has ended, and the machine with it", "")
    else:
        watched.ended(said["reason"], said["message"], said["console_tail"])


def _ending(state: State) -> str:
    if state.status == "dead":
        return f"is dead: {state.error}"
    return f"has ended{f' with {state.exit_code}' if state.exit_code is not None else ''}"


def _usage(pid: int) -> tuple[int, float]:
    """Bytes of memory and seconds of processor time of a process; zeros where the host does not tell."""
    if (stat := process_stat.of(pid)) is None:
        return 0, 0.0
    return stat.resident_pages * os.sysconf("SC_PAGE_SIZE"), stat.ticks / os.sysconf("SC_CLK_TCK")


def states(machines: Sequence[Machine]) -> list[State | None]:
    """How they fare, all asked at once; ``None`` for those that have been removed."""
    places = [machine._place for machine in machines]
    said = _phases([place for place in places if place.kept()])
    return [state_of(place, lambda place: said.get(place, "")) for place in places]


def _phases(places: Sequence[Place]) -> dict[Place, str]:
    """What their keepers say that they do, of those that answer in time. Raises HostShortage."""
    said: dict[Place, str] = {}
    deadline = time.monotonic() + _GLANCE
    left = list(places)
    asked: dict[int, tuple[Place, protocol.Channel]] = {}
    waits = select.poll()
    with contextlib.ExitStack() as opened:
        while left or asked:
            while left and len(asked) < _AT_ONCE:
                place = left.pop()
                with _reaching(place):
                    connection = local_sockets.connect(place.socket, 0)
                    connection.settimeout(_GLANCE)
                    channel = opened.enter_context(contextlib.closing(protocol.Channel(connection)))
                    channel.send({"ask": "inspect"})
                    asked[connection.fileno()] = place, channel
                    waits.register(connection, select.POLLIN)
            if asked and not (ready := waits.poll(max(0.0, deadline - time.monotonic()) * 1000)):
                break
            for fd, _ in ready if asked else ():
                place, channel = asked.pop(fd)
                waits.unregister(fd)
                with _reaching(place), contextlib.closing(channel):
                    said[place] = str((channel.receive() or {}).get("phase", ""))
    return said


@contextlib.contextmanager
def _reaching(place: Place) -> Iterator[None]:
    """A keeper that cannot be asked says nothing. Raises HostShortage."""
    try:
        yield
    except OSError as error:
        if (lacking := shortage.named(error, f"the machine {place.name} cannot be reached")) is not None:
            raise lacking from None
    except ValueError:
        pass


def _phase(place: Place) -> str:
    """The same of one; empty where it does not answer."""
    return _phases([place]).get(place, "")


def state_of(place: Place, phase_of: Callable[[Place], str] = _phase) -> State | None:
    """How the machine of a place fares, of whose keeper `phase_of` says what it does; ``None`` where there is none."""
    kept = place.kept()
    record = place.record()
    if record is None:
        if not place.path.is_dir():
            return None
        record = Record(place.name, "", "")
    phase, ports = "", {name: [(str(a), int(p)) for a, p in there] for name, there in record.ports.items()}
    error, health = record.error, record.health
    if kept and record.finished is None:
        phase = "starting" if record.started is None else phase_of(place) or "running"
    elif record.finished is not None:
        phase, ports = "exited", {}
    elif place.kept():
        phase = "starting"
    else:
        # It may have ended between the two looks.
        again = place.record()
        if again is not None and again.finished is not None:
            return state_of(place, phase_of)
        phase, ports, health = "dead", {}, ""
        restarted = record.boot and record.boot != boot_id()
        error = "the host was restarted" if restarted else "its keeper was killed"
    return State(
        name=place.name,
        id=record.id,
        status=phase,
        image=record.image,
        command=record.command,
        created=record.created,
        started=record.started,
        finished=record.finished,
        exit_code=record.exit_code if phase == "exited" else None,
        error=error,
        health=health,
        restarts=record.restarts,
        ports=ports,
        labels={str(name): str(value) for name, value in dict(record.policy.get("labels") or {}).items()},
    )


def start(
    image: str | os.PathLike[str],
    args: Sequence[str] | str | None = None,
    *,
    name: str | None = None,
    entrypoint: Sequence[str] | None = None,
    remove: bool = False,
    restart: str = "no",
    stop_signal: str = "",
    stop_timeout: float = STOP_TIMEOUT,
    labels: Mapping[str, str] | None = None,
    **machine: Unpack[MachineOptions],
) -> Machine:
    """Starts a machine that outlives this program, as ``supermachine run -d`` does: ENTRYPOINT with `args` or CMD.

    Without a `name` one is made up. When its main process has ended, `restart` says what becomes of it: "no", "always",
    "on-failure" or "on-failure:N" for N times at most. With `remove` nothing of it stays after its end. `stop` sends
    `stop_signal` (default: the image's, or TERM), and SIGKILL after `stop_timeout` seconds. `machine` are keywords
    of :class:`supermachine.VM` that another process can be told: no callables. Raises `NameInUse`.
    """
    from . import launch, names

    if name is not None:
        names.check(name)
    if stop_signal:
        signal_number(stop_signal)
    policy = Policy(remove=remove, stop_signal=stop_signal, stop_timeout=stop_timeout, labels=dict(labels or {}))
    policy.restart, policy.restart_max = restart_policy(restart)
    words = [args] if isinstance(args, str) else list(args or ())
    own = None if entrypoint is None else list(entrypoint)
    from ..host.warnings import say

    told = launch.start(
        Spec(os.fspath(image), name, dict(machine), words, own, policy),
        lambda line: say(line.removeprefix("supermachine: ")),
    )
    registry = Registry()
    return Machine(registry.place(told["name"]), registry)


def attach(name: str) -> Machine:
    """The machine of that name, be it that it has ended. Raises NoSuchMachine."""
    registry = Registry()
    return Machine(registry.find(name), registry)


def machines(*, all: bool = False) -> list[Machine]:  # noqa: A002
    """This user's machines that run, by name; with `all` also those that have ended and were not removed."""
    registry = Registry()
    found = [Machine(place, registry) for place in registry.places()]
    return [machine for machine in found if all or machine._place.kept()]
