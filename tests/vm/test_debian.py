"""Debian's Python in a guest: the image's configuration is honoured, and Python passes its own tests there."""

from __future__ import annotations

from pathlib import Path

import pytest
import supermachine
from supermachine import VM

pytestmark = pytest.mark.vm

#: A guest's vsock has one peer, its host; connections to itself would need one more transport in the kernel.
NO_LOOPBACK = "*ThreadedVSOCKSocketStreamTest*"
TESTS = ["test_json", "test_struct", "test_float", "test_math", "test_threading", "test_socket"]


def test_user_directory_environment_and_command_are_the_images(debian: Path) -> None:
    script = "import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name, os.getcwd(), os.environ['GREETING'])"
    done = supermachine.run(str(debian), ["python3", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "www-data /srv good day\n"


def test_a_command_sees_what_it_is_given(debian: Path) -> None:
    script = "import os, sys; print(os.getuid(), os.getgid(), os.getcwd(), os.environ['ADDED'], *sys.argv[1:])"
    with VM(str(debian), environment={"ADDED": "yes"}) as vm:
        args = ["python3", "-c", script, "one two", ""]
        done = vm.run(args, user="12:34", cwd="/tmp", capture_output=True, text=True, check=True)
        assert done.stdout == "12 34 /tmp yes one two \n"


def test_python_passes_its_own_tests(debian: Path) -> None:
    with VM(str(debian), memory="1g", vcpus=2) as vm:
        command = ["python3", "-m", "test", "-j2", "-u", "none", "--timeout", "300", "--ignore", NO_LOOPBACK, *TESTS]
        done = vm.run(command, user="root", cwd="/tmp", text=True, timeout=600)
        print(done.stdout[-3000:], done.stderr[-3000:])
        assert done.returncode == 0
