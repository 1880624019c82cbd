"""The disk of a root at random moments: the same bytes in a snapshot, in diffs of diffs, and in forks."""

from __future__ import annotations

import random
import time
from pathlib import Path

from supermachine import VM, snapshots

from ..vm.guests import output
from .test_root_disk import sums
from .test_volumes import BUSYBOX, MOMENTS

#: Files that grow, are cut off, written over, renamed and removed, and a tree that comes and goes.
WRITER = """
echo $$ > /dev/shm/group; cd /data; n=0
while true; do
    n=$((n+1)); f=$((n%7))
    case $((n%5)) in
        0) head -c $((n*977%200000)) /dev/urandom > $f ;;
        1) head -c $((n*331%50000)) /dev/urandom >> $f ;;
        2) dd if=/dev/urandom of=$f bs=4096 seek=$((n%40)) count=3 conv=notrunc 2> /dev/null ;;
        3) mv $f moved.$((n%3)) 2> /dev/null ;;
        4) rm -rf tree moved.$((n%2)); cp -r /etc tree; ( : > $((f+1)) ) ;;
    esac
done
"""
#: Diffs on top of one whole snapshot at most.
DEPTH = 4


def seen(vm: VM) -> str:
    """Of what the guest's programs see, much of which is not on the disk yet."""
    return output(vm, "find /data -type f | sort | xargs md5sum")


def write_for_a_while(vm: VM) -> str:
    """Has the writer go on, and stops it wherever it is; what there is then."""
    output(vm, "kill -CONT -$(cat /dev/shm/group)")
    time.sleep(random.uniform(0.05, 0.8))
    output(vm, "kill -STOP -$(cat /dev/shm/group)")
    return seen(vm)


def test_contents_are_equal_at_random_moments(tmp_path: Path) -> None:
    with VM(BUSYBOX, memory="64m", disk="1g") as vm:
        output(vm, "mkdir /data")
        vm.popen(WRITER, shell=True)
        output(vm, "while ! test -s /dev/shm/group; do sleep 0.05; done")
        write_for_a_while(vm)
        vm.snapshot(tmp_path / "base")
    chain = [tmp_path / "base"]
    for moment in range(MOMENTS):
        with VM.restore(chain[-1]) as vm:
            expected = write_for_a_while(vm)
            assert expected
            taken = tmp_path / f"{moment}"
            vm.snapshot(taken, diff=True)
            (fork,) = vm.fork()
            # From here on both go their own ways, on blocks that they have in common.
            assert sums(vm) == expected
            own = write_for_a_while(fork)
            assert sums(vm) == expected
            assert sums(fork) == own
            fork.kill()
        with VM.restore(taken) as vm:
            assert sums(vm) == expected
        chain.append(taken)
        if len(chain) > DEPTH:
            snapshots.flatten(chain, tmp_path / f"flat-{moment}")
            with VM.restore(tmp_path / f"flat-{moment}") as vm:
                assert sums(vm) == expected
            for old in chain:
                old.unlink()
            chain = [tmp_path / f"flat-{moment}"]
