"""The cache under kill −9, full disks, and other processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.cache.locks import acquire, locked, release
from supermachine.cache.store import Cache
from supermachine.images import resolve
from supermachine.images.resolution import Converter, Layer

from .conftest import Answer, FakeRegistry, RecordingConverter, make_image, make_index, sha256, tar_of, write_layout


def layout_of(root: Path, **names: bytes) -> Path:
    blobs, entries = {}, []
    for name, data in names.items():
        image = make_image({"file": data})
        blobs |= image.blobs
        entries.append(image.descriptor(annotations={"org.opencontainers.image.ref.name": name}))
    return write_layout(root, blobs, make_index(*entries))


@pytest.mark.parametrize("how", ["removed", "held"])
def test_a_new_scratch_directory_that_is_taken_for_a_stale_one(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    meddled = []

    def meddling(path: Path, **options: bool) -> int | None:
        # As `remove_stale` of another process, between the creation of the lock and its being held.
        if not meddled:
            meddled.append(path)
            path.parent.rmdir()
            return None if how == "held" else acquire(path, **options)
        return acquire(path, **options)

    monkeypatch.setattr("supermachine.cache.store.acquire", meddling)
    with cache.scratch() as place:
        (place / "work").write_bytes(b"goes on")
    assert meddled
    assert list((tmp_path / "tmp").iterdir()) == []


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def default_directory() -> Path:
        return Cache().directory

    monkeypatch.setattr("sys.platform", "linux")
    assert default_directory() == Path.home() / ".cache" / "supermachine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "supermachine"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == Path.home() / ".cache" / "supermachine"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_directory() == Path.home() / "Library" / "Caches" / "supermachine"
    monkeypatch.setenv("SUPERMACHINE_CACHE", "~/x")
    assert default_directory() == Path.home() / "x"


def test_list_remove_prune(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    layout = layout_of(tmp_path / "layout", one=b"1" * 9000, two=b"2" * 9000)
    one = resolve(f"oci:{layout}:one", cache=cache, converter=converter)
    two = resolve(f"oci:{layout}:two", cache=cache, converter=converter)
    assert {image.digest for image in cache.images()} == {one.digest, two.digest}
    assert cache.prune() == 0
    assert cache.remove(f"oci:{layout}:one") > 0
    assert [image.digest for image in cache.images()] == [two.digest]
    assert not one.rootfs.exists()
    assert cache.remove("nothing") == 0
    assert cache.remove("0123") == 0
    assert cache.remove(two.digest.removeprefix("sha256:")[:12]) > 0
    assert cache.images() == []
    resolve(f"oci:{layout}:two", cache=cache, converter=converter)
    assert cache.prune(everything=True) > 0
    assert cache.images() == []
    left = [p for p in cache.directory.rglob("*") if p.is_file() and p.name != "CACHEDIR.TAG"]
    assert all(p.parent.name == "locks" for p in left)


def test_same_layers_are_converted_once(tmp_path: Path, cache: Cache, recorder: RecordingConverter) -> None:
    layout = layout_of(tmp_path / "layout", one=b"1", two=b"1")
    for version in ("a", "a", "b"):
        for tag in ("one", "two"):
            resolve(f"oci:{layout}:{tag}", cache=cache, converter=Converter(version, recorder.convert))
    assert len(recorder.calls) == 2


def test_damaged_records_are_made_again(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    layout = layout_of(tmp_path / "layout", one=b"1")
    image = resolve(f"oci:{layout}:one", cache=cache, converter=converter)
    for path in [*(cache.directory / "images").iterdir(), *(cache.directory / "references").iterdir()]:
        path.write_bytes(b"[" * 100_000)
    assert cache.images() == []
    assert resolve(f"oci:{layout}:one", cache=cache, converter=converter) == image
    assert len(cache.images()) == 1


def test_failing_conversion_leaves_nothing(tmp_path: Path, cache: Cache) -> None:
    layout = layout_of(tmp_path / "layout", one=b"1")

    def convert(layers: object, output: str, max_bytes: int, progress: object) -> None:
        Path(output).write_bytes(b"half")
        raise errors.DigestMismatch("wrong")

    with pytest.raises(errors.DigestMismatch):
        resolve(f"oci:{layout}:one", cache=cache, converter=Converter("x", convert))
    assert not list((cache.directory / "tmp").iterdir())
    assert not list((cache.directory / "rootfs").iterdir())
    assert not list((cache.directory / "references").iterdir())


def _pull(name: str, cache: str) -> None:
    resolve(name, cache=Cache(cache), converter=Converter("test", RecordingConverter().convert))


@pytest.mark.parametrize("where", ["download", "convert"])
def test_kill_in_the_middle(
    registry: FakeRegistry, cache: Cache, converter: Converter, where: str, tmp_path: Path
) -> None:
    image = make_image({"a": os.urandom(50_000)}, {"b": b"2"})
    registry.add(image)
    reached = threading.Event()
    if where == "download":
        data = registry.blobs[image.layers[0]]

        def stall(request: object) -> Answer:
            reached.set()
            return Answer(hang=True)

        registry.on(image.layers[0], Answer(200, data, cut=20_000), stall)
        target, arguments = _pull, (f"{registry.host}/app", str(cache.directory))
    else:
        target, arguments = _convert_forever, (f"{registry.host}/app", str(cache.directory), str(tmp_path / "reached"))
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    deadline = time.monotonic() + 60
    while not (reached.is_set() or (tmp_path / "reached").exists()):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.02)
    assert list((cache.directory / "tmp").iterdir())
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    registry.released.set()

    assert cache.images() == []
    found = resolve(f"{registry.host}/app", cache=cache, converter=converter)
    assert found.rootfs.read_bytes().startswith(tar_of({"a": b""})[:100])
    # What was left behind is gone, as its owner is.
    assert not list((cache.directory / "tmp").iterdir())


def _convert_forever(name: str, cache: str, flag: str) -> None:
    def convert(layers: object, output: str, max_bytes: int, progress: object) -> None:
        Path(output).write_bytes(b"half")
        Path(flag).write_text("")
        signal.pause()

    resolve(name, cache=Cache(cache), converter=Converter("test", convert))


def test_work_in_progress_is_not_removed(cache: Cache) -> None:
    with cache.scratch() as place:
        os.utime(place, (0, 0))
        assert Cache(cache.directory).remove_stale() == 0
        assert place.exists()
    fresh = cache.directory / "tmp" / "fresh"
    fresh.mkdir()
    assert cache.remove_stale() == 0
    os.utime(fresh, (0, 0))
    assert cache.remove_stale() == 1


def test_blobs_in_use_stay(cache: Cache) -> None:
    cache.prepare()
    digest = sha256(b"x")
    cache.blob(digest).write_bytes(b"x")
    with locked(cache.lock("blob", digest), shared=True):
        cache.drop_blobs([digest])
        cache.prune()
        assert cache.blob(digest).exists()
    cache.drop_blobs([digest])
    assert not cache.blob(digest).exists()


def test_a_deleted_lock_file_locks_nothing(tmp_path: Path) -> None:
    """Who waited for a lock whose file is deleted meanwhile starts over with the new file."""
    path = tmp_path / "lock"
    first = acquire(path)
    got: list[int | None] = []
    waiting = threading.Event()
    thread = threading.Thread(target=lambda: got.append(acquire(path, on_wait=waiting.set)))
    thread.start()
    assert waiting.wait(30)
    path.unlink()
    assert first is not None
    release(first)
    thread.join(30)
    assert got[0] is not None
    assert os.fstat(got[0]).st_ino == path.stat().st_ino
    assert acquire(path, block=False) is None
    release(got[0])


@pytest.fixture
def small_disk(tmp_path: Path):
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode(errors='replace').strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(registry: FakeRegistry, converter: Converter, small_disk: Path) -> None:
    registry.add(make_image({"a": os.urandom(1 << 20)}))
    cache = Cache(small_disk / "cache")
    with pytest.raises(OSError, match="no room left") as caught:
        resolve(f"{registry.host}/app", cache=cache, converter=converter)
    assert isinstance(caught.value, errors.DiskFull)
    assert caught.value.hint
    assert not list((cache.directory / "tmp").iterdir())
    assert len(registry.requests) < 6


def _limited(name: str, cache: str, output: object) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        _pull(name, cache)
    except errors.SupermachineError as error:
        output.put((type(error).__name__, error.code))  # type: ignore[attr-defined]


def test_file_size_limit(registry: FakeRegistry, cache: Cache) -> None:
    registry.add(make_image({"a": os.urandom(1 << 20)}))
    context = multiprocessing.get_context("spawn")
    output = context.Queue()
    process = context.Process(target=_limited, args=(f"{registry.host}/app", str(cache.directory), output))
    process.start()
    assert output.get(timeout=60) == ("DiskFull", "cache.disk-full")
    process.join(60)


def test_unusable_directory(tmp_path: Path, converter: Converter) -> None:
    layout = layout_of(tmp_path / "layout", one=b"1")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CacheError, match="cannot prepare"):
        resolve(layout, cache=Cache(tmp_path / "file"), converter=converter)


def test_errors_of_one_layer_stop_the_others(registry: FakeRegistry, cache: Cache, converter: Converter) -> None:
    """The other layer hangs for as long as the registry lives; the pull does not."""
    image = make_image({"a": b"1" * 1000}, {"b": b"2"})
    registry.add(image)
    registry.on(image.layers[1], Answer(404))

    def dribble(request: object) -> Answer:
        return Answer(200, registry.blobs[image.layers[0]], {"Content-Length": "100000"})

    registry.on(image.layers[0], dribble)
    with pytest.raises(errors.ImageNotFound):
        resolve(f"{registry.host}/app", cache=cache, converter=converter)
    assert not list((cache.directory / "tmp").iterdir())


def test_records_hold_what_a_later_run_needs(registry: FakeRegistry, cache: Cache, converter: Converter) -> None:
    registry.add(make_image(config={"Cmd": ["ä"], "Labels": {"k": "v"}}))
    first = resolve(f"{registry.host}/app", cache=cache, converter=converter)
    again = resolve(f"{registry.host}/app", cache=Cache(cache.directory), converter=converter, pull="never")
    assert again == first
    assert json.loads(next((cache.directory / "references").iterdir()).read_text())["digest"] == first.digest


def test_blob_that_the_disk_damaged(registry: FakeRegistry, cache: Cache, converter: Converter) -> None:
    """It has the right length, so it is taken; the conversion finds out, and the next attempt gets it anew."""
    image = make_image()
    registry.add(image)
    cache.prepare()
    cache.blob(image.layers[0]).write_bytes(bytes(len(image.blobs[image.layers[0]])))

    def convert(layers: list[Layer], output: str, max_bytes: int, progress: object) -> None:
        if sha256(Path(layers[0][0]).read_bytes()) != layers[0][3]:
            raise errors.DigestMismatch("damaged")
        Path(output).write_bytes(b"good")

    damaged = Converter("x", convert)
    with pytest.raises(errors.DigestMismatch):
        resolve(f"{registry.host}/app", cache=cache, converter=damaged)
    assert resolve(f"{registry.host}/app", cache=cache, converter=damaged).rootfs.read_bytes() == b"good"
