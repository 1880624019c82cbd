"""What an image says of machines with names: STOPSIGNAL and HEALTHCHECK."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from supermachine import VM
from supermachine.integrations.services import Services
from supermachine.integrations.waits import healthy
from supermachine.named.health import check_of

from ..vm.conftest import BUSYBOX
from .conftest import sm, until
from .test_commands import listed

pytestmark = pytest.mark.vm

SECOND = 1_000_000_000


def changed(target: Path, **config: Any) -> str:
    """The image that ships with the project, with more in its configuration."""
    with tarfile.open(BUSYBOX) as source:
        files = {m.name: found.read() for m in source if (found := source.extractfile(m)) is not None}

    def blob(digest: str) -> str:
        return next(name for name in files if name.endswith(digest.replace(":", "/")))

    def replaced(descriptor: dict[str, Any], data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        digest = hashlib.sha256(content).hexdigest()
        files[f"blobs/sha256/{digest}"] = content
        descriptor.update(digest=f"sha256:{digest}", size=len(content))

    index_name = next(name for name in files if name.endswith("index.json"))
    index = json.loads(files[index_name])
    manifest = json.loads(files[blob(index["manifests"][0]["digest"])])
    said = json.loads(files[blob(manifest["config"]["digest"])])
    said.setdefault("config", {}).update(config)
    replaced(manifest["config"], said)
    replaced(index["manifests"][0], manifest)
    files[index_name] = json.dumps(index).encode()
    with tarfile.open(target, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(target)


def test_the_images_stop_signal_and_health_check(tmp_path: Path) -> None:
    check = {"Test": ["CMD-SHELL", "test -e /tmp/ok || { echo ill; exit 1; }"], "Interval": SECOND // 10, "Retries": 2}
    image = changed(tmp_path / "image.oci.tar", StopSignal="SIGUSR2", Healthcheck=check)
    script = "trap 'echo told; exit 8' USR2; while true; do sleep 0.1; done"
    sm("run", "-d", "--name", "web", image, "sh", "-c", script)
    assert until(lambda: listed()["web"]["health"] == "unhealthy")
    log = json.loads(sm("inspect", "web").stdout)[0]["health"]["Log"]
    assert log[-1]["ExitCode"] == 1
    assert log[-1]["Output"] == "ill\n"
    sm("exec", "web", "touch", "/tmp/ok")
    assert until(lambda: listed()["web"]["health"] == "healthy")
    # What is restored from its snapshot has both, and a fork is looked after like its parent.
    sm("snapshot", "create", "web", str(tmp_path / "web.snapshot"))
    with VM.restore(tmp_path / "web.snapshot") as vm:
        assert vm._disks().config.healthcheck == check
        assert vm._disks().config.stop_signal == "SIGUSR2"
    sm("fork", "web")
    assert until(lambda: listed()["web-1"]["health"] == "healthy")
    sm("rm", "-f", "web-1")
    sm("stop", "web")
    assert listed()["web"]["exit_code"] == 8
    assert "told" in sm("logs", "web").stdout

    sm("run", "-d", "--no-healthcheck", "--stop-signal", "KILL", "--name", "other", image, "sh", "-c", script)
    assert listed()["other"]["health"] == ""
    sm("stop", "other")
    assert listed()["other"]["exit_code"] == 128 + 9

    services = Services()
    try:
        command = ["sh", "-c", "sleep 0.3; touch /tmp/ok; sleep 1000"]
        service = services.make(image, command, wait=healthy(), fresh=True)
        assert service.vm.path("/tmp/ok").exists()
        service.vm.kill()
    finally:
        services.close()


@pytest.mark.parametrize(
    "said",
    [
        None, {}, {"Test": []}, {"Test": ["NONE"]}, {"Test": ["CMD"]}, {"Test": "CMD true"}, {"Test": ["CMD", 5]},
        {"Test": ["EXEC", "x"]},
    ],
)  # fmt: skip
def test_what_is_no_health_check(said: dict[str, Any] | None) -> None:
    assert check_of(said) is None


def test_times_that_nobody_means_are_dockers() -> None:
    check = check_of({"Test": ["CMD", "x"], "Interval": -1, "Timeout": "1s", "Retries": 1 << 70, "StartPeriod": 1})
    assert check is not None
    assert (check.interval, check.timeout, check.retries, check.start_period) == (30.0, 30.0, 3, 1e-9)
