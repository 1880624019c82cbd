"""The pool's book-keeping, with machines that only pretend."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from supermachine import Pool, aio
from supermachine.errors import ConfigurationError, PoolClosed, PoolTimeout, VMExited

DEADLINE = 30


class Machine:
    """Starts when it may, once per object."""

    def __init__(self, factory):
        self.factory = factory
        self.running = False
        self.killed = threading.Event()

    def _disks(self):
        return None

    def start(self):
        self.factory.starts += 1
        with self.factory.lock:
            self.factory.alive.add(self)
            self.factory.most = max(self.factory.most, len(self.factory.alive))
        while not self.factory.may_start.wait(0.01):
            if self.killed.is_set():
                self.factory.alive.discard(self)
                raise VMExited("killed", reason="killed")
        if self.factory.failure is not None:
            self.factory.alive.discard(self)
            raise self.factory.failure
        self.running = True
        return self

    def kill(self):
        self.killed.set()
        self.running = False
        with self.factory.lock:
            self.factory.alive.discard(self)


class Factory:
    def __init__(self):
        self.starts = self.most = 0
        self.alive = set()
        self.lock = threading.Lock()
        self.failure = None
        self.may_start = threading.Event()
        self.may_start.set()


@pytest.fixture
def factory(monkeypatch):
    made = Factory()
    monkeypatch.setattr(Pool, "_new", lambda self: Machine(made))
    return made


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_machines_are_fresh_and_ended_after_use(factory):
    with Pool("image", 2, 4) as pool:
        wait_for(lambda: pool.ready == 2)
        seen = []
        for _ in range(6):
            with pool.acquire(DEADLINE) as vm:
                assert vm.running and vm not in seen
                assert pool.in_use == 1
            assert not vm.running
            seen.append(vm)
        wait_for(lambda: pool.ready == 2)
    assert not factory.alive


def test_never_more_than_the_most_and_a_wait_has_its_deadline(factory):
    with Pool("image", 1, 2) as pool:
        with pool.acquire(DEADLINE), pool.acquire(DEADLINE):
            with pytest.raises(PoolTimeout), pool.acquire(0.05):
                pass
            assert pool.ready == 0
        with pool.acquire(DEADLINE):
            pass

        def use():
            for _ in range(5):
                with pool.acquire(DEADLINE) as vm:
                    assert vm.running

        threads = [threading.Thread(target=use) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
    assert factory.most <= 2


def test_none_are_kept_ready_when_none_are_asked_for(factory):
    with Pool("image", 0, 1) as pool:
        time.sleep(0.05)
        assert factory.starts == 0
        with pool.acquire(DEADLINE) as vm:
            assert vm.running


def test_what_goes_wrong_is_raised_where_a_machine_was_wanted(factory):
    factory.failure = OSError("no memory")
    with Pool("image", 1, 2) as pool:
        wait_for(lambda: factory.starts)
        for _ in range(2):
            with pytest.raises(OSError, match="no memory"), pool.acquire(DEADLINE):
                pass
        factory.failure = None
        wait_for(lambda: pool.ready == 1)
        with pool.acquire(DEADLINE) as vm:
            assert vm.running


def test_a_machine_that_died_while_it_waited_is_not_handed_out(factory):
    with Pool("image", 1, 2) as pool:
        wait_for(lambda: pool.ready == 1)
        (dead,) = factory.alive
        dead.running = False
        with pool.acquire(DEADLINE) as vm:
            assert vm is not dead


def test_idle_machines_beyond_the_least_end(factory):
    with Pool("image", 1, 4, idle_timeout=0.2) as pool:
        holds = [pool.acquire(DEADLINE) for _ in range(3)]
        factory.may_start.clear()
        waiting = [threading.Thread(target=lambda h=hold: h.__enter__()) for hold in holds]
        for thread in waiting:
            thread.start()
        factory.may_start.set()
        for thread in waiting:
            thread.join(DEADLINE)
        for hold in holds:
            hold.__exit__(None, None, None)
        wait_for(lambda: pool.ready == 1 and pool.in_use == 0)


@pytest.mark.parametrize("starting", [False, True])
def test_closing_ends_everything_and_wakes_who_waits(factory, starting):
    if starting:
        factory.may_start.clear()
    pool = Pool("image", 1, 1)
    if starting:
        wait_for(lambda: factory.starts)
    else:
        held = pool.acquire(DEADLINE)
        held.__enter__()
    caught = []

    def wait():
        try:
            with pool.acquire():
                pass
        except PoolClosed as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: pool._waiting)
    pool.close()
    thread.join(DEADLINE)
    assert caught
    if not starting:
        held.__exit__(None, None, None)
    assert not factory.alive
    with pytest.raises(PoolClosed), pool.acquire():
        pass
    pool.close()


@pytest.mark.parametrize("sizes", [(-1, 1), (2, 1), (0, 0)])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ConfigurationError):
        Pool("image", *sizes)


def test_the_same_as_coroutines(factory):
    async def main():
        async with aio.Pool("image", 1, 2) as pool:
            async with pool.acquire(DEADLINE), pool.acquire(DEADLINE):
                with pytest.raises(PoolTimeout):
                    async with pool.acquire(0.05):
                        pass
                waiting = asyncio.create_task(pool.acquire().__aenter__())
                await asyncio.sleep(0.05)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            assert pool.in_use == 0
            async with pool.acquire(DEADLINE) as vm:
                assert vm.running

    asyncio.run(asyncio.wait_for(main(), 2 * DEADLINE))
    assert not factory.alive
