"""What /proc/PID/stat says, against what else the host tells."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from supermachine.host import process_stat


def test_a_process_as_others_tell_of_it() -> None:
    sum(range(3_000_000))
    stat = process_stat.of(os.getpid())
    assert stat is not None and stat.parent == os.getppid()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = stat.ticks / os.sysconf("SC_CLK_TCK")
    assert seconds == pytest.approx(usage.ru_utime + usage.ru_stime, abs=1.0)
    assert 0 < stat.resident_pages * os.sysconf("SC_PAGE_SIZE") <= usage.ru_maxrss * 1024 * 2
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        younger = process_stat.of(child.pid)
        assert younger is not None and younger.parent == os.getpid() and younger.started >= stat.started
    finally:
        child.communicate()
    assert process_stat.of(child.pid) is None


def test_a_name_may_hold_anything() -> None:
    line = b"7 (a) R 1 (b)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22\n"
    stat = process_stat.parse(line)
    assert stat == (b"a) R 1 (b)", 1, 4, 11 + 12, 19, 21)
    assert stat.name == b"a) R 1 (b)"


@pytest.mark.parametrize(
    "line", [b"", b"7 (a) S 1", b"nothing", b"7 (a) S x 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21"]
)
def test_what_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        process_stat.parse(line)
