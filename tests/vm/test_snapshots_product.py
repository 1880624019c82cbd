"""What is built on snapshots, on real guests: pools, published ports, coroutines, the command line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import supermachine
from supermachine import VM, Pool, aio, errors
from supermachine.machine.timings import Timings

from ..processes import running
from .guests import answer, refused, wait_for, was_restored

pytestmark = pytest.mark.vm


# Pools.


def test_a_pool_gives_each_caller_a_machine_that_nobody_has_used(busybox: str) -> None:
    supermachine.bake(busybox)
    with Pool(busybox, min=1, max=3, environment={"FROM": "the pool"}) as pool:
        names = set()
        for _ in range(4):
            with pool.acquire(timeout=60) as vm:
                assert was_restored(vm)
                assert not vm.path("/root/used").exists()
                vm.path("/root/used").write_text("yes")
                done = vm.run("hostname; echo $FROM", shell=True, text=True)
                name, text = done.stdout.splitlines()
                assert text == "the pool"
                names.add(name)
                pid = vm.pid
            assert not vm.running
            assert not Path(f"/proc/{pid}").exists()
        assert len(names) == 4


def test_a_pool_of_nothing_says_why(busybox: str, tmp_path: Path) -> None:
    with Pool(tmp_path / "missing", min=1, max=1) as pool:
        with pytest.raises(errors.SupermachineError) as caught, pool.acquire(timeout=60):
            pass
        assert "missing" in str(caught.value)


# Ports.


@pytest.fixture(scope="module")
def server(busybox: str) -> Iterator[VM]:
    """A guest with a service that sends back what it got, once that has ended."""
    with VM(busybox, ports={"7/tcp": None, "9": None}) as vm:
        vm.popen("while true; do nc -l -p 7 -e cat; done", shell=True)
        wait_for(lambda: echoed(vm, b"x") == b"x", "an echo")
        yield vm


def echoed(vm: VM, data: bytes) -> bytes:
    (address,) = vm.ports["7/tcp"]
    received = b""
    with socket.create_connection(address, timeout=60) as connection:

        def send() -> None:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        thread = threading.Thread(target=send)
        thread.start()
        try:
            while part := connection.recv(65536):
                received += part
        except OSError:
            pass
        thread.join()
    return received


def test_bytes_pass_both_ways_to_the_end_of_each(server: VM) -> None:
    data = os.urandom(2 << 20)
    wait_for(lambda: echoed(server, data) == data, "an echo of all the data")


def test_a_port_that_nobody_listens_on_in_the_guest_closes(server: VM) -> None:
    ((host, port),) = server.ports["9/tcp"]
    assert host == "127.0.0.1"
    with socket.create_connection((host, port), timeout=60) as connection:
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            pass


def test_ports_end_with_the_machine_and_so_do_their_connections(busybox: str) -> None:
    with VM(busybox, ports={"7": None}) as vm:
        vm.popen("while true; do nc -l -p 7 -e cat; done", shell=True)
        (address,) = vm.ports["7/tcp"]
        wait_for(lambda: echoed(vm, b"x") == b"x", "an echo")
        with socket.create_connection(address, timeout=60) as connection:
            assert vm.pid is not None
            os.kill(vm.pid, signal.SIGKILL)
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass
        wait_for(lambda: vm.ports == {}, "an end of the published ports")
        wait_for(lambda: refused(address), "a port of the host that is closed again")


def test_a_port_of_the_host_that_is_taken(busybox: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        vm = VM(busybox, ports={"7": port})
        with pytest.raises(errors.PortUnavailable) as caught:
            vm.start()
        assert str(port) in str(caught.value)
        assert not vm.running


# Coroutines.


def test_the_same_as_coroutines(busybox: str, tmp_path: Path) -> None:
    async def hostname(vm: aio.VM) -> str:
        return str((await vm.run(["hostname"], text=True)).stdout)

    async def main() -> None:
        async with aio.VM(busybox) as vm:
            await vm.path("/root/file").write_text("contents")
            snapshot = await vm.snapshot(tmp_path / "snapshot")
            forks = await vm.fork(3)
            names = await asyncio.gather(*(hostname(fork) for fork in [vm, *forks]))
            assert len(set(names)) == 4
            await asyncio.gather(*(fork.kill() for fork in forks))
        async with await aio.VM.restore(snapshot) as vm:
            assert await vm.path("/root/file").read_text() == "contents"
        async with aio.Pool(busybox, min=0, max=2) as pool, pool.acquire(60) as one, pool.acquire(60) as other:
            assert len(set(await asyncio.gather(hostname(one), hostname(other)))) == 2
        task = asyncio.create_task(aio.VM.restore(snapshot))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Nobody has it, so it ends, and lets go of the file.
        deadline = time.monotonic() + 60
        while True:
            try:
                snapshot.delete()
                break
            except errors.SnapshotInUse:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(main(), 300))


# The command line.


def cli(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "supermachine", *args], capture_output=True, text=True, timeout=120)


def test_run_goes_on_from_what_is_baked_unless_told_not_to(busybox: str, tmp_path: Path) -> None:
    supermachine.bake(busybox)
    done = cli("run", "--timings", busybox, "--", "echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n")
    assert "ram_map" in done.stderr and "kernel" not in done.stderr
    # Read by both ways, the short one and the one that knows all options.
    for more in ((), ("-m512m",)):
        page = tmp_path / f"start{len(more)}.html"
        done = cli("run", f"--timings={page}", *more, busybox, "echo", "hi", "--timings=html")
        assert (done.stdout, done.returncode) == ("hi --timings=html\n", 0), done.stderr
        text = page.read_text()
        assert f"supermachine run {busybox}" in text
        assert all(f">{step}</text>" in text for step in ("image", "ram_map", "command", "end"))
    assert cli("run", "--timings=nonsense", busybox, "true").returncode == 125
    done = cli("run", "--timings", "--no-snapshot", busybox, "echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n")
    assert "ram_map" not in done.stderr


def test_run_publishes_ports(busybox: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = "while true; do echo from the guest | nc -l -p 7; done"
    command = [sys.executable, "-m", "supermachine", "run", "-p", f"{port}:7", busybox, "sh", "-c", serve]
    with running(command) as process:
        wait_for(lambda: answer(("127.0.0.1", port)) == b"from the guest\n", "what the guest serves")
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM


def test_run_does_not_load_what_it_does_not_need(busybox: str) -> None:
    supermachine.bake(busybox)
    script = (
        "import sys; sys.argv[1:] = ['run', '-q', sys.argv[1], 'true']\n"
        "from supermachine.cli import _main\n"
        "assert _main() == 0\n"
        "heavy = ('asyncio', 'click', 'concurrent.futures', 'dataclasses', 'hashlib', 'inspect',"
        " 'rich', 'ssl', 'urllib3')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, busybox], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_a_picture_of_a_start(guest: VM, tmp_path: Path) -> None:
    drawn = ElementTree.fromstring(guest.timings.plot(tmp_path / "start.svg", title="<a start> & more"))
    assert (tmp_path / "start.svg").read_text() == guest.timings.plot(title="<a start> & more")
    words = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    last = max(at for _, at in guest.timings)
    assert words[0] == f"<a start> & more: {last / 1e6:.1f} ms"
    assert {name for name, _ in guest.timings} <= set(words)
    bars = list(drawn.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    assert len(bars) == len(guest.timings)
    ElementTree.fromstring(Timings([("none", 0)]).plot())
    assert Timings().plot(tmp_path / "none.html").startswith("<!doctype html>")
