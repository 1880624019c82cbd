"""A container: one virtual machine of its image's baked snapshot, and the command that runs in it.

The machine is there from the first moment that something of it is needed, which may be before the command is started:
files can be put into a container that was only created. When the command ends, every other process in the guest does
too, and the machine stays, without published ports, so that the files can be fetched and the command be started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import SupermachineError
from ..guest import group
from ..guest.process_context import command as command_of
from ..machine.starts import Root
from ..machine.vm import VM
from ..network import policy, segments
from ..network.ports import Bound
from ..settings.machine import MachineSettings
from ..storage.shares import Share
from ..storage.volumes import Volume as Disk
from . import guests, specification
from .errors import ApiError, BadRequest, Conflict, NotModified, as_api_error
from .health import Health
from .logs import STDERR, STDOUT, Log
from .networks import GATEWAY
from .processes import KILLED, USUAL_SIZE, Process, not_started
from .specification import DEFAULT_STOP_TIMEOUT, Specification, VolumeMount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ..settings.machine import MachineOptions
    from .images import Image
    from .pipes import PipeReader, PipeWriter
    from .session import Session
    from .volumes import Volume

#: Seconds that killed processes have to go, and that the last output has to arrive.
_KILL_GRACE = 10.0
_DRAIN_GRACE = 2.0
#: Seconds before a restart by policy: the first, and the longest.
_RESTART_FIRST, _RESTART_MOST = 0.1, 60.0
_SIGKILL = 9


class Running(Protocol):
    """What a container's command is to the container while it runs."""

    pid: int
    stdin: PipeWriter | None
    stdout: PipeReader | None
    stderr: PipeReader | None

    async def wait(self) -> int: ...
    def signal(self, number: int) -> None: ...
    def resize(self, rows: int, columns: int) -> None: ...
    def close(self) -> None: ...


class Container:
    """Its methods are for the event loop's thread; what blocks runs in the session's threads."""

    def __init__(
        self, session: Session, container_id: str, name: str, wanted: Specification, image: Image, log: Log
    ) -> None:
        self.session = session
        self.id = container_id
        self.name = name
        self.wanted = wanted
        self.image = image
        self.log = log
        self.created_ns = time.time_ns()
        self.status = "created"
        self.exit_code = 0
        self.error = ""
        self.started_ns = 0
        self.finished_ns = 0
        self.restarts = 0
        #: Names of networks, and what the container is called there.
        self.networks: dict[str, list[str]] = {}
        #: Named volumes and those without a name.
        self.volumes: list[str] = []
        self.mounts: list[VolumeMount] = []
        self.health: Health | None = None
        #: How often the command has ended, a start that failed included.
        self.ends = 0
        #: How often it was running.
        self.starts = 0
        self.removed = False
        self.process: Running | None = None
        self.size = USUAL_SIZE
        self._vm: VM | None = None
        self._bound: Bound | None = None
        self._lock = asyncio.Lock()
        self._machine_lock = asyncio.Lock()
        self._pause_lock = asyncio.Lock()
        self._watchers: set[asyncio.Future[None]] = set()
        self._supervisor: asyncio.Task[None] | None = None
        #: Whether somebody has stopped it, so that no policy starts it again.
        self._told_to_stop = False
        self._prepared = False

    # What it is.

    @property
    def alive(self) -> bool:
        return self.status in ("running", "paused", "restarting")

    @property
    def command(self) -> list[str]:
        """What runs in it."""
        wanted = self.wanted
        entrypoint = wanted.entrypoint
        if entrypoint is not None and tuple(entrypoint) in ((), ("",)):
            # Docker's way of saying that there is none; then the image's command is of no use either.
            return list(wanted.command or ())
        return command_of(self.image.names, self.image.said, list(wanted.command or ()) or None, entrypoint)

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        """Published ports, while it runs."""
        return self._bound.places() if self._bound is not None else {}

    @property
    def stop_signal(self) -> str:
        return self.wanted.stop_signal or self.image.said.stop_signal or "SIGTERM"

    @property
    def worker_pid(self) -> int:
        return (self._vm.pid if self._vm is not None and self.alive else None) or 0

    def labels(self) -> dict[str, str]:
        return {**self.image.labels, **self.wanted.labels}

    def announce(self, action: str, **attributes: str) -> None:
        said = {**self.labels(), "image": self.wanted.image, "name": self.name, **attributes}
        self.session.events.publish("container", action, self.id, said)

    # Its machine.

    async def machine(self) -> VM:
        """The machine, started if need be. Raises ApiError when it cannot be."""
        async with self._machine_lock:
            if self.removed or self.status == "removing":
                raise Conflict(f"container {self.id} is marked for removal")
            if self._vm is None or not self._vm.running:
                for mount in self.mounts:
                    await self._fill(mount)
                vm = self._new_machine(self.mounts)
                self._prepared = False
                try:
                    await self.session.call(vm.start)
                except (SupermachineError, OSError) as error:
                    raise as_api_error(error) from error
                self._vm = vm
                if self.status == "exited":
                    # For its files. Until it runs it is one of those that may be ended for others.
                    self.session.park(self)
            return self._vm

    def there(self) -> VM:
        """The machine of a container that runs. Raises Conflict for another."""
        if self.status == "paused":
            raise Conflict(f"Container {self.id} is paused, unpause the container first")
        if self.status == "restarting":
            raise Conflict(f"Container {self.id} is restarting, wait until the container is running")
        if self.status != "running" or self._vm is None:
            raise Conflict(f"container {self.id} is not running")
        return self._vm

    def check(self) -> None:
        """Raises what starting it would, of what can be known before."""
        self._settings(self.mounts)
        if not self.command:
            raise BadRequest("no command specified")

    def _new_machine(self, mounts: list[VolumeMount]) -> VM:
        resolved = self.image.resolved
        assert resolved is not None
        return VM._of(self.wanted.image, self._settings(mounts), Root(resolved))

    def _settings(self, mounts: list[VolumeMount]) -> MachineSettings:
        wanted, resolved = self.wanted, self.image.resolved
        assert resolved is not None
        options: MachineOptions = {
            "memory": wanted.memory,
            "vcpus": wanted.vcpus,
            "environment": wanted.environment,
            "hostname": wanted.hostname or self.id[:12],
            "mounts": {m.target: self._mounted(m) for m in mounts},
            "network": self._network(self.networks),
            "platform": str(resolved.platform),
        }
        if wanted.tmpfs:
            options["tmpfs"] = wanted.tmpfs
        if wanted.read_only:
            options["read_only"] = True
        if wanted.shm_bytes:
            options["shm_size"] = wanted.shm_bytes
        if wanted.disk:
            options["disk"] = wanted.disk
        if wanted.working_dir:
            options["working_dir"] = wanted.working_dir
        if wanted.user:
            options["user"] = wanted.user
        return MachineSettings.of(**options)

    def _volume(self, mount: VolumeMount) -> Volume | None:
        return self.session.volumes.by_path(mount.source)

    def _mounted(self, mount: VolumeMount) -> Share | Disk:
        volume = self._volume(mount)
        given = volume.mounted if volume is not None else Share(mount.source)
        return replace(given, read_only=mount.read_only)

    def _network(self, networks: dict[str, list[str]]) -> policy.Network:
        """What it may reach beside the containers in its networks."""
        found = policy.network(self.session.policy(networks))
        return found if networks and set(networks) == {"none"} else found.with_own_address()

    def _join(self, vm: VM) -> None:
        """Has the containers in its networks know it; while its command runs, as with docker."""
        for segment, names in self._segments(self.networks).items():
            vm.network.join(segment, names, ipv6=False)

    def _leave(self, vm: VM) -> None:
        with contextlib.suppress(SupermachineError, OSError):
            for segment in self._segments(self.networks):
                vm.network.leave(segment)

    def _segments(self, networks: dict[str, list[str]]) -> dict[str, list[str]]:
        """The segment of each network that a user has made, and the container's names there."""
        own = [self.name, self.id[:12], *([self.wanted.hostname] if self.wanted.hostname else [])]
        found = {}
        for name, called in networks.items():
            segment = self.session.networks.segment(name)
            if segment is not None:
                found[segment] = [text for text in (*own, *called) if segments.is_name(text)]
        return found

    @property
    def address(self) -> str:
        """Where other containers find it, while it runs."""
        return (
            segments.address_of(self._vm._running()) if self.alive and self._vm is not None and self._vm.running else ""
        )

    async def _fill(self, mount: VolumeMount) -> None:
        """Puts what the image has where a new volume is mounted into the volume. Raises ApiError."""
        volume = self._volume(mount)
        if volume is not None and not volume.filled:
            try:
                await self.session.call(self.session.volumes.fill, volume, mount.target, self._new_machine([]))
            except (SupermachineError, OSError) as error:
                told = as_api_error(error)
                message = f"the volume {volume.name} cannot have what the image has at {mount.target}: {told.message}"
                raise ApiError(told.status, message) from error

    async def change_networks(self, networks: dict[str, list[str]]) -> None:
        """Has it in these networks from now on. Raises NotSupported for one that was started without any."""
        before, after = self._network(self.networks), self._network(networks)
        old, new = self._segments(self.networks), self._segments(networks)
        async with self._machine_lock:
            vm = self._vm
            if vm is not None and vm.running:
                if before != after:
                    await self.session.call(vm.network.update, after)
                if self.alive:
                    for segment in old.keys() - new.keys():
                        await self.session.call(vm.network.leave, segment)
                    for segment in new.keys() - old.keys():
                        await self.session.call(partial(vm.network.join, ipv6=False), segment, new[segment])
            self.networks = networks

    async def drop_machine(self) -> None:
        """Ends the machine of a container that does not run; its files are gone then. Raises ApiError for one that did
        not end as it should, which has ended all the same.
        """
        async with self._machine_lock:
            vm, self._vm = self._vm, None
            if vm is None:
                return
            try:
                try:
                    # What it wrote to disks that outlast it is to be on the host's.
                    if any(volume is not None and volume.disk for volume in map(self._volume, self.mounts)):
                        await self.session.call(vm.stop)
                finally:
                    await self.session.call(vm.kill)
            except Exception as error:
                told = as_api_error(error)
                message = f"the machine of container {self.id} did not end cleanly: {told.message}"
                raise ApiError(told.status, message) from error

    async def drop_parked(self) -> None:
        """Ends the machine of one that waits, unless it has been started in the meantime."""
        async with self._lock:
            if not self.alive and not self.removed and self.status != "removing":
                await self.drop_machine()

    # Its life.

    async def start(self) -> None:
        """Raises NotModified when it runs, and ApiError when it cannot be started."""
        async with self._lock:
            if self.status in ("running", "paused"):
                raise NotModified
            if self.status == "removing" or self.removed:
                raise Conflict(f"container {self.id} is marked for removal and cannot be started")
            self._told_to_stop = False
            self.restarts = 0
            await self._start()

    async def _start(self) -> None:
        try:
            process = await self._open()
        except _NotStarted as error:
            await self._failed(error.code, error.told)
            raise error.told from error
        except Exception as error:
            told = as_api_error(error)
            await self._failed(KILLED, told)
            raise told from error
        self.process = process
        self.status, self.error, self.exit_code = "running", "", 0
        self.started_ns, self.finished_ns = time.time_ns(), 0
        self.starts += 1
        self.session.unpark(self)
        if self.size != USUAL_SIZE:
            process.resize(*self.size)
        self._supervisor = asyncio.create_task(self._supervise(process))
        if (test := self._health_test()) is not None:
            self.health = Health(self, test)
            self.health.start()
        self._changed()
        self.announce("start")

    async def _failed(self, code: int, told: ApiError) -> None:
        self.exit_code, self.error = code, told.message
        self._close_ports()
        vm = self._vm
        if vm is not None and vm.running:
            await self._tried(guests.end_processes, vm)
            await self._tried(self._leave, vm)
            # As after an end of the command: it is there for its files.
            self.session.park(self)
        self.ends += 1
        self.log.wake()
        self._changed()
        if self.wanted.auto_remove:
            self.session.background(self.remove(force=True, volumes=True))

    async def _open(self) -> Running:
        vm = await self.machine()
        command = self.command
        wanted = self.wanted

        def begin() -> Process:
            self._prepare(vm)
            self._open_ports(vm)
            self._join(vm)
            environment = {"TERM": "xterm"} if wanted.tty and "TERM" not in wanted.environment else None
            try:
                return Process.start(
                    vm,
                    command,
                    tty=self.size if wanted.tty else None,
                    stdin=wanted.open_stdin,
                    environment=environment,
                )
            except (SupermachineError, OSError, ValueError) as error:
                raise _NotStarted(*not_started(error, command)) from error

        return await self.session.call(begin)

    def _prepare(self, vm: VM) -> None:
        """Once in a machine's life, before its first process."""
        if self._prepared:
            return
        self._prepared = True
        hosts = [line for text in self.wanted.extra_hosts if (line := guests.host_line(text))]
        if hosts:
            with vm.path("/etc/hosts").open("a") as file:
                file.write("".join(hosts))

    def _open_ports(self, vm: VM) -> None:
        wanted = {
            name: [(address or GATEWAY, port) for address, port in places] for name, places in self.wanted.ports.items()
        }
        if self.wanted.publish_all:
            for name in (*self.wanted.exposed, *specification.port_names(self.image.said.exposed_ports)):
                if name.endswith(("/tcp", "/udp")):
                    wanted.setdefault(name, [(GATEWAY, 0)])
        if wanted:
            self._bound = Bound(vm._running(), wanted)

    def _close_ports(self) -> None:
        bound, self._bound = self._bound, None
        if bound is not None:
            bound.close()

    def _health_test(self) -> specification.HealthTest | None:
        if self.wanted.no_health:
            return None
        return self.wanted.health or specification.health_of(self.image.said.healthcheck or {})

    async def _supervise(self, process: Running) -> None:
        """Keeps what the command writes, until it ends and all that it has left in the guest."""
        pumps = [
            asyncio.create_task(self._pump(pipe, stream))
            for pipe, stream in ((process.stdout, STDOUT), (process.stderr, STDERR))
            if pipe is not None
        ]
        code = await process.wait()
        if self.health is not None:
            self.health.stop()
        vm = self._vm
        if vm is not None:
            await self._tried(guests.end_processes, vm)
        if pumps:
            await asyncio.wait(pumps, timeout=_DRAIN_GRACE)
        for pump in pumps:
            pump.cancel()
        process.close()
        self.process = None
        self._close_ports()
        if vm is not None:
            await self._tried(self._leave, vm)
            if self.status == "paused":
                # What is started next would be born frozen.
                await self._tried(guests.thaw, vm)
        self.exit_code, self.finished_ns = code, time.time_ns()
        restarts = self._restarts(code)
        self.status = "restarting" if restarts else "exited"
        self.ends += 1
        self.log.wake()
        self._changed()
        self.announce("die", exitCode=str(code))
        if restarts:
            self.session.background(self._restart())
        elif self.wanted.auto_remove:
            self.session.background(self.remove(force=True, volumes=True))
        elif vm is not None and vm.running:
            self.session.park(self)

    async def _tried(self, work: Callable[[VM], object], vm: VM) -> None:
        """What is done to a machine at the end of a command. Whatever it raises, the end is told."""
        with contextlib.suppress(Exception):
            await self.session.call(work, vm)

    async def _pump(self, pipe: PipeReader, stream: int) -> None:
        while data := await pipe.read():
            try:
                self.log.append(stream, data)
            except OSError as error:
                # A disk that is full must not stop the command.
                self.error = f"output was lost: {error}"

    def _restarts(self, code: int) -> bool:
        policy, most = self.wanted.restart_policy, self.wanted.restart_retries
        if self._told_to_stop or self.session.closing:
            return False
        if policy == "on-failure":
            return code != 0 and (not most or self.restarts < most)
        return policy in ("always", "unless-stopped")

    async def _restart(self) -> None:
        await asyncio.sleep(min(_RESTART_FIRST * 2 ** min(self.restarts, 16), _RESTART_MOST))
        async with self._lock:
            if self.status != "restarting" or self._told_to_stop:
                return
            self.restarts += 1
            with contextlib.suppress(ApiError):
                await self._start()
                return
            self.status = "exited"
            self._changed()

    async def stop(self, timeout: int | None = None, signal: str = "") -> None:
        """Asks it to end, and after `timeout` seconds makes it. Raises NotModified when it does not run."""
        await self._settled()
        if not self.alive:
            raise NotModified
        self._told_to_stop = True
        if self.status == "restarting":
            self._give_up()
            return
        if timeout is None:
            timeout = DEFAULT_STOP_TIMEOUT if self.wanted.stop_timeout is None else self.wanted.stop_timeout
        ends = self.ends
        await self._signal(specification.signal_number(signal or self.stop_signal))
        if self.status == "paused":
            await self.unpause()
        if not await self._ended(ends, None if timeout < 0 else float(timeout)):
            await self._signal(_SIGKILL)
            if not await self._ended(ends, _KILL_GRACE) and self._vm is not None:
                await self.session.call(self._vm.kill)
                await self._ended(ends, _KILL_GRACE)
        self.announce("stop")

    async def _settled(self) -> None:
        """Waits for the end of a start: what is told to stop before it runs would run afterwards."""
        async with self._lock:
            pass

    def _give_up(self) -> None:
        """Ends the waiting for a restart."""
        self.status = "exited"
        if self._vm is not None and self._vm.running:
            self.session.park(self)
        self._changed()

    async def kill(self, signal: str = "") -> None:
        """Raises Conflict when it does not run."""
        number = specification.signal_number(signal or "SIGKILL")
        if number == _SIGKILL:
            await self._settled()
        if self.status == "restarting" and number == _SIGKILL:
            self._told_to_stop = True
            self._give_up()
            self.announce("kill", signal=str(number))
            return
        if self.process is None:
            raise Conflict(f"cannot kill container: {self.id}: container {self.id} is not running")
        if number == _SIGKILL:
            self._told_to_stop = True
        ends = self.ends
        await self._signal(number)
        self.announce("kill", signal=str(number))
        # As docker does, so that who inspects it next finds that it has ended.
        if number == _SIGKILL and not await self._ended(ends, _KILL_GRACE) and self._vm is not None:
            await self.session.call(self._vm.kill)
            await self._ended(ends, _KILL_GRACE)

    async def _signal(self, number: int) -> None:
        process = self.process
        if process is not None:
            await self.session.call(process.signal, number)

    async def _ended(self, ends: int, timeout: float | None) -> bool:
        """Whether the command has ended once more within so many seconds."""
        try:
            await asyncio.wait_for(self.until(lambda: self.ends > ends), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def restart(self, timeout: int | None, signal: str = "") -> None:
        with contextlib.suppress(NotModified):
            await self.stop(timeout, signal)
        await self.start()
        self.announce("restart")

    async def pause(self) -> None:
        async with self._pause_lock:
            vm, process = self.there(), self.process
            await self.session.call(group.freeze, vm, True)
            if process is None or self.process is not process or self.status != "running":
                # The command has ended meanwhile; what is started next is not to be born frozen.
                await self._tried(guests.thaw, vm)
                raise Conflict(f"container {self.id} is not running")
            self.status = "paused"
        self.announce("pause")

    async def unpause(self) -> None:
        async with self._pause_lock:
            if self.status != "paused" or self._vm is None:
                raise Conflict(f"Container {self.id} is not paused")
            await self.session.call(group.freeze, self._vm, False)
            # Its end may have been heard of meanwhile.
            if self.status == "paused":
                self.status = "running"
        self.announce("unpause")

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Has its processes stand where they are for as long as the block runs; pauses come before it or after it."""
        async with self._pause_lock:
            vm = self._vm if self.status == "running" else None
            if vm is not None:
                await self.session.call(group.freeze, vm, True)
            try:
                yield
            finally:
                if vm is not None:
                    await self._tried(guests.thaw, vm)

    async def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)
        process = self.process
        if process is not None:
            await self.session.call(process.resize, rows, columns)

    async def remove(self, *, force: bool, volumes: bool) -> None:
        """Raises Conflict for one that runs, unless forced."""
        if self.removed or self.status == "removing":
            return
        if force:
            await self._settled()
        if self.alive and not force:
            raise Conflict(
                f'cannot remove container "/{self.name}": container is running: stop the container before removing '
                "or force remove"
            )
        self._told_to_stop = True
        if self.alive:
            with contextlib.suppress(ApiError):
                await self.kill()
        async with self._lock:
            if self.removed:
                return
            self.status = "removing"
            self.session.unpark(self)
            try:
                await self.drop_machine()
            finally:
                self.session.containers.forget(self)
                self.removed = True
                self.log.close()
                self._changed()
                self.announce("destroy")
        if volumes:
            await self.session.volumes.remove_anonymous(self.volumes)

    # Who waits for it.

    async def until(self, true: Any) -> None:
        """Waits until `true()` is; it is asked again at each change."""
        while not true():
            waiting = asyncio.get_running_loop().create_future()
            self._watchers.add(waiting)
            try:
                await waiting
            finally:
                self._watchers.discard(waiting)

    def _changed(self) -> None:
        for waiting in self._watchers:
            if not waiting.done():
                waiting.set_result(None)

    def waiter(self, condition: str) -> Any:
        """What `until` takes for a condition of docker's wait, from now on. Raises BadRequest."""
        if condition in ("", "not-running"):
            return lambda: self.removed or not self.alive
        if condition == "next-exit":
            ends = self.ends
            return lambda: self.removed or self.ends > ends
        if condition == "removed":
            return lambda: self.removed
        raise BadRequest(f'invalid condition: "{condition[:50]}"')


class _NotStarted(Exception):
    def __init__(self, code: int, told: ApiError) -> None:
        super().__init__(told.message)
        self.code = code
        self.told = told
