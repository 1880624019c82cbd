"""What is particular to macOS, as far as it can be seen elsewhere."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from supermachine.errors import HardwareRequired, InstallationError
from supermachine.host import bundle, codesign_macos, engines

ROOT = Path(__file__).resolve().parents[2]


def mach_o(signature: bytes | None) -> bytes:
    """An executable of two commands, the second of which tells of the signature."""
    other = struct.pack("<II16x", 0x32, 24)
    size = len(other) + (16 if signature is not None else 0)
    head = struct.pack("<IiiIIIII", 0xFEEDFACF, 0x0100000C, 0, 2, 2 if signature is not None else 1, size, 0, 0)
    if signature is None:
        return head + other
    place = len(head) + size
    return head + other + struct.pack("<IIII", 0x1D, 16, place, len(signature)) + signature


SIGNED = mach_o(b"\xfa\xde\x0c\xc0..<key>com.apple.security.hypervisor</key><true/>")
UNSIGNED = mach_o(b"\xfa\xde\x0c\xc0..nothing")


@pytest.mark.parametrize(
    ("content", "entitled"),
    [
        (SIGNED, True),
        (UNSIGNED, False),
        (mach_o(None), False),
        # The name elsewhere in the file is no entitlement.
        (mach_o(None) + b"com.apple.security.hypervisor", False),
        (SIGNED[:40], False),
        (b"", False),
        (b"\x7fELF" + bytes(100), False),
        (struct.pack("<IiiIIIII", 0xFEEDFACF, 0, 0, 2, 1 << 31, 1 << 19, 0, 0) + bytes(64), False),
        (struct.pack("<IiiIIIII", 0xFEEDFACF, 0, 0, 2, 9, 1 << 31, 0, 0) + bytes(64), False),
    ],
)
def test_the_entitlement_is_found_in_the_signature(tmp_path: Path, content: bytes, entitled: bool) -> None:
    path = tmp_path / "worker"
    path.write_bytes(content)
    assert codesign_macos.is_entitled(path) is entitled


@pytest.fixture
def codesign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A Mac whose codesign makes a signed executable, and the calls of it."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        Path(command[-1]).write_bytes(SIGNED)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(codesign_macos.subprocess, "run", run)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(tmp_path / "worker"))
    monkeypatch.setenv("SUPERMACHINE_ENTITLEMENTS", str(ROOT / "rust/worker/entitlements.plist"))
    return calls


def test_a_worker_is_signed_once_for_each_version_of_it(codesign: list[list[str]], tmp_path: Path) -> None:
    worker = tmp_path / "worker"
    worker.write_bytes(UNSIGNED)
    first = bundle.worker()
    assert first.startswith(str(tmp_path / "cache"))
    assert os.access(first, os.X_OK)
    inode = os.stat(first).st_ino
    assert bundle.worker() == first
    assert os.stat(first).st_ino == inode
    assert len(codesign) == 1
    assert codesign[0][:-1] == [
        "/usr/bin/codesign",
        "--sign",
        "-",
        "--force",
        "--entitlements",
        str(ROOT / "rust/worker/entitlements.plist"),
    ]
    assert worker.read_bytes() == UNSIGNED, "the installed file stays as it is"

    worker.write_bytes(UNSIGNED + b"another version")
    assert bundle.worker() != first
    assert len(codesign) == 2


def test_a_worker_that_came_signed_is_used_as_it_is(codesign: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "worker").write_bytes(SIGNED)
    assert bundle.worker() == str(tmp_path / "worker")
    assert codesign == []


def test_a_failure_to_sign_is_told_and_leaves_nothing(
    codesign: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker").write_bytes(UNSIGNED)

    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "no identity found\n")

    monkeypatch.setattr(codesign_macos.subprocess, "run", fail)
    with pytest.raises(InstallationError, match="hypervisor entitlement") as caught:
        bundle.worker()
    assert caught.value.cause == "no identity found"
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("machine", "version", "support", "usable", "says"),
    [
        ("arm64", "15.3.1", 1, True, "macOS 15.3.1"),
        ("arm64", "26.0", None, True, "macOS 26.0"),
        ("arm64", "14.7", 1, False, "macOS 14.7"),
        ("arm64", "15.0", 0, False, "hosted runners"),
        ("x86_64", "15.0", 1, False, "Apple silicon"),
        ("arm64", "", 1, False, "lacks"),
    ],
)
def test_what_a_mac_offers_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, machine: str, version: str, support: int | None, usable: bool, says: str
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), machine))
    monkeypatch.setattr(engines, "_hv_support", lambda: support)
    hvf = engines.probe()[0]
    assert (hvf.name, hvf.usable, hvf.isolation) == ("hvf", usable, "hardware")
    assert says in hvf.status
    assert engines.choose().name == ("hvf" if usable else "soft")
    if usable:
        assert engines.choose(require_hardware=True).name == "hvf"
    else:
        with pytest.raises(HardwareRequired):
            engines.choose(require_hardware=True)


def test_the_entitlements_are_those_that_the_signature_is_looked_at_for() -> None:
    import plistlib

    found = plistlib.loads((ROOT / "rust/worker/entitlements.plist").read_bytes())
    assert found == {codesign_macos.ENTITLEMENT: True}
