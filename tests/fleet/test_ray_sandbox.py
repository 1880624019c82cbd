"""The backend of `ray.experimental.sandbox`: its six methods as Ray's runtime calls them, and what it has beyond."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import BUSYBOX

pytest.importorskip("ray.experimental.sandbox")
pytestmark = [pytest.mark.vm, pytest.mark.engine]


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[Any]:
    import supermachine.ray

    runtime = supermachine.ray.runtime()
    yield runtime
    for name in list(runtime.backend._machines):
        runtime.delete(name)


def test_rays_runtime_works_with_machines(sandboxes: Any, tmp_path: Path) -> None:
    from ray.experimental.sandbox import exceptions
    from ray.experimental.sandbox.backend.base import BaseSandboxBackend, SandboxStatus

    assert isinstance(sandboxes.backend, BaseSandboxBackend)
    name = sandboxes.create(image=BUSYBOX, memory="64Mi", cpu=1, env={"A": "b"}, workdir="/srv/here")
    done = sandboxes.exec(name, "echo $A; pwd; echo err >&2; exit 3", shell="/bin/sh")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "b\n/srv/here\n", "err\n")
    assert done.duration_seconds > 0
    assert sandboxes.exec(name, ["echo", "a b"], env={"C": "d"}).stdout == "a b\n"
    sandboxes.write_file(name, "sub/file", "one\n")
    sandboxes.write_file(name, "sub/file", b"two\n", append=True)
    assert sandboxes.read_file(name, "/srv/here/sub/file") == b"one\ntwo\n"
    sandboxes.download_file(name, "sub/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "one\ntwo\n"
    for call, error in (
        (lambda: sandboxes.exec(name, ["sleep", "60"], timeout=0.2), exceptions.SandboxTimeoutError),
        (lambda: sandboxes.exec(name, ["no-such-program"]), exceptions.SandboxExecError),
        (lambda: sandboxes.read_file(name, "/none"), exceptions.SandboxError),
        (lambda: sandboxes.exec("none", ["true"]), exceptions.SandboxNotFoundError),
        (lambda: sandboxes.create(image=str(tmp_path / "none")), exceptions.SandboxCreationError),
        (lambda: sandboxes.create(image=BUSYBOX, network="host"), exceptions.SandboxCreationError),
    ):
        with pytest.raises(error):
            call()
    clones = sandboxes.backend.fork(name, 2)
    assert [sandboxes.read_file(clone, "sub/file") for clone in clones] == [b"one\ntwo\n"] * 2
    sandboxes.backend.snapshot(name, tmp_path / "snapshot")
    again = sandboxes.backend.restore(tmp_path / "snapshot")
    assert sandboxes.read_file(again, "/srv/here/sub/file") == b"one\ntwo\n"
    sandboxes.delete(name)
    assert sandboxes.get_status(name) == SandboxStatus.TERMINATED
    assert sandboxes.get_status(clones[0]) == SandboxStatus.RUNNING


def test_a_time_to_live_ends_it(sandboxes: Any) -> None:
    from ray.experimental.sandbox.backend.base import SandboxStatus

    name = sandboxes.create(image=BUSYBOX, memory="64Mi", ttl_seconds=1)
    deadline = time.monotonic() + 30
    while sandboxes.get_status(name) != SandboxStatus.TERMINATED:
        assert time.monotonic() < deadline
        time.sleep(0.05)
