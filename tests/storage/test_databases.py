"""Databases that we did not write, on a volume and on the disk of a root: what they have committed is there."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM
from supermachine.guest.processes import Popen

from ..docker import databases
from ..vm.guests import output
from .test_volumes import check

pytestmark = pytest.mark.usefixtures("data")

#: Times that each is killed; `make soak` takes more.
KILLS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "3"))
ROWS = 5000


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield str(databases.postgres(tmp_path_factory.mktemp("postgres")))


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield str(databases.sqlite(tmp_path_factory.mktemp("sqlite")))


def committed(process: Popen) -> int:
    """The last number of those that a client said, one after another, before its machine was killed."""
    assert process.stdout is not None
    data = b""
    try:
        while more := process.stdout.read(4096):
            data += more
    except OSError:
        pass
    numbers = [int(line.removeprefix(b"row ")) for line in data.split(b"\n")[:-1] if line.startswith(b"row ")]
    assert numbers == list(range(numbers[0] if numbers else 0, numbers[-1] + 1 if numbers else 0))
    return numbers[-1] if numbers else 0


#: As the hub's image does it, with all that makes writes last, and checksums of pages.
START = """
set -e
test -e data/PG_VERSION || initdb --no-locale -E UTF8 -k -U postgres -A trust -D data > /tmp/said
exec postgres -D data -c jit=off -c unix_socket_directories=/tmp -c listen_addresses= -c log_min_messages=log
"""
PSQL = "psql -h /tmp -U postgres -X -q -A -t -v ON_ERROR_STOP=1"


def serving(vm: VM) -> Popen:
    server = vm.popen(["sh", "-c", START], cwd="/var/lib/postgresql", stderr=-1)
    end = time.monotonic() + 120
    while vm.run(f"{PSQL} -c 'select 1'", shell=True, capture_output=True).returncode != 0:
        assert server.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    return server


def rows(vm: VM) -> int:
    """How many there are: from the first to the last, each with the sum of its number."""
    query = "select count(*), coalesce(max(n), 0), count(*) filter (where sum = md5(n::text)) from t"
    count, greatest, right = output(vm, f"{PSQL} -F ' ' -c \"{query}\"").split()
    assert count == greatest == right
    return int(count)


def test_postgres_on_a_volume_is_killed(postgres: str) -> None:
    last = 0
    for kill in range(KILLS):
        with VM(postgres, memory="256m", volumes=["database:/var/lib/postgresql"]) as vm:
            serving(vm)
            if kill == 0:
                output(vm, f"{PSQL} -c 'create table t (n int primary key, sum text)'")
            count = rows(vm)
            # No fewer than were said, and more by those whose word was on its way.
            assert count >= last
            insert = "insert into t values ({n}, md5('{n}')) returning 'row ' || n;\n"
            inserts = "".join(insert.format(n=n) for n in range(count + 1, count + ROWS))
            vm.path("/tmp/inserts").write_text(inserts)
            client = vm.popen(f"{PSQL} -f /tmp/inserts", shell=True, stdout=-1)
            vm.popen(f"while true; do {PSQL} -c 'checkpoint; vacuum t'; done", shell=True)
            time.sleep(random.uniform(0.3, 2))
            assert vm.pid is not None
            os.kill(vm.pid, signal.SIGKILL)
            vm.wait(10)
            last = max(count, committed(client))
    check("database")
    assert last > KILLS
    with VM(postgres, memory="256m", volumes=["database:/var/lib/postgresql"]) as vm:
        server = serving(vm)
        assert rows(vm) >= last
        server.send_signal(signal.SIGINT)
        server.wait(60)
        assert "Bad checksums:  0" in output(vm, "pg_checksums --check -D /var/lib/postgresql/data")


TABLE = "create table if not exists t (n integer primary key, sum text)"
#: Each row says its number once it is committed; the log is small, so that it is copied into the database often.
SQLITE = """
n=$(sqlite3 $1 'select count(*) from t')
sqlite3 $1 'pragma journal_mode = wal; pragma synchronous = full; pragma wal_autocheckpoint = 20' > /dev/null
i=$n
while true; do
    i=$((i+1))
    echo "insert into t values ($i, hex($i)); select 'row $i';"
done | sqlite3 -cmd 'pragma synchronous = full' -cmd 'pragma wal_autocheckpoint = 20' $1
"""


def consistent(vm: VM, place: str) -> int:
    query = "select count(*), coalesce(max(n), 0), coalesce(sum(sum <> hex(n)), 0) from t"
    said = output(vm, f"sqlite3 {place} 'pragma integrity_check; {query}'")
    sound, found = said.split()
    count, greatest, wrong = map(int, found.split("|"))
    assert (sound, wrong, count) == ("ok", 0, greatest)
    return count


def test_sqlite_on_a_volume_is_killed(sqlite: str) -> None:
    last = 0
    for _ in range(KILLS):
        with VM(sqlite, memory="64m", volumes=["database:/data"]) as vm:
            output(vm, f"sqlite3 /data/db '{TABLE}'")
            client = vm.popen(["sh", "-c", SQLITE, "sh", "/data/db"], stdout=-1)
            time.sleep(random.uniform(0.3, 1.5))
            assert vm.pid is not None
            os.kill(vm.pid, signal.SIGKILL)
            vm.wait(10)
            last = max(last, committed(client))
        with VM(sqlite, memory="64m", volumes=["database:/data"]) as vm:
            assert consistent(vm, "/data/db") >= last
    check("database")
    assert last > 0


def test_sqlite_on_the_disk_of_a_root_in_snapshots_and_forks(sqlite: str, tmp_path: Path) -> None:
    with VM(sqlite, memory="64m") as vm:
        output(vm, f"sqlite3 /data/db '{TABLE}'")
        vm.popen(["sh", "-c", SQLITE, "sh", "/data/db"])
        while vm.run(
            "sqlite3 /data/db 'select n from t limit 1' | grep -q 1", shell=True, capture_output=True
        ).returncode:
            time.sleep(0.1)
        counts = []
        for moment in range(3):
            time.sleep(random.uniform(0, 0.3))
            counts.append(consistent(vm, "/data/db"))
            vm.snapshot(tmp_path / str(moment))
            (fork,) = vm.fork()
            assert consistent(fork, "/data/db") >= counts[-1] > 0
            fork.kill()
    for moment, count in enumerate(counts):
        with VM.restore(tmp_path / str(moment)) as vm:
            # The writer went on in each of them.
            before = consistent(vm, "/data/db")
            assert before >= count
            end = time.monotonic() + 60
            while consistent(vm, "/data/db") == before:
                assert time.monotonic() < end
            output(vm, "kill $(pidof sqlite3)")
            assert consistent(vm, "/data/db") > before
