"""The process of one machine with a name: starts it, notes what its main process writes, and ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from .. import descriptors, shortage
from . import events
from .moment import Moment

if TYPE_CHECKING:
    from .._core import Worker
    from ..guest.process_context import Context
    from ..guest.processes import Popen
    from ..machine.vm import VM
    from .health import Health
    from .spec import Spec

#: Seconds between two words to whoever waits for the start.
_ALIVE = 5.0
#: Seconds between looks at whether the machine's directory is still there.
_LOOK = 2.0
#: Seconds that output which is on its way is waited for after a main process has ended.
_LAST_WORDS = 2.0
#: Seconds before the first restart; doubled until the machine has run for as long as the last one says.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONG_ENOUGH = 0.1, 60.0, 10.0
#: Seconds in which a killed main process is gone, or its virtual machine is killed.
_KILL_GRACE = 5.0
#: Processes of `exec -d` that may run at once.
MAX_DETACHED = 1024
#: Rows and columns of a terminal that nobody looks at.
_TERMINAL = (24, 80)


def main() -> None:
    """The program; `launch` starts it. Never returns."""
    descriptor, told = int(sys.argv[1]), sys.stdin.buffer.read()
    if os.fork():
        os._exit(0)
    os.set_inheritable(descriptor, False)
    null = descriptors.open_file(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    report = Report(descriptor)
    sys.stderr = report
    try:
        from .spec import Spec

        report.begin()
        Keeper(Spec.decode(told), report).keep()
    except BaseException as error:
        report.failed(error)
    # What is left here are threads whose clients have gone.
    os._exit(0)


class Report:
    """What whoever started the machine is told until it runs. Stands for stderr, too."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._over = threading.Event()

    def begin(self) -> None:
        """Says now and then that this process is alive: how long a start takes nobody can tell."""
        thread = threading.Thread(target=self._live, name="report", daemon=True)
        shortage.start(thread, "the machine's keeper cannot begin")

    def _live(self) -> None:
        while not self._over.wait(_ALIVE) and self._tell({"alive": True}):
            pass

    def _tell(self, message: dict[str, Any]) -> bool:
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                while data and self._descriptor >= 0:
                    data = data[os.write(self._descriptor, data) :]
        except OSError:
            return False
        return not data

    def write(self, text: str) -> int:
        self._tell({"say": text.rstrip("\n")})
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def failed(self, error: BaseException) -> None:
        from .protocol import error_to_json

        self._tell({"failed": error_to_json(error)})
        self._close()

    def abandoned(self) -> bool:
        """Whether nobody is there any more who could be told."""
        import select

        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    def started(self, what: dict[str, Any]) -> None:
        self._tell(what)
        self._close()

    def _close(self) -> None:
        self._over.set()
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1


class Foreground(Protocol):
    """The program that keeps a machine itself, at a terminal, rather than leave it to a process in the background."""

    #: Rows and columns, if the main process is given a terminal.
    terminal: tuple[int, int] | None
    #: What the main process reads: a descriptor, or `subprocess.DEVNULL`.
    stdin: int

    def starting(self) -> None:
        """The main process is about to be started."""

    def started(self, main: Popen) -> None:
        """It runs."""

    def ended(self, worker: Worker, code: int | None) -> None:
        """It has ended, and its virtual machine has not."""


class Keeper:
    """One machine, from its first start to its end."""

    def __init__(self, spec: Spec, report: Report | None = None) -> None:
        """Without a report the machine is kept in the foreground, by `keep_here`."""
        from .. import directories, env
        from ..host import boots
        from .attached import Attached
        from .records import Record, process_start

        self.spec = spec
        self.policy = spec.policy
        self._report = report
        if spec.quiet:
            boots.silence()
        # The working directory is about to be another one.
        if os.environ.get(env.CACHE):
            os.environ[env.CACHE] = directories.cache_directory()
        if os.environ.get(env.RUNTIME):
            os.environ[env.RUNTIME] = directories.runtime_directory()
        pid = os.getpid()
        self.record = Record(
            name="",
            id=os.urandom(32).hex(),
            image=spec.image,
            options=spec.options,
            created=time.time(),
            keeper=pid,
            keeper_start=process_start(pid),
            boot=boots.boot_id(),
            directory=spec.again or os.getcwd(),  # noqa: PTH109 - as it is written down
            parent=spec.fork.parent if spec.fork is not None else "",
        )
        #: "starting", "running", "restarting" or "stopping".
        self.phase = "starting"
        #: Set once the machine has ended and its lock is free.
        self.over = Moment()
        #: The pid of the main process in the guest.
        self.main_pid = 0
        self.health: Health | None = None
        self.vm: VM
        self._main: Popen | None = None
        self._main_over = threading.Event()
        self._restart_asked, self._restarted = threading.Event(), threading.Event()
        self._freezing = threading.Lock()
        #: Held while the machine's directory gets another name.
        self._renaming = threading.Lock()
        #: Who looks at the main process as it writes.
        self.attached = Attached(self._typed)
        self._foreground: Foreground | None = None
        #: Processes that nobody waits for.
        self._detached: list[Popen] = []
        self._stop_asked = threading.Event()
        #: Told of both that somebody asks for.
        self._asked = threading.Condition()
        #: What kept the main process from being started again.
        self._failure: Exception | None = None
        #: Whether all that is left is its end.
        self._ending = False
        self._pumps: list[threading.Thread] = []

    def keep(self) -> None:
        """The whole of a machine's life, in a process of its own."""
        report = self._report
        assert report is not None
        try:
            self._begin()
            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self.stop, daemon=True).start())
            os.chdir("/")
            report.started({"name": self.place.name, "id": self.record.id})
        except BaseException as error:
            report.failed(error)
            return
        try:
            code, why = self._live()
        except Exception as failure:
            # What nobody has foreseen ends the machine too, and is told.
            code, why = None, f"its keeper failed: {type(failure).__name__}: {failure}"
        self._finish(code, why)

    def keep_here(self, foreground: Foreground) -> tuple[int | None, str]:
        """The same in this process, whose own streams are the main process's: its exit code, and what ended it if not
        its main process.
        """
        self._foreground = foreground
        self._begin()
        code, error = None, "the program that kept it was interrupted"
        try:
            code, error = self._live()
            if self.vm.running:
                foreground.ended(self.vm._running(), code)
        finally:
            self._finish(code, error)
        return code, error

    def _begin(self) -> None:
        from dataclasses import asdict

        from .logs import LogWriter
        from .registry import Registry
        from .server import Server

        self._registry = Registry()
        if self.spec.again is not None:
            self._take_up()
        else:
            parent = self.spec.fork.parent if self.spec.fork is not None else None
            self.place, self._lock = self._registry.create(self.spec.name, after=parent)
        self.record.name, self.record.policy = self.place.name, asdict(self.policy)
        try:
            if self.spec.again is None:
                self._write()
            self.logs = LogWriter(self.place.log, self.policy.log_bytes)
            self._first_start()
            if self._report is not None and self._report.abandoned():
                raise ConnectionError("nobody waits for this machine any more")
            self.record.started = time.time()
            self.phase = "running"
            self._note()
            self._server = Server(self).start()
        except BaseException:
            self._end_vm()
            if self.spec.again is None:
                self._registry.discard(self.place)
            raise
        self._happened("start")

    def _take_up(self) -> None:
        """The directory of a machine that has ended. What is written there stays as it is until the machine runs."""
        assert self.spec.name is not None
        self.place, self._lock = self._registry.reopen(self.spec.name)
        before = self.place.record()
        if before is not None:
            self.record.id, self.record.created = before.id, before.created
        # Where the directory is gone, so is what was relative to it, and the start says so.
        with contextlib.suppress(OSError):
            os.chdir(self.record.directory)

    def _happened(self, action: str, **more: str) -> None:
        events.note(action, self.place.name, self.record.id, self.record.image, **more)

    # Its starts.

    def _first_start(self) -> None:
        from ..errors import SnapshotReference
        from ..machine import remote
        from ..machine.vm import VM
        from ..settings import parsing
        from .spec import signal_number

        spec = self.spec
        options = spec.machine_options()
        if not options.get("hostname"):
            with contextlib.suppress(ValueError):  # names may have underscores
                options["hostname"] = parsing.hostname(self.place.name)
        self.stop_signal = signal_number(self.policy.stop_signal) if self.policy.stop_signal else 0
        if spec.fork is not None:
            kept = (
                "hostname",
                "environment",
                "working_dir",
                "user",
                "volumes",
                "mounts",
                "network",
                "allow",
                "deny",
                "secrets",
                "boot_timeout",
            )
            known = {name: options[name] for name in kept if options.get(name) is not None}
            self.vm = VM.restore(spec.fork.path, **known)
            self.main_pid, self.record.command = spec.fork.pid, spec.fork.command
            self._start_health()
        else:
            self.vm = VM(spec.image, **options)
            try:
                self.record.command = self.vm.command(spec.command, spec.entrypoint)
            except SnapshotReference:
                self.vm = remote.restored(spec.image, **options)
                self.record.command = self.vm.command(spec.command, spec.entrypoint)
            self.vm.start()
            self._start_main()
        config = self.vm._disks().config
        if not self.stop_signal:
            try:
                self.stop_signal = signal_number(config.stop_signal or "TERM")
            except ValueError:
                self.stop_signal = int(signal.SIGTERM)  # an image may say anything

    def _start_main(self) -> None:
        from ..guest.processes import DEVNULL, PIPE

        here = self._foreground
        terminal = here.terminal if here is not None else _TERMINAL if self.policy.tty else None
        term = os.environ.get("TERM") if here is not None else None
        self._main_over.clear()
        if here is not None:
            here.starting()
        main = self.vm.popen(
            self.record.command,
            stdin=here.stdin if here is not None else PIPE if self.policy.interactive else DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            tty=terminal,
            env={"TERM": term or "xterm"} if terminal else None,
        )
        self._main, self.main_pid = main, main.pid
        if here is not None:
            here.started(main)
        self._pumps = [
            threading.Thread(target=self._pump, args=(name, stream), name=name, daemon=True)
            for name, stream in (("stdout", main.stdout), ("stderr", main.stderr))
            if stream is not None
        ]
        for pump in self._pumps:
            pump.start()
        self._start_health()

    def _start_health(self) -> None:
        from .health import Health, check_of

        if self.health is not None:
            self.health.end()
        said = self.policy.health
        check = check_of(self.vm._disks().config.healthcheck if said is None else said)
        self.health = Health(check, self.vm._context, self._health_changed).start() if check is not None else None
        self.record.health = "starting" if check is not None else ""

    def _health_changed(self, status: str) -> None:
        self.record.health = status
        self._write()
        self._happened(f"health_status: {status}")

    def _pump(self, name: str, stream: Any) -> None:
        """A thread: notes what a stream says until its end, and in the foreground passes it on."""
        shown = -1 if self._foreground is None else 2 if name == "stderr" else 1
        with contextlib.suppress(ValueError, OSError):
            while data := stream.read1(1 << 16):
                self.logs.write(name, data)
                self.attached.write(name, data)
                while shown >= 0 and data:
                    data = data[os.write(shown, data) :]
        with contextlib.suppress(OSError):
            # Where nobody reads here any more, nobody does there.
            stream.close()

    def _typed(self, data: bytes) -> None:
        """Gives the main process what an attached client has sent, if it reads anything."""
        main = self._main
        if main is not None and main.stdin is not None:
            main.stdin.write(data)
            main.stdin.flush()

    def resize(self, rows: int, columns: int) -> None:
        """Tells the main process's terminal its size, where it has one that is not somebody's own."""
        if self._main is not None and self.policy.tty and self._foreground is None:
            self._main.resize(rows, columns)

    def _write(self) -> None:
        """Replaces the record. A full disk ends no machine: what is read then is older."""
        with contextlib.suppress(OSError):
            self.record.write(self.place.record_path)

    def _note(self) -> None:
        self.record.ports = {name: [list(place) for place in places] for name, places in self.vm.ports.items()}
        self.record.worker = self.vm.pid
        self._write()

    # Its life.

    def _live(self) -> tuple[int | None, str]:
        """Until it ends for good: the exit code, and what ended it if not its main process."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            code, error = self._follow()
            self._main_over.set()
            if not self._wants_restart(code):
                return code, error
            self.phase = "restarting"
            self.record.exit_code, self.record.error = code, error
            if not self._restart_asked.is_set():
                self.record.restarts += 1
                self._write()
                pause = _FIRST_PAUSE if time.monotonic() - began > _LONG_ENOUGH else pause
                with self._asked:
                    self._asked.wait_for(lambda: self._stop_asked.is_set() or self._restart_asked.is_set(), pause)
                if self._stop_asked.is_set():
                    return code, error
                pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                self._join_pumps()
                if not self.vm.running:
                    self.vm.kill()
                    self.vm.start()
                self._start_main()
            except Exception as failure:
                self._failure = failure
                return 125, f"the restart failed: {failure}"
            self.phase = "running"
            self._restart_asked.clear()
            self._restarted.set()
            self._note()
            self._happened("restart")

    def _follow(self) -> tuple[int | None, str]:
        """Until the main process ends, or the virtual machine."""
        from ..errors import VMExited
        from ..guest.processes import TimeoutExpired

        while True:
            try:
                if self._main is None:
                    return self._follow_fork()
                code = self._main.wait(_LOOK)
                return (128 - code if code < 0 else code), ""
            except TimeoutExpired:
                if not self._stop_asked.is_set() and not self._is_there():
                    # Somebody has removed the directory: nobody could reach this machine any more.
                    threading.Thread(target=self.stop, daemon=True).start()
            except VMExited as ended:
                asked = ended.reason in ("shutdown", "guest-power-off")
                return (0 if asked else 137), "" if asked else str(ended)

    def _follow_fork(self) -> tuple[int | None, str]:
        """The main process of a fork is nobody's child here: it is looked for now and then."""
        from ..errors import SupermachineError, VMExited
        from ..guest.processes import TimeoutExpired

        process = self.vm.path(f"/proc/{self.main_pid}")
        worker = self.vm._running()
        while True:
            if worker.wait(_LOOK / 2) is not None:
                self.vm._running()  # raises how it ended
            try:
                there = process.exists()
            except VMExited:
                raise
            except (SupermachineError, OSError):
                # An agent that is slow, or has no connection left: that is no end.
                there = True
            if not there:
                return None, ""
            if not self._is_there():
                raise TimeoutExpired(self.record.command, _LOOK)

    def _is_there(self) -> bool:
        with self._renaming:
            return self.place.lock.exists()

    def _wants_restart(self, code: int | None) -> bool:
        policy = self.policy
        if self._stop_asked.is_set():
            return False
        if self._restart_asked.is_set() or policy.restart == "always":
            return True
        if policy.restart == "no":
            return False
        return code != 0 and (policy.restart_max is None or self.record.restarts < policy.restart_max)

    def stop(self, timeout: float | None = None, signal: int | None = None) -> None:
        """Ends the machine: the stop signal, or another, to its main process, SIGKILL after `timeout` seconds."""
        grace = self.policy.stop_timeout if timeout is None else timeout
        self._note_that(self._stop_asked)
        self._thaw()
        if self.phase == "running":
            self.phase = "stopping"
        main = self._main
        if main is None:
            self.vm.stop(grace)
            return
        main._exec.send_signal(signal or self.stop_signal)
        if not self._main_over.wait(grace):
            main._exec.send_signal(9)
            if not self._main_over.wait(_KILL_GRACE):
                self.vm.kill()

    def restart(self, timeout: float | None = None) -> None:
        """Ends the main process as `stop` does, and starts it again in the same guest.

        Raises NotSupported for a fork's, and MachineNotRunning where it has ended for good meanwhile.
        """
        from ..errors import MachineNotRunning, NotSupported

        main = self._main
        if main is None:
            raise NotSupported(
                f"{self.place.name} is a fork, whose main process is not started again",
                hint=f"remove it, and fork {self.spec.fork.parent if self.spec.fork else 'its parent'} again",
            )
        self._restarted.clear()
        self._note_that(self._restart_asked)
        self._thaw()
        main._exec.send_signal(self.stop_signal)
        if not self._restarted.wait(self.policy.stop_timeout if timeout is None else timeout):
            main._exec.send_signal(9)
        while not self._restarted.wait(_KILL_GRACE) and not self._ending:
            if self._stop_asked.is_set():
                break
        if self._failure is not None:
            raise self._failure
        if self._ending or self._stop_asked.is_set():
            raise MachineNotRunning(f"the machine {self.place.name} was stopped while it was restarted")

    def _note_that(self, asked: threading.Event) -> None:
        """Wakes whoever waits for the next restart as well."""
        with self._asked:
            asked.set()
            self._asked.notify_all()

    def freeze(self, frozen: bool) -> None:
        """Stops all processes of the guest where they are, or lets them go on."""
        from ..errors import MachineNotRunning
        from ..guest import group

        before, after = ("running", "paused") if frozen else ("paused", "running")
        with self._freezing:
            if self.phase != before:
                raise MachineNotRunning(f"the machine {self.place.name} is {self.phase}, and not {before}")
            group.freeze(self.vm, frozen)
            self.phase = after
            if self.health is not None:
                self.health.paused = frozen
        self._happened("pause" if frozen else "unpause")

    def rename(self, name: str) -> None:
        """Gives the machine another name; its host name stays. Raises NameInUse."""
        with self._renaming:
            old = self.place.name
            self.place = self._registry.rename(self.place, name, own=True)
            self.logs.moved(self.place.log)
        self.record.name = name
        self._write()
        self._happened("rename", oldName=old)

    def _thaw(self) -> None:
        """A process that stands still takes no signal."""
        if self.phase == "paused":
            self.freeze(False)

    def execute(self, command: list[str], **given: Any) -> int:
        """Starts a process that nobody waits for; its pid in the guest. It ends with the machine."""
        from ..errors import ConfigurationError
        from ..guest.processes import DEVNULL

        self._detached = [process for process in self._detached if process.poll() is None]
        if len(self._detached) >= MAX_DETACHED:
            raise ConfigurationError(f"{self.place.name} has {MAX_DETACHED} detached processes; that is the limit")
        tty = _TERMINAL if given.pop("tty", False) else None
        process = self.vm.popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, tty=tty, **given)
        self._detached.append(process)
        return process.pid

    def signal(self, number: int) -> None:
        """Sends a signal to the main process. Raises NotSupported for that of a fork."""
        from ..errors import NotSupported

        if number in (9, self.stop_signal):
            self._note_that(self._stop_asked)
            self._thaw()
        if self._main is not None:
            self._main._exec.send_signal(number)
            self._happened("kill", signal=str(number))
        elif number == 9:
            self.vm.kill()
            self._happened("kill", signal=str(number))
        else:
            raise NotSupported(
                f"{self.place.name} is a fork, whose main process takes no signal from outside but SIGKILL",
                hint=f"supermachine exec {self.place.name} kill -{number} {self.main_pid}",
            )

    # Its end.

    def _join_pumps(self) -> None:
        for pump in self._pumps:
            pump.join(_LAST_WORDS)

    def _end_vm(self) -> None:
        """Ends the virtual machine, if there is one; its file systems are synced."""
        vm = getattr(self, "vm", None)
        if vm is not None:
            try:
                vm.stop(0)
            except Exception:
                vm.kill()

    def _finish(self, code: int | None, error: str) -> None:
        self.phase = "stopping"
        self._ending = True
        self._restarted.set()
        if self.health is not None:
            self.health.end()
        for step in (self._join_pumps, self.attached.close, self._end_vm, self.logs.close):
            # Whatever fails here, how the machine ended is written down.
            with contextlib.suppress(Exception):
                step()
        record = self.record
        record.finished, record.exit_code, record.error = time.time(), code, error
        record.worker, record.health = None, ""
        self._write()
        self._happened(
            "die", **({} if code is None else {"exitCode": str(code)}), **({"error": error} if error else {})
        )
        self._server.close()
        if self.policy.remove:
            # What stays is debris, which goes at the next look.
            with contextlib.suppress(Exception):
                self._registry.discard(self.place)
            self._happened("destroy")
        os.close(self._lock)
        self.over.set()
        self._server.join()

    # What the server asks.

    def context(self) -> Context:
        return self.vm._context()

    def say(self, text: str) -> None:
        """A line of the keeper's own among those of the main process."""
        self.logs.write("stderr", f"supermachine: {text}\n".encode())
