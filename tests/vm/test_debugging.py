"""Debuggers in a guest: steps, breakpoints and watchpoints by ptrace, gdb and strace, over a snapshot too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supermachine import VM

from . import conftest
from .guests import wait_for

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).with_name("debugging.c")
PACKAGES = "gdb,strace,dash,busybox-static,base-files,base-passwd"

#: Breaks where the loop is, goes on by lines and instructions, out of a function, and to where a variable changes.
SESSION = """\
set confirm off
set pagination off
set debuginfod enabled off
break *twice
run
printf "first %d\\n", $x0
set $before = $pc
stepi
printf "stepped %d\\n", $pc - $before
set $back = $lr
finish
printf "finished %d\\n", $pc == $back
continue
printf "second %d\\n", $x0
next
delete
watch *(long *) &watched
continue
continue
printf "watched %d\\n", *(long *) &watched
delete
continue
"""


@pytest.fixture(scope="module")
def program(c_program: Callable[[Path, str], Path]) -> Path:
    return c_program(PROGRAM, "aarch64")


def check(answers: dict[str, str]) -> None:
    assert answers["steps"] == answers["breakpoint"] == "ok", answers
    # As many as an Armv8-A processor has at least (Arm ARM, D2.8).
    for kind in ("hardware breakpoint", "watchpoint"):
        assert int(answers[f"{kind}s"]) >= 2, answers
        assert answers[kind] == "ok", answers


def ask(vm: VM) -> dict[str, str]:
    done = vm.run(["/tmp/debugging"], capture_output=True, text=True, check=True, timeout=300)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("mode", ["1", "always"])
def test_a_tracer_steps_and_breaks(busybox: str, program: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With `always` the code is machine code when it is stepped and broken into."""
    monkeypatch.setenv("SUPERMACHINE_JIT", mode)
    with VM(busybox, bake=False) as vm:
        vm.copy_in(program, "/tmp/debugging")
        check(ask(vm))


def test_what_is_armed_stops_the_program_in_clones(busybox: str, program: Path, tmp_path: Path) -> None:
    kinds = {"b": "hardware breakpoint", "w": "watchpoint"}
    with VM(busybox) as vm:
        vm.copy_in(program, "/tmp/debugging")
        for letter in kinds:
            script = f"/tmp/debugging {letter} /tmp/go > /tmp/{letter} 2>&1 < /dev/null &"
            vm.run(script, shell=True, check=True)
            said = vm.path(f"/tmp/{letter}")
            wait_for(lambda said=said: "armed" in said.read_text(), "one that is armed")  # type: ignore[misc]
        taken = vm.snapshot(tmp_path / "armed")
    with taken.restore() as clone:
        clone.path("/tmp/go").touch()
        for letter, kind in kinds.items():
            said = clone.path(f"/tmp/{letter}")
            wait_for(lambda said=said, kind=kind: f"{kind}:" in said.read_text(), kind)  # type: ignore[misc]
            assert f"{kind}: ok" in said.read_text()


@pytest.fixture(scope="module")
def debuggers(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    """A guest with Debian's gdb and strace."""
    place = tmp_path_factory.mktemp("debuggers")
    layout = conftest.packages_layout(place, PACKAGES)
    with VM(str(layout), memory="1g") as vm:
        vm.copy_in(program, "/tmp/debugging")
        vm.path("/tmp/session").write_text(SESSION)
        yield vm


def test_gdb_breaks_steps_finishes_and_watches(debuggers: VM) -> None:
    command = ["gdb", "-q", "-batch", "-x", "/tmp/session", "--args", "/tmp/debugging", "call"]
    done = debuggers.run(command, capture_output=True, text=True, timeout=600)
    assert "first 0\n" in done.stdout, done.stdout + done.stderr
    assert "stepped 4\n" in done.stdout, done.stdout
    assert "finished 1\n" in done.stdout, done.stdout
    assert "second 1\n" in done.stdout, done.stdout
    assert "watched 4\n" in done.stdout, done.stdout
    assert "exited with code 05" in done.stdout, done.stdout


def test_strace_follows_calls(debuggers: VM) -> None:
    command = ["strace", "-f", "-e", "trace=execve,write", "sh", "-c", "echo traced"]
    done = debuggers.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "traced\n"
    assert 'write(1, "traced\\n", 7)' in done.stderr
