"""The way up: in chunks, from where it broke off, with the right to push, and never twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.artifacts.pull import pull
from supermachine.artifacts.push import push
from supermachine.cache.store import Cache
from supermachine.oci import uploads
from supermachine.oci.transport import Transport

from .conftest import ram, snapshot
from .registry import Registry


def test_an_upload_that_breaks_off_goes_on(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, transport: Transport, monkeypatch
) -> None:
    monkeypatch.setattr(uploads, "CHUNK", 300_000)
    snapshot(tmp_path / "a", ram(1000))
    registry.upload_cut, registry.upload_cuts = 100_000, 5
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache, transport=transport)
    assert registry.upload_cuts == 0
    assert registry.received < done.size * 1.01, "what has arrived is not sent again"
    assert pull(done.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()
    kept = [path.read_text() for path in (cache.directory / "uploads").iterdir()]
    assert all("blobs/uploads" not in text for text in kept), "no upload is open"


def test_a_push_that_is_killed_goes_on_in_another_process(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache
) -> None:
    snapshot(tmp_path / "a", ram(1500, used=0.9))
    script = (
        "import sys, pathlib; from supermachine.oci import uploads; uploads.CHUNK = 200_000\n"
        "from supermachine.artifacts.push import push; push(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    registry.delay = 0.02
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a"), f"{registry.host}/bb:snap"])
    while registry.received < 1_200_000:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    registry.delay = 0
    time.sleep(0.1)
    before = registry.received
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    assert done.sent <= done.size - before + 250_000
    assert registry.received <= done.size + 450_000
    assert pull(done.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()


def test_an_upload_that_the_registry_has_forgotten_begins_anew(
    registry: Registry, tmp_path: Path, cache: Cache, transport: Transport, monkeypatch
) -> None:
    monkeypatch.setattr(uploads, "CHUNK", 300_000)
    snapshot(tmp_path / "a", ram(600))
    registry.upload_cut, registry.upload_cuts = 0, 1000
    with pytest.raises(errors.RegistryError):
        push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache, transport=transport)
    registry.upload_cuts = 0
    registry.uploads.clear()
    assert push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache, transport=transport).sent > 0


def test_a_token_is_got_for_the_push(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, transport: Transport
) -> None:
    registry.token = "secret"
    snapshot(tmp_path / "a", ram(50))
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache, transport=transport)
    assert registry.scopes and set(registry.scopes) <= {"repository:bb:pull", "repository:bb:pull,push"}
    assert pull(done.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()


def test_where_an_upload_goes_is_kept_for_its_user_alone(
    registry: Registry, tmp_path: Path, cache: Cache, transport: Transport
) -> None:
    snapshot(tmp_path / "a", ram(600))
    registry.upload_cut, registry.upload_cuts = 0, 1000
    with pytest.raises(errors.RegistryError):
        push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache, transport=transport)
    kept = list((cache.directory / "uploads").iterdir())
    assert kept and all(os.stat(path).st_mode & 0o777 == 0o600 for path in kept)
