"""Machines with names, and Docker's API for a command, where standard streams are closed, or full."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from .conftest import CLI, sm, until

pytestmark = [pytest.mark.vm, pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirections")]

BAD = ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-", "2>/dev/full", "1>/dev/full 2>/dev/full"]


def with_streams(command: Sequence[str], redirections: str) -> subprocess.CompletedProcess[bytes]:
    words = ["sh", "-c", f'exec "$@" {redirections}', "sh", *CLI, *command]
    return subprocess.run(words, input=b"", capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize("bad", BAD)
def test_a_machine_in_the_background_starts_serves_and_ends(busybox: str, bad: str) -> None:
    script = "echo said; echo err >&2; exec sleep 1000"
    started = with_streams(["run", "-d", "--name", "quiet", busybox, "sh", "-c", script], bad)
    assert b"Traceback" not in started.stdout + started.stderr
    # A name that could not be printed is an error of the command's, and the machine is there all the same.
    assert until(lambda: "said" in sm("logs", "quiet").stdout)
    for words in (["exec", "quiet", "sh", "-c", "cat; echo out; exit 7"], ["exec", "-d", "quiet", "true"]):
        done = with_streams(words, bad)
        assert b"Traceback" not in done.stdout + done.stderr
        if "-d" not in words and "1>/dev/full" not in bad:
            assert done.returncode == 7
            assert (b"out\n" in done.stdout) == ("1>&-" not in bad)
    assert b"Traceback" not in with_streams(["logs", "quiet"], bad).stderr
    assert with_streams(["stop", "-t", "0", "quiet"], bad).returncode == 0 or "1>/dev/full" in bad
    assert until(lambda: "Exited" in sm("ps", "-a").stdout)


@pytest.mark.parametrize("bad", BAD)
def test_a_command_with_dockers_api_is_run(bad: str) -> None:
    done = with_streams(["docker", "--", "sh", "-c", 'test -n "$DOCKER_HOST" || exit 3; cat; echo out; exit 7'], bad)
    assert b"Traceback" not in done.stdout + done.stderr
    assert done.returncode == 7
    if "1>" not in bad:
        assert b"out\n" in done.stdout
