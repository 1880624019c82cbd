"""Real guests on real images: the demo's busybox, and what real tools make of Debian's packages for arm64."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supermachine import VM
from supermachine.host import engines

from ..real import require, require_root, run
from . import layers

ROOT = Path(__file__).parents[2]
BUSYBOX = ROOT / "demo" / "busybox.oci.tar"
PACKAGES = "python3,dash,libpython3.11-testsuite,busybox-static,base-files,base-passwd,netbase"

#: base-passwd's own script would make these; nothing of the image runs while it is made.
PASSWD = 'cd "$1"; for f in passwd group; do cp usr/share/base-passwd/$f.master etc/$f; done'


def packages(target: Path, include: str) -> Path:
    """A tar of Debian's packages for arm64, unpacked and not configured: no foreign code runs for it."""
    require("mmdebstrap")
    hooks = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    if "base-passwd" in include:
        hooks.append(f"--extract-hook={PASSWD}")
    how = ["--quiet", "--variant=extract", "--architectures=arm64", f"--include={include}", *hooks]
    run("mmdebstrap", *how, "bookworm", target)
    return target


def umoci_layout(layout: Path, tars: list[Path], *config: str) -> str:
    """An OCI layout of these layers, packed by umoci; gives the image's name as umoci takes it."""
    require("umoci")
    image = f"{layout}:latest"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    for tar in tars:
        run("umoci", "raw", "add-layer", "--image", image, tar)
    run("umoci", "config", "--image", image, "--architecture", "arm64", "--os", "linux", *config)
    return image


def packages_layout(place: Path, include: str) -> Path:
    """An OCI layout of Debian's packages and nothing else, whose command is a shell."""
    tar = packages(place / "rootfs.tar", include)
    umoci_layout(place / "oci", [tar], "--config.cmd", "sh", "--config.env", "PATH=/usr/bin:/bin:/usr/sbin:/sbin")
    return place / "oci"


def initramfs(place: Path, init: bytes) -> Path:
    """One with this first program and nothing else."""
    (place / "init").write_bytes(init)
    run(sys.executable, ROOT / "guest" / "cpio.py", place / "init", place / "initramfs")
    return place / "initramfs"


def check_images(cache: Path) -> int:
    """Has erofs-utils look at every root file system in a cache; gives their number."""
    images = sorted((cache / "rootfs").glob("*.erofs")) if (cache / "rootfs").is_dir() else []
    if shutil.which("fsck.erofs") is not None:
        for image in images:
            run("fsck.erofs", image)
    return len(images)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own. At the end every image in it must be sound in the eyes of fsck.erofs."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(path))
        yield path
    require("fsck.erofs")
    assert check_images(path) > 0


@pytest.fixture(scope="session")
def busybox() -> str:
    """The image that ships with the project."""
    return str(BUSYBOX)


@pytest.fixture(scope="module")
def guest(busybox: str) -> Iterator[VM]:
    """A busybox guest that the tests of a module share."""
    with VM(busybox) as vm:
        yield vm


@pytest.fixture(scope="session")
def agentless(busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs whose first program is not our agent: busybox, which starts nothing and waits for ever."""
    with VM(busybox) as vm:
        return initramfs(tmp_path_factory.mktemp("agentless"), vm.path("/bin/busybox").read_bytes())


@pytest.fixture(scope="session")
def debian_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's Python for arm64, its own tests included."""
    return packages(tmp_path_factory.mktemp("debian") / "rootfs.tar", PACKAGES)


@pytest.fixture(scope="session")
def debian(debian_tar: Path) -> Path:
    """An OCI layout with Debian's Python, packed by umoci."""
    layout = debian_tar.parent / "oci"
    config = ["--config.cmd", "python3", "--config.workingdir", "/srv", "--config.user", "www-data"]
    config += ["--config.env", "PATH=/usr/bin:/bin", "--config.env", "GREETING=good day"]
    umoci_layout(layout, [debian_tar], *config)
    return layout


@pytest.fixture(scope="session")
def everything(debian_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that holds one of everything, over Debian's Python; its name as umoci takes it."""
    place = tmp_path_factory.mktemp("everything")
    tars = [debian_tar, place / "kinds.tar", place / "changes.tar", place / "gnu.tar", place / "pax.tar"]
    layers.kinds(tars[1])
    layers.changes(tars[2])
    layers.gnu(tars[3])
    layers.pax_sparse(tars[4], place)
    return umoci_layout(place / "oci", tars, "--config.cmd", "python3")


@pytest.fixture(scope="session")
def hvf_worker() -> Path:
    """A worker whose hvf engine runs over the software Hypervisor.framework; the product's has none of it."""
    # As `cargo test --workspace` builds it, so that after that nothing is left to do.
    command = ["cargo", "test", "--workspace", "--locked", "--no-run", "--test", "clock", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    for line in done.stdout.splitlines():
        built = json.loads(line)
        if built.get("executable") and built["target"]["name"] == "supermachine-worker":
            return Path(built["executable"])
    raise AssertionError("Cargo has built no worker")


@pytest.fixture
def hvf(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the engine for Macs, which a test can use here: with a worker that the tests have built.

    It is said to be what it is over that, software. On a Mac it is the one that ships.
    """
    if sys.platform == "darwin":
        return "hvf"
    found = engines.Engine("hvf", "software", True, "the software Hypervisor.framework of the tests")
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(request.getfixturevalue("hvf_worker")))
    monkeypatch.setitem(engines._PROBES, "hvf", lambda: found)
    return "hvf"


Unpack = Callable[[str, Path], Path]


@pytest.fixture(scope="session")
def unpack() -> Unpack:
    """`umoci unpack`: what other tools make of an image."""

    def work(image: str, bundle: Path) -> Path:
        require_root("umoci unpack with owners and devices")
        run("umoci", "unpack", "--image", image, bundle)
        return bundle / "rootfs"

    return work
