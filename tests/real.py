"""Tools and servers that we did not write, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

#: Read once: tests/conftest.py takes the variable away.
ON_CI = bool(os.environ.get("CI"))


def unavailable(reason: str) -> None:
    """Skips; in continuous integration, fails."""
    if ON_CI:
        pytest.fail(reason)
    pytest.skip(reason)


def require(*tools: str) -> None:
    """Skips where a tool is missing; in continuous integration that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        unavailable(f"not installed: {', '.join(missing)}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RealRegistry:
    """Debian's docker-registry on a free port, with a password file when asked for."""

    def __init__(self, directory: Path, password: bool = False) -> None:
        require("docker-registry", "skopeo")
        directory.mkdir()
        self.host = f"127.0.0.1:{free_port()}"
        auth = ""
        if password:
            (directory / "htpasswd").write_text(HTPASSWD)
            auth = f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n"
        config = directory / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
            f"http: {{addr: '{self.host}'}}\n{auth}"
        )
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=self._log, stderr=self._log, cwd=directory
        )
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + 30
        address, port = self.host.split(":")
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection((address, int(port)), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.close()
        pytest.fail("docker-registry did not start")

    def push(self, source: str, name: str, *options: str) -> None:
        run(
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            "--dest-tls-verify=false",
            *options,
            source,
            f"docker://{self.host}/{name}",
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


# user:secret, bcrypt with a cost of 4
HTPASSWD = "user:$2a$04$0JfBykQLC2BNuoXPLBuo4uRhuMwL5w960tVsKgYg4uCGug4pwu9nC\n"


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 600) -> str:
    """Runs a tool, which must succeed; gives its output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def require_root(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"{what} needs root")
