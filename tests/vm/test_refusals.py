"""Bad input, each with a typed error that says what to do, and nothing left behind of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import supermachine
from supermachine import VM, errors

from ..images.conftest import Answer, FakeRegistry, Image, make_image, make_index, sha256, write_layout
from ..processes import running
from ..real import require, require_root, run
from .conftest import BUSYBOX, check_images, initramfs, umoci_layout

pytestmark = pytest.mark.vm

PLAIN = "application/vnd.oci.image.layer.v1.tar"
CLI = [sys.executable, "-m", "supermachine"]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    yield server
    server.close()


def residue(cache: Path) -> list[str]:
    """What a refused image left: everything but empty directories, lock files, and what is known of the host's KVM."""
    files = [p.relative_to(cache) for p in cache.rglob("*") if not p.is_dir()]
    return [str(p) for p in files if p.parts[0] != "locks" and p.name not in ("CACHEDIR.TAG", "kvm.json")]


def layout(place: Path, image: Image, index: bytes | None = None) -> Path:
    platform = {"os": "linux", "architecture": "arm64"}
    return write_layout(place, image.blobs, index or make_index(image.descriptor(platform=platform)))


def with_layer(data: bytes, kind: str = f"{PLAIN}+gzip", diff_id: str | None = None) -> Image:
    """An image whose only layer is these bytes, whatever they are; its digests are right unless told otherwise."""
    image = make_image()
    manifest = json.loads(image.manifest)
    config = json.loads(image.blobs[manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"] = [diff_id or sha256(data)]
    blobs = {sha256(data): data}
    encoded = json.dumps(config).encode()
    blobs[sha256(encoded)] = encoded
    manifest["config"] |= {"digest": sha256(encoded), "size": len(encoded)}
    manifest["layers"] = [{"mediaType": kind, "digest": sha256(data), "size": len(data)}]
    encoded = json.dumps(manifest).encode()
    return Image({**blobs, sha256(encoded): encoded}, sha256(encoded), [sha256(data)])


def one_file(name: str, size: int = 5, **fields: Any) -> bytes:
    return files((name, size, fields))


def files(*members: tuple[str, int, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, size, fields in members:
            member = tarfile.TarInfo(name)
            member.size = size
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[str, int, dict[str, Any]]:
    return name, 0, {"type": kind, "linkname": target}


def damaged(image: Image) -> Image:
    """One byte of the layer is another."""
    blob = bytearray(image.blobs[image.layers[0]])
    blob[len(blob) // 2] ^= 1
    image.blobs[image.layers[0]] = bytes(blob)
    return image


def other_contents() -> Image:
    """A layer that is sound, but not the one that the configuration names."""
    return with_layer(one_file("other"), PLAIN, sha256(b"something else"))


BAD: dict[str, tuple[Callable[[], Image], type[errors.SupermachineError], str]] = {
    "wrong digest": (lambda: damaged(make_image({"a": os.urandom(5000)})), errors.DigestMismatch, "digest"),
    "wrong contents": (other_contents, errors.DigestMismatch, "layer 0"),
    "cut gzip": (lambda: with_layer(gzip.compress(os.urandom(9000))[:4000]), errors.InvalidImage, "gzip"),
    "cut tar": (lambda: with_layer(one_file("a", 5000)[:3000], PLAIN), errors.InvalidImage, "ends inside"),
    "no tar": (lambda: with_layer(b"certainly not a tar" * 100, PLAIN), errors.InvalidImage, "layer 0"),
    "odd entry": (lambda: with_layer(one_file("a", 0, type=b"Z"), PLAIN), errors.InvalidImage, "type"),
    "long name": (lambda: with_layer(one_file("n" * 256), PLAIN), errors.InvalidImage, "256 bytes"),
    "long link": (
        lambda: with_layer(files(link("d/long-link", "t" * 4096)), PLAIN),
        errors.InvalidImage,
        '"d/long-link": the target of this symbolic link has 4096 bytes',
    ),
    "empty link": (
        lambda: with_layer(files(link("empty-link", "")), PLAIN),
        errors.InvalidImage,
        '"empty-link": the target of this symbolic link has 0 bytes',
    ),
    "link in a circle": (
        lambda: with_layer(files(link("one", "two"), link("two", "one"), ("one/below", 5, {})), PLAIN),
        errors.InvalidImage,
        '"one/below": too many symbolic links in its path',
    ),
    "hard link to nothing": (
        lambda: with_layer(files(link("hard-link", "no/such", tarfile.LNKTYPE)), PLAIN),
        errors.InvalidImage,
        '"hard-link": the target "no/such" of this hard link does not exist',
    ),
    "encrypted": (lambda: make_image(layer_type=PLAIN + "+gzip+encrypted"), errors.UnsupportedMediaType, "encrypted"),
    "other type": (lambda: make_image(layer_type="text/plain"), errors.UnsupportedMediaType, "text/plain"),
    "other platform": (lambda: make_image(architecture="s390x"), errors.PlatformNotFound, "linux/s390x"),
}


@pytest.mark.parametrize("case", BAD)
def test_images_that_are_refused(own_cache: Path, tmp_path: Path, case: str) -> None:
    make, kind, words = BAD[case]
    image = make()
    index = make_index(image.descriptor()) if case == "other platform" else None
    with pytest.raises(kind) as caught:
        VM(layout(tmp_path / "image", image, index)).start()
    assert words in str(caught.value) + str(caught.value.cause)
    assert caught.value.code.startswith("image.")
    assert residue(own_cache) == []


def test_a_gzip_bomb_ends_at_the_limit(own_cache: Path, tmp_path: Path) -> None:
    bomb = gzip.compress(one_file("zeros", 300 << 20), compresslevel=1)
    assert len(bomb) < 2 << 20
    image = layout(tmp_path / "image", with_layer(bomb, diff_id=sha256(b"never known")))
    started = os.times()
    with pytest.raises(errors.ImageTooLarge) as caught:
        supermachine.images.resolve(image, max_bytes=4 << 20)
    assert str(4 << 20) in str(caught.value) + str(caught.value.cause)
    assert os.times().user - started.user < 5, "it was unpacked all the same"
    assert residue(own_cache) == []


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (401, errors.RegistryUnauthorized, "registry.unauthorized"),
        (403, errors.RegistryUnauthorized, "registry.unauthorized"),
        (404, errors.ImageNotFound, "image.not-found"),
        (429, errors.RegistryRateLimited, "registry.rate-limited"),
    ],
)
def test_registries_that_refuse(own_cache: Path, registry: FakeRegistry, status: int, kind: Any, code: str) -> None:
    registry.add(make_image())
    headers = {"Retry-After": "100000"} if status == 429 else {}
    registry.on("/blobs/", *[Answer(status, headers=headers)] * 20)
    with pytest.raises(kind) as caught:
        VM(f"{registry.host}/app").start()
    assert caught.value.code == code
    assert registry.host in str(caught.value)
    assert residue(own_cache) == []
    done = subprocess.run([*CLI, "run", f"{registry.host}/app"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 125
    assert "Traceback" not in done.stderr
    assert str(caught.value) in done.stderr


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debian_tar: Path) -> None:
    require_root("mounting a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk)
    try:
        monkeypatch.setenv("SUPERMACHINE_CACHE", str(disk / "cache"))
        with pytest.raises(errors.DiskFull) as caught:
            VM(layout(tmp_path / "image", with_layer(debian_tar.read_bytes(), PLAIN))).start()
        assert "supermachine prune" in str(caught.value.hint)
        assert residue(disk / "cache") == []
        # What is smaller still fits.
        assert supermachine.run(BUSYBOX, ["echo", "room"], text=True).stdout == "room\n"
    finally:
        run("umount", disk)


def test_killed_while_downloading(own_cache: Path, registry: FakeRegistry, busybox_image: Image) -> None:
    registry.add(busybox_image)
    data = registry.blobs[busybox_image.layers[0]]
    reached = threading.Event()

    def stall(_request: object) -> Answer:
        reached.set()
        return Answer(hang=True)

    registry.on(busybox_image.layers[0], Answer(200, data, cut=len(data) // 2), stall)
    killed_when([*CLI, "run", f"{registry.host}/app", "true"], reached.is_set)
    assert any((own_cache / "tmp").glob("*/blob"))
    done = subprocess.run([*CLI, "run", f"{registry.host}/app", "echo", "again"], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"again\n")
    assert not list((own_cache / "tmp").iterdir())


def test_killed_while_converting(own_cache: Path, debian: Path) -> None:
    killed_when([*CLI, "pull", str(debian)], lambda: any((own_cache / "tmp").rglob("*rootfs*")))
    assert list((own_cache / "rootfs").iterdir()) == []
    again = [*CLI, "run", str(debian), "python3", "-c", "print('again')"]
    done = subprocess.run(again, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"again\n")
    assert not list((own_cache / "tmp").iterdir())
    assert check_images(own_cache) == 1


def killed_when(command: list[str], reached: Callable[[], bool]) -> None:
    """Runs a command and kills it by SIGKILL once `reached`."""
    with running(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The demo's image as blobs."""
    with tarfile.open(BUSYBOX) as tar:
        files = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    blobs = {f"sha256:{name.rpartition('/')[2]}": data for name, data in files.items() if "blobs/" in name}
    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blobs[entry["digest"]])
    return Image(blobs, entry["digest"], [layer["digest"] for layer in manifest["layers"]])


# Guests that do not come up.


def test_a_kernel_that_panics_at_boot(tmp_path: Path, busybox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMACHINE_INITRAMFS", str(initramfs(tmp_path, b"no program")))
    with pytest.raises(errors.VMExited) as caught:
        VM(busybox).start()
    assert caught.value.reason == "panic"
    assert "Kernel panic" in caught.value.console_tail
    assert caught.value.code == "vm.exited"


def test_a_kernel_that_panics_later(busybox: str) -> None:
    with VM(busybox) as vm:
        # The agent's own program is overwritten; a kernel whose first process falls panics.
        overwrite = "dd if=/dev/zero of=/proc/1/mem bs=4096 seek=1025 count=64 conv=notrunc; sleep 1000"
        with pytest.raises(errors.VMExited) as caught:
            vm.run(["sh", "-c", overwrite], timeout=60)
        assert caught.value.reason == "panic"
        assert "Attempted to kill init" in caught.value.console_tail
        assert vm.wait(10) == "panic"
        with pytest.raises(errors.VMExited):
            vm.run(["true"])


def test_an_agent_that_never_answers(busybox: str, agentless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMACHINE_INITRAMFS", str(agentless))
    vm = VM(busybox, boot_timeout=1.5)
    with pytest.raises(errors.VMTimeout) as caught:
        vm.start()
    assert "boot_timeout" in str(caught.value.hint)
    assert not vm.running
    done = subprocess.run(
        [*CLI, "run", "--boot-timeout", "1.5", busybox, "true"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 125
    assert "not ready after 1.5 seconds" in done.stderr


@pytest.mark.parametrize("what", ["kernel", "initramfs"])
def test_boot_files_that_are_none(tmp_path: Path, busybox: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / what
    file.write_bytes(b"\x28\xb5\x2f\xfdthis is no zstd frame, though it begins like one" * 100)
    monkeypatch.setenv(f"SUPERMACHINE_{what.upper()}", str(file))
    with pytest.raises(errors.VMExited) as caught:
        VM(busybox).start()
    assert caught.value.reason == "bad-configuration"
    assert str(file) in str(caught.value)
    monkeypatch.setenv(f"SUPERMACHINE_{what.upper()}", str(tmp_path / "missing"))
    with pytest.raises(errors.InstallationError):
        VM(busybox).start()


def test_a_root_file_system_that_the_disk_damaged(own_cache: Path, busybox: str) -> None:
    image = supermachine.images.resolve(busybox)
    image.rootfs.chmod(0o600)
    with image.rootfs.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(128))
    with pytest.raises(errors.VMExited) as caught:
        VM(busybox).start()
    assert caught.value.reason == "agent-failed"
    assert "/dev/vda cannot be mounted" in str(caught.value)


# Images without what a command needs.


def test_an_image_with_nothing_in_it(tmp_path: Path) -> None:
    require("umoci")
    layer = tmp_path / "layer.tar"
    layer.write_bytes(one_file("data", mode=0o644))
    umoci_layout(tmp_path / "oci", [layer])
    with VM(tmp_path / "oci") as vm:
        with pytest.raises(errors.CommandNotFound, match="/bin/sh"):
            vm.run("echo", shell=True)
        with pytest.raises(errors.CommandNotExecutable, match="/data"):
            vm.run(["/data"])
        with pytest.raises(errors.ConfigurationError, match="names no command"):
            vm.command()
        assert vm.path("/data").read_bytes() == bytes(5)
    for words, status in ((["sh"], 127), (["/data"], 126), ([], 125)):
        command = [*CLI, "run", str(tmp_path / "oci"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
