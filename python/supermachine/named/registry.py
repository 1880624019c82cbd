"""The directories of a user's machines, and which of them a keeper has.

A machine is a directory: `lock`, which its keeper holds as long as it lives, `machine.json`, `socket` and `log/`. The
kernel gives a lock back however its owner dies, so whether a machine is kept is never read from what somebody wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import descriptors, directories, shortage
from ..cache import locks
from ..errors import KeeperLost, MachineRunning, NameInUse, NoSuchMachine
from . import names
from .records import Record, is_process

#: Seconds in which whoever holds the registry's lock is done with it; it takes milliseconds.
_PATIENCE = 15.0
#: Seconds that a keeper takes, at most, between saying that its machine has ended and being gone.
_LEAVING = 5.0


class Place(NamedTuple):
    """The directory of one machine."""

    name: str
    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def record_path(self) -> Path:
        return self.path / "machine.json"

    @property
    def socket(self) -> Path:
        return self.path / "socket"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def record(self) -> Record | None:
        return Record.read(self.record_path)

    def kept(self) -> bool:
        """Whether a keeper lives that has this machine. Raises HostShortage where that cannot be found out."""
        try:
            with shortage.Told(f"the machine {self.name} cannot be looked at"):
                fd = descriptors.open_file(self.lock, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


class Registry:
    """The machines of this user."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = Path(directory or directories.runtime_directory(), "machines").absolute()

    def _check(self) -> bool:
        """Whether there is anything. Raises RuntimeDirectoryNotTrusted where it could be another user's work."""
        directories.check_own(self.directory, "machines")
        return self.directory.is_dir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Held while a machine's directory is made or removed."""
        path = self.directory / ".lock"
        with shortage.Told("the machines cannot be looked at"):
            fd = locks.acquire_within(path, _PATIENCE)
        if fd is None:
            raise KeeperLost(
                f"another process has held {directories.shown(path)} for {_PATIENCE:g} seconds",
                hint="look for a process of supermachine that is stopped",
            )
        try:
            yield
        finally:
            locks.release(fd)

    def place(self, name: str) -> Place:
        return Place(name, self.directory / name)

    def create(self, name: str | None, *, after: str | None = None) -> tuple[Place, int]:
        """A new machine's directory and the descriptor that holds its lock. Raises NameInUse.

        One without a name is called after another machine, by the next number, or else has one made up.
        """
        directories.make_own(self.directory, "machines")
        with self._locked():
            for candidate in [names.check(name)] if name is not None else names.candidates(after):
                place = self.place(candidate)
                if not place.path.exists() or self._is_debris(place):
                    break
                if name is not None:
                    raise NameInUse(
                        f"there is a machine {place.name} already",
                        hint=f"choose another name, or remove it: supermachine rm {'-f ' * place.kept()}{place.name}",
                    )
            else:
                raise NameInUse("a hundred made-up names were all taken", hint="give one with --name")
            self._clear(place)
            place.path.mkdir(mode=0o700)
            fd = descriptors.open_file(place.lock, os.O_RDWR | os.O_CREAT)
            # Whoever asks whether it is kept holds it for an instant.
            fcntl.flock(fd, fcntl.LOCK_EX)
            return place, fd

    def reopen(self, name: str) -> tuple[Place, int]:
        """The directory of a machine that has ended, for a new keeper, and the descriptor that holds its lock.

        Raises NoSuchMachine, and MachineRunning where another keeper has it.
        """
        place = self.find(name)
        deadline = time.monotonic() + _LEAVING
        while True:
            with self._locked():
                try:
                    fd = descriptors.open_file(place.lock, os.O_RDWR)
                except FileNotFoundError:
                    raise NoSuchMachine(f"there is no machine {name}") from None
                # Whoever asks whether it is kept holds it for an instant; its last keeper, until it is gone.
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with contextlib.suppress(FileNotFoundError):
                        place.socket.unlink()
                    return place, fd
                os.close(fd)
            if time.monotonic() > deadline:
                raise MachineRunning(f"the machine {name} runs, or is being started")
            time.sleep(0.005)

    def rename(self, place: Place, name: str, *, own: bool = False) -> Place:
        """Gives a machine's directory another name. Raises NameInUse, and MachineRunning for one that has a keeper,
        which alone may do so: by `own`.
        """
        new = self.place(names.check(name))
        with self._locked():
            if not own and place.kept():
                raise MachineRunning(f"the machine {place.name} runs", hint="try again")
            if new.path.exists() and not self._is_debris(new):
                raise NameInUse(
                    f"there is a machine {name} already",
                    hint=f"choose another name, or remove it: supermachine rm {'-f ' * new.kept()}{name}",
                )
            self._clear(new)
            try:
                place.path.rename(new.path)
            except FileNotFoundError:
                raise NoSuchMachine(f"there is no machine {place.name}") from None
        return new

    def _is_debris(self, place: Place) -> bool:
        """Whether a directory is what is left of a machine that nobody is to see: one that was not up yet when its
        keeper was killed, or that was to be removed at its end.
        """
        if place.kept():
            return False
        record = place.record()
        return record is None or record.started is None or bool(record.policy.get("remove"))

    def _clear(self, place: Place) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place.path)

    def places(self) -> list[Place]:
        """All machines, by name. What a killed keeper has left that nobody is to see is removed on the way."""
        if not self._check():
            return []
        with shortage.Told("the machines cannot be listed"), os.scandir(self.directory) as entries:
            found = [self.place(entry.name) for entry in entries if not entry.name.startswith(".")]
        if any(self._is_debris(place) for place in found):
            with self._locked():
                for place in found:
                    if self._is_debris(place):
                        self._clear(place)
        found = [place for place in found if place.path.is_dir()]
        for place in found:
            if place.socket.exists() and not place.kept():
                self._unlink_socket(place)
        return sorted(found)

    def _unlink_socket(self, place: Place) -> None:
        """Removes a socket that nobody listens at, if that is still so: the machine may have been started again."""
        with self._locked():
            if not place.kept():
                with contextlib.suppress(OSError):
                    place.socket.unlink()

    def find(self, name: str) -> Place:
        """Raises NoSuchMachine."""
        with contextlib.suppress(ValueError):
            place = self.place(names.check(name))
            if self._check() and place.path.is_dir() and (place.kept() or not self._is_debris(place)):
                return place
        raise NoSuchMachine(f"there is no machine {name}")

    def remove(self, place: Place) -> None:
        """Removes what is left of a machine that has ended. Raises MachineRunning."""
        deadline = time.monotonic() + _LEAVING
        while True:
            if not place.kept():
                with self._locked():
                    # It may have been started again before the lock was had, and is not afterwards.
                    if not place.kept():
                        self._clear(place)
                        return
            record = place.record()
            if record is None or record.finished is None or time.monotonic() > deadline:
                raise MachineRunning(
                    f"the machine {place.name} runs", hint=f"end it as well: supermachine rm -f {place.name}"
                )
            time.sleep(0.005)

    def discard(self, place: Place) -> None:
        """Removes a machine's directory for its own keeper, which has the lock."""
        with self._locked():
            self._clear(place)

    def end_keeper(self, place: Place) -> None:
        """Ends a keeper that does not do so when asked; the machine ends with it."""
        record = place.record()
        if record is None or not place.kept():
            return
        if is_process(record):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.keeper, signal.SIGKILL)
        deadline = time.monotonic() + _LEAVING
        while place.kept():
            if time.monotonic() > deadline:
                raise KeeperLost(f"the keeper of the machine {place.name} cannot be ended")
            time.sleep(0.005)
