"""The package's surface: both interfaces, options, engines, errors, the command line."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import supermachine
from supermachine import aio, errors
from supermachine.errors import ConfigurationError, EngineUnavailable, HardwareRequired, NotSupported, SupermachineError
from supermachine.host import engines
from supermachine.settings import parsing


def members(kind) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["VM", "Popen", "Machine"])
def test_both_interfaces_have_the_same_names(name):
    here, there = getattr(supermachine, name), getattr(aio, name)
    ours = members(here) - {"encoding", "errors", "text_mode"}
    assert ours - members(there) == set()
    attributes = {"args", "pid", "stdin", "stdout", "stderr", "returncode"}  # set by Popen.__init__
    assert members(there) - ours <= (attributes if name == "Popen" else set())


def test_paths_have_the_same_names(guest):
    path = aio.GuestPath(guest.path("/"))
    for name in members(supermachine.GuestPath):
        assert getattr(path, name) is not None
    asking = {n for n, f in vars(supermachine.GuestPath).items() if not n.startswith("_") and inspect.isfunction(f)}
    pure = {"absolute", "with_segments", "with_name", "with_suffix", "with_stem", "relative_to"}
    generators = {"iterdir", "glob", "rglob", "walk"}
    coroutines = {name for name, f in vars(aio.GuestPath).items() if inspect.iscoroutinefunction(f)}
    assert asking - pure - generators == coroutines
    for name in coroutines:
        assert parameters(aio.GuestPath, name) == parameters(supermachine.GuestPath, name)


def parameters(kind, name):
    said = inspect.signature(getattr(kind, name)).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in said]


def test_run_takes_the_same_arguments():
    assert inspect.signature(supermachine.run).parameters.keys() == inspect.signature(aio.run).parameters.keys()
    assert inspect.signature(supermachine.start).parameters.keys() == inspect.signature(aio.start).parameters.keys()
    ours, theirs = inspect.signature(supermachine.VM.run), inspect.signature(aio.VM.run)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]


def test_coroutines_do_what_the_functions_do(guest, stand_in, tmp_path):
    async def main():
        async with aio.VM("stand-in") as vm:
            done = await asyncio.gather(*(vm.run(["sh", "-c", f"sleep 0.1; echo {n}"], text=True) for n in range(12)))
            assert [d.stdout for d in done] == [f"{n}\n" for n in range(12)]
            path = vm.path(str(tmp_path)) / "file"
            await path.write_text("hello")
            assert await path.read_text() == "hello"
            assert "file" in [p.name async for p in vm.path(str(tmp_path)).iterdir()]
            async with await vm.popen(["cat"], stdin=aio.PIPE, stdout=aio.PIPE) as process:
                assert await process.communicate(b"x") == (b"x", None)
            with pytest.raises(FileNotFoundError):
                await vm.path("/no/such").read_bytes()

    asyncio.run(main())


def test_cancelling_kills_the_process(guest, stand_in, tmp_path):
    pidfile = tmp_path / "pid"

    async def main():
        async with aio.VM("stand-in") as vm:
            task = asyncio.create_task(vm.run(["sh", "-c", f"echo $$ > {pidfile}; exec sleep 600"]))
            while not (pidfile.exists() and pidfile.read_text().strip()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            pid = int(pidfile.read_text())
            while runs(pid):
                await asyncio.sleep(0.01)

    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 64 << 20), ("512M", 512 << 20), ("1.5g", 1536 << 20), ("2GiB", 2 << 30), (70_000_000, 71303168)],
)
def test_memory(text, size):
    assert parsing.memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "1m", "-1g", "1e9", "65g", "999t", 5])
def test_memory_refused(text):
    with pytest.raises(ConfigurationError):
        parsing.memory_bytes(text)


def test_hardware_is_refused_when_there_is_none(monkeypatch):
    with pytest.raises(HardwareRequired):
        engines.choose("soft", require_hardware=True)
    monkeypatch.setenv("SUPERMACHINE_REQUIRE_HARDWARE", "1")
    with pytest.raises(HardwareRequired):
        engines.choose("soft")
    assert engines.choose("soft", require_hardware=False).isolation == "software"
    monkeypatch.setenv("SUPERMACHINE_REQUIRE_HARDWARE", "perhaps")
    with pytest.raises(ConfigurationError):
        engines.choose()


def test_engines_that_are_not_there():
    unusable = [e for e in engines.probe() if not e.usable and not e.forcible]
    for engine in unusable:
        with pytest.raises(EngineUnavailable):
            engines.choose(engine.name)
    with pytest.raises(ConfigurationError):
        engines.choose("xen")


def test_what_cannot_be_done_says_so():
    with pytest.raises(NotSupported):
        supermachine.VM("x", ports={"53/sctp": 5353})


def all_errors():
    return {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SupermachineError)}


@pytest.mark.parametrize("kind", sorted(all_errors(), key=lambda k: k.__name__))
def test_every_error_is_a_builtin_too_and_survives_pickling(kind):
    error = kind("what failed", cause="why", hint="what to do")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.code, copy.cause, copy.hint) == (
        kind,
        "what failed",
        error.code,
        "why",
        "what to do",
    )
    if kind is not SupermachineError:
        assert any(c.__module__ == "builtins" and c not in (Exception, BaseException, object) for c in kind.__mro__)
    assert not hasattr(__builtins__, kind.__name__)
    assert getattr(errors, kind.__name__) is kind


def cli(*args, env=None, **rest):
    command = [sys.executable, "-m", "supermachine", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, **rest)


def test_the_command_line_without_a_machine():
    assert cli("--version").stdout == f"supermachine {supermachine.__version__}\n"
    report = json.loads(cli("doctor", "--json").stdout)
    assert report["chosen"] == "soft"
    assert {e["name"] for e in report["engines"]} == {"hvf", "kvm", "soft"}
    assert cli("no-such-command").returncode == 125
    assert cli("run").returncode == 125


def test_errors_on_the_command_line_are_sentences(tmp_path):
    environment = {"SUPERMACHINE_CACHE": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for arguments in (
        ("run", "--pull", "never", "no-such-image"),
        ("run", str(tmp_path / "no-such-path")),
        ("run", "-m", "1k", "x"),
        ("run", "--require-hardware", "--engine", "soft", "x"),
        ("run", "--env-file", "/no/such", "x"),
        ("rmi", "no-such-image"),
        ("exec", "no-such-machine", "true"),
    ):
        done = cli(*arguments, env=environment)
        assert done.returncode == 125, done
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()


def test_import_is_lean():
    heavy = {"asyncio", "click", "rich", "subprocess", "urllib3"}
    code = f"import sys, supermachine; print([m for m in sys.modules if m in {heavy}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_file_of_variables_is_read_as_docker_reads_it(tmp_path):
    file = tmp_path / "env"
    file.write_bytes(
        b"\xef\xbb\xbfFIRST=1\n  # a comment\n\n\tINDENTED=x \r\nQUOTED='a b' # no comment\n"
        b"EMPTY=\nBARE\nEQUALS=a=b\nR=a\rb\n"
    )
    items = parsing.environment_files([str(file)])
    assert items == ["FIRST=1", "INDENTED=x ", "QUOTED='a b' # no comment", "EMPTY=", "BARE", "EQUALS=a=b", "R=a\rb"]
    for wrong, said in ((b"A=1\nB C=2\n", "line 2 .*white space"), (b"=x", "no name"), (b"A=\xff", "no UTF-8")):
        file.write_bytes(wrong)
        with pytest.raises(ConfigurationError, match=said):
            parsing.environment_files([str(file)])


def test_completion(tmp_path):
    environment = {"SUPERMACHINE_CACHE": str(tmp_path), "SUPERMACHINE_RUNTIME": str(tmp_path / "run")}
    (tmp_path / "run" / "machines").mkdir(parents=True, mode=0o700)
    for shell in ("bash", "zsh", "fish"):
        assert "_SUPERMACHINE_COMPLETE" in cli("completion", shell, env=environment).stdout
    script = cli("completion", "bash", env=environment).stdout

    def complete(line):
        """What a real bash is told."""
        words = line.split(" ")
        told = (
            f'supermachine() {{ {sys.executable} -m supermachine "$@"; }}\n'
            f'env() {{ local -a vars; while [[ $1 == *=* ]]; do local -x "$1"; shift; done; "$@"; }}\n{script}\n'
            f"COMP_WORDS=({line!r}); COMP_WORDS=({' '.join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}\n"
            "_supermachine_completion supermachine; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", told], env={**os.environ, **environment}, capture_output=True, text=True)
        return done.stdout.split()

    assert "images" in complete("supermachine im")
    assert "--detach" in complete("supermachine run --det")
    assert complete("supermachine logs nobody") == []
