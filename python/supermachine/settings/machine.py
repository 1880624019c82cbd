"""The settings of a virtual machine as one value, checked; ``table.py`` says what each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from ..errors import ConfigurationError
from . import parsing, table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..host.engines import Engine
    from ..images import Progress
    from ..images.resolution import Pull
    from ..network.policy import Network
    from ..network.ports import Ports, Wanted
    from ..network.secrets import Secrets
    from ..snapshots.baking import Warmup
    from ..storage.shares import Mounted, Mounts, Parsed, Volumes
    from ..storage.tmpfs import Mounted as MountedTmpfs
    from ..storage.tmpfs import Tmpfs
    from ..storage.volumes import Mounted as MountedVolume
    from .parsing import Environment


class MachineOptions(TypedDict, total=False):
    """The keywords of :class:`supermachine.VM`."""

    memory: int | str
    disk: int | str
    vcpus: int
    engine: str
    environment: Environment | None
    working_dir: str | None
    user: str | int | None
    hostname: str | None
    require_hardware: bool | None
    require_confinement: bool | None
    ports: Ports | None
    network: Network | str | None
    allow: Sequence[str]
    deny: Sequence[str]
    secrets: Secrets | None
    volumes: Volumes | None
    mounts: Mounts | None
    tmpfs: Tmpfs | None
    read_only: bool
    shm_size: int | str | None
    platform: str | None
    pull: Pull
    insecure: bool
    progress: Progress | None
    boot_timeout: float
    bake: bool | None
    warmup: Warmup | None
    warmup_key: str | None
    prefault: bool | None


class MachineSettings(NamedTuple):
    """What a virtual machine was told, checked. Made by `of`, changed by `_replace`."""

    engine: Engine
    #: Bytes.
    memory: int
    #: Bytes; 0 for none.
    disk: int
    vcpus: int
    environment: dict[str, str]
    working_dir: str | None
    user: str | None
    hostname: str | None
    require_confinement: bool | None
    ports: Wanted
    network: Network
    shares: tuple[Mounted, ...]
    volumes: tuple[MountedVolume, ...]
    tmpfs: tuple[MountedTmpfs, ...]
    read_only: bool
    #: Bytes; 0 for what the kernel makes it.
    shm_size: int
    platform: str | None
    pull: Pull
    insecure: bool
    progress: Progress | None
    #: Seconds.
    boot_timeout: float
    bake: bool | None
    warmup: Warmup | None
    warmup_key: str | None
    prefault: bool | None

    @classmethod
    def of(cls, **options: Unpack[MachineOptions]) -> MachineSettings:
        """Checks what a caller said. Raises ConfigurationError, and TypeError for a keyword that there is not."""
        if unknown := sorted(options.keys() - _DEFAULTS.keys()):
            raise TypeError(f"VM() got an unexpected keyword argument {unknown[0]!r}")
        said: dict[str, Any] = {**_DEFAULTS, **options}
        said["network"] = _network(said["network"], said.pop("allow"), said.pop("deny"), said.pop("secrets"))
        said["shares"], said["volumes"], said["tmpfs"] = _shares(
            said.pop("volumes"), said.pop("mounts"), said.pop("tmpfs")
        )
        if said["boot_timeout"] <= 0:
            raise ConfigurationError(f"boot_timeout is {said['boot_timeout']}; a positive number of seconds is needed")
        from ..host import engines

        said["engine"] = engine = engines.choose(said["engine"], said.pop("require_hardware"), said["platform"])
        said["vcpus"] = parsing.vcpu_count(said["vcpus"], engine.architecture)
        for name, check in _CHECKS.items():
            said[name] = check(said[name])
        if twice := sorted(said["network"].secrets.keys() & said["environment"].keys()):
            raise ConfigurationError(f"the variable {twice[0]} is in the environment and among the secrets")
        return cls(**said)

    def of_restored(self) -> MachineSettings:
        """Those of another machine that goes on from the same state.

        What is for the start of the first is left out, as is what that state has.
        """
        start = self._replace(hostname=None, bake=False, warmup=None, warmup_key=None, prefault=None)
        return start._replace(tmpfs=(), read_only=False, shm_size=0)


def _ports(value: Ports | None) -> Wanted:
    if not value:
        return {}
    from ..network.ports import parse

    return parse(value)


def _network(
    value: Network | str | None, allow: Sequence[str], deny: Sequence[str], secrets: Secrets | None
) -> Network:
    from ..network import policy

    return policy.network(value, allow, deny, secrets)


def _shares(
    volumes: Volumes | None, mounts: Mounts | None, tmpfs: Tmpfs | None
) -> Parsed | tuple[tuple[()], tuple[()], tuple[()]]:
    if not volumes and not mounts and not tmpfs:
        return (), (), ()
    from ..storage.shares import parse

    return parse(volumes, mounts, tmpfs)


def _shm_bytes(value: int | str | None) -> int:
    if value is None:
        return 0
    from ..storage.tmpfs import shm_bytes

    return shm_bytes(value)


_DEFAULTS = {setting.name: setting.default for setting in table.SETTINGS}
_CHECKS: dict[str, Callable[[Any], object]] = {
    "memory": parsing.memory_bytes,
    "disk": parsing.disk_bytes,
    "environment": parsing.environment,
    "user": lambda value: None if value is None else str(value),
    "hostname": lambda value: None if value is None else parsing.hostname(value),
    "ports": _ports,
    "read_only": bool,
    "shm_size": _shm_bytes,
}
