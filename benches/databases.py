"""A fresh, migrated PostgreSQL for each test: from a restore of the prepared machine to the answer of a first query.

`python -m benches.databases` prints milliseconds, medians with the spread beside them. The server was started and
migrated once, before its machine was captured; each round restores that snapshot, connects to the published port by
psycopg2, asks, and kills the machine. It needs the tests beside it, which make the image of Debian's packages.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2
import supermachine
from supermachine import VM

from tests.docker import databases

from .snapshots import quantiles

PORT = "5432/tcp"
#: Whoever comes is let in: how passwords are hashed is not what is measured.
START = """set -e
export PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
initdb --no-sync --no-locale -E UTF8 -U postgres -A trust >/dev/null 2>&1
echo "host all all all trust" >> $PGDATA/pg_hba.conf
exec postgres -c listen_addresses='*' -c fsync=off -c jit=off -c unix_socket_directories=/tmp
"""
#: A small schema: tables with a key, an index, a reference, and rows in each.
TABLES = 20
TABLE = """create table t{n} (id int primary key, name text not null, parent int references t{before} (id));
create index on t{n} (name);
insert into t{n} select i, md5(i::text), i from generate_series(1, 100) i;"""
MIGRATION = "".join(TABLE.format(n=n, before=max(n - 1, 0)) for n in range(TABLES))
QUERY = "select count(*) from t19 join t0 on t19.parent = t0.id"


def _asked(vm: VM, query: str) -> list[tuple[Any, ...]]:
    address, port = vm.ports[PORT][0]
    connection = psycopg2.connect(host=address, port=port, user="postgres", dbname="postgres", connect_timeout=60)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall()) if cursor.description is not None else []
    finally:
        connection.close()


def prepared(image: Path, snapshot: Path) -> float:
    """Seconds from the start of the server, its data directory included, to its first answer."""
    with VM(str(image), memory="256m", ports={PORT: None}) as vm:
        began = time.monotonic()
        server = vm.popen(["sh", "-c", START], cwd="/var/lib/postgresql", stderr=supermachine.DEVNULL)
        while True:
            try:
                _asked(vm, "select 1")
                break
            except psycopg2.OperationalError:
                if server.poll() is not None or time.monotonic() - began > 300:
                    raise
                time.sleep(0.05)
        taken = time.monotonic() - began
        _asked(vm, MIGRATION)
        for _ in range(3):
            _asked(vm, QUERY)
        vm.snapshot(snapshot)
    return taken


def measure(repeats: int) -> dict[str, Any]:
    restores: list[float] = []
    wholes: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        start = prepared(databases.postgres(place), place / "snapshot")
        for _ in range(repeats):
            began = time.perf_counter()
            with VM.restore(place / "snapshot") as vm:
                restored = time.perf_counter()
                assert _asked(vm, QUERY) == [(100,)]
                wholes.append((time.perf_counter() - began) * 1000)
                restores.append((restored - began) * 1000)
                vm.kill()
    return {
        "initdb_to_first_answer_s": round(start, 1),
        "restore": quantiles(sorted(restores)),
        "restore_to_answer": quantiles(sorted(wholes)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    print(json.dumps(measure(parser.parse_args().repeats), indent=1))
