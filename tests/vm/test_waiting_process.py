"""The process that stands still in a snapshot until a restored guest's first command needs it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, Snapshot, errors

from .guests import output as _output
from .guests import wait_for

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def original(busybox: str) -> Iterator[VM]:
    with VM(busybox) as vm:
        output(vm, "true")
        yield vm


@pytest.fixture(scope="module")
def snapshot(original: VM, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return original.snapshot(tmp_path_factory.mktemp("waiting") / "snapshot")


@pytest.fixture
def clone(snapshot: Snapshot) -> Iterator[VM]:
    with snapshot.restore() as vm:
        yield vm


def output(vm: VM, script: str) -> str:
    return str(_output(vm, script)).strip()


def waiting(vm: VM) -> list[int]:
    """The processes of a guest in which nothing was started."""
    return [int(pid) for pid in vm.path("/sys/fs/cgroup/supermachine/cgroup.procs").read_text().split()]


def in_terminal(vm: VM, script: str) -> str:
    """What a script says in a terminal, which nobody waits with."""
    process = vm.popen(["sh", "-c", script], tty=(24, 80), stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return str(said)


def test_the_first_command_is_the_process_that_waited_and_the_second_is_not(clone: VM) -> None:
    (pid,) = waiting(clone)
    assert output(clone, "echo $$; cut -d' ' -f5-6 /proc/$$/stat") == f"{pid}\n{pid} {pid}"
    assert waiting(clone) == []
    assert output(clone, "echo $$") != str(pid)


def test_it_becomes_whom_it_should(clone: VM) -> None:
    (pid,) = waiting(clone)
    script = "echo $$ $A $HOME; pwd; id -u; id -g; id -G; umask; ulimit -n; grep -E 'Sig(Blk|Ign)' /proc/$$/status"
    first = clone.run(["sh", "-c", script], user="12:34", cwd="/etc", env={"A": "b"}, capture_output=True, text=True)
    second = clone.run(["sh", "-c", script], user="12:34", cwd="/etc", env={"A": "b"}, capture_output=True, text=True)
    assert first.stdout.split()[0] == str(pid)
    assert first.stdout.split(maxsplit=1)[1] == second.stdout.split(maxsplit=1)[1]
    assert first.stderr == second.stderr == ""


def test_one_that_was_stopped_goes_on(clone: VM) -> None:
    (pid,) = waiting(clone)
    in_terminal(clone, f"kill -STOP {pid}")
    assert output(clone, "echo $$") == str(pid)


@pytest.mark.parametrize("number", [1, 2])
def test_it_has_three_files_open(clone: VM, number: int) -> None:
    """Both commands have, the one that waited and the one that did not."""
    for _ in range(number - 1):
        output(clone, "true")
    script = "ls /proc/$$/fd; readlink /proc/$$/fd/0; readlink /proc/$$/fd/1 | cut -d: -f1; wc -c"
    without = clone.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert without.stdout == "0\n1\n2\n/dev/null\npipe\n0\n"


def test_it_has_input_that_ends(clone: VM) -> None:
    done = clone.run(["sh", "-c", "cat; echo said >&2"], input=b"x" * 300_000, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"x" * 300_000, b"said\n")


def test_a_terminal_is_not_for_it(clone: VM) -> None:
    (pid,) = waiting(clone)
    assert "/dev/pts/" in in_terminal(clone, "tty")
    assert waiting(clone) == [pid]
    assert output(clone, "echo $$") == str(pid)


def test_without_it_commands_are_started_as_ever(clone: VM) -> None:
    (pid,) = waiting(clone)
    in_terminal(clone, f"kill -9 {pid}")
    assert waiting(clone) == []
    assert output(clone, "echo started") == "started"


def test_what_cannot_be_started_says_why(snapshot: Snapshot) -> None:
    for words, error in ((["no-such-program"], errors.CommandNotFound), (["/etc/passwd"], errors.CommandNotExecutable)):
        with snapshot.restore() as vm:
            with pytest.raises(error):
                vm.run(words)
            # The host is told before its end is seen to.
            wait_for(lambda vm=vm: waiting(vm) == [], "the end of the process")
            assert output(vm, "echo next") == "next"
    with snapshot.restore() as vm:
        (pid,) = waiting(vm)
        with pytest.raises(errors.SupermachineError, match="nobody-here"):
            vm.run(["true"], user="nobody-here")
        with pytest.raises(errors.SupermachineError, match="is no directory"):
            vm.run(["true"], cwd="/etc/passwd")
        assert waiting(vm) in ([], [pid])
        assert output(vm, "echo next") == "next"


def test_two_commands_at_once(clone: VM) -> None:
    (pid,) = waiting(clone)
    script = "echo $$; sleep 1; echo done"
    both = [clone.popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert [words[1] for words in said] == ["done"] * 4
    pids = [int(words[0]) for words in said]
    assert len(set(pids)) == 4
    assert pids.count(pid) == 1


def test_it_is_killed_as_others_are(clone: VM) -> None:
    (pid,) = waiting(clone)
    process = clone.popen(["sleep", "100"])
    assert process.pid == pid
    time.sleep(0.1)
    process.kill()
    assert process.wait(60) == -9


def test_forks_and_clones_of_clones_have_one_each(clone: VM, tmp_path: Path) -> None:
    (pid,) = waiting(clone)
    forks = clone.fork(2)
    try:
        assert [output(fork, "echo $$") for fork in forks] == [str(pid)] * 2
    finally:
        for fork in forks:
            fork.kill()
    assert output(clone, "echo $$") == str(pid)
    with clone.snapshot(tmp_path / "again").restore() as again:
        (other,) = waiting(again)
        assert other != pid
        assert output(again, "echo $$") == str(other)
    # The one that goes on has it, too.
    assert waiting(clone) == [other]
    assert output(clone, "echo $$") == str(other)


@pytest.mark.parametrize("number", [1, 2])
def test_one_that_ends_its_output_goes_on(clone: VM, number: int) -> None:
    for _ in range(number - 1):
        output(clone, "true")
    script = "echo out; exec >&-; sleep 0.2; echo late >&2; exec 2>&-; sleep 0.2; exit 3"
    done = clone.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "late\n", 3)
