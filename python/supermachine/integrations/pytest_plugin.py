"""A pytest plugin: a fresh virtual machine, or a fresh service, for each test; see docs/how-to/pytest.md.

`vm` is of ``@pytest.mark.supermachine(image, **options)``, or a fork of the machine that `vm_template` gives.
`service` makes machines in which an image's program runs and is ready.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from ..machine.template import Template
    from ..machine.vm import VM
    from .services import Service, Services

#: Machines of the test that runs, each with what it is called and its service if it is one.
_Noted: TypeAlias = "tuple[str, VM, Service | None]"
_MACHINES = pytest.StashKey["list[_Noted]"]()
#: Lines of a section of the report at most.
_LINES = 40
#: Seconds in which the guest's kernel log is read.
_PATIENCE = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("supermachine_image", "image of the fixture `vm` where no marker names one")
    group = parser.getgroup("supermachine")
    group.addoption(
        "--supermachine-keep-on-failure",
        metavar="DIR",
        nargs="?",
        const="supermachine-failures",
        help="write a snapshot of each machine of a test that fails into this directory [supermachine-failures]",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "supermachine(image, **options): image and options of the fixture `vm`")


@pytest.fixture(scope="session")
def vm_template() -> VM | None:
    """A running machine that each `vm` is forked from; a project that wants one has a fixture of this name."""
    return None


@pytest.fixture(scope="session")
def _supermachine_templates() -> Iterator[Callable[[VM], Template]]:
    """What has been captured of the machines that tests fork, each once."""
    yield from _captures()


def _captures() -> Iterator[Callable[[VM], Template]]:
    from ..machine.template import Template

    # The machines themselves: an address is used again for one that is made later.
    made: dict[VM, Template] = {}

    def of(machine: VM) -> Template:
        if machine not in made:
            made[machine] = Template(machine)
        return made[machine]

    yield of
    for template in made.values():
        template.close()


@pytest.fixture(scope="session")
def _supermachine_services() -> Iterator[Services]:
    from .services import Services

    services = Services()
    yield services
    services.close()


@pytest.fixture
def vm(
    request: pytest.FixtureRequest, vm_template: VM | None, _supermachine_templates: Callable[[VM], Template]
) -> Iterator[VM]:
    """A running virtual machine, killed when the test ends."""
    from ..machine.vm import VM

    marker = request.node.get_closest_marker("supermachine")
    if marker is None and vm_template is not None:
        machine = _supermachine_templates(vm_template).fork()
    else:
        args = marker.args if marker is not None else ()
        options = dict(marker.kwargs) if marker is not None else {}
        image = args[0] if args else options.pop("image", None) or request.config.getini("supermachine_image")
        if not image:
            pytest.fail(
                "the fixture `vm` needs @pytest.mark.supermachine(image), a fixture vm_template, or supermachine_image "
                "in pytest's ini"
            )
        machine = VM(image, **options).start()
    try:
        _note(request, "vm", machine, None)
        yield machine
    finally:
        machine.kill()


@pytest.fixture
def service(request: pytest.FixtureRequest, _supermachine_services: Services) -> Iterator[Callable[..., Service]]:
    """Makes services: ``service(image, args, ports={"5432/tcp": None}, wait=port(5432), setup=migrate)``.

    The first one of its kind in a session starts the image's program, waits until it is ready, runs `setup(service)`
    and is captured; each test gets a machine that goes on from there. With ``fresh=True`` all that is done anew. `wait`
    is of `supermachine.integrations.waits`, or any function of a service, or several; `timeout` is in seconds. Other
    keywords are those of :class:`supermachine.VM`. The machines are killed when the test ends.
    """
    with contextlib.ExitStack() as stack:

        def make(image: Any, *args: Any, **options: Any) -> Service:
            def note(made: Service) -> None:
                stack.callback(made.vm.kill)
                _note(request, f"service {image}", made.vm, made)

            # One that did not become ready is the test's too: its report tells of it.
            made = _supermachine_services.make(image, *args, failed=note, **options)
            note(made)
            return made

        yield make


def _noted(item: pytest.Item) -> list[_Noted]:
    return item.stash.get(_MACHINES, [])


def _note(request: pytest.FixtureRequest, name: str, machine: VM, service: Service | None) -> None:
    request.node.stash.setdefault(_MACHINES, []).append((name, machine, service))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Adds to the report of a test that failed what its machines have to say."""
    report = yield
    # When the test is over its machines have been killed.
    if report.failed and call.when != "teardown":
        keep = item.config.getoption("--supermachine-keep-on-failure")
        for number, (name, machine, service) in enumerate(_noted(item)):
            for title, text in _told(machine, service):
                report.sections.append((f"supermachine: {title} of {name}", text))
            if keep is not None:
                place = Path(item.config.invocation_params.dir, keep)
                report.sections.append((f"supermachine: {name} was kept", _kept(machine, place, item.nodeid, number)))
    return report


def _told(machine: VM, service: Service | None) -> Iterator[tuple[str, str]]:
    if service is not None and service.output:
        yield "output", _end(service.output)
    if (console := _console(machine)) is not None:
        yield "console", _end(console)
    with contextlib.suppress(OSError, RuntimeError):
        if denied := machine.network.denials():
            yield "denials", "\n".join(f"{d}" + (f"; {d.remedy} allows it" if d.remedy else "") for d in denied)


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-_LINES:])


def _console(machine: VM) -> str | None:
    """The end of the console of a machine that has ended; of one that runs its kernel's log, where it has a `dmesg`."""
    from ..errors import SupermachineError
    from ..guest.processes import TimeoutExpired

    guest = machine._guest
    if guest is None:
        return None
    if (ended := guest.worker.exit) is not None:
        reason, message, tail = ended
        return "\n".join(part for part in (f"{reason}: {message}", tail) if part)
    try:
        return str(machine.run(["dmesg"], text=True, errors="replace", user="0", timeout=_PATIENCE).stdout) or None
    except (SupermachineError, OSError, TimeoutExpired):
        return None


def _kept(machine: VM, directory: Path, test: str, number: int) -> str:
    """Takes a snapshot, and says where it is, or why there is none."""
    from ..errors import SupermachineError

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", test)[-120:].strip("-") + (f"-{number}" if number else "")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path = next(p for n in range(1, 10_000) if not (p := directory / f"{name}-{n}.snapshot").exists())
        machine.snapshot(path)
    except (SupermachineError, OSError, StopIteration) as error:
        return f"no snapshot was taken: {error}"
    return f"{path}\nlook into it: python -c 'import supermachine as s; vm = s.VM.restore(\"{path}\"); …'"
