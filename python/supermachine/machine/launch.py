"""From settings to a worker whose guest is ready: by booting, or by going on where a snapshot was taken."""

from __future__ import annotations

import os

from .. import descriptors, env
from ..errors import BadSnapshot, ConfigurationError, RenewFailed, VMExited, VMTimeout
from ..host import bundle, confinement

# As `typing` has it, which this module, on the way of every `supermachine run`, does without.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias, TypedDict

    from .._core import Worker, _Network
    from ..host.engines import Engine
    from ..images import ResolvedImage
    from ..network.policy import Network
    from ..storage.shares import Mounted

    #: Steps of a start: name, nanoseconds since the start of the worker process.
    Timings: TypeAlias = list[tuple[str, int]]
    #: Descriptors of volumes, of empty files for what is written to those that are only read, and slots.
    OpenVolumes: TypeAlias = Sequence[tuple[int, int | None, int]]
    #: Pages to bring in before the guest asks: first page, pages, whether they are written to.
    PageRanges: TypeAlias = Sequence[tuple[int, int, bool]]

    class _Told(TypedDict):
        hostname: str
        machine_id: bytes
        entropy: bytes
        boot_timeout_ms: int
        require_confinement: bool
        environment: list[tuple[str, str]]
        network: _Network | None
        shares: Sequence[Mounted]
        volume_disks: OpenVolumes


#: Seconds that the restore of a baked snapshot may take before something else is tried; it is a matter of milliseconds.
RESTORE_TIMEOUT = 20.0

#: Seconds that a worker gets beyond the time in which it says by itself that a guest is late.
_SLACK = 5.0


class _Start:
    """What every start tells a worker, and what is kept or given back when there is one, or none."""

    def __init__(
        self,
        hostname: str | None,
        timeout: float,
        network: Network | None,
        shares: Sequence[Mounted],
        volumes: OpenVolumes,
        require_confinement: bool | None,
    ) -> None:
        self._hostname = hostname
        self._timeout = timeout
        self._network = network
        self._shares = shares
        self._volumes = volumes
        self._require_confinement = require_confinement
        self._opened: list[int] = []
        self._address: str | None = None
        self._started: Worker | None = None

    def __enter__(self) -> _Start:
        self._address = _own_address(self._network)
        return self

    def told(self) -> _Told:
        machine_id = os.urandom(16)
        hostname = self._hostname or machine_id.hex()[:12]
        return {
            "hostname": hostname,
            "machine_id": machine_id,
            "entropy": os.urandom(64),
            "boot_timeout_ms": _milliseconds(self._timeout),
            "require_confinement": confinement.required(self._require_confinement),
            "environment": _translation(),
            "network": _told(self._network, hostname, self._opened, self._address),
            "shares": self._shares,
            "volume_disks": self._volumes,
        }

    def made(self, worker: Worker) -> Worker:
        self._started = worker
        return worker

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        _settle(self._address, self._started)
        for descriptor in self._opened:
            os.close(descriptor)
        if isinstance(error, OSError):
            raise _not_started(error) from error


def spawn(
    engine: Engine,
    image: ResolvedImage,
    memory: int,
    vcpus: int,
    hostname: str | None,
    timeout: float,
    network: Network | None = None,
    shares: Sequence[Mounted] = (),
    scratch: tuple[int, int] | None = None,
    volumes: OpenVolumes = (),
    require_confinement: bool | None = None,
) -> Worker:
    """A worker whose guest boots; `wait_ready` tells when it is ready. `timeout` is in seconds, and `shares` are what
    its guest may mount. `scratch` is an empty file's descriptor and the bytes of the root's disk, where it is on one.
    """
    from .._core import Worker

    with _Start(hostname, timeout, network, shares, volumes, require_confinement) as start:
        return start.made(
            Worker.spawn(
                bundle.worker(),
                engine=engine.name,
                kernel=bundle.kernel(engine.architecture),
                initramfs=bundle.initramfs(engine.architecture),
                disks=[(str(image.rootfs), True)],
                memory_bytes=memory,
                vcpus=vcpus,
                root_fs="erofs",
                volumes=image.config.volumes,
                scratch=scratch,
                **start.told(),
            )
        )


def spawn_restored(
    engine: str,
    disks: Sequence[str],
    files: Sequence[str | os.PathLike[str]],
    hostname: str | None,
    timeout: float,
    working_set: PageRanges = (),
    agent: bool = True,
    network: Network | None = None,
    shares: Sequence[Mounted] = (),
    scratch: tuple[int, Sequence[str]] | None = None,
    volumes: OpenVolumes = (),
    require_confinement: bool | None = None,
    arriving: int | None = None,
    note_order: bool = False,
    template: Worker | None = None,
    code: str | os.PathLike[str] | None = None,
) -> Worker:
    """A worker of the named engine that restores a chain of snapshot files; `wait_ready` tells when its guest is.

    `scratch` is for a root on a disk: the descriptor of an empty file, and the files that have the snapshot's disk
    where that is not in the snapshot. `arriving` is the descriptor of `Arrival.attach`, for a file that is not
    complete. `note_order` is for guests whose working set will be recorded. A `template` of these files makes the
    worker, where there is one. `code` is where their decoded code is, if it is there.

    Without an agent that is at once, and the guest is not told that it is another one now.
    """
    from .._core import Worker

    with _Start(hostname, timeout, network, shares, volumes, require_confinement) as start:
        return start.made(
            Worker.restore(
                bundle.worker(),
                engine=engine,
                files=[os.fspath(file) for file in files],
                disks=[(disk, True) for disk in disks],
                working_set=working_set,
                agent=agent,
                scratch=scratch,
                arriving=arriving,
                note_order=note_order,
                code=None if code is None else os.fspath(code),
                template=template,
                **start.told(),
            )
        )


def spawn_template(
    engine: str,
    disks: Sequence[str],
    files: Sequence[str | os.PathLike[str]],
    scratch: Sequence[str] | None,
    require_confinement: bool | None,
    code: str | os.PathLike[str] | None = None,
) -> Worker:
    """What makes workers that restore these files, by copying itself; `wait_ready` tells when it can.

    `code` is where their decoded code is, if it is there.
    """
    from .._core import Worker

    try:
        return Worker.template(
            bundle.worker(),
            engine=engine,
            files=[os.fspath(file) for file in files],
            disks=[(disk, True) for disk in disks],
            scratch=scratch,
            require_confinement=confinement.required(require_confinement),
            environment=_translation(),
            code=None if code is None else os.fspath(code),
        )
    except OSError as error:
        raise _not_started(error) from error


def _translation() -> list[tuple[str, str]]:
    """What a worker is given of the environment."""
    value = os.environ.get(env.JIT, "")
    if value not in ("", "0", "1", "always"):
        raise ConfigurationError(f"{env.JIT} is {value!r}; 0, 1 or always is understood")
    return [(env.JIT, value)] if value else []


def _own_address(network: Network | None) -> str | None:
    """One that no other machine has, where it is to be on segments; `_settle` hears what came of it."""
    if network is None or not network.has_own_address:
        return None
    from ..network import segments

    return segments.reserve(across=network.shared)


def _settle(address: str | None, started: Worker | None) -> None:
    if address is None:
        return
    from ..network import segments

    if started is None:
        segments.release(address)
    else:
        segments.keep(address, started)


def _told(network: Network | None, machine: str, opened: list[int], address: str | None) -> _Network | None:
    """What a worker is told of its guest's network; nothing where there is none. `opened` is closed by who calls."""
    if network is None or network.is_none:
        return None
    audit = None
    if network.audit is not None:
        log = descriptors.open_file(network.audit, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        opened.append(log)
        audit = (log, machine)
    secrets = [secret.told(name) for name, secret in network.secrets.items()]
    rules = (network.preset, network.allow, network.deny)
    return (bundle.policy_process(), *rules, network.dns, audit, secrets, address)


def _not_started(error: OSError) -> OSError:
    """What is short, where that is why there is no worker."""
    from .. import shortage

    return shortage.named(error, "the virtual machine's process cannot be started") or error


def wait_ready(worker: Worker, timeout: float) -> Timings:
    """Waits until the guest serves requests; the worker is killed when it does not come to that."""
    try:
        # The worker keeps the time; this is for a worker that does not.
        timings = worker.wait_ready(timeout + _SLACK)
        if timings is None:
            raise VMTimeout(f"the guest was not ready after {timeout:g} seconds")
    except VMExited as error:
        worker.kill()
        raise _meaning(error, timeout) from error
    except BaseException:
        worker.kill()
        raise
    return timings


def _meaning(error: VMExited, timeout: float) -> Exception:
    """The error that says what a virtual machine's early end means."""
    from .. import shortage

    if error.reason == "agent-timeout":
        return VMTimeout(
            f"the guest was not ready after {timeout:g} seconds",
            cause=error.console_tail or None,
            hint="give it longer with boot_timeout=",
        )
    if error.reason != "agent-timeout" and (lacking := shortage.in_words(str(error))) is not None:
        return lacking
    if error.reason == "crashed" and "signal 9" in str(error):
        return shortage.killed("the virtual machine did not start", error)
    if error.reason == "unconfined":
        return confinement.refused(str(error))
    if error.reason == "bad-snapshot":
        return BadSnapshot(f"the snapshot cannot be restored: {error}")
    if error.reason == "renew-failed":
        return RenewFailed(
            f"the restored guest did not confirm its new identity, so nothing was let run in it: {error}",
            cause=error.console_tail or None,
        )
    return error


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
