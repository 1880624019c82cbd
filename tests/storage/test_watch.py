"""What the host changes in a share that is watched, as a program of the guest's hears of it (inotify)."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supermachine import VM, Share
from supermachine.errors import ConfigurationError

from ..vm.conftest import packages, umoci_layout
from ..vm.guests import output

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
PROGRAM = Path(__file__).with_name("watcher.c")
_ENDS = itertools.count()


class Watcher:
    """The program, which watches places of the guest's; the first is the share that is at `top` on the host."""

    def __init__(self, vm: VM, top: Path, *places: str) -> None:
        self._top = top
        self._place = places[0]
        self._process: Any = vm.popen(["/watcher", *places], stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready"

    def _line(self) -> str:
        line = self._process.stdout.readline()
        assert line, "the program has ended"
        return str(line).rstrip("\n")

    def told(self) -> list[str]:
        """What was told since the last time. A directory that the host makes now is the last of it."""
        name = f"end{next(_ENDS)}"
        (self._top / name).mkdir()
        lines = []
        while (line := self._line()) != f"{self._place} CREATE,DIR {name}":
            lines.append(line)
        return lines


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    (src / "directory").mkdir(parents=True)
    (src / "file").write_text("of the host\n")
    return src


@pytest.fixture
def started(c_program: Callable[[Path, str], Path]) -> Callable[[VM], VM]:
    def put(vm: VM) -> VM:
        vm.copy_in(c_program(PROGRAM, output(vm, "uname -m").strip()), "/watcher")
        return vm

    return put


@pytest.mark.parametrize("read_only", [False, True])
def test_each_kind_of_change(src: Path, started: Callable[[VM], VM], read_only: bool) -> None:
    with VM(str(BUSYBOX), mounts={"/work": Share(src, read_only=read_only, watch=True)}, user="1234:567") as vm:
        watcher = Watcher(started(vm), src, "/work", "/work/directory", "/work/file")
        # The guest has it in its memory, and reads it anew.
        assert output(vm, "cat /work/file") == "of the host\n"
        (src / "file").write_text("OF THE HOST\n")
        told = watcher.told()
        assert set(told) == {f"/work{of}" for of in (" MODIFY file", " CLOSE file", "/file MODIFY -", "/file CLOSE -")}
        assert output(vm, "cat /work/file") == "OF THE HOST\n"
        (src / "file").chmod(0o600)
        assert sorted(watcher.told()) == ["/work ATTRIB file", "/work/file ATTRIB -"]
        (src / "new").write_text("new\n")
        assert watcher.told() == ["/work CREATE new", "/work MODIFY new", "/work CLOSE new"]
        (src / "new").rename(src / "directory" / "renamed")
        assert sorted(watcher.told()) == ["/work FROM new", "/work/directory TO renamed"]
        assert output(vm, "cat /work/directory/renamed; ls /work/new 2>&1 || true").startswith("new\nls: /work/new: No")
        (src / "file").rename(src / "other")
        assert sorted(watcher.told()) == ["/work FROM file", "/work TO other", "/work/file MOVED -"]
        (src / "directory" / "renamed").unlink()
        assert watcher.told() == ["/work/directory DELETE renamed"]
        (src / "link").symlink_to("/nowhere")
        os.mkfifo(src / "fifo")
        assert watcher.told() == ["/work CREATE link", "/work CREATE fifo"]
        (src / "other").unlink()
        assert "/work DELETE other" in (told := watcher.told()) and "/work/file GONE -" in told, told
        (src / "directory").rmdir()
        assert sorted(watcher.told()) == ["/work DELETE,DIR directory", "/work/directory GONE -"]
        assert output(vm, "ls -A /work").split() == sorted(os.listdir(src))


def test_changes_of_the_guest_s_own_are_told_once_and_stay(src: Path, started: Callable[[VM], VM]) -> None:
    with VM(str(BUSYBOX), mounts={"/work": Share(src, watch=True)}) as vm:
        watcher = Watcher(started(vm), src, "/work", "/work/directory")
        output(vm, "cd /work && echo made > made && mv made directory/moved && chmod 600 file && mkdir d && rmdir d")
        output(vm, "cd /work && ln file linked && rm linked && rm directory/moved")
        told = watcher.told()
        expected = [
            "/work CREATE made",
            "/work MODIFY made",
            "/work CLOSE made",
            "/work FROM made",
            "/work ATTRIB file",
            "/work CREATE,DIR d",
            "/work DELETE,DIR d",
            "/work CREATE linked",
            "/work DELETE linked",
        ]
        assert [line for line in told if line.startswith("/work ")] == expected
        assert [line for line in told if not line.startswith("/work ")] == [
            "/work/directory TO moved",
            "/work/directory DELETE moved",
        ]
    assert sorted(name for name in os.listdir(src) if not name.startswith("end")) == ["directory", "file"]
    assert (src / "file").read_text() == "of the host\n"


def test_new_directories_forks_and_restored_guests_are_watched(
    src: Path, started: Callable[[VM], VM], tmp_path: Path
) -> None:
    share = {"/work": Share(src, watch=True)}
    with VM(str(BUSYBOX), mounts=share) as vm:
        Watcher(started(vm), src, "/work")
        (src / "a").mkdir()
        (src / "a" / "b").mkdir()
        output(vm, "while test ! -e /work/a/b; do sleep 0.1; done")
        vm.snapshot(tmp_path / "snapshot")
        with vm.fork()[0] as fork:
            # What the guest knew before, it knows anew once it is used.
            output(fork, "ls /work/a/b")
            watcher = Watcher(fork, src, "/work", "/work/a/b")
            (src / "a" / "b" / "file").write_text("")
            assert watcher.told() == ["/work/a/b CREATE file", "/work/a/b CLOSE file"]
    with VM.restore(tmp_path / "snapshot", mounts=share) as vm:
        output(vm, "ls /work/a/b")
        watcher = Watcher(vm, src, "/work", "/work/a/b")
        # What is replaced is another file, and nothing of it is removed.
        (src / "a" / "b" / "new").write_text("new\n")
        (src / "a" / "b" / "new").replace(src / "a" / "b" / "file")
        told = watcher.told()
        assert told[-2:] == ["/work/a/b FROM new", "/work/a/b TO file"], told
        assert output(vm, "cat /work/a/b/file") == (src / "a" / "b" / "file").read_text() == "new\n"


def _said(vm: VM, line: str) -> list[str]:
    """What a watcher of the guest's has said up to this line; its output is a file, which clones have as well."""
    output(vm, f"while ! grep -q '{line}' /tmp/said; do sleep 0.1; done")
    return output(vm, "cat /tmp/said").splitlines()


def test_a_program_that_watched_before_goes_on_hearing_in_clones(
    src: Path, started: Callable[[VM], VM], tmp_path: Path
) -> None:
    share = {"/work": Share(src, watch=True)}
    (src / "directory" / "kept").write_text("one\n")
    with VM(str(BUSYBOX), mounts=share) as vm:
        started(vm).popen("exec /watcher /work /work/directory /work/directory/kept > /tmp/said", shell=True)
        _said(vm, "ready")
        vm.snapshot(tmp_path / "snapshot")
        with vm.fork()[0] as fork:
            (src / "directory" / "kept").write_text("two\n")
            (src / "directory" / "end").write_text("")
            for guest in (vm, fork):
                told = _said(guest, "CLOSE end")
                assert "/work/directory MODIFY kept" in told and "/work/directory/kept MODIFY -" in told
                assert told[-2:] == ["/work/directory CREATE end", "/work/directory CLOSE end"]
    (src / "directory" / "end").unlink()
    # What the host does while no guest is there, no guest hears of.
    (src / "directory" / "meanwhile").write_text("")
    with VM.restore(tmp_path / "snapshot", mounts=share) as vm:
        (src / "directory" / "kept").rename(src / "renamed")
        (src / "end").mkdir()
        told = _said(vm, "CREATE,DIR end")
        assert sorted(told) == [
            "/work CREATE,DIR end",
            "/work TO renamed",
            "/work/directory FROM kept",
            "/work/directory/kept MOVED -",
            "ready",
        ]


#: watchdog (Debian's python3-watchdog), as servers that reload use it.
_WATCHDOG = """
import time
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

class Tells(FileSystemEventHandler):
    def on_any_event(self, event):
        print(event.event_type, event.src_path, getattr(event, "dest_path", ""), flush=True)

observer = Observer()
observer.schedule(Tells(), "/work", recursive=True)
observer.start()
print(type(observer).__name__, flush=True)
time.sleep(1000)
"""


@pytest.mark.vm
def test_a_library_that_watches_trees(src: Path, tmp_path: Path) -> None:
    tar = packages(tmp_path / "rootfs.tar", "python3,python3-watchdog,coreutils,dash,base-files,base-passwd")
    image = umoci_layout(tmp_path / "oci", [tar], "--config.env", "PATH=/usr/bin:/bin")
    with VM(image, memory="256m", mounts={"/work": Share(src, watch=True)}) as vm:
        process: Any = vm.popen(["python3", "-c", _WATCHDOG], stdout=subprocess.PIPE, text=True)

        def told(last: str) -> list[str]:
            lines: list[str] = []
            while not lines or lines[-1] != last:
                line = process.stdout.readline()
                assert line, "the program has ended"
                lines.append(line.rstrip("\n"))
            return lines

        told("InotifyObserver")
        (src / "directory" / "new").write_text("new\n")
        # In a directory that it has not seen yet.
        assert "created /work/directory/new " in told("closed /work/directory/new ")
        (src / "made" / "below").mkdir(parents=True)
        told("created /work/made/below ")
        (src / "directory" / "new").rename(src / "made" / "below" / "moved")
        told("moved /work/directory/new /work/made/below/moved")
        (src / "made" / "below" / "moved").unlink()
        told("deleted /work/made/below/moved ")


def test_what_cannot_be_watched_ends_the_start(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from supermachine import _core

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(src))

    monkeypatch.setattr(_core, "watch_share", full)
    with (
        pytest.raises(ConfigurationError, match="too many directories"),
        VM(str(BUSYBOX), mounts={"/work": Share(src, watch=True)}),
    ):
        pass
