"""A backend of `ray.experimental.sandbox` whose sandboxes are virtual machines. Ray's interface is of its alpha stage.

    import supermachine.ray

    runtime = supermachine.ray.runtime()  # in place of ray.experimental.sandbox.runtime.SandboxRuntime()
    sandbox = runtime.create(image="python:3.12-slim", memory="512Mi", network="public")
    print(runtime.exec(sandbox, ["python3", "-c", "print(1)"]).stdout)
    clones = runtime.backend.fork(sandbox, 2)

Images are those of this package, and start from their baked snapshots. What a sandbox says that a virtual machine has
no use for is left out: `rootless`, `capabilities`, and `readonly`, since nothing that a guest writes outlives it.
"""

from __future__ import annotations

import math
import os
import posixpath
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.experimental.sandbox.backend.base import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    BaseSandboxBackend,
    ExecResult,
    SandboxStatus,
)
from ray.experimental.sandbox.config import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    SandboxConfig,
    parse_memory_bytes,
)
from ray.experimental.sandbox.exceptions import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    SandboxCreationError,
    SandboxError,
    SandboxExecError,
    SandboxNotFoundError,
    SandboxTimeoutError,
)
from ray.experimental.sandbox.runtime import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    SandboxRuntime,
)

from .errors import SupermachineError
from .machine.vm import VM

if TYPE_CHECKING:
    from .machine.snapshot import Snapshot

__all__ = ["Backend", "runtime"]

#: What Ray calls networks, and this package's words for it.
_NETWORKS = {"none": "none", "public": "public"}


class _Images:
    """Images are fetched when a machine is made."""

    def pull_image(self, image: str, timeout_seconds: float = 0.0) -> str:
        del timeout_seconds
        return image


class Backend(BaseSandboxBackend):  # type: ignore[misc,unused-ignore]
    """Sandboxes that are virtual machines of this process: they end with it.

    `options` are keywords of :class:`supermachine.VM` that hold for all of them. Beyond Ray's methods there are `fork`,
    `snapshot` and `restore`.
    """

    def __init__(self, image_manager: Any = None, **options: Any) -> None:
        super().__init__(image_manager or _Images())
        self._options = options
        self._lock = threading.Lock()
        self._machines: dict[str, VM] = {}
        #: As Ray's own backend has it; its actor looks here.
        self._sandbox_metadata: dict[str, dict[str, Any]] = {}

    def create_sandbox(self, config: SandboxConfig) -> str:
        """Starts a machine. Raises `SandboxCreationError`."""
        if config.network not in _NETWORKS:
            raise SandboxCreationError(
                f"the network {config.network!r} is not there: a virtual machine has none or public"
            )
        said: dict[str, Any] = {"network": _NETWORKS[config.network], "environment": dict(config.env)}
        if memory := parse_memory_bytes(config.memory):
            said["memory"] = memory
        if config.cpu:
            said["vcpus"] = max(1, math.ceil(config.cpu))
        if config.workdir:
            said["working_dir"] = config.workdir
        if config.timeout_seconds > 0:
            said["boot_timeout"] = config.timeout_seconds
        try:
            vm = VM(config.image, **{**self._options, **said}).start()
        except (SupermachineError, OSError, ValueError) as error:
            raise SandboxCreationError(f"no virtual machine of {config.image} could be started: {error}") from error
        return self._keep(vm, config)

    def _keep(self, vm: VM, config: SandboxConfig | None) -> str:
        name = f"supermachine-{os.urandom(8).hex()}"
        with self._lock:
            self._machines[name] = vm
            self._sandbox_metadata[name] = {"config": config}
        return name

    def vm(self, sandbox_id: str) -> VM:
        """The machine itself. Raises `SandboxNotFoundError`."""
        with self._lock:
            vm = self._machines.get(sandbox_id)
        if vm is None:
            raise SandboxNotFoundError(f"there is no sandbox {sandbox_id}")
        return vm

    def delete_sandbox(self, sandbox_id: str) -> None:
        """Ends the machine. Does nothing when it has ended."""
        with self._lock:
            vm = self._machines.pop(sandbox_id, None)
            self._sandbox_metadata.pop(sandbox_id, None)
        if vm is not None:
            vm.kill()

    def exec_command(
        self,
        sandbox_id: str,
        command: str | list[str],
        timeout: float | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        shell: str | None = None,
        user: str | None = None,
    ) -> ExecResult:
        """Runs a command. Raises `SandboxTimeoutError` and `SandboxExecError`."""
        vm = self.vm(sandbox_id)
        config = self._sandbox_metadata.get(sandbox_id, {}).get("config")
        argv = command if isinstance(command, list) else [shell or getattr(config, "shell", "/bin/sh"), "-c", command]
        began = time.monotonic()
        try:
            done = vm.run(argv, timeout=timeout, cwd=cwd, env=env, user=user)
        except subprocess.TimeoutExpired as error:
            raise SandboxTimeoutError(f"the command still ran after {timeout} seconds") from error
        except (SupermachineError, OSError, ValueError) as error:
            raise SandboxExecError(f"the command could not be run: {error}") from error
        texts = [bytes(stream).decode("utf-8", "replace") for stream in (done.stdout, done.stderr)]
        return ExecResult(done.returncode, texts[0], texts[1], time.monotonic() - began)

    def _path(self, vm: VM, path: str) -> Any:
        return vm.path(posixpath.join(vm._context().cwd, path))

    def write_file(self, sandbox_id: str, path: str, content: str | bytes, append: bool = False) -> None:
        """Writes a file, and makes its directory. Raises `SandboxError`."""
        target = self._path(self.vm(sandbox_id), path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab" if append else "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise SandboxError(f"{path} could not be written: {error}") from error

    def read_file(self, sandbox_id: str, path: str) -> bytes:
        """What is in a file. Raises `SandboxError`."""
        try:
            return bytes(self._path(self.vm(sandbox_id), path).read_bytes())
        except OSError as error:
            raise SandboxError(f"{path} could not be read: {error}") from error

    def get_status(self, sandbox_id: str) -> SandboxStatus:
        """Whether it runs."""
        with self._lock:
            vm = self._machines.get(sandbox_id)
        return SandboxStatus.RUNNING if vm is not None and vm.running else SandboxStatus.TERMINATED

    # What Ray's own backend has not.

    def fork(self, sandbox_id: str, n: int = 1) -> list[str]:
        """`n` sandboxes that go on where this one is."""
        config = self._sandbox_metadata.get(sandbox_id, {}).get("config")
        return [self._keep(clone, config) for clone in self.vm(sandbox_id).fork(n)]

    def snapshot(self, sandbox_id: str, path: str | os.PathLike[str]) -> Snapshot:
        """See :meth:`supermachine.VM.snapshot`."""
        return self.vm(sandbox_id).snapshot(path)

    def restore(self, snapshot: str | os.PathLike[str]) -> str:
        """A sandbox that goes on where the snapshot was taken."""
        return self._keep(VM.restore(Path(snapshot)), None)


def runtime(**options: Any) -> SandboxRuntime:
    """Ray's `SandboxRuntime` with this backend. `options` are keywords of :class:`supermachine.VM`."""
    made: Any = SandboxRuntime.__new__(SandboxRuntime)
    made._backend = Backend(**options)
    made._image_manager = made._backend.image_manager
    made._ttl_timers = {}
    runtime: SandboxRuntime = made
    return runtime
