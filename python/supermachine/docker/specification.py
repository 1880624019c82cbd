"""What a container is to be: the body of ``POST /containers/create``, read and checked."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import BadRequest, NotImplementedHere

#: RAM of a container that says nothing. The host gives a page when the guest first touches it.
DEFAULT_MEMORY = 1 << 30
#: RAM of a container that says little: its own kernel needs some too.
LEAST_MEMORY = 256 << 20
#: Seconds between a stop's signal and SIGKILL.
DEFAULT_STOP_TIMEOUT = 10
#: Parts of a body that each are many.
_MOST = 1024

#: What HostConfig may say and a virtual machine has no use for: its kernel is its own.
_IGNORED = ("Links", "VolumesFrom", "Ulimits", "Sysctls", "Dns", "DnsSearch", "DnsOptions")
#: What HostConfig may not say, as the container would not be what was asked for.
_REFUSED = {"Devices": "devices of the host", "DeviceRequests": "GPUs and other devices of the host"}


@dataclass
class HealthTest:
    """A health check; times are seconds."""

    test: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    retries: int = 3
    #: Between checks in the start period, until one succeeds.
    start_interval: float = 5.0


@dataclass
class VolumeMount:
    """A directory or file of the host, or a named volume, and where it is in the container."""

    kind: str  # "bind" or "volume"
    source: str
    target: str
    read_only: bool
    #: Whether the host's directory is made where it is missing, as docker does for ``-v``.
    make: bool = False


@dataclass
class Specification:
    """A container as it was asked for. `config` and `host_config` are said again when it is inspected."""

    image: str
    command: tuple[str, ...] | None
    entrypoint: tuple[str, ...] | None
    environment: dict[str, str]
    working_dir: str | None
    user: str | None
    hostname: str | None
    tty: bool
    open_stdin: bool
    stdin_once: bool
    stop_signal: str | None
    stop_timeout: int | None
    labels: dict[str, str]
    exposed: tuple[str, ...]
    health: HealthTest | None
    #: Whether the image's health check is not to be run.
    no_health: bool
    memory: int
    vcpus: int
    #: Of what is written to, as docker writes sizes; empty for the default.
    disk: str
    #: "80/tcp" to addresses and ports of the host, 0 for any.
    ports: dict[str, list[tuple[str, int]]]
    publish_all: bool
    mounts: list[VolumeMount]
    #: By the path; as docker writes options.
    tmpfs: dict[str, str]
    read_only: bool
    #: Bytes; 0 for what the kernel makes it.
    shm_bytes: int
    extra_hosts: tuple[str, ...]
    network_mode: str
    #: By the name of a network: what the container is called there.
    endpoints: dict[str, dict[str, Any]]
    auto_remove: bool
    restart_policy: str
    restart_retries: int
    log_driver: str
    platform: str | None
    config: dict[str, Any] = field(default_factory=dict)
    host_config: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def parse(body: Mapping[str, Any], platform: str) -> Specification:
    """Raises BadRequest for what is malformed, NotImplementedHere for what cannot be."""
    host = _object(body, "HostConfig")
    image = text(body, "Image")
    if not image:
        raise BadRequest("the container names no image")
    for name, what in _REFUSED.items():
        if host.get(name):
            raise NotImplementedHere(f"HostConfig.{name}: a container here has no {what}")
    warnings = [f"HostConfig.{name} is not used" for name in _IGNORED if host.get(name)]
    binds = [_bind(text) for text in texts(host, "Binds") or ()]
    mounts, tmpfs = _mounts(_list(host, "Mounts"))
    restart = _object(host, "RestartPolicy")
    no_health, health = _health(_object(body, "Healthcheck"))
    mode = text(host, "NetworkMode") or "default"
    networking = _object(_object(body, "NetworkingConfig"), "EndpointsConfig")
    return Specification(
        image=image,
        command=texts(body, "Cmd"),
        entrypoint=texts(body, "Entrypoint"),
        environment=environment(texts(body, "Env") or ()),
        working_dir=text(body, "WorkingDir") or None,
        user=text(body, "User") or None,
        hostname=text(body, "Hostname") or None,
        tty=bool(body.get("Tty")),
        open_stdin=bool(body.get("OpenStdin")),
        stdin_once=bool(body.get("StdinOnce")),
        stop_signal=text(body, "StopSignal") or None,
        stop_timeout=_number(body, "StopTimeout"),
        labels={str(name): str(value) for name, value in _object(body, "Labels").items()},
        exposed=tuple(map(port_name, _object(body, "ExposedPorts"))),
        health=health,
        no_health=no_health,
        memory=_memory(_number(host, "Memory") or 0),
        vcpus=_vcpus(host),
        disk=text(_object(host, "StorageOpt"), "size"),
        ports=_ports(_object(host, "PortBindings")),
        publish_all=bool(host.get("PublishAllPorts")),
        mounts=[*binds, *mounts],
        tmpfs={**tmpfs, **{str(target): text(_object(host, "Tmpfs"), target) for target in _object(host, "Tmpfs")}},
        read_only=bool(host.get("ReadonlyRootfs")),
        shm_bytes=max(0, _number(host, "ShmSize") or 0),
        extra_hosts=texts(host, "ExtraHosts") or (),
        network_mode=mode,
        endpoints={str(name): value if isinstance(value, dict) else {} for name, value in networking.items()},
        auto_remove=bool(host.get("AutoRemove")),
        restart_policy=text(restart, "Name") or "no",
        restart_retries=_number(restart, "MaximumRetryCount") or 0,
        log_driver=text(_object(host, "LogConfig"), "Type") or "json-file",
        platform=platform or None,
        config=dict(body),
        host_config=dict(host),
        warnings=warnings,
    )


def signal_number(text: str) -> int:
    """``SIGTERM``, ``term`` or ``15``. Raises BadRequest."""
    name = text.strip().upper()
    if name.isdecimal() and 0 < int(name[:3]) <= 64:
        return int(name)
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name.startswith("SIGRTMIN+") and name[9:].isdecimal() and int(name[9:][:3]) <= 30:
        return 34 + int(name[9:])
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise BadRequest(f"Invalid signal: {text[:50]}") from None


def environment(items: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        # A bare name takes a variable away; there is none of this process's to pass on.
        if equals:
            if not name or "\0" in item:
                raise BadRequest(f"invalid environment variable: {item[:80]!r}")
            found[name] = value
    return found


def _memory(wanted: int) -> int:
    return max(wanted, LEAST_MEMORY) if wanted > 0 else DEFAULT_MEMORY


def _vcpus(host: Mapping[str, Any]) -> int:
    nano, quota = _number(host, "NanoCpus") or 0, _number(host, "CpuQuota") or 0
    if nano <= 0 and quota > 0:
        nano = quota * 1_000_000_000 // (_number(host, "CpuPeriod") or 100_000)
    return min(max(1, math.ceil(nano / 1e9)), os.cpu_count() or 1)


def _ports(bindings: Mapping[str, Any]) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for port, places in bindings.items():
        name = port_name(port)
        if not name.endswith(("/tcp", "/udp")):
            raise NotImplementedHere(f"the port {port} cannot be published: ports of TCP and UDP can")
        if places is not None and not isinstance(places, list):
            raise BadRequest(f"PortBindings of {port} is no list")
        for place in places or [{}]:
            if not isinstance(place, dict):
                raise BadRequest(f"PortBindings of {port} holds what is no object")
            text = str(place.get("HostPort") or "0")
            if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
                raise BadRequest(f"invalid port specification: {text[:50]!r}")
            found.setdefault(name, []).append((str(place.get("HostIp") or ""), int(text)))
    return found


def port_name(text: str) -> str:
    """``80`` and ``80/tcp`` as ``80/tcp``. Raises BadRequest."""
    number, _, protocol = str(text).partition("/")
    protocol = protocol.lower() or "tcp"
    known = protocol in ("tcp", "udp", "sctp")
    if not known or not number.isdecimal() or len(number) > 5 or not 0 < int(number) <= 65535:
        raise BadRequest(f"invalid port specification: {str(text)[:50]!r}")
    return f"{int(number)}/{protocol}"


def port_names(said: Iterable[str]) -> list[str]:
    """Those of an image; without what nobody can read, which is not to keep the others from being told."""
    found = []
    for text in said:
        with contextlib.suppress(BadRequest):
            found.append(port_name(text))
    return found


def _bind(text: str) -> VolumeMount:
    """``SOURCE:TARGET[:OPTIONS]``"""
    source, *rest = text.split(":")
    if not 1 <= len(rest) <= 2 or not source or not rest[0].startswith("/"):
        raise BadRequest(f"invalid volume specification: {text[:200]!r}")
    options = rest[1].split(",") if len(rest) == 2 else []
    kind = "bind" if source.startswith("/") else "volume"
    return VolumeMount(kind, source, rest[0], "ro" in options, make=kind == "bind")


def _mounts(mounts: Sequence[Any]) -> tuple[list[VolumeMount], dict[str, str]]:
    found: list[VolumeMount] = []
    tmpfs: dict[str, str] = {}
    for mount in mounts:
        if not isinstance(mount, dict):
            raise BadRequest("HostConfig.Mounts holds what is no object")
        kind, target = text(mount, "Type") or "volume", text(mount, "Target")
        if not target.startswith("/"):
            raise BadRequest(f"invalid mount config: {target[:200]!r} is no absolute path")
        if kind == "tmpfs":
            tmpfs[target] = _tmpfs(mount)
        elif kind in ("bind", "volume"):
            make = bool(_object(mount, "BindOptions").get("CreateMountpoint"))
            found.append(VolumeMount(kind, text(mount, "Source"), target, bool(mount.get("ReadOnly")), make))
        else:
            raise NotImplementedHere(f"mounts of the type {kind[:50]} are not supported: bind, volume and tmpfs are")
    return found, tmpfs


def _tmpfs(mount: Mapping[str, Any]) -> str:
    """TmpfsOptions, and ReadOnly, as docker's --tmpfs writes them."""
    said = _object(mount, "TmpfsOptions")
    options = ["ro"] if mount.get("ReadOnly") else []
    if size := _number(said, "SizeBytes"):
        options.append(f"size={size}")
    if mode := _number(said, "Mode"):
        options.append(f"mode={mode:o}")
    return ",".join(options)


def health_of(said: Mapping[str, Any]) -> HealthTest | None:
    """An image's health check; ``None`` for one that makes no sense, as images may say anything."""
    try:
        return _health(said)[1]
    except BadRequest:
        return None


def _health(said: Mapping[str, Any]) -> tuple[bool, HealthTest | None]:
    """Whether there is to be none, and what there is to be."""
    test = texts(said, "Test") or ()
    if not test:
        return False, None
    if test[0] == "NONE":
        return True, None
    if test[0] not in ("CMD", "CMD-SHELL") or len(test) < 2:
        raise BadRequest(f"Unknown type {test[0][:50]!r} in healthcheck: CMD, CMD-SHELL or NONE is needed")

    def seconds(name: str, usual: float) -> float:
        value = _number(said, name) or 0
        return value / 1e9 if value > 0 else usual

    command = test[1:] if test[0] == "CMD" else ("/bin/sh", "-c", test[1])
    return False, HealthTest(
        command,
        seconds("Interval", 30.0),
        seconds("Timeout", 30.0),
        seconds("StartPeriod", 0.0),
        _number(said, "Retries") or 3,
        seconds("StartInterval", 5.0),
    )


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST:
        raise BadRequest(f"{name} is no object, or one of more than {_MOST} members")
    return value


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MOST:
        raise BadRequest(f"{name} is no list, or one of more than {_MOST} items")
    return value


def texts(body: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    # Variables and arguments may be many; the body's size bounds them.
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"{name} is no list of texts")
    return tuple(value)


def text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{name} is no text")
    return value


def _number(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(1 << 62) < value < 1 << 62:
        raise BadRequest(f"{name} is no number")
    return int(value)
