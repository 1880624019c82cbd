"""What ``docker inspect`` and ``docker ps`` are told of a container."""

from __future__ import annotations

import time
from typing import Any

from .container import Container
from .logs import timestamp
from .specification import port_names

#: What Docker says of a time that has not come.
_NEVER = "0001-01-01T00:00:00Z"


def _time(time_ns: int) -> str:
    return timestamp(time_ns) if time_ns else _NEVER


def _state(container: Container) -> dict[str, Any]:
    status = container.status
    state: dict[str, Any] = {
        "Status": status,
        "Running": container.alive,
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "OOMKilled": False,
        "Dead": False,
        "Pid": container.worker_pid,
        "ExitCode": container.exit_code,
        "Error": container.error,
        "StartedAt": _time(container.started_ns),
        "FinishedAt": _time(container.finished_ns),
    }
    if container.health is not None:
        state["Health"] = container.health.document()
    return state


def _published(container: Container) -> dict[str, Any]:
    """``NetworkSettings.Ports``"""
    exposed = [*container.wanted.exposed, *port_names(container.image.said.exposed_ports)]
    found: dict[str, Any] = dict.fromkeys(exposed if container.alive else [])
    for name, places in container.ports.items():
        found[name] = [{"HostIp": address, "HostPort": str(port)} for address, port in places]
    return found


def _mounts(container: Container) -> list[dict[str, Any]]:
    found = []
    for mount in container.mounts:
        line = {
            "Type": mount.kind,
            "Source": mount.source,
            "Destination": mount.target,
            "Mode": "ro" if mount.read_only else "",
            "RW": not mount.read_only,
            "Propagation": "rprivate" if mount.kind == "bind" else "",
        }
        volume = container.session.volumes.by_path(mount.source)
        if volume is not None:
            line.update(Name=volume.name, Driver=volume.driver)
        found.append(line)
    return found


def config(container: Container) -> dict[str, Any]:
    wanted, said = container.wanted, container.image.said
    environment = {**said.environment, **wanted.environment}
    entrypoint = wanted.entrypoint if wanted.entrypoint is not None else (said.entrypoint or None)
    command = wanted.command
    if command is None and wanted.entrypoint is None:
        command = said.cmd or None
    health = wanted.config.get("Healthcheck") or said.healthcheck
    config: dict[str, Any] = {
        "Hostname": wanted.hostname or container.id[:12],
        "Domainname": str(wanted.config.get("Domainname") or ""),
        "User": wanted.user or said.user,
        "AttachStdin": bool(wanted.config.get("AttachStdin")),
        "AttachStdout": bool(wanted.config.get("AttachStdout")),
        "AttachStderr": bool(wanted.config.get("AttachStderr")),
        "ExposedPorts": {port: {} for port in (*wanted.exposed, *port_names(said.exposed_ports))},
        "Tty": wanted.tty,
        "OpenStdin": wanted.open_stdin,
        "StdinOnce": wanted.stdin_once,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Cmd": list(command) if command is not None else None,
        "Image": wanted.image,
        "Volumes": wanted.config.get("Volumes") or None,
        "WorkingDir": wanted.working_dir or said.working_dir,
        "Entrypoint": list(entrypoint) if entrypoint is not None else None,
        "OnBuild": None,
        "Labels": container.labels(),
        "StopSignal": container.stop_signal,
    }
    if wanted.stop_timeout is not None:
        config["StopTimeout"] = wanted.stop_timeout
    if health:
        config["Healthcheck"] = health
    return config


def _host_config(container: Container) -> dict[str, Any]:
    """What was asked for, with the fields that clients take for granted."""
    wanted = container.wanted
    return {
        "Binds": None,
        "PortBindings": {},
        "Links": None,
        "AutoRemove": wanted.auto_remove,
        "Privileged": False,
        "PublishAllPorts": False,
        "Memory": 0,
        "NanoCpus": 0,
        "CapAdd": None,
        "CapDrop": None,
        "Dns": [],
        "ExtraHosts": None,
        "ReadonlyRootfs": False,
        "ShmSize": 67108864,
        "Runtime": "supermachine",
        "Isolation": "",
        **wanted.host_config,
        "LogConfig": {"Type": wanted.log_driver, "Config": {}},
        "NetworkMode": wanted.network_mode if wanted.network_mode != "default" else "bridge",
        "RestartPolicy": {"Name": wanted.restart_policy, "MaximumRetryCount": wanted.restart_retries},
    }


def inspect(container: Container) -> dict[str, Any]:
    """``docker inspect``"""
    command = container.command
    endpoints = container.session.networks.endpoints(container)
    return {
        "Id": container.id,
        "Created": timestamp(container.created_ns),
        "Path": command[0] if command else "",
        "Args": command[1:],
        "State": _state(container),
        "Image": container.image.id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{container.name}",
        "RestartCount": container.restarts,
        "Driver": "erofs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": container.session.executions.of(container) or None,
        "HostConfig": _host_config(container),
        "GraphDriver": {"Name": "erofs", "Data": {}},
        "Mounts": _mounts(container),
        "Config": config(container),
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": container.id,
            "SandboxKey": "",
            "HairpinMode": False,
            "Ports": _published(container),
            "EndpointID": "",
            "Gateway": next((e["Gateway"] for e in endpoints.values()), ""),
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "IPAddress": "",
            "IPPrefixLen": 0,
            "IPv6Gateway": "",
            "MacAddress": "",
            "Networks": endpoints,
        },
    }


def line(container: Container) -> dict[str, Any]:
    """``docker ps``"""
    ports: list[dict[str, Any]] = []
    for name, places in _published(container).items():
        number, _, protocol = name.partition("/")
        private = {"PrivatePort": int(number), "Type": protocol}
        if not places:
            ports.append(private)
        for place in places or ():
            ports.append({**private, "IP": place["HostIp"], "PublicPort": int(place["HostPort"])})
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.wanted.image,
        "ImageID": container.image.id,
        "Command": " ".join(container.command),
        "Created": container.created_ns // 1_000_000_000,
        "Ports": ports,
        "Labels": container.labels(),
        "State": container.status,
        "Status": status(container),
        "HostConfig": {"NetworkMode": _host_config(container)["NetworkMode"]},
        "NetworkSettings": {"Networks": container.session.networks.endpoints(container)},
        "Mounts": _mounts(container),
    }


def status(container: Container) -> str:
    """As docker says it for people: ``Up 5 minutes (healthy)``."""
    if container.status == "created":
        return "Created"
    if container.status == "removing":
        return "Removal In Progress"
    if not container.alive:
        if not container.finished_ns:
            return f"Exited ({container.exit_code})"
        return f"Exited ({container.exit_code}) {_ago(container.finished_ns)} ago"
    if container.status == "restarting":
        return f"Restarting ({container.exit_code}) {_ago(container.finished_ns)} ago"
    text = f"Up {_ago(container.started_ns)}"
    if container.status == "paused":
        return text + " (Paused)"
    if container.health is not None:
        health = container.health.status
        text += f" ({'health: starting' if health == 'starting' else health})"
    return text


def _ago(time_ns: int) -> str:
    seconds = max(0, (time.time_ns() - time_ns) // 1_000_000_000)
    if seconds < 1:
        return "Less than a second"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return ""
