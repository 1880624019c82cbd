"""What an emulated host boots: Debian's stock kernel, an initramfs with the modules that find the disk, and the disk.

Made from Debian's packages by mmdebstrap without running any of them, so that both architectures are made alike.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SUITE = "bookworm"
#: What every host has. `mmdebstrap --variant=extract` adds what these depend on.
PACKAGES = ("base-files", "busybox-static", "netbase", "python3")
TOOLS = ("cpio", "fakeroot", "mke2fs", "mmdebstrap", "depmod")
#: Sparse: what is not written takes no room.
DISK_SIZE = "6G"
#: The disk and the port that the agent listens on; KVM itself is built in on arm64.
MODULES = {
    "x86_64": ("virtio_pci", "virtio_blk", "virtio_console", "kvm-amd"),
    "aarch64": ("virtio_pci", "virtio_blk", "virtio_console"),
}
#: What busybox is called as on the path; a package that brings the program itself wins.
APPLETS = """
cat chmod cp df dmesg env find free grep head hostname id insmod ip kill less ln ls lsmod mkdir modprobe mount mv nproc
pgrep poweroff ps rm sh sleep stty tail tar top umount uname vi wc
"""
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
CONSOLE = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}

MAKE_DISK = """\
chown -R 0:0 "$1"
chown 1000:1000 "$1/home/user"
mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1,nodiscard -m 0 -d "$1" "$2" "$3"
"""
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || exec /bin/busybox poweroff -f
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
SETUP = """\
#!/bin/busybox sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0755 tmpfs /run
ln -s /proc/self/fd /dev/fd
hostname host
ip link set lo up
chmod 0666 /dev/kvm
"""
INITTAB = """\
::sysinit:/bin/busybox sh /etc/setup
::respawn:/usr/bin/python3 -u /usr/lib/test-host/agent.py
"""
FILES = {
    "etc/setup": SETUP,
    "etc/inittab": INITTAB,
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
    "etc/hosts": "127.0.0.1 localhost host\n",
}


class HostError(Exception):
    """An emulated host could not be made or used."""


@dataclass(frozen=True)
class Disk:
    """The files that QEMU boots."""

    kernel: Path
    initramfs: Path
    disk: Path


def missing_tools() -> list[str]:
    """Programs that make a disk and are not there."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [tool for tool in TOOLS if shutil.which(tool, path=path) is None]


def cache_directory() -> Path:
    """Where disks are kept between runs."""
    return Path(os.environ.get("SUPERMACHINE_TEST_CACHE") or ROOT / ".cache") / "hosts"


def make(architecture: str, packages: tuple[str, ...] = ()) -> Disk:
    """The disk for this architecture with further Debian packages, made unless it is there already."""
    if architecture not in DEBIAN:
        raise HostError(f"{architecture}: hosts are {' or '.join(DEBIAN)}")
    recipe = hashlib.sha256(Path(__file__).read_bytes() + (HERE / "agent.py").read_bytes())
    recipe.update(repr(sorted(packages)).encode())
    place = cache_directory() / f"{architecture}-{recipe.hexdigest()[:16]}"
    made = Disk(place / "vmlinuz", place / "initramfs.gz", place / "disk.ext4")
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_suffix(".lock")):
        if not place.is_dir():
            if missing := missing_tools():
                raise HostError(f"an emulated host is made with {', '.join(missing)}, which is not installed")
            with tempfile.TemporaryDirectory(dir=place.parent, prefix="part-") as part:
                _make(architecture, packages, Path(part))
                (Path(part) / "made").rename(place)
    return made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(architecture: str, packages: tuple[str, ...], work: Path) -> None:
    debian = DEBIAN[architecture]
    rootfs, tree, made = work / "rootfs.tar", work / "root", work / "made"
    made.mkdir()
    include = ",".join([*PACKAGES, f"linux-image-cloud-{debian}", *packages])
    _run(
        ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={debian}", f"--include={include}",
         "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", SUITE, str(rootfs)],
    )  # fmt: skip
    # Only what is read here is unpacked by this user; the disk's owners are made under fakeroot below.
    tree.mkdir()
    _run(["tar", "-xf", str(rootfs), "-C", str(tree), "--exclude=./dev/*", "--no-same-owner", "--no-same-permissions"])
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    shutil.copyfile(kernel, made / "vmlinuz")
    modules = tree / "usr/lib/modules" / release
    _run(["depmod", "-b", str(tree / "usr"), release])
    _write_initramfs(made / "initramfs.gz", tree / "usr/bin/busybox", modules, MODULES[architecture])
    for name, content in FILES.items():
        (tree / name).write_text(content)
    agent = tree / "usr/lib/test-host/agent.py"
    agent.parent.mkdir()
    shutil.copyfile(HERE / "agent.py", agent)
    (tree / "usr/sbin/init").unlink(missing_ok=True)
    (tree / "usr/sbin/init").symlink_to("/bin/busybox")
    for applet in APPLETS.split():
        if not (link := tree / "usr/bin" / applet).is_symlink() and not link.exists():
            link.symlink_to("busybox")
    for name in ("boot", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache"):
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in ("dev", "home/user", "mnt", "proc", "root", "run", "sys", "tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    _run(["fakeroot", "--", "sh", "-ec", MAKE_DISK, "sh", str(tree), str(made / "disk.ext4"), DISK_SIZE])


def _write_initramfs(out: Path, busybox: Path, modules: Path, wanted: tuple[str, ...]) -> None:
    """A compressed cpio archive of busybox, the modules in the order in which they are loaded, and INIT."""
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        tree = Path(name)
        for directory in ("bin", "dev", "modules", "root"):
            (tree / directory).mkdir()
        shutil.copy(busybox, tree / "bin/busybox")
        (tree / "init").write_text(INIT)
        for number, module in enumerate(_load_order(modules, wanted)):
            shutil.copyfile(module, tree / "modules" / f"{number:02}-{module.name}")
        for path in (tree / "init", tree / "bin/busybox"):
            path.chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        archive = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=tree, input=names.encode(), capture_output=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    out.write_bytes(gzip.compress(archive, 1))


def _load_order(modules: Path, wanted: tuple[str, ...]) -> list[Path]:
    """The modules and those that they need (their "depends" in .modinfo), each after what it needs."""
    files = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None:
            raise HostError(f"the kernel in {modules} has no module {name}")
        found = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for need in found.group(1).decode().split(",") if found else []:
            if need:
                add(need)
        if path not in order:
            order.append(path)

    for name in wanted:
        add(name)
    return order


def _run(command: list[str]) -> None:
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, env=environment, check=False
    )
    if done.returncode:
        raise HostError(f"{command[0]} failed with status {done.returncode}: {done.stderr.strip()[-2000:]}")


def tar_of(directory: Path) -> bytes:
    """The contents of a directory as an archive, owned by root."""

    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(directory, ".", filter=owned)
        file.seek(0)
        return file.read()
