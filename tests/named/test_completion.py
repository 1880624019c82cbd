"""What shells complete, asked of the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..real import require
from .conftest import sm

pytestmark = pytest.mark.vm

#: Of each, what is typed and what is made of it.
TYPED = {"exec we": "web-server", "renam": "rename", "run --restar": "--restart", "snapshot ver": "verify"}
_BASH = """
eval "$(supermachine completion bash)"
complete -p supermachine >/dev/null || exit 1
COMP_WORDS=(supermachine {words}); COMP_CWORD={last}
_supermachine_completion supermachine
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def environment(busybox: str, tmp_path: Path) -> dict[str, str]:
    """With the command on the path, and a machine."""
    command = tmp_path / "bin" / "supermachine"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m supermachine "$@"\n')
    command.chmod(0o755)
    sm("run", "-q", "-d", "--name", "web-server", busybox, "sleep", "1000")
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}


def output(environment: dict[str, str], *command: str) -> list[str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def test_bash(environment: dict[str, str]) -> None:
    for typed, wanted in TYPED.items():
        words = typed.split()
        program = _BASH.format(words=shlex.join(words), last=len(words))
        assert output(environment, "bash", "--norc", "-c", program) == [wanted]


def test_fish(environment: dict[str, str]) -> None:
    require("fish")
    for typed, wanted in TYPED.items():
        program = f"supermachine completion fish | source; complete -C {shlex.quote('supermachine ' + typed)}"
        (line,) = output(environment, "fish", "--no-config", "-c", program)
        assert line.split("\t")[0] == wanted


def test_zsh(environment: dict[str, str]) -> None:
    """zsh completes what is typed at a terminal, and nothing else."""
    require("zsh")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
    try:
        said = b""

        def read_until(text: str) -> None:
            nonlocal said
            deadline = time.monotonic() + 120
            while text.encode() not in said:
                ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, said
                said += os.read(terminal, 65536)

        setup = 'autoload -U compinit; compinit -u -D; eval "$(supermachine completion zsh)"; print -r -- re""ady\r'
        os.write(terminal, setup.encode())
        read_until("ready")
        for typed, wanted in TYPED.items():
            said = b""
            os.write(terminal, f"supermachine {typed}\t".encode())
            read_until(f"supermachine {typed.rpartition(' ')[0]} {wanted}".replace("  ", " "))
            os.write(terminal, b"\x15")  # takes the line back
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
