"""`python -m benches.debian`: what people start in a machine, on the software CPU and on QEMU's TCG by turns.

Each case is a root of Debian's packages in an initramfs and two shell scripts: what comes before and is not measured,
and what is. Writes debian.json into the directory given.
"""

from __future__ import annotations

import argparse
import json
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import guests, machines, report, sides
from .guests import Member
from .machines import Times
from .sides import Start

#: Bytes of RAM: both the archive and its files are in it.
MEMORY = 2 << 30

#: What no program here opens, beside documentation.
UNUSED = (
    "boot",
    "dev",
    "usr/share/ca-certificates",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "usr/lib/postgresql/15/lib/bitcode",
    "usr/lib/postgresql/15/lib/llvmjit",
    "usr/lib/udev",
    "usr/lib/systemd",
    "usr/share/perl",
    "usr/share/i18n",
)

#: Users that programs look up; the packages' scripts, which would make them, do not run.
USERS = "root:x:0:0:root:/:/bin/sh\npostgres:x:100:100:postgres:/tmp:/bin/sh\n"
GROUP = "root:x:0:\npostgres:x:100:\n"

#: Before each case's own: what a system that has booted has.
PREPARED = """#!/usr/bin/busybox sh
set -e
mkdir -p /dev/shm /tmp /run
busybox mount -t tmpfs shm /dev/shm
chmod 1777 /tmp /dev/shm
busybox ifconfig lo 127.0.0.1 up
cd /tmp
"""

JAVA = "/usr/lib/jvm/java-17-openjdk-arm64/bin"
POSTGRES = "/usr/lib/postgresql/15/bin"
AS_POSTGRES = "/usr/sbin/chroot --userspec=100:100 /"
INITDB = f"{AS_POSTGRES} {POSTGRES}/initdb -D /tmp/db -A trust --locale=C -E UTF8"

HELLO_CC = """#include <iostream>
#include <map>
#include <string>
int main() {
    std::map<std::string, int> words{{"hello", 1}, {"world", 2}};
    for (const auto &[word, n] : words) std::cout << word << ' ' << n << '\\n';
}
"""

HELLO_JAVA = """import java.util.*;
public class Hello {
    record Word(String text, int n) {}
    public static void main(String[] arguments) {
        var words = new ArrayList<Word>();
        for (int i = 0; i < 10; i++) words.add(new Word("w" + i, i));
        words.stream().filter(w -> w.n() % 2 == 0).forEach(w -> System.out.println(w.text()));
    }
}
"""

LOOP_JS = """let words = new Map(), total = 0;
for (let i = 0; i < 3000000; i++) {
  total = (total * 31 + i) | 0;
  words.set(i & 1023, String(i));
}
console.log(total, words.size, JSON.stringify([...words]).length);
"""

MAIN_RS = """use std::collections::BTreeMap;

fn main() {
    let words: BTreeMap<String, usize> = (0..10).map(|n| (format!("word {n}"), n)).collect();
    println!("{words:?}");
}
"""
CARGO_TOML = '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2021"\n'


@dataclass(frozen=True)
class Root:
    """A root file system, as an initramfs."""

    name: str
    packages: str


@dataclass(frozen=True)
class Case:
    name: str
    root: Root
    command: str
    #: Done before, and not measured.
    before: str = ""


POSTGRES_ROOT = Root("postgres", "postgresql-15")
NODE = Root("node", "nodejs")
GCC = Root("gcc", "g++")
JDK = Root("java", "openjdk-17-jdk-headless")
RUST = Root("rust", "cargo,rustc,gcc")
REDIS = Root("redis", "redis-server,redis-tools")

CASES = [
    Case("initdb", POSTGRES_ROOT, INITDB),
    Case(
        "pgbench, 1,000 transactions",
        POSTGRES_ROOT,
        f"{AS_POSTGRES} {POSTGRES}/pgbench -h /tmp -n -t 1000 postgres",
        f"{INITDB}\n{AS_POSTGRES} {POSTGRES}/pg_ctl -D /tmp/db -w -l /tmp/log -o '-k /tmp' start\n"
        f"{AS_POSTGRES} {POSTGRES}/pgbench -h /tmp -i -s 1 postgres",
    ),
    Case("node, start and end", NODE, "node -e 0"),
    Case("node, a loop", NODE, "node /loop.js"),
    Case("g++ -O2 of a hello", GCC, "g++ -O2 -o hello /hello.cc"),
    Case("javac of a class", JDK, f"{JAVA}/javac -d /tmp /Hello.java"),
    Case("a JVM's start and end", JDK, f"{JAVA}/java -cp /tmp Hello", f"{JAVA}/javac -d /tmp /Hello.java"),
    Case(
        "cargo build of a hello",
        RUST,
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=gcc cargo build --offline --manifest-path /hello/Cargo.toml",
    ),
    Case(
        "redis-benchmark, 20,000 SET and GET",
        REDIS,
        "redis-benchmark -q -n 20000 -t set,get",
        "redis-server --daemonize yes --save '' >/dev/null\nwhile ! redis-cli ping; do sleep 0.1; done",
    ),
]

SOURCES = {
    "hello.cc": HELLO_CC,
    "Hello.java": HELLO_JAVA,
    "loop.js": LOOP_JS,
    "hello/Cargo.toml": CARGO_TOML,
    "hello/src/main.rs": MAIN_RS,
    "etc/passwd": USERS,
    "etc/group": GROUP,
    "etc/hosts": "127.0.0.1 localhost\n",
}


def _script(case: Case) -> Iterator[Member]:
    command = f"#!/usr/bin/busybox sh\ncd /tmp\n{case.command}\n"
    for name, text in (("setup", f"{PREPARED}{case.before}\n"), ("case", command)):
        yield name, stat.S_IFREG | 0o755, (0, 0), text.encode()


def _root(place: Path, root: Root) -> Iterator[Member]:
    tar = guests.extract(place / f"{root.name}.tar", f"{root.packages},busybox-static,coreutils,base-files")
    yield from guests.first(place)
    have = set()
    for member in guests.packed(tar, UNUSED):
        have.add(member[0])
        yield member
    for name in ("hello", "hello/src", "tmp", "etc"):
        if name not in have:
            yield name, stat.S_IFDIR | 0o755, (0, 0), b""
    for name, text in SOURCES.items():
        yield name, stat.S_IFREG | 0o644, (0, 0), text.encode()
    if "usr/bin/sh" not in have:
        yield "usr/bin/sh", stat.S_IFLNK | 0o777, (0, 0), b"busybox"


def _initramfs(place: Path, case: Case) -> Path:
    """The root's archive, kept, and behind it one with the case's scripts: the kernel unpacks both."""
    root = place / f"{case.root.name}.cpio"
    if not root.exists():
        root.write_bytes(guests.archive(_root(place, case.root)))
    out = place / "case.cpio"
    out.write_bytes(root.read_bytes() + guests.archive(_script(case)))
    return out


def measure(
    place: Path, repeats: int, only: str, say: Callable[[str], None], newer: str | None = None
) -> list[dict[str, object]]:
    """Runs the cases whose name contains `only`, all sides by turns."""
    kernel = place / "Image"
    guests.unpack(guests.ROOT / "guest" / "aarch64" / "Image.zst", kernel)
    rows: list[dict[str, object]] = []
    parties = sides.of(place, newer)
    for case in CASES:
        if only in case.name:
            initramfs = _initramfs(place, case)

            def take(start: Start, initramfs: Path = initramfs) -> Times:
                return machines.run(start(place, kernel, initramfs, "-- /case", memory=MEMORY)).command()

            rows.append(sides.by_turns(case.name, parties, take, repeats, say))
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    lines = ["| | soft, s | QEMU TCG, s | times QEMU's speed | a newer QEMU's |", "|---|---:|---:|---:|---:|"]
    for r in rows:
        newer = f"{r['newer_cpu_ratio']:.2f}" if "newer_cpu_ratio" in r else ""
        cells = f"{r['soft_cpu_s']:.2f} | {r['qemu_cpu_s']:.2f} | {r['cpu_ratio']:.2f} | {newer}"
        lines.append(f"| {r['name']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.debian", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default %(default)s)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--newer", metavar="SUITE", help="beside it, QEMU of this suite of Debian's")
    parser.add_argument("--place", type=Path, default=guests.ROOT / "target" / "bench", help="for guests and results")
    args = parser.parse_args()
    args.place.mkdir(parents=True, exist_ok=True)
    sides.build_soft(guests.ROOT)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rows = measure(args.place, args.repeats, args.only, say, args.newer)
    environment = report.environment(args.repeats, args.place, args.newer)
    results = {"environment": {**environment, "guest_memory_mib": MEMORY >> 20}, "cases": rows}
    (args.place / "debian.json").write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
