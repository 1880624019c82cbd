"""What users write of shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from supermachine import Volume
from supermachine.errors import ConfigurationError, ShareNotFound
from supermachine.storage import tmpfs
from supermachine.storage.shares import MAX_SHARES, Mounted, Share, parse


def test_docker_s_spellings_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    path = str(tmp_path / "src")
    written = Mounted("/work", path, False, "auto", "map", None)
    for volumes in (["./src:/work"], [f"{path}:/work:rw"], ["./src/../src:/work/"], {"./src": {"bind": "/work"}}):
        assert parse(volumes, None).shares == (written,)
    for volumes in (["./src:/work:ro"], {path: {"bind": "/work", "mode": "ro"}}):
        assert parse(volumes, None).shares == (written._replace(read_only=True),)
    for mounts in ({"/work": "./src"}, {"/work": tmp_path / "src"}, {"/work": Share("src")}):
        assert parse(None, mounts).shares == (written,)
    said = parse(None, {"/work": Share("src", read_only=True, cache="none")})
    assert said.shares == (written._replace(read_only=True, cache="none"),)
    said = parse(None, {"/work": Share("src", owner="virtual", quota="1.5m")})
    assert said.shares == (written._replace(owner="virtual", quota_bytes=3 << 19),)
    long = "type=bind,src=./src,dst=/work,owner=virtual,quota=1.5m,cache=none"
    assert parse(None, [long]).shares == (said.shares[0]._replace(cache="none"),)
    for long in ("watch", "watch=true"):
        said = parse(None, [f"type=bind,src=./src,dst=/work,{long}"])
        assert said.shares == parse(None, {"/work": Share("src", watch=True)}).shares
        assert said.shares == (written._replace(watch=True),)
    assert parse(None, None) == ((), (), ())


def test_what_is_no_path_is_a_volume(tmp_path: Path) -> None:
    for said in (
        parse(["data:/work", f"{tmp_path}:/host"], None),
        parse([f"{tmp_path}:/host"], {"/work": Volume("data")}),
    ):
        (volume,), (share,) = said.volumes, said.shares
        # Without a size it is as large as it is, or as usual.
        assert (volume.name, volume.target, volume.size, volume.slot) == ("data", "/work", 0, 1)
        assert (volume.device, share.target) == ("/dev/vdc", "/host")
    assert parse(["data:/work:ro"], None).volumes[0].read_only


def test_docker_s_long_form_means_the_same(tmp_path: Path) -> None:
    long = [f"type=bind,src={tmp_path},dst=/host,readonly", "source=data,target=/work"]
    assert parse(None, long) == parse([f"{tmp_path}:/host:ro", "data:/work"], None)
    assert parse(None, ["type=volume,source=data,destination=/work,ro=true"]).volumes[0].read_only
    assert not parse(None, ["type=volume,source=data,destination=/work,ro=false"]).volumes[0].read_only


def test_docker_s_spellings_of_memory_mean_the_same() -> None:
    usual = 0x2 | 0x4 | 0x8
    (plain,) = parse(None, None, ["/run/"]).tmpfs
    assert plain == tmpfs.Mounted("/run", usual, "")
    assert parse(None, None, {"/run": ""}).tmpfs == parse(None, ["type=tmpfs,target=/run"]).tmpfs == (plain,)
    sized = tmpfs.Mounted("/run", usual & ~0x8 | 0x1, "size=67108864,mode=1750")
    assert parse(None, None, ["/run:size=64m,exec,mode=1750,ro"]).tmpfs == (sized,)
    long = parse(None, ["type=tmpfs,dst=/run,tmpfs-size=64m,tmpfs-mode=1750,readonly"]).tmpfs
    assert long == (sized._replace(flags=usual | 0x1),)
    assert parse(None, None, {"/run": "size=10%,uid=33"}).tmpfs[0].options == "size=10%,uid=33"


@pytest.mark.parametrize(
    "said", ["/run", ["run"], ["/"], ["/run:size"], ["/run:size=x"], ["/run:mode=9"], ["/run:dirsync"], ["/r\0n"]]
)
def test_what_is_no_memory_is_said(said: object) -> None:
    with pytest.raises(ConfigurationError, match="tmpfs"):
        parse(None, None, said)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="tmpfs"):
        parse(None, ["type=bind,source=/tmp,target=/x,tmpfs-size=1m"])


@pytest.mark.parametrize("size", [0, -1, "much"])
def test_a_shm_of_no_size_is_refused(size: int | str) -> None:
    with pytest.raises(ConfigurationError):
        tmpfs.shm_bytes(size)


@pytest.mark.parametrize(
    "text", ["", "type=bind,source=/tmp", "type=npipe,source=/tmp,target=/x", "target=/x", "source=a,target=/x,ro=no"]
)
def test_what_is_no_mount_is_said(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(None, [text])


def test_what_lies_within_another_comes_after_it(tmp_path: Path) -> None:
    mounts = {"/a/b/c": tmp_path, "/a": tmp_path, "/a/b": tmp_path}
    assert [mounted.target for mounted in parse(None, mounts).shares] == ["/a", "/a/b", "/a/b/c"]


@pytest.mark.parametrize(
    "volumes",
    [
        ["/tmp"],
        [":/work"],
        ["/tmp:/work:rx"],
        ["/tmp:/work:ro:z"],
        ["/tmp:work"],
        ["/tmp:/"],
        "/tmp:/work",
        {"/tmp": {}},
    ],
)
def test_what_is_no_volume_is_said(volumes: object) -> None:
    with pytest.raises(ConfigurationError):
        parse(volumes, None)  # type: ignore[arg-type]


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShareNotFound, match="missing") as caught:
        parse([f"{tmp_path}/missing:/work"], None)
    assert isinstance(caught.value, FileNotFoundError) and caught.value.code == "share.not-found"
    with pytest.raises(ConfigurationError, match="two shares, volumes or tmpfs"):
        parse([f"{tmp_path}:/work"], {"/work/": tmp_path})
    with pytest.raises(ConfigurationError, match="cache"):
        parse(None, {"/work": Share(tmp_path, cache="later")})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=str(MAX_SHARES)):
        parse(None, {f"/{number}": tmp_path for number in range(MAX_SHARES + 1)})
