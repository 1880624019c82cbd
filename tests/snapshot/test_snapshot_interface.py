"""`supermachine.snapshots` and `supermachine snapshot`."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import child
import format_v8
import format_v9
import pytest
from supermachine import _core, errors, snapshots

PAGE = format_v9.PAGE


@pytest.fixture
def chain(tmp_path: Path) -> list[str]:
    """A whole snapshot and a diff to it."""
    whole, diff = str(tmp_path / "whole"), str(tmp_path / "diff")
    ram = bytearray(4 * PAGE)
    ram[:PAGE] = b"a" * PAGE
    sections = [("vcpu", 0, 1, True, b"registers"), ("note", 0, 2, False, b"")]
    parent = _core.write_snapshot_v9(whole, format_v9.identity(), sections, bytes(ram), None, False)
    ram[PAGE : 2 * PAGE] = b"b" * PAGE
    identity = format_v9.identity(parent=parent)
    _core.write_snapshot_v9(diff, identity, sections, bytes(ram), [(PAGE, 2 * PAGE)], False)
    return [whole, diff]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    path.write_bytes(format_v8.encode(format_v8.small(), bytes(4096)))
    return path


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "supermachine", "snapshot", *map(str, arguments)]
    return subprocess.run(command, env=child.environment(), capture_output=True, text=True, timeout=60)


def test_inspect(chain: list[str]):
    whole, diff = map(snapshots.inspect, chain)
    assert (whole.version, whole.minor, whole.exported) == (9, 0, False)
    assert (whole.architecture, whole.engine, whole.engine_version, whole.vcpus) == ("aarch64", "soft", 1, 1)
    assert (whole.memory_bytes, whole.ram_gpa, whole.ram_offset) == (4 * PAGE, 0x4000_0000, 65536)
    assert (whole.devices, whole.cpu_features) == (("block", "vsock"), ("lse", "sha2"))
    assert (whole.kernel, whole.initramfs, whole.image) == ("11" * 32, "22" * 32, "sha256:" + "33" * 32)
    assert whole.created == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=timezone.utc)
    assert whole.sections == (snapshots.Section("vcpu", 0, 1, True, 9), snapshots.Section("note", 0, 2, False, 0))
    assert (whole.parent, whole.present_bytes) == (None, None)
    assert whole.file_bytes == 65536 + 4 * PAGE > whole.disk_bytes
    assert (diff.parent, diff.present_bytes) == (whole.id, PAGE)
    assert [snapshots.verify(path) for path in chain] == [whole.id, diff.id]


def test_inspect_version_8(old: Path):
    info = snapshots.inspect(old)
    assert (info.version, info.architecture, info.vcpus, info.memory_bytes) == (8, "aarch64", 1, 4096)
    assert (info.id, info.engine, info.devices, info.sections) == (None, None, ("vsock",), ())
    assert snapshots.verify(old) is None


def test_an_export_is_looked_into_without_unpacking(tmp_path: Path, chain: list[str]):
    packed = tmp_path / "packed"
    length = snapshots.export(chain[0], packed)
    assert length == packed.stat().st_size < 1500
    assert stat.S_IMODE(packed.stat().st_mode) == 0o600
    info, whole = snapshots.inspect(packed), snapshots.inspect(chain[0])
    assert info.exported
    assert (info.id, info.sections, info.file_bytes) == (whole.id, whole.sections, length)
    assert snapshots.verify(packed) == whole.id
    back = tmp_path / "back"
    assert snapshots.import_(packed, back) == whole.id
    assert back.read_bytes() == Path(chain[0]).read_bytes()


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_zstd_unpacks_an_export(tmp_path: Path, chain: list[str]):
    snapshots.export(chain[0], tmp_path / "packed.zst")
    subprocess.run(["zstd", "-q", "-d", tmp_path / "packed.zst", "-o", tmp_path / "unpacked"], check=True)
    assert (tmp_path / "unpacked").read_bytes() == Path(chain[0]).read_bytes()
    # What zstd itself packs has no table of frames, and is told so.
    subprocess.run(["zstd", "-q", chain[0], "-o", tmp_path / "other.zst"], check=True)
    with pytest.raises(errors.BadSnapshot, match="other Zstandard file"):
        snapshots.inspect(tmp_path / "other.zst")


def test_a_damaged_export_is_not_imported(tmp_path: Path, chain: list[str]):
    packed = tmp_path / "packed"
    snapshots.export(chain[0], packed)
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 0x55
    packed.write_bytes(data)
    with pytest.raises(errors.SnapshotDamaged):
        snapshots.import_(packed, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_flatten(tmp_path: Path, chain: list[str]):
    flat = tmp_path / "flat"
    snapshot_id = snapshots.flatten(chain, flat)
    assert snapshots.verify(flat) == snapshot_id
    _, ram = format_v9.decode(flat.read_bytes())
    assert ram == b"a" * PAGE + b"b" * PAGE + bytes(2 * PAGE)
    for wrong in (chain[1:], chain[::-1], [*chain, chain[1]], []):
        with pytest.raises(errors.BadSnapshot, match="of the chain"):
            snapshots.flatten(wrong, tmp_path / "wrong")


def test_each_error_is_the_builtin_it_means(tmp_path: Path, chain: list[str]):
    for missing in (snapshots.inspect, snapshots.verify, lambda path: snapshots.import_(path, tmp_path / "x")):
        with pytest.raises(FileNotFoundError) as caught:
            missing(tmp_path / "missing")
        assert isinstance(caught.value, errors.SnapshotNotFound)
        assert str(tmp_path / "missing") in str(caught.value)
    with pytest.raises(errors.SnapshotNotFound):
        snapshots.export(chain[0], tmp_path / "no" / "directory")
    for other in (b"", b"PK\x03\x04 a zip file", b"SMSNAP\x07\0" + bytes(100)):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(ValueError) as wrong:
            snapshots.inspect(tmp_path / "other")
        assert isinstance(wrong.value, errors.BadSnapshot)
        assert wrong.value.code == "snapshot.bad"
    with pytest.raises(errors.SnapshotError, match="directory"):
        snapshots.inspect(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(chain: list[str]):
    Path(chain[0]).chmod(0)
    with pytest.raises(PermissionError) as caught:
        snapshots.inspect(chain[0])
    assert isinstance(caught.value, errors.SnapshotDenied)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    code = "\ntry:\n    snapshots.inspect(sys.argv[1])\nexcept errors.SnapshotError as error:\n    print(error)\n"
    assert "not a regular file" in child.run(code, tmp_path / "pipe")


def test_command_line(tmp_path: Path, chain: list[str], old: Path):
    shown = cli("inspect", chain[1])
    assert shown.returncode == 0, shown.stderr
    assert "diff to" in shown.stdout
    assert "vcpu 0" in shown.stdout
    found = json.loads(cli("inspect", "--json", chain[0]).stdout)
    assert found["id"] == snapshots.inspect(chain[0]).id
    assert found["created"] == "2023-11-14T22:13:20.123456+00:00"
    assert json.loads(cli("inspect", "--json", old).stdout)["version"] == 8
    assert "version 8" in cli("inspect", old).stdout

    verified = cli("verify", *chain, old)
    assert verified.returncode == 0
    assert found["id"] in verified.stdout

    packed, back, flat = tmp_path / "packed", tmp_path / "back", tmp_path / "flat"
    assert cli("export", chain[0], packed).returncode == 0
    assert found["id"] in cli("import", packed, back).stdout
    assert back.read_bytes() == Path(chain[0]).read_bytes()
    again = cli("import", packed, back)
    assert again.returncode == 125
    assert "exists" in again.stderr
    assert "hint:" in again.stderr
    assert cli("import", "--replace", packed, back).returncode == 0
    assert cli("flatten", *chain, flat).returncode == 0
    assert snapshots.inspect(flat).parent is None

    back.write_bytes(back.read_bytes()[:-1])
    broken = cli("verify", back)
    assert broken.returncode == 125
    assert "cut off" in broken.stderr
