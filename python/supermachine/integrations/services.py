"""Services of tests: an image's program that runs and is ready, afresh for each test."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, SupermachineError, VMTimeout
from ..guest.processes import DEVNULL, PIPE, STDOUT
from ..machine.template import Template
from ..machine.vm import VM

if TYPE_CHECKING:
    import os

    from ..guest.processes import Popen

    Wait = Callable[["Service"], bool]

#: Seconds between two looks.
_LOOK = 0.02
#: Characters of a service's output that are kept, from the end.
_MAX_OUTPUT = 1 << 20
#: Characters of it in an error.
_SHOWN = 2000


class Service:
    """A machine in which an image's program runs."""

    def __init__(self, vm: VM, process: Popen | None, output: str = "") -> None:
        #: Its machine: `vm.run`, `vm.path` and all else.
        self.vm = vm
        self._process = process
        self._said = output
        self._deadline = float("inf")
        self._reader: threading.Thread | None = None
        if process is not None and process.stdout is not None:
            self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
            self._reader.start()

    def _read(self, stream: Any) -> None:
        """A thread: keeps the end of what it says."""
        try:
            while data := stream.read1(1 << 16):
                self._said = (self._said + data.decode("utf-8", "replace"))[-_MAX_OUTPUT:]
        except (OSError, ValueError):
            return

    @property
    def output(self) -> str:
        """What its program has said on stdout and stderr, of much the end; of a fork what it said before."""
        return self._said

    @property
    def exit_code(self) -> int | None:
        """Of its program, when it has ended; of a fork's nobody is told."""
        return self._process.poll() if self._process is not None else None

    def address(self, port: int | None = None) -> tuple[str, int]:
        """Address and port of the host that lead to a port of the guest, by default to the first that is published."""
        ports = self.vm.ports
        name = f"{port}/tcp" if port is not None else next(iter(ports), "")
        if name not in ports:
            raise ConfigurationError(
                f"the port {name or 'of the service'} is not published", hint=f"ports={{{name or '80/tcp'!r}: None}}"
            )
        return ports[name][0]

    def url(self, port: int | None = None, path: str = "/") -> str:
        """The same as ``http://…``."""
        host, number = self.address(port)
        return f"http://{host}:{number}{path}"

    @property
    def remaining(self) -> float:
        """Seconds that a condition has until the wait that asks it is over; infinity where none does."""
        return self._deadline - time.monotonic()

    def wait(self, conditions: Wait | Sequence[Wait], timeout: float = 60.0) -> None:
        """Waits until all of the conditions hold. Raises `VMTimeout`, and `SupermachineError` when its program ends."""
        self._deadline = time.monotonic() + timeout
        try:
            self._wait(conditions, timeout)
        finally:
            self._deadline = float("inf")

    def _wait(self, conditions: Wait | Sequence[Wait], timeout: float) -> None:
        for condition in [conditions] if callable(conditions) else conditions:
            while not condition(self):
                if (code := self.exit_code) is not None:
                    self._drain()
                    if condition(self):
                        break
                    raise SupermachineError(
                        f"the service ended with {code} before {condition!r} held", cause=self.output[-_SHOWN:] or None
                    )
                if self.remaining <= 0:
                    raise VMTimeout(
                        f"{condition!r} did not hold within {timeout:g} seconds", cause=self.output[-_SHOWN:] or None
                    )
                time.sleep(_LOOK)

    def _drain(self) -> None:
        if self._reader is not None:
            self._reader.join(1.0)


class Services:
    """Makes services. What one is like after its start is captured once, and each further one goes on from there."""

    def __init__(self) -> None:
        self._templates: dict[object, tuple[Template, str]] = {}

    def make(
        self,
        image: str | os.PathLike[str],
        args: Sequence[str] | str | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        wait: Wait | Sequence[Wait] = (),
        setup: Callable[[Service], object] | None = None,
        timeout: float = 60.0,
        fresh: bool = False,
        failed: Callable[[Service], object] | None = None,
        **machine: Any,
    ) -> Service:
        """A service that is ready; see the fixture `service`. `failed` is given one that runs and did not become ready,
        and ends it; without it that has been killed.
        """
        if fresh:
            return self._started(image, args, entrypoint, wait, setup, timeout, machine, failed)
        key = _key((image, args, entrypoint, wait, setup, sorted(machine.items())))
        if key not in self._templates:
            prepared = self._started(image, args, entrypoint, wait, setup, timeout, machine, failed)
            try:
                self._templates[key] = Template(prepared.vm), prepared.output
            finally:
                prepared.vm.kill()
        template, output = self._templates[key]
        return Service(template.fork(), None, output)

    def _started(
        self,
        image: str | os.PathLike[str],
        args: Sequence[str] | str | None,
        entrypoint: Sequence[str] | None,
        wait: Wait | Sequence[Wait],
        setup: Callable[[Service], object] | None,
        timeout: float,
        machine: dict[str, Any],
        failed: Callable[[Service], object] | None,
    ) -> Service:
        vm = VM(image, **machine).start()
        service = None
        try:
            process = vm.popen(vm.command(args, entrypoint), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
            service = Service(vm, process)
            service.wait(wait, timeout)
            if setup is not None:
                setup(service)
        except BaseException:
            if failed is None:
                vm.kill()
            else:
                failed(service or Service(vm, None))
            raise
        return service

    def close(self) -> None:
        for template, _ in self._templates.values():
            template.close()
        self._templates.clear()


class _Itself:
    """What cannot be compared, as a part of a key. It is kept, so that nothing else has its address."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def _key(value: object) -> object:
    """What is equal for equal values alone: functions are the same objects, and an option's text may hide its value."""
    kind = type(value)
    if isinstance(value, Mapping):
        return kind, tuple((_key(name), _key(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return kind, tuple(map(_key, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return kind, tuple(_key(getattr(value, part.name)) for part in dataclasses.fields(value))
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return kind, value
