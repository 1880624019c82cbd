"""Who is measured: how each gets into an emulated host, and what is run there."""

from __future__ import annotations

import io
import json
import ssl
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hosts import Host, site
from tests.hosts.fixtures import SITE

from .. import guests
from . import inside

#: What is compared with, from PyPI. It is fetched into the place of the results, and goes no further.
PEERS = {"microsandbox": "0.7.11", "boxlite": "0.10.8"}
#: Debian's Python on the hosts.
PYTHON = "3.11"
WHEELS = "manylinux_2_28_x86_64"
HERE = Path(__file__).parent
INSIDE = "/root/inside.py"
#: The command, as it is installed.
ENTRY = "/root/supermachine"
COMMAND = ["python3", ENTRY, "run", "--engine", "kvm", "--memory", f"{inside.MEMORY_MIB}m", inside.IMAGE, "--",
           *inside.ECHO]  # fmt: skip
MSB = "/opt/microsandbox/microsandbox/_bundled/bin/msb"
#: The sandbox that microsandbox restores and forks.
SOURCE = "source"
MEMORY = f"{inside.MEMORY_MIB}M"
#: Seconds for one measurement in a host that shares the machine.
PATIENCE = 600.0

#: What microsandbox cannot do without in an image.
FILES = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}
APPLETS = ("cat", "echo", "sh", "sleep", "true")


def image(place: Path, architecture: str) -> Path:
    """An OCI layout with Debian's static busybox, packed by umoci; made once."""
    layout, tar = place / f"image-{architecture}", place / f"rootfs-{architecture}.tar"
    if layout.exists():
        return layout
    how = ["--quiet", "--variant=extract", f"--architectures={architecture}", "--include=busybox-static,base-files"]
    hook = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
    subprocess.run(["mmdebstrap", *how, hook, "bookworm", str(tar)], check=True)
    with tarfile.open(tar, "a") as archive:
        for name, text in FILES.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        for name in APPLETS:
            member = tarfile.TarInfo(f"./usr/bin/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(member)
    part = layout.with_suffix(".part")
    tagged = ["--image", f"{part}:latest"]
    config = ["--config.env", "PATH=/usr/bin:/bin", "--config.cmd", "sh"]
    for step in (
        ["init", "--layout", str(part)],
        ["new", *tagged],
        ["raw", "add-layer", *tagged, str(tar)],
        ["config", *tagged, "--architecture", architecture, "--os", "linux", *config],
    ):
        subprocess.run(["umoci", *step], check=True)
    part.rename(layout)
    return layout


def run(host: Host, args: list[str], *paths: str) -> Any:
    """Runs a part of inside.py."""
    environment = {"HOME": "/root", "PYTHONPATH": ":".join(paths)}
    done = host.run(["python3", INSIDE, *args], PATIENCE, env=environment, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def install_supermachine(host: Host, place: Path, image_architecture: str) -> None:
    host.put(site.directory(host.architecture), SITE)
    host.put(image(place, image_architecture), inside.IMAGE)
    host.put(HERE / "inside.py", INSIDE)
    host.put(guests.ROOT / "python/supermachine.data/scripts/supermachine", ENTRY)


def ours(host: Host, *args: str) -> Callable[[], Any]:
    return lambda: run(host, list(args), SITE)


def install_peers(host: Host, place: Path) -> None:
    """Both peers with the image in their caches, and what they need before the first measurement."""
    for name, version in PEERS.items():
        host.put(_unpacked(place, name, version), f"/opt/{name}")
    # microsandbox ends at once where there are no certificates, although nothing here asks for any.
    bundle = ssl.get_default_verify_paths().cafile
    if bundle is None:
        raise RuntimeError("this machine has no bundle of certificates for the host")
    host.put(Path(bundle).resolve(), "/etc/ssl/certs/ca-certificates.crt")
    archive = place / "image.tar"
    archive.unlink(missing_ok=True)
    source = f"oci:{image(place, 'amd64')}:latest"
    subprocess.run(["skopeo", "copy", "-q", source, f"docker-archive:{archive}:{inside.LOADED}"], check=True)
    host.put(archive, "/root/image.tar")
    msb(host, "load", "-q", "-i", "/root/image.tar", "--tag", inside.LOADED)
    msb(host, "create", "-q", "-n", SOURCE, "--no-net", "--pull", "never", "-c", "1", "-m", MEMORY, inside.LOADED)
    msb(host, "snap", "create", "ready", "--sandbox", SOURCE, "--full")
    # It runs only while it is forked: another guest beside those that are measured would slow all of them down.
    msb(host, "pause", SOURCE)
    # The first box of boxlite is made with what the later ones find.
    run(host, ["boxlite_ready"], "/opt/boxlite")


def msb(host: Host, *args: str) -> None:
    host.run([MSB, *args], PATIENCE, env={"HOME": "/root"}, check=True)


def microsandbox_run(host: Host) -> Any:
    """From its cached image, without a network, as ours."""
    how = ["--no-tty", "--no-net", "--pull", "never", "-c", "1", "-m", MEMORY]
    return run(host, ["command", MSB, "run", *how, inside.LOADED, "--", *inside.ECHO])


def microsandbox_from(host: Host, *start: str) -> Any:
    """A sandbox made of another one's state, and a command in it; what removes it afterwards is not timed."""
    script = f"{MSB} {' '.join(start)} >&2 && exec {MSB} exec child -- {' '.join(inside.ECHO)}"
    try:
        return run(host, ["command", "sh", "-c", script])
    finally:
        msb(host, "rm", "-f", "-q", "child")


def microsandbox_restore(host: Host) -> Any:
    return microsandbox_from(host, "restore", f"{SOURCE}:ready", "--name", "child", "--cow-mem")


def microsandbox_fork(host: Host) -> Any:
    msb(host, "resume", SOURCE)
    try:
        return microsandbox_from(host, "fork", "-q", SOURCE, "--name", "child", "--dangerously-inherit-resources")
    finally:
        msb(host, "pause", SOURCE)


def microsandbox_ready(host: Host) -> Any:
    return run(host, ["microsandbox_ready"], "/opt/microsandbox")


def boxlite_ready(host: Host) -> Any:
    return run(host, ["boxlite_ready"], "/opt/boxlite")


def boxlite_run(host: Host) -> Any:
    return run(host, ["command", "python3", INSIDE, "boxlite_run"], "/opt/boxlite")


def _unpacked(place: Path, name: str, version: str) -> Path:
    """A peer's wheel for the hosts, fetched by pip and unpacked; made once."""
    out = place / "peers" / f"{name}-{version}"
    if out.exists():
        return out
    wheels = place / "peers" / "wheels"
    which = ["--no-deps", "--only-binary", ":all:", "--python-version", PYTHON, "--platform", WHEELS]
    command = [sys.executable, "-m", "pip", "download", "-q", *which, "-d", str(wheels), f"{name}=={version}"]
    subprocess.run(command, check=True)
    part = out.with_suffix(".part")
    (wheel,) = wheels.glob(f"{name}-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            # ZipFile.extract drops the permissions, and there are executables in it.
            path = Path(archive.extract(member, part))
            path.chmod(stat.S_IMODE(member.external_attr >> 16) or 0o644)
    part.rename(out)
    return out
