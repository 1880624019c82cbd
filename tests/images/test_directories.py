"""Where the cache is, for users that have no home, and of whom its contents are believed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supermachine import directories, errors, shortage
from supermachine.cache.store import Cache
from supermachine.cli.run import fast
from supermachine.host import doctor
from supermachine.images import resolve
from supermachine.images.resolution import Converter
from supermachine.oci.credentials import find_credentials
from supermachine.oci.references import absolute
from supermachine.snapshots.baking import Baked

from .test_cache import layout_of

NOBODY = 54_321
as_root = pytest.mark.skipif(os.getuid() != 0, reason="takes on another user's id")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SUPERMACHINE_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)


def without_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    monkeypatch.delenv("HOME", raising=False)


def test_who_has_no_home_has_a_cache_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_entry(monkeypatch)
    assert directories.home() is None
    assert directories.cache_directory() == f"{tmp_path}/tmp/supermachine-{NOBODY}"
    for relative in ("", "~", "here", "./here"):
        monkeypatch.setenv("HOME", relative)
        assert directories.cache_directory() == f"{tmp_path}/tmp/supermachine-{NOBODY}"
    monkeypatch.setenv("TMPDIR", "relative")
    assert directories.cache_directory() == f"/tmp/supermachine-{NOBODY}"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    assert find_credentials("example.test").credentials is None
    assert absolute("~/x") == tmp_path / "~" / "x"
    assert "no home directory" in doctor.examine().text()


def test_a_relative_home_gives_way_to_the_entry_in_passwd(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setenv("HOME", "relative")
    assert directories.home() == pwd.getpwuid(os.getuid()).pw_dir
    assert "HOME is 'relative'" in doctor.examine().text()


@pytest.mark.parametrize("path", ["~/x", "~", "~nobody-of-that-name/x"])
def test_a_tilde_that_stands_for_nothing_is_refused(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_entry(monkeypatch)
    monkeypatch.setenv("SUPERMACHINE_CACHE", path)
    with pytest.raises(errors.ConfigurationError, match="home directory") as caught:
        directories.cache_directory()
    assert caught.value.hint
    assert "nobody's home directory" in doctor.examine().text()
    assert "~" not in os.listdir(tmp_path)


@as_root
def test_a_home_that_cannot_be_written_to() -> None:
    """In a child that is another user, for root may write anywhere."""
    code = "print(directories.cache_directory())"
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os; from supermachine import directories; os.setegid({NOBODY}); os.setuid({NOBODY}); {code}",
        ],
        env={"HOME": "/", "PATH": os.environ["PATH"], "TMPDIR": "/tmp", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == f"/tmp/supermachine-{NOBODY}\n"


@pytest.mark.parametrize("how", ["written by all", "written by a group", "another's", "another's link"])
@pytest.mark.parametrize("below", ["", "snapshots", "starts"])
def test_what_others_could_have_written_is_refused_by_name(how: str, below: str, tmp_path: Path) -> None:
    if how.startswith("another") and os.getuid() != 0:
        pytest.skip("takes root")
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    place = cache.directory / below
    if how == "another's":
        os.chown(place, NOBODY, -1)
    elif how == "another's link":
        place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path / "moved")
        os.chown(place, NOBODY, -1, follow_symlinks=False)
    else:
        os.chown(place, -1, NOBODY) if os.getuid() == 0 else None
        place.chmod(0o777 if how == "written by all" else 0o770)
    again = Cache(cache.directory)
    for use in (again.prepare, again.images, lambda: resolve("a.test/b", cache=again, pull="never")):
        with pytest.raises(errors.CacheNotTrusted) as caught:
            use()
        assert str(place) in str(caught.value)
        assert caught.value.hint
    assert str(place) in "".join(doctor._cache_problems(str(cache.directory)))


def test_a_private_group_is_nobody_else(tmp_path: Path) -> None:
    if os.getuid() != os.getgid():
        pytest.skip("this user's group has another number")
    tmp_path.chmod(0o770)
    assert directories.distrust(tmp_path) is None
    tmp_path.chmod(0o772)
    assert directories.distrust(tmp_path) == "can be written by other users"


def test_memory_that_others_could_have_written_is_not_run(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    baked = Baked(cache, "0" * 64)
    baked.directory.mkdir(mode=0o700)
    baked.path.write_bytes(b"memory")
    baked.path.chmod(0o600)
    with baked.usable() as there:
        assert there
    for path, mode in ((baked.path, 0o622), (baked.directory, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(errors.CacheNotTrusted, match="not run"), baked.usable():
            pytest.fail("it would be run")
        path.chmod(before)


def filled(tmp_path: Path, converter: Converter) -> tuple[str, Cache]:
    layout = layout_of(tmp_path / "layout", one=b"1" * 9000)
    cache = Cache(tmp_path / "cache")
    reference = f"oci:{layout}:one"
    resolve(reference, cache=cache, converter=converter)
    return reference, cache


def test_a_filled_cache_that_cannot_be_written_to_serves(
    tmp_path: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, cache = filled(tmp_path, converter)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(cache.directory))

    monkeypatch.setattr("supermachine.cache.store.acquire", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    again = Cache(cache.directory)
    assert resolve(reference, cache=again, converter=converter).rootfs.exists()
    # Under another name there is something to be noted down, which does no harm when it cannot be.
    moved = tmp_path / "moved"
    (tmp_path / "layout").rename(moved)
    assert resolve(f"oci:{moved}:one", cache=again, converter=converter).rootfs.exists()
    other = layout_of(tmp_path / "other", one=b"2")
    with pytest.raises(errors.CacheError, match="cannot write to the cache") as caught:
        resolve(f"oci:{other}:one", cache=again, converter=converter)
    assert "SUPERMACHINE_CACHE" in str(caught.value.hint)


def test_a_cache_whose_path_is_not_utf_8(tmp_path: Path, converter: Converter) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    os.mkdir(place, 0o700)
    reference, cache = filled(Path(place), converter)
    assert [image.references for image in cache.images()] == [(reference,)]
    assert directories.shown(place) == f"{tmp_path}/\\xff\\xfe"
    directories.shown(cache.directory).encode()


def test_a_shortage_names_whose_limit_it_is() -> None:
    for number, expected in (
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "memory"),
        (errno.EAGAIN, ""),
    ):
        found = shortage.named(OSError(number, os.strerror(number)), "it cannot be done")
        assert found is not None
        assert str(found).startswith("it cannot be done: ")
        assert found.errno == number
        assert expected in str(found.hint)
        assert found.cause
    assert shortage.named(OSError(errno.ENOENT, "x"), "y") is None
    said = shortage.in_words("guest memory cannot be had: Cannot allocate memory (os error 12)")
    assert said is not None
    assert said.errno == errno.ENOMEM
    for nothing in ("", "(os error ", "(os error 2)", "(os error x)", "(os error 99999999999999999999)"):
        assert shortage.in_words(nothing) is None


@pytest.mark.parametrize(
    ("error", "whole", "stays", "again"),
    [
        (errors.HostShortage("no memory"), True, True, False),
        (errors.HostShortage("no memory"), False, True, False),
        (errors.VMTimeout("a busy host"), True, True, False),
        (errors.VMExited("a signal", reason="crashed"), True, True, False),
        (errors.BadSnapshot("another host's"), True, True, False),
        (errors.RenewFailed("no answer"), True, True, False),
        (errors.VMTimeout("a guest whose memory is wrong"), False, False, True),
        (errors.BadSnapshot("damaged"), False, False, True),
    ],
)
def test_only_what_is_proved_to_be_damaged_is_removed(
    error: errors.SupermachineError,
    whole: bool,
    stays: bool,
    again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if whole:
        monkeypatch.setattr("supermachine._core.verify_snapshot", lambda _path: "id")
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    baked = Baked(cache, "0" * 64)
    baked.directory.mkdir(mode=0o700)
    baked.path.write_bytes(b"not a snapshot")
    baked.path.chmod(0o600)
    try:
        with baked.usable():
            raise error
    except errors.HostShortage:
        assert isinstance(error, errors.HostShortage)
    assert baked.exists() == stays
    assert baked.refused == again


def test_a_shortage_while_it_is_proved_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    baked = Baked(cache, "0" * 64)
    baked.directory.mkdir(mode=0o700)
    baked.path.write_bytes(b"not a snapshot")
    baked.path.chmod(0o600)

    def short(_path: str) -> None:
        raise errors.SnapshotError("too many open files")

    monkeypatch.setattr("supermachine._core.verify_snapshot", short)
    with baked.usable():
        raise errors.BadSnapshot("it cannot be read")
    assert baked.exists()


@pytest.mark.parametrize("field", ["snapshot", "rootfs", "working_set", "image_record"])
def test_what_a_start_is_remembered_to_be_is_in_the_cache(field: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    baked = cache.directory / "snapshots" / ("0" * 64)
    baked.mkdir(mode=0o700)
    names = {
        "snapshot": f"{baked}/snapshot",
        "working_set": f"{baked}/working-set",
        "rootfs": f"{cache.directory}/rootfs/{'1' * 64}.erofs",
        "image_record": f"{cache.directory}/images/{'2' * 64}.json",
    }

    def start(**changed: str) -> fast.Start:
        given = {**names, **changed}
        return fast.Start(
            **given,
            engine="soft",
            warning="",
            working_dir="",
            user="",
            environment={},
            entrypoint=[],
            cmd=[],
            depends={},
        )

    assert start().is_of(str(cache.directory))
    assert start(working_set="").is_of(str(cache.directory))
    name = os.path.basename(names[field])
    for outside in (
        str(tmp_path / name),
        f"{os.path.dirname(names[field])}/../{os.path.basename(os.path.dirname(names[field]))}/{name}",
        f"{os.path.dirname(names[field])}/..",
        name,
    ):
        assert not start(**{field: outside}).is_of(str(cache.directory)), outside
    baked.chmod(0o777)
    assert not start().is_of(str(cache.directory))


@pytest.mark.parametrize("name", ["cache", "data", "keys", "runtime"])
def test_the_variable_that_names_nobodys_home_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variable = f"SUPERMACHINE_{name.upper()}"
    monkeypatch.setenv(variable, "~nobody-of-this-name/x")
    with pytest.raises(errors.ConfigurationError, match=f"{variable} is .* nobody's home directory"):
        getattr(directories, f"{name}_directory")()
