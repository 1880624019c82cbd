"""Virtual machines: what they are made of, and their life."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import engines, installation, options
from .errors import ConfigurationError, NotSupported, VMExited, VMTimeout
from .options import Environment

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from ._core import Worker
    from .images import Progress, ResolvedImage
    from .images.store import Pull
    from .paths import GuestPath
    from .processes import Args, Popen, StrOrBytesPath

#: Seconds that a guest has to become ready.
DEFAULT_BOOT_TIMEOUT = 60.0
#: Seconds that the guest's processes have to end after SIGTERM when a virtual machine is stopped.
DEFAULT_STOP_TIMEOUT = 10.0
#: Seconds beyond the grace that a worker takes at most.
_STOP_SLACK = 3.0


def _nameservers() -> list[str]:
    """The host's name servers that a guest could reach; none before guests have a network."""
    return []


class VM:
    """A microVM that runs an OCI image.

    ``with VM("debian:bookworm") as vm:`` starts and, at the end, kills it; `start`, `stop` and `kill` do so by hand.

    `image` is a reference as docker writes it, or a path of an OCI layout, an OCI archive or a `docker save` archive.
    `memory` is bytes or "512m", "2g" …; the host gives it as the guest touches it. `environment`, `working_dir` and
    `user` go before what the image says. `require_hardware` refuses software isolation
    (default: SUPERMACHINE_REQUIRE_HARDWARE). `boot_timeout` is in seconds.
    """

    def __init__(
        self,
        image: str | os.PathLike[str],
        *,
        memory: int | str = options.DEFAULT_MEMORY,
        vcpus: int = 1,
        engine: str = "auto",
        environment: Environment | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        hostname: str | None = None,
        require_hardware: bool | None = None,
        ports: Mapping[str, Any] | None = None,
        volumes: Mapping[str, Any] | Sequence[str] | None = None,
        platform: str | None = None,
        pull: Pull = "missing",
        insecure: bool = False,
        progress: Progress | None = None,
        boot_timeout: float = DEFAULT_BOOT_TIMEOUT,
    ) -> None:
        if ports:
            raise NotSupported("this version has no guest network, so it cannot publish ports")
        if volumes:
            raise NotSupported("this version cannot mount volumes", hint="copy files with vm.copy_in and vm.copy_out")
        if boot_timeout <= 0:
            raise ConfigurationError(f"boot_timeout is {boot_timeout}; a positive number of seconds is needed")
        self._reference = image
        self._memory = options.memory_bytes(memory)
        self._vcpus = options.vcpu_count(vcpus)
        self._engine = engines.choose(engine, require_hardware)
        self._environment = options.environment(environment)
        self._working_dir = working_dir
        self._user = None if user is None else str(user)
        self._hostname = None if hostname is None else options.hostname(hostname)
        self._platform = platform
        self._pull: Pull = pull
        self._insecure = insecure
        self._progress = progress
        self._boot_timeout = boot_timeout
        self._image: ResolvedImage | None = None
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self._timings: list[tuple[str, int]] = []
        from .paths import FileSystem

        self._files = FileSystem(self._running)

    # What it is.

    @property
    def engine(self) -> str:
        """The engine that runs it: "soft"."""
        return self._engine.name

    @property
    def isolation(self) -> str:
        """Its isolation, "hardware" or "software"."""
        return self._engine.isolation

    @property
    def image(self) -> ResolvedImage:
        """The image; looked up, and pulled if need be, on first use."""
        if self._image is None:
            from .images import resolve

            self._image = resolve(
                self._reference,
                platform=self._platform,
                pull=self._pull,
                insecure=self._insecure,
                progress=self._progress,
            )
        return self._image

    @property
    def timings(self) -> list[tuple[str, int]]:
        """Steps of the last start: name, nanoseconds since the start of the worker process."""
        return list(self._timings)

    @property
    def running(self) -> bool:
        return self._worker is not None and self._worker.exit is None

    @property
    def pid(self) -> int | None:
        """Process id of the worker on the host, while it runs."""
        return self._worker.pid if self._worker is not None and self.running else None

    # Its life.

    def start(self) -> VM:
        """Starts it and waits until the guest serves requests. Does nothing when it runs already."""
        with self._lock:
            if self.running:
                return self
            image = self.image
            engines.warn_once(self._engine)
            from ._core import Worker

            machine_id = os.urandom(16)
            worker = Worker.spawn(
                installation.worker(),
                engine=self._engine.name,
                kernel=installation.kernel("aarch64"),
                initramfs=installation.initramfs("aarch64"),
                disks=[(str(image.rootfs), True)],
                memory_bytes=self._memory,
                vcpus=self._vcpus,
                hostname=self._hostname or machine_id.hex()[:12],
                machine_id=machine_id,
                entropy=os.urandom(64),
                root_fs="erofs",
                nameservers=_nameservers(),
                boot_timeout_ms=max(1, int(self._boot_timeout * 1000)),
            )
            try:
                # The worker keeps the time; this is for a worker that does not.
                timings = worker.wait_ready(self._boot_timeout + 5)
                if timings is None:
                    raise VMTimeout(f"the guest was not ready after {self._boot_timeout:g} seconds")
            except VMExited as error:
                worker.kill()
                if error.reason != "agent-timeout":
                    raise
                raise VMTimeout(
                    f"the guest was not ready after {self._boot_timeout:g} seconds",
                    cause=error.console_tail or None,
                    hint="give it longer with boot_timeout=",
                ) from error
            except BaseException:
                worker.kill()
                raise
            self._timings = timings
            self._files.forget()
            self._worker = worker
            return self

    def stop(self, timeout: float = DEFAULT_STOP_TIMEOUT) -> None:
        """Ends it cleanly: SIGTERM to its processes, SIGKILL after `timeout` seconds, file systems synced."""
        worker = self._worker
        if worker is None or worker.exit is not None:
            return
        worker.shutdown(max(0, int(timeout * 1000)))
        if worker.wait(timeout + _STOP_SLACK) is None:
            self.kill()
        self._files.forget()

    def kill(self) -> None:
        """Ends it at once."""
        worker = self._worker
        if worker is None:
            return
        worker.kill()
        worker.wait(_STOP_SLACK)
        self._files.forget()

    def wait(self, timeout: float | None = None) -> str:
        """Waits until it has ended, and says why: "shutdown", "guest-power-off", "panic", "killed" …"""
        if self._worker is None:
            raise ConfigurationError("the virtual machine has not been started")
        end = self._worker.wait(timeout)
        if end is None:
            raise VMTimeout(f"the virtual machine still runs after {timeout:g} seconds")
        return end[0]

    def __enter__(self) -> VM:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped" if self._worker else "new"
        return f"<VM {str(self._reference)!r} {self.engine} {state}>"

    def _running(self) -> Worker:
        worker = self._worker
        if worker is None:
            raise ConfigurationError(
                "the virtual machine is not running", hint="start it with `with VM(...) as vm:` or vm.start()"
            )
        if (end := worker.exit) is not None:
            reason, message, console_tail = end
            raise VMExited(message, reason=reason, console_tail=console_tail)
        return worker

    # What runs in it.

    def _context(self) -> Any:
        from .processes import Context

        self._running()
        config = self.image.config
        return Context(
            self._running,
            {**config.environment, **self._environment},
            self._working_dir or config.working_dir or "/",
            self._user if self._user is not None else config.user,
        )

    def command(self, args: Sequence[str] | str | None = None, entrypoint: Sequence[str] | None = None) -> list[str]:
        """What docker would run: ENTRYPOINT, then `args` or, without any, CMD.

        As with docker, an `entrypoint` of one's own also sets CMD aside.
        """
        config = self.image.config
        given = [args] if isinstance(args, str) else list(args or ())
        words = [*entrypoint, *given] if entrypoint is not None else [*config.entrypoint, *(given or config.cmd)]
        if not words:
            raise ConfigurationError(f"the image {self.image.reference} names no command, and none was given")
        return words

    def run(
        self,
        args: Args,
        *,
        input: Any = None,  # noqa: A002
        capture_output: bool | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        timeout: float | None = None,
        check: bool = False,
        text: bool | None = None,
        universal_newlines: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: StrOrBytesPath | None = None,
        user: str | int | None = None,
    ) -> CompletedProcess[Any]:
        """`subprocess.run` in the guest. Output is captured unless told otherwise; stdin is empty unless given.

        `env` is added to what the image and the virtual machine set.
        """
        from .processes import run as run_process

        return run_process(
            self._context(),
            args,
            input=input,
            capture_output=capture_output,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            check=check,
            text=text,
            universal_newlines=universal_newlines,
            encoding=encoding,
            errors=errors,
            shell=shell,
            env=env,
            cwd=cwd,
            user=user,
        )

    def popen(
        self,
        args: Args,
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: StrOrBytesPath | None = None,
        user: str | int | None = None,
        text: bool | None = None,
        universal_newlines: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        tty: tuple[int, int] | None = None,
    ) -> Popen:
        """`subprocess.Popen` in the guest. `tty=(rows, columns)` gives it a terminal; all output is stdout then."""
        from .processes import Popen

        return Popen(
            self._context(),
            args,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            shell=shell,
            env=env,
            cwd=cwd,
            user=user,
            text=text,
            universal_newlines=universal_newlines,
            encoding=encoding,
            errors=errors,
            bufsize=bufsize,
            tty=tty,
        )

    # Its files.

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        """A path in the guest, with the interface of `pathlib.Path`."""
        from .paths import GuestPath

        return GuestPath(*(parts or ("/",)), filesystem=self._files)

    def copy_in(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> GuestPath:
        """Copies a file or a tree of the host to `target`, or into it when it is a directory, as `cp -R`."""
        from .copying import copy_in

        return copy_in(source, self.path(target))

    def copy_out(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
        """Copies a file or a tree of the guest to `target`, or into it when it is a directory, as `cp -R`."""
        from .copying import copy_out

        return copy_out(self.path(source), target)


def run(
    image: str | os.PathLike[str],
    args: Sequence[str] | str | None = None,
    *,
    entrypoint: Sequence[str] | None = None,
    input: Any = None,  # noqa: A002
    capture_output: bool | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    timeout: float | None = None,
    check: bool = False,
    text: bool | None = None,
    universal_newlines: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **machine: Any,
) -> CompletedProcess[Any]:
    """Starts a virtual machine for one command: ENTRYPOINT with `args` or, without any, CMD, as docker does.

    `timeout` is about the command. `machine` are keywords of :class:`VM`. Nothing is left behind.
    """
    with VM(image, **machine) as vm:
        return vm.run(
            vm.command(args, entrypoint),
            input=input,
            capture_output=capture_output,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            check=check,
            text=text,
            universal_newlines=universal_newlines,
            encoding=encoding,
            errors=errors,
        )
