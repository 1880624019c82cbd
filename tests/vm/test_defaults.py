"""What processes of a guest may use unless told otherwise: as much as docker's containers."""

from __future__ import annotations

from pathlib import Path

import pytest
from supermachine import VM

from .conftest import umoci_layout
from .layers import ACL, Layer

pytestmark = pytest.mark.vm


def said(vm: VM, command: str, user: str = "") -> str:
    """What a shell command prints."""
    done = vm.run(command, shell=True, capture_output=True, text=True, check=True, **({"user": user} if user else {}))
    return str(done.stdout)


def test_limits_are_dockers(guest: VM) -> None:
    for user in ("root", "1234:1234"):
        assert said(guest, "ulimit -Sn; ulimit -Hn; ulimit -u", user).split() == ["1048576", "1048576", "unlimited"]


def test_any_user_may_listen_on_any_port_and_ping(debian: Path) -> None:
    program = """
import socket
with socket.create_server(("127.0.0.1", 80)):
    print("listens")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as echo:
    echo.settimeout(60)
    # An echo request; the kernel fills in identifier and checksum (icmp(7)).
    echo.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), ("127.0.0.1", 0))
    print("reply", echo.recv(100)[0])
"""
    with VM(str(debian)) as vm:
        done = vm.run(["python3", "-c", program], capture_output=True, text=True, check=True, user="www-data")
        assert done.stdout == "listens\nreply 0\n"


def test_many_files_can_be_watched(guest: VM) -> None:
    watches, instances = said(
        guest, "cat /proc/sys/fs/inotify/max_user_watches /proc/sys/fs/inotify/max_user_instances"
    ).split()
    assert int(watches) >= 1 << 20
    assert int(instances) >= 1024


def test_devices_that_are_of_use_to_all_are_open_to_all(guest: VM) -> None:
    for device in ("/dev/fuse", "/dev/net/tun"):
        assert said(guest, f"exec 3<>{device} && echo open", "1234:1234") == "open\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> str:
    """The demo's busybox below a layer with an ACL and a dated root directory, and volumes."""
    place = tmp_path_factory.mktemp("small")
    with VM(busybox) as vm:
        program = vm.path("/bin/busybox").read_bytes()
    with Layer(place / "layer.tar") as layer:
        layer.add("./")  # dated layers.MOMENT
        layer.add("bin/")
        layer.add("bin/busybox", program, mode=0o755)
        layer.symlink("bin/sh", "busybox")
        layer.add("kept/", uid=7, gid=8, mode=0o750)
        layer.add("listed", b"for 1234\n", mode=0o640, xattrs={"system.posix_acl_access": ACL})
    volumes = ["--config.volume", "/kept", "--config.volume", "/made/here", "--config.volume", "/listed"]
    umoci_layout(place / "oci", [place / "layer.tar"], *volumes)
    return str(place / "oci")


def test_volumes_are_there_and_keep_what_the_image_says_of_them(small: str) -> None:
    with VM(small, bake=False) as vm:
        shown = said(vm, "busybox stat -c '%F %U %u %g %a' /kept /made/here").splitlines()
        assert shown == ["directory UNKNOWN 7 8 750", "directory UNKNOWN 0 0 755"]
        # A file in the place of a volume stays.
        assert vm.path("/listed").is_file()


def test_the_root_directory_is_as_old_as_in_the_image(small: str) -> None:
    with VM(small, bake=False) as vm:
        assert vm.path("/").stat().st_mtime_ns == 1_600_000_000_123_456_700


def test_a_root_directory_without_a_date_is_as_old_as_its_guest(guest: VM) -> None:
    now = float(said(guest, "date +%s"))
    assert now - 86400 < guest.path("/").stat().st_mtime <= now + 1


def test_an_acl_of_the_image_lets_in_whom_it_names_and_nobody_else(small: str) -> None:
    with VM(small, bake=False) as vm:
        assert said(vm, "busybox cat /listed", "1234:1234") == "for 1234\n"
        refused = vm.run("busybox cat /listed", shell=True, capture_output=True, text=True, user="1235:1235")
        assert "Permission denied" in refused.stderr
