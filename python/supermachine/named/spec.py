"""What a keeper is told: the machine, what runs in it, and what becomes of it."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ConfigurationError
from ..guest.process_context import linux_signal
from . import logs

#: Seconds between the stop signal and SIGKILL, as docker's.
STOP_TIMEOUT = 10.0
_RESTART = ("no", "always", "unless-stopped", "on-failure")


@dataclass
class Policy:
    """What becomes of a machine."""

    #: Whether nothing of it stays when it has ended.
    remove: bool = False
    #: "no", "on-failure" or "always".
    restart: str = "no"
    #: Restarts of "on-failure" at most; ``None`` for any number.
    restart_max: int | None = None
    #: As it was written; empty for the image's.
    stop_signal: str = ""
    #: Seconds.
    stop_timeout: float = STOP_TIMEOUT
    tty: bool = False
    interactive: bool = False
    #: Docker's HEALTHCHECK as an image has it, before the image's own; ``{"Test": ["NONE"]}`` for none.
    health: dict[str, Any] | None = None
    #: What whoever started it calls it by, beside its name.
    labels: dict[str, str] = field(default_factory=dict)
    log_bytes: int = logs.MAX_BYTES


@dataclass
class Fork:
    """What a machine goes on from that is a fork of another."""

    #: The snapshot, which is there until the fork has said that it runs.
    path: str
    #: The main process in the guest.
    pid: int
    command: list[str]
    parent: str


@dataclass
class Spec:
    """A machine to keep."""

    image: str
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    entrypoint: list[str] | None = None
    policy: Policy = field(default_factory=Policy)
    fork: Fork | None = None
    #: Where it was started before, if it is one that has ended and is started again.
    again: str | None = None
    #: Whether nobody is to be told of anything but failures.
    quiet: bool = False

    def encode(self) -> bytes:
        """Raises ConfigurationError for an option that another process cannot be told."""

        def refuse(value: object) -> object:
            raise ConfigurationError(f"{value!r} cannot be an option of a machine that lives in another process")

        return json.dumps(asdict(self), default=refuse).encode()

    @classmethod
    def decode(cls, data: bytes) -> Spec:
        said = json.loads(data)
        said["policy"] = policy_of(said["policy"])
        said["fork"] = Fork(**said["fork"]) if said["fork"] else None
        return cls(**said)

    def machine_options(self) -> dict[str, Any]:
        """The keywords of `VM`, with what JSON does not tell apart as it was."""
        options = dict(self.options)
        if options.get("ports"):
            options["ports"] = {port: _places(places) for port, places in options["ports"].items()}
        return options


def _places(said: Any) -> Any:
    """Where a port is published: JSON has no tuples, so that (address, port) has come as a list of its own."""
    if not isinstance(said, list):
        return said
    if len(said) == 2 and isinstance(said[0], str):
        return [tuple(said)]
    return [tuple(place) if isinstance(place, list) else place for place in said]


def policy_of(said: dict[str, Any]) -> Policy:
    """That of a record, be it one of another version of this package."""
    known = {f.name for f in fields(Policy)}
    return Policy(**{name: value for name, value in said.items() if name in known})


def restart_policy(text: str) -> tuple[str, int | None]:
    """Docker's --restart: the policy, and restarts at most. Raises ConfigurationError."""
    name, colon, count = text.partition(":")
    if name not in _RESTART or (colon and (name != "on-failure" or not count.isdecimal() or len(count) > 9)):
        raise ConfigurationError(f"{text!r} is no restart policy: no, on-failure, on-failure:N or always")
    # Nothing restarts a machine that was stopped, nor one whose host was started anew.
    return ("always" if name == "unless-stopped" else name), (int(count) if colon else None)


def signal_number(text: str) -> int:
    """The guest's number of a signal: 15, TERM, SIGTERM, RTMIN+3. Raises ConfigurationError."""
    name = text.strip().upper()
    if name.isdecimal() and len(name) < 3 and 1 <= int(name) <= 64:
        return int(name)
    name = name if name.startswith("SIG") else f"SIG{name}"
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    # signal(7): glibc's and musl's programs both count from 34 and 35 in libc; the kernel's own are 34 to 64.
    real_time = {"SIGRTMIN": 34, "SIGRTMAX": 64}.get(base)
    if real_time is not None and (not sign or offset.isdecimal()):
        number = real_time + (int(sign + offset) if sign else 0)
        if 34 <= number <= 64:
            return number
    elif not sign:
        found = getattr(signal, name, None)
        if isinstance(found, signal.Signals):
            return linux_signal(found)
        if name in ("SIGPOLL", "SIGSTKFLT", "SIGPWR"):
            return {"SIGPOLL": 29, "SIGSTKFLT": 16, "SIGPWR": 30}[name]
    raise ConfigurationError(f"{text!r} is not a signal; write TERM, SIGTERM or 15")
