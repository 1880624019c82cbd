"""What is written down of a machine. It says what was, never whether the machine runs: that is for the lock to say."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import directories, shortage
from ..host import process_stat
from ..host.boots import boot_id

#: Bytes of a record at most; an environment of a megabyte is beyond what a command takes.
_MAX_BYTES = 4 << 20


@dataclass
class Record:
    """One machine, as its keeper last wrote it."""

    name: str
    id: str
    image: str
    #: What runs in it; empty until that is known.
    command: list[str] = field(default_factory=list)
    #: Keywords of `VM` that JSON can hold.
    options: dict[str, Any] = field(default_factory=dict)
    #: See `spec.Spec`.
    policy: dict[str, Any] = field(default_factory=dict)
    #: Seconds since 1970.
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    #: As a shell has it: 128 and the number of a signal. ``None`` where nobody was told.
    exit_code: int | None = None
    #: Why the virtual machine ended, if not by its main process.
    error: str = ""
    restarts: int = 0
    ports: dict[str, list[list[Any]]] = field(default_factory=dict)
    #: The keeper, so that one that does not answer can be ended: process id, start in ticks since the boot, boot id.
    keeper: int = 0
    keeper_start: int = 0
    boot: str = ""
    #: The worker, for whoever looks at the host's processes.
    worker: int | None = None
    health: str = ""
    #: Where it was started, which relative paths of its options are from.
    directory: str = ""
    #: The machine that this one is a fork of; empty for others.
    parent: str = ""

    def write(self, path: Path) -> None:
        """Replaces the file as a whole."""
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """``None`` for what is not there, or is no record. Raises HostShortage where that cannot be found out."""
        try:
            with shortage.Told(f"{directories.shown(path)} cannot be read"), path.open("rb") as file:
                text = file.read(_MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            said = json.loads(text)
            known = {f.name for f in fields(cls)}
            return cls(**{name: value for name, value in said.items() if name in known})
        except (ValueError, TypeError, AttributeError):
            return None


def process_start(pid: int) -> int:
    """When a process began, in ticks since the boot; 0 where that is not known, or there is none."""
    stat = process_stat.of(pid)
    return stat.started if stat is not None else 0


def is_process(record: Record) -> bool:
    """Whether the keeper of a record is still a process of this user's."""
    if not record.keeper or record.boot != boot_id():
        return False
    try:
        os.kill(record.keeper, 0)
    except OSError:
        return False
    return process_start(record.keeper) == record.keeper_start
