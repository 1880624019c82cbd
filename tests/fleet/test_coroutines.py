"""Fleets from coroutines: the same machines, and what a cancelled wait leaves."""

from __future__ import annotations

import asyncio
import time

import pytest
from supermachine import errors
from supermachine.aio.fleet import Fleet, FleetVM

from .conftest import BUSYBOX, SMALL

pytestmark = pytest.mark.vm


def test_machines_work_and_end(tmp_path) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        with pytest.raises(errors.ConfigurationError, match="has not been started"):
            await Fleet(BUSYBOX, **SMALL).acquire()
        with pytest.raises(errors.ConfigurationError):
            await Fleet(BUSYBOX, driver="nomad").start()
        async with Fleet(BUSYBOX, per_host=4, **SMALL) as fleet:
            assert fleet.capacity == 4 and [host.name for host in fleet.hosts] == ["local"]
            async with await fleet.acquire() as vm:
                assert vm.running and vm.host == "local" and vm.engine and vm.isolation
                assert (await vm.run("echo hi; exit 3", shell=True, text=True)).stdout == "hi\n"
                await vm.path("/tmp/x").write_text("here")
                (clone,) = await vm.fork(1)
                assert await clone.path("/tmp/x").read_text() == "here"
                await clone.kill()
                (tmp_path / "in").write_text("in")
                await vm.copy_in(tmp_path / "in", "/tmp/in")
                await vm.copy_out("/tmp/in", tmp_path / "out")
                assert (tmp_path / "out").read_text() == "in"
                process = await vm.popen(["cat"], stdin=-1, stdout=-1)
                assert (await process.communicate(b"through"))[0] == b"through"
                taken = await vm.snapshot(tmp_path / "snapshot")
                assert taken.id is not None
                assert vm.ports == {}
            assert not vm.running and await vm.wait(1) == "killed"

            async def double(vm: FleetVM, number: int) -> int:
                return int((await vm.run(["echo", str(2 * number)], text=True)).stdout)

            assert [value async for value in fleet.map(double, range(6))] == [0, 2, 4, 6, 8, 10]
            assert await fleet.submit(double, 21) == 42
            assert await fleet.drain("local", timeout=30)
        with pytest.raises(errors.FleetClosed):
            await fleet.acquire()

    asyncio.run(main())


def test_a_cancelled_wait_takes_no_machine() -> None:
    async def main() -> None:
        async with Fleet(BUSYBOX, per_host=1, **SMALL) as fleet:
            held = await fleet.acquire()
            waiting = [asyncio.ensure_future(fleet.acquire()) for _ in range(3)]
            await asyncio.sleep(0.05)
            for each in waiting:
                each.cancel()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            # A command that is cancelled ends in the guest, and the machine is still of use.
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(held.run(["sleep", "1000"]), 0.2)
            assert (await held.run(["echo", "on"], text=True)).stdout == "on\n"
            await held.kill()
            # One that is cancelled while it is being given is given back.
            soon = asyncio.ensure_future(fleet.acquire())
            await asyncio.sleep(0)
            soon.cancel()
            await asyncio.gather(soon, return_exceptions=True)
            deadline = time.monotonic() + 60
            while True:
                try:
                    other = await fleet.acquire(timeout=1)
                    break
                except errors.FleetFull:
                    assert time.monotonic() < deadline
            assert (await other.run(["echo", "next"], text=True)).stdout == "next\n"

    asyncio.run(main())


def test_work_that_fails_ends_the_rest() -> None:
    async def main() -> None:
        async with Fleet(BUSYBOX, per_host=2, **SMALL) as fleet:

            async def work(vm: FleetVM, number: int) -> int:
                if number == 1:
                    raise ValueError("one")
                await vm.run(["true"] if number == 0 else ["sleep", "1000"])
                return number

            seen = []
            with pytest.raises(ValueError, match="one"):
                async for value in fleet.map(work, range(4)):
                    seen.append(value)
            assert seen == [0]
            assert (await (await fleet.acquire(timeout=60)).run(["true"])).returncode == 0

    asyncio.run(main())
