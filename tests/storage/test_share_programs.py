"""Programs that we did not write, at work in a share, and their like on the host after them."""

from __future__ import annotations

import fcntl
import io
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, Share

from ..real import run
from ..vm.conftest import packages, umoci_layout
from ..vm.guests import output

pytestmark = pytest.mark.vm

PROGRAMS = "git,python3,python3-pip,make,tcc,libc6-dev,coreutils,dash,grep,sed,base-files,base-passwd"
GIT = "git -c user.name=a -c user.email=a@example.org -c safe.directory='*'"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("programs")
    tar = packages(place / "rootfs.tar", PROGRAMS)
    return umoci_layout(place / "oci", [tar], "--config.env", "PATH=/usr/bin:/bin", "--config.env", "HOME=/root")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module", params=["auto", "none"])
def guest(image: str, work: Path, request: pytest.FixtureRequest) -> Iterator[VM]:
    for left in work.iterdir():
        shutil.rmtree(left)
    with VM(image, memory="512m", vcpus=2, mounts={"/shared": Share(work, cache=request.param)}) as vm:
        yield vm


def test_git(guest: VM, work: Path) -> None:
    source = work / "source"
    for number in range(300):
        path = source / f"directory{number % 20}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * 20)
    script = f"""set -e
cd /shared/source
{GIT} init -q && {GIT} add . && {GIT} commit -q -m one
test -z "$({GIT} status --porcelain)"
echo more >> directory1/file1 && git -c safe.directory='*' mv directory2/file2 moved && {GIT} commit -q -a -m two
{GIT} gc -q --prune=now && {GIT} fsck --strict
{GIT} clone -q . /shared/clone && cd /shared/clone && {GIT} log --oneline | grep -c .
{GIT} checkout -q -b other HEAD~1 && test ! -e moved && test -z "$({GIT} status --porcelain)"
"""
    assert output(guest, script).splitlines()[-1] == "2"
    for name in ("source", "clone"):
        run("git", "-c", "safe.directory=*", "-C", work / name, "fsck", "--strict")
        assert run("git", "-c", "safe.directory=*", "-C", work / name, "status", "--porcelain") == ""


#: Adds rows to a database that others add to as well.
_WRITER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
mode, = base.execute("pragma journal_mode=" + sys.argv[2]).fetchone()
assert mode == sys.argv[2], mode
base.execute("create table if not exists rows (writer, number, filling)")
for number in range(int(sys.argv[4])):
    base.execute("begin immediate")
    base.execute("insert into rows values (?, ?, ?)", (sys.argv[3], number, "x" * 900))
    base.execute("commit")
"""


def _rows(base: Path) -> dict[str, int]:
    with sqlite3.connect(base) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return dict(connection.execute("select writer, count(distinct number) from rows group by writer"))


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite(guest: VM, work: Path, mode: str) -> None:
    (work / mode).mkdir()

    def writer(name: str, rows: int) -> list[str]:
        return ["python3", "-c", _WRITER, f"/shared/{mode}/base", mode, name, str(rows)]

    # The change of a journal's mode waits for nobody.
    guest.run(writer("first", 1), check=True)
    writers = [guest.popen(writer(str(n), 40)) for n in range(3)]
    assert [writer.wait(300) for writer in writers] == [0, 0, 0]
    assert _rows(work / mode / "base") == {"first": 1, "0": 40, "1": 40, "2": 40}


def test_sqlite_in_two_machines_and_on_the_host(image: str, work: Path) -> None:
    """Without a cache, for a guest's own would not know of what another writes. The log of WAL is for one machine."""
    place = work / "locked"
    place.mkdir()
    share = {"/shared": Share(place, cache="none")}
    command = ["python3", "-c", _WRITER, "/shared/base", "delete"]
    with VM(image, mounts=share) as one, VM(image, mounts=share) as other:
        one.run([*command, "first", "1"], check=True)
        machines = (("a", one), ("b", other))
        writers = [vm.popen([*command, f"{name}{n}", "20"]) for n in range(2) for name, vm in machines]
        host = [sys.executable, "-c", _WRITER, str(place / "base"), "delete", "host", "20"]
        subprocess.run(host, check=True, timeout=300)
        assert [writer.wait(300) for writer in writers] == [0] * 4
    assert _rows(place / "base") == {"first": 1, "host": 20, **dict.fromkeys(("a0", "a1", "b0", "b1"), 20)}
    subprocess.run(["rm", "-r", place], check=True)


#: Waits for a lock that somebody has, and says when it has it.
_WAITS = """
import fcntl, sys
with open("/shared/lock", "a+") as file:
    print("waits", flush=True)
    getattr(fcntl, sys.argv[1])(file, fcntl.LOCK_EX)
    print("has it", flush=True)
"""


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_a_lock_of_the_hosts_is_waited_for(image: str, work: Path, call: str) -> None:
    (work / "lock").touch()
    with VM(image, mounts={"/shared": work}) as vm, (work / "lock").open("r+") as file:
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
        waiter = vm.popen(["python3", "-c", _WAITS, call], stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waits\n"
        # Who waits stands in nobody's way, nor in that of a snapshot, and waits on after one.
        with vm.fork()[0] as fork:
            assert output(fork, "echo there") == "there\n"
        assert output(vm, "cat /shared/lock") == ""
        assert waiter.poll() is None
        getattr(fcntl, call)(file, fcntl.LOCK_UN)
        assert waiter.stdout.readline() == "has it\n"
        assert waiter.wait(60) == 0


def test_pip(guest: VM, work: Path) -> None:
    (work / "wheels").mkdir()
    for number in range(5):
        with zipfile.ZipFile(work / "wheels" / f"part{number}-1-py3-none-any.whl", "w") as wheel:
            for module in range(10):
                wheel.writestr(f"part{number}/module{module}.py", f"value = {number}\n" * 50)
            wheel.writestr(
                f"part{number}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: part{number}\nVersion: 1\n"
            )
            wheel.writestr(
                f"part{number}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"part{number}-1.dist-info/RECORD", "")
    names = " ".join(f"part{number}" for number in range(5))
    output(
        guest, f"python3 -m pip install -q --no-index --find-links /shared/wheels --target /shared/site {names} 2>&1"
    )
    code = "import part3.module3; print(part3.module3.value, part3.__path__[0])"
    assert output(guest, f"PYTHONPATH=/shared/site python3 -c '{code}'") == "3 /shared/site/part3\n"
    assert len(list((work / "site").glob("part*/__pycache__/*.pyc"))) == 50


_MAPS = """
import mmap, pathlib, time
with open("/shared/mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
    mapped[:5] = b"guest"
    pathlib.Path("/tmp/written").touch()
    time.sleep(1000)
"""


def test_what_a_mapping_has_is_written_before_a_capture_and_not_by_clones(image: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mapped").write_text("first, and more\n")
    with VM(image, memory="256m", mounts={"/shared": work}) as vm:
        vm.popen(["python3", "-c", _MAPS])
        output(vm, "while ! test -e /tmp/written; do sleep 0.1; done")
        vm.snapshot(tmp_path / "snapshot")
        assert (work / "mapped").read_text() == "guest, and more\n"
    with open(work / "mapped", "r+") as file:
        file.write("later")
    with VM.restore(tmp_path / "snapshot", mounts={"/shared": work}) as vm:
        assert output(vm, "sync; cat /shared/mapped") == "later, and more\n"
    assert (work / "mapped").read_text() == "later, and more\n"


def test_make_and_a_compiler(guest: VM, work: Path) -> None:
    place = work / "program"
    place.mkdir()
    for number in range(20):
        (place / f"part{number}.c").write_text(f"int part{number}(void) {{ return {number}; }}\n")
    declared = "".join(f"int part{number}(void);\n" for number in range(20))
    summed = " + ".join(f"part{number}()" for number in range(20))
    (place / "main.c").write_text(
        f'{declared}int printf(const char *, ...);\nint main(void) {{ printf("%d\\n", {summed}); }}\n'
    )
    (place / "Makefile").write_text(
        "objects = main.o $(patsubst %,part%.o,$(shell seq 0 19))\nCC = tcc\nprogram: $(objects)\n\t$(CC) -o $@ $^\n"
    )
    output(guest, "make -s -j2 -C /shared/program 2>&1")
    assert output(guest, "/shared/program/program") == "190\n"
    # What is newer is seen by its time.
    assert "up to date" in output(guest, "make -C /shared/program")
    output(
        guest,
        "sleep 1.1; echo 'int part3(void) { return 1003; }' > /shared/program/part3.c; make -s -C /shared/program 2>&1",
    )
    assert output(guest, "/shared/program/program") == "1190\n"


def test_two_machines_append_to_one_file(image: str, work: Path) -> None:
    place = work / "both"
    place.mkdir()
    loop = "for n in $(seq 200); do echo $0 $n >> /shared/file; done"
    with VM(image, mounts={"/shared": place}) as one, VM(image, mounts={"/shared": place}) as other:
        running = [vm.popen(["sh", "-c", loop, name]) for name, vm in (("one", one), ("other", other))]
        assert [process.wait(120) for process in running] == [0, 0]
    lines = (place / "file").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {number}" for name in ("one", "other") for number in range(1, 201))
    subprocess.run(["rm", "-r", place], check=True)


@pytest.fixture(scope="module")
def builders(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("builders")
    tar = packages(place / "rootfs.tar", "npm,cargo,gcc,libc6-dev,coreutils,dash,grep,sed,base-files,base-passwd")
    return umoci_layout(place / "oci", [tar], "--config.env", "PATH=/usr/bin:/bin", "--config.env", "HOME=/root")


def test_cargo(builders: str, tmp_path: Path) -> None:
    for name, needs, file, code in (
        ("small", 'part = { path = "../part" }', "main.rs", 'fn main() { println!("{}", part::answer()); }'),
        ("part", "", "lib.rs", "pub fn answer() -> u32 { 42 }\n#[test] fn says() { assert_eq!(answer(), 42) }"),
    ):
        (tmp_path / name / "src").mkdir(parents=True)
        manifest = f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\n{needs}\n'
        (tmp_path / name / "Cargo.toml").write_text(manifest)
        (tmp_path / name / "src" / file).write_text(code + "\n")
    cargo = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=gcc cargo --offline --color=never"
    with VM(builders, memory="1g", vcpus=2, mounts={"/work": tmp_path}) as vm:
        assert "Compiling part" in output(vm, f"cd /work/small && {cargo} build 2>&1")
        assert output(vm, "/work/small/target/debug/small") == "42\n"
        # What is up to date is seen by its time, and what the host changes as well.
        assert "Compiling" not in output(vm, f"cd /work/small && {cargo} build 2>&1")
        path = tmp_path / "part" / "src" / "lib.rs"
        path.write_text(path.read_text().replace("42", "43"))
        output(vm, f"sleep 1; cd /work/small && {cargo} build 2>&1")
        assert output(vm, "/work/small/target/debug/small") == "43\n"
        assert "1 passed" in output(vm, f"cd /work/part && {cargo} test --lib 2>&1")


def test_npm(builders: str, tmp_path: Path) -> None:
    for number in range(5):
        about = f'{{"name": "lib{number}", "version": "1.0.0", "main": "index.js"}}'
        files = {"package.json": about, "index.js": f"module.exports = {number}\n"}
        files |= {f"part{part}.js": f"module.exports = {part}\n" for part in range(20)}
        with tarfile.open(tmp_path / f"lib{number}-1.0.0.tgz", "w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "package.json").write_text('{"name": "app", "version": "1.0.0"}')
    sums = "[0, 1, 2, 3, 4].map(n => require('lib' + n)).reduce((a, b) => a + b)"
    (tmp_path / "app" / "index.js").write_text(f"console.log({sums})\n")
    how = "--offline --no-audit --no-fund"
    with VM(builders, memory="1g", vcpus=2, mounts={"/work": tmp_path}) as vm:
        output(vm, f"cd /work/app && npm install {how} /work/lib?-1.0.0.tgz")
        assert output(vm, "node /work/app") == "10\n"
        # All of it goes, and comes as the lock file says.
        output(vm, f"cd /work/app && npm ci {how}")
        assert output(vm, "node /work/app") == "10\n"
    modules = tmp_path / "app" / "node_modules"
    assert sorted(path.name for path in modules.glob("lib*")) == [f"lib{number}" for number in range(5)]
    assert len(list(modules.glob("lib*/part*.js"))) == 100
