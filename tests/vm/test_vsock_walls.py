"""What a guest's unprivileged process can do to the machine over vsock: nothing that its other users notice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from supermachine import VM

pytestmark = pytest.mark.vm

#: More connections than a machine has, to the host's port of the boot connection, its neighbours, and the agent itself;
#: those that are made are held. Ends when its input does.
HOLD = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
held, refused = [], 0
for n in range(5000):
    # The host, this machine and the hypervisor; the boot port, the agent's, and others.
    address = ((2, 3, 1)[n % 3], (1024, 1025, 1026, 1 << 30)[n // 3 % 4])
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.settimeout(2)
    try:
        connection.connect(address)
        held.append(connection)
    except OSError:
        refused += 1
        connection.close()
listening = []
for port in range(2000, 2100):
    listening.append(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
    listening[-1].bind((socket.VMADDR_CID_ANY, port))
    listening[-1].listen()
print(len(held), refused, flush=True)
sys.stdin.read()
"""


def test_connections_of_one_user_are_not_taken_from_all(debian: Path) -> None:
    with VM(str(debian)) as vm:
        hold = vm.popen(
            ["python3", "-c", HOLD],
            user="nobody",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert hold.stdout is not None
        line = hold.stdout.readline()
        assert line, hold.communicate()
        held, refused = map(int, line.split())
        assert held + refused == 5000
        # The agent answers only the host; the boot connection is the agent's alone.
        assert held == 0
        running = [
            vm.popen(["busybox", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(20)
        ]
        for n, process in enumerate(running):
            out, _ = process.communicate(f"{n}\n", timeout=60)
            assert out == f"{n}\n"
        assert vm.path("/etc/passwd").read_text()
        hold.communicate("", timeout=60)
        assert hold.returncode == 0
