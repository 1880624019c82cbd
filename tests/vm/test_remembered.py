"""The short way of `supermachine run`: that it does the same as the whole one, and when it must not be gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supermachine.cli.run.fast import _SETTLED, Start
from supermachine.host import bundle

from ..processes import line, running
from ..real import RealRegistry, require, run
from .conftest import BUSYBOX

pytestmark = pytest.mark.vm


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str
    #: Whether the short way was gone, as what Python loaded tells.
    short: bool


def sm(*words: str, **options: object) -> Done:
    """`supermachine run`, and what it loaded."""
    command = [sys.executable, "-X", "importtime", "-m", "supermachine", "run", "--engine", "soft", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, input="", **options)  # type: ignore[call-overload]
    lines = done.stderr.splitlines()
    loaded = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert "supermachine.cli.run.fast" in loaded
    return Done(done.returncode, done.stdout, said, "supermachine.machine.vm" not in loaded)


def _loaded(*words: str) -> set[str]:
    """The modules that Python loads for a program and its arguments."""
    command = [sys.executable, "-X", "importtime", "-c", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL)
    return {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, and an image that has been there for long enough to be remembered."""
    path = tmp_path_factory.mktemp("remembered")
    shutil.copy(BUSYBOX, path / "busybox.tar")
    time.sleep(_SETTLED + 0.1)
    return path


@pytest.fixture
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(place / "cache"))
    return place / "cache"


@pytest.fixture
def image(place: Path, own_cache: Path) -> Path:
    """An image whose short way is known, and no other."""
    path = place / "busybox.tar"
    time.sleep(max(0.0, path.stat().st_ctime + _SETTLED + 0.1 - time.time()))
    for start in starts(own_cache):
        start.unlink()
    learn(str(path))
    return path


@pytest.fixture
def settled() -> Callable[[], None]:
    """Waits until what was changed last is old enough to be remembered."""
    return lambda: time.sleep(_SETTLED + 0.1)


def learn(*words: str) -> None:
    """Goes the whole way until the short one is known: boot and bake, restore and record, and remember."""
    for _ in range(4):
        done = sm(*words, "true")
        assert (done.status, done.stdout) == (0, "")
        if done.short:
            return
    raise AssertionError("nothing is remembered")


def starts(cache: Path) -> list[Path]:
    return sorted((cache / "starts").glob("*"))


def known(cache: Path) -> Start:
    (start,) = starts(cache)
    return Start.decode(start.read_bytes())


SCRIPT = 'env | grep -v HOSTNAME; pwd; id; cat /etc/hostname | wc -c; echo "$@"; echo to stderr >&2; exit 7'


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-e", "A=b c", "-e", "INHERITED", "-w", "/made/for it", "-u", "12:34"],
        ["--entrypoint", "/bin/sh", "--no-stdin", "--no-tty"],
        ["--env-file", "{env}"],
        ["--timeout", "50", "--boot-timeout", "70", "-i", "--insecure", "--pull", "never"],
    ],
)
def test_both_ways_do_the_same(
    image: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("INHERITED", "from here")
    (tmp_path / "env").write_text("# variables\nFROM_FILE=1\n")
    words = [word.format(env=tmp_path / "env") for word in words]
    command = ["-c", SCRIPT, "x", "one", "two words"]
    command = command if "--entrypoint" in words else ["sh", *command]
    short = sm(*words, str(image), "--", *command)
    (start,) = starts(own_cache)
    start.unlink()
    whole = sm(*words, str(image), "--", *command)
    assert (short.short, whole.short) == (True, False)
    assert short[:3] == whole[:3]
    assert short.status == 7
    assert "two words\n" in short.stdout


@pytest.mark.parametrize(
    ("words", "status"),
    [(["no-such-program"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -TERM $$"], 128 + 15), (["cat"], 0)],
)
def test_exit_statuses(image: Path, words: list[str], status: int) -> None:
    done = sm(str(image), *words)
    assert (done.short, done.status) == (True, status)
    assert "Traceback" not in done.stderr


def test_the_images_own_command_is_known(own_cache: Path, tmp_path: Path, settled: Callable[[], None]) -> None:
    layout = _layout(tmp_path)
    run("umoci", "config", "--image", f"{layout}:v1", "--config.entrypoint", "echo", "--config.cmd", "by itself")
    settled()
    for _ in range(4):
        done = sm(f"oci:{layout}:v1")
        assert (done.status, done.stdout) == (0, "by itself\n")
    assert done.short
    assert sm(f"oci:{layout}:v1", "given").stdout == "given\n"
    assert sm("--entrypoint", "/bin/true", f"oci:{layout}:v1").stdout == ""


def test_a_signal_is_passed_on(image: Path) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    command = [sys.executable, "-m", "supermachine", "run", "--engine", "soft", str(image), "sh", "-c", script]
    with running(command, stdout=subprocess.PIPE) as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert line(process) == b"caught\n"
        assert process.wait(60) == 5


def test_no_process_is_left(busybox: str) -> None:
    learn(busybox)
    before = workers()
    assert sm(busybox, "true").short
    assert sm(busybox, "no-such-program").short
    assert workers() <= before


def workers() -> set[str]:
    found = subprocess.run(["pgrep", "-f", "supermachine-worker"], capture_output=True, text=True, check=False)
    return set(found.stdout.split())


# When the whole way must be gone.


def _layout(tmp_path: Path) -> Path:
    require("umoci", "skopeo")
    layout = tmp_path / "layout"
    run("skopeo", "copy", "-q", f"oci-archive:{BUSYBOX}", f"oci:{layout}:v1")
    return layout


def test_an_image_that_has_changed(own_cache: Path, tmp_path: Path, settled: Callable[[], None]) -> None:
    layout = _layout(tmp_path)
    settled()
    learn(f"oci:{layout}:v1")
    for word in ("one", "two"):
        run("umoci", "config", "--image", f"{layout}:v1", "--config.env", f"WORD={word}")
        done = sm(f"oci:{layout}:v1", "sh", "-c", "echo $WORD")
        assert (done.short, done.stdout) == (False, f"{word}\n")


def test_what_else_is_in_a_layouts_directory_is_no_matter(
    own_cache: Path, tmp_path: Path, settled: Callable[[], None]
) -> None:
    layout = _layout(tmp_path)
    settled()
    learn(str(layout))
    (layout / "another file").touch()
    assert sm(str(layout), "true").short
    (layout / "oci-layout").unlink()
    done = sm(str(layout), "true")
    assert (done.short, done.status) == (False, 125)


def test_an_archive_that_is_gone_or_another(image: Path, own_cache: Path) -> None:
    data = image.read_bytes()
    image.unlink()
    done = sm(str(image), "true")
    assert (done.short, done.status) == (False, 125)
    assert "there is no" in done.stderr
    image.write_bytes(data[:5000])
    assert sm(str(image), "true").status == 125
    image.write_bytes(data)
    assert not sm(str(image), "true").short


def test_a_change_just_now_is_not_remembered(image: Path, own_cache: Path, settled: Callable[[], None]) -> None:
    """Another one within the same tick of the file system's clock might not show."""
    os.utime(image)
    for _ in range(2):
        assert not sm(str(image), "true").short
    settled()
    assert not sm(str(image), "true").short
    assert sm(str(image), "true").short


def test_a_reference_of_a_registry_that_was_pulled_again(
    own_cache: Path, tmp_path: Path, settled: Callable[[], None]
) -> None:
    registry = RealRegistry(tmp_path / "registry")
    try:
        registry.push(f"oci-archive:{BUSYBOX}", "app:v1")
        reference = f"{registry.host}/app:v1"
        sm(reference, "true")
        settled()
        learn(reference)
        layout = _layout(tmp_path)
        run("umoci", "config", "--image", f"{layout}:v1", "--config.env", "WORD=new")
        registry.push(f"oci:{layout}:v1", "app:v1")
        assert sm(reference, "sh", "-c", "echo $WORD")[:2] == (0, "\n")
        assert not sm("--pull", "always", reference, "true").short
        done = sm(reference, "sh", "-c", "echo $WORD")
        assert (done.short, done.stdout) == (False, "new\n")
    finally:
        registry.close()


def test_a_local_image_of_the_same_name(tmp_path: Path, own_cache: Path, settled: Callable[[], None]) -> None:
    """A name is looked up in the working directory first, and again when something appears there."""
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    shutil.copy(BUSYBOX, place / "app.tar")
    settled()
    for _ in range(3):
        assert sm("app.tar", "true", cwd=place).status == 0
    assert sm("app.tar", "true", cwd=place).short
    done = sm("--pull", "never", "app.tar", "true", cwd=other)
    assert (done.short, done.status) == (False, 125)


@pytest.mark.parametrize("words", [["--no-snapshot"], ["--pull", "always"], ["--hostname", "me"], ["-p", "80"]])
def test_what_always_goes_the_whole_way(image: Path, words: list[str]) -> None:
    done = sm(*words, str(image), "true")
    assert (done.short, done.status) == (False, 0)


def test_another_machine(image: Path) -> None:
    done = sm("--memory", "300m", str(image), "sh", "-c", "grep MemTotal /proc/meminfo")
    assert not done.short
    assert sm("--cpus", "2", str(image), "nproc")[:2] == (0, "2\n")


def test_what_the_environment_says(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMACHINE_REQUIRE_HARDWARE", "1")
    done = sm(str(image), "true")
    assert (done.short, done.status) == (False, 125)
    monkeypatch.delenv("SUPERMACHINE_REQUIRE_HARDWARE")
    monkeypatch.setenv("SUPERMACHINE_NO_SNAPSHOT", "1")
    assert not sm(str(image), "true").short


def test_another_worker(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, settled: Callable[[], None]
) -> None:
    worker = tmp_path / "worker"
    shutil.copy(bundle.worker(), worker)
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(worker))
    settled()
    learn(str(BUSYBOX))
    os.utime(worker)
    assert not sm(str(BUSYBOX), "true").short


# When the short way ends in a wood.


@pytest.mark.parametrize("what", ["snapshot", "rootfs", "image_record", "working_set"])
def test_what_is_gone_from_the_cache_is_made_anew(image: Path, own_cache: Path, what: str) -> None:
    Path(getattr(known(own_cache), what)).unlink()
    assert sm(str(image), "echo", "hi")[:2] == (0, "hi\n")
    learn(str(image))


def test_a_damaged_snapshot_is_made_anew(image: Path, own_cache: Path) -> None:
    with open(known(own_cache).snapshot, "r+b") as file:
        file.write(b"no snapshot at all")
    done = sm(str(image), "echo", "hi")
    assert (done.status, done.stdout) == (0, "hi\n")
    assert "is made anew" in done.stderr
    assert starts(own_cache) == []
    learn(str(image))


def test_input_is_there_for_the_whole_way(image: Path, own_cache: Path) -> None:
    """A command is on its way to a guest before that is known to start; nothing is read for it until it runs."""
    with open(known(own_cache).snapshot, "r+b") as file:
        file.write(b"no snapshot at all")
    command = [sys.executable, "-m", "supermachine", "run", "--engine", "soft", "-q", str(image), "cat"]
    done = subprocess.run(command, input=b"all of it", capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, b"all of it")
    assert starts(own_cache) == []


def test_no_input_is_lost_to_a_program_that_is_not_there(image: Path) -> None:
    """As with a shell, what comes next has it."""
    words = [sys.executable, "-m", "supermachine", "run", "--engine", "soft", "-q", str(image), "no-such-program"]
    script = '"$@"; echo "$?"; cat'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "x", *words], input=b"left", capture_output=True, timeout=120, check=False
    )
    assert done.stdout == b"127\nleft"


def test_a_damaged_file_counts_as_none(image: Path, own_cache: Path) -> None:
    (start,) = starts(own_cache)
    data = bytearray(start.read_bytes())
    data[-1] ^= 1
    start.write_bytes(data)
    done = sm(str(image), "echo", "hi")
    assert (done.short, done.status, done.stdout) == (False, 0, "hi\n")
    assert sm(str(image), "true").short


def test_prune_forgets_all(image: Path, own_cache: Path) -> None:
    subprocess.run([sys.executable, "-m", "supermachine", "prune", "--all"], check=True, capture_output=True)
    assert starts(own_cache) == []
    assert sm(str(image), "echo", "hi")[:2] == (0, "hi\n")


def test_the_image_counts_as_used(image: Path, own_cache: Path) -> None:
    record = Path(known(own_cache).image_record)
    os.utime(record, (1, 1))
    assert sm(str(image), "true").short
    assert record.stat().st_mtime > 1


# The files.

texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


def made(values: Iterator[str], environment: dict[str, str], depends: dict[str, str], cmd: list[str]) -> Start:
    names = ("engine", "snapshot", "rootfs", "working_set", "image_record", "warning", "working_dir", "user")
    strings = dict(zip(names, values, strict=True))
    return Start(**strings, environment=environment, depends=depends, entrypoint=cmd[::-1], cmd=cmd)


starts_made = st.builds(
    made,
    st.lists(texts, min_size=8, max_size=8),
    st.dictionaries(texts, texts),
    st.dictionaries(texts, texts),
    st.lists(texts),
)


@given(starts_made)
def test_they_are_read_as_they_were_written(start: Start) -> None:
    assert vars(Start.decode(start.encode())) == vars(start)


@given(starts_made, st.data())
def test_damaged_ones_are_refused(start: Start, data: st.DataObject) -> None:
    good = start.encode()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), good[:at]):
        with pytest.raises(ValueError):
            Start.decode(bad)


def test_the_short_way_loads_next_to_nothing_of_pythons_library(image: Path) -> None:
    """Each module costs it a hundredth, and one like `threading` or `collections` a tenth."""
    program = "from supermachine.cli import main; main()"
    loaded = _loaded(program, "run", "--quiet", "--engine", "soft", str(image), "--", "true") - _loaded("pass")
    assert "supermachine.cli.run.fast" in loaded
    assert "supermachine.machine.vm" not in loaded
    assert {name for name in loaded if not name.startswith("supermachine")} <= {"__future__", "encodings.ascii", "gc"}
