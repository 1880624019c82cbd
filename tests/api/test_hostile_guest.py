"""A guest's agent that answers what nobody asked, endlessly or never: typed errors, soon, and bounded memory."""

from __future__ import annotations

import pytest
from supermachine.errors import (
    AgentError,
    CommandNotStarted,
    FileTooLarge,
    SupermachineError,
    VMTimeout,
    printable,
)
from supermachine.guest import paths


@pytest.mark.parametrize("program", ["!status", "!signal"])
def test_an_end_that_no_process_has(guest, program):
    with pytest.raises(AgentError, match="no process ends with"):
        guest.run([program])
    assert guest.run(["true"]).returncode == 0


def test_control_characters_of_a_guest_stay_out_of_messages(guest):
    with pytest.raises(CommandNotStarted) as caught:
        guest.run(["!escape"])
    assert "title" in str(caught.value)
    assert printable(str(caught.value)) == str(caught.value)
    assert not any(c in str(caught.value) for c in "\x1b\x07\x9b")


def test_lines_and_letters_stay():
    assert printable("größer\n\tx\x1b[0m\u202e") == "größer\n\tx\\x1b[0m\\u202e"
    assert SupermachineError("a\x1b", cause="b\r").cause == "b\\x0d"


@pytest.mark.parametrize("name", ["endless", "name", "empty", "data"])
def test_a_directory_that_none_can_be(guest, name):
    with pytest.raises(AgentError):
        list(guest.path("/hostile", name).iterdir())
    assert guest.path("/").is_dir()


@pytest.mark.parametrize("name", ["data", "empty", "endless"])
def test_more_than_was_asked_for(guest, name):
    with pytest.raises(AgentError):
        guest.path("/hostile", name).open("rb", buffering=0)
    assert guest.path("/").is_dir()


@pytest.mark.parametrize("name", ["data", "endless", "errno", "other"])
def test_a_status_that_is_none(guest, name):
    with pytest.raises(AgentError):
        guest.path("/hostile", name).stat()
    assert guest.path("/").is_dir()


@pytest.mark.parametrize("name", ["silent", "drip"])
def test_an_answer_that_does_not_come(guest, monkeypatch, name):
    monkeypatch.setattr(paths, "ANSWER_TIMEOUT", 0.3)
    with pytest.raises(VMTimeout):
        guest.path("/hostile", name).stat()
    monkeypatch.undo()
    assert guest.path("/").is_dir()


def test_paths_are_as_long_as_linux_takes_them(guest):
    deep = guest.path("/" + "d/" * 3000)
    for ask in (deep.exists, deep.stat, deep.resolve):
        with pytest.raises(OSError, match="too long"):
            ask()
    assert str(guest.path("/nowhere/" + "d/" * 1500).resolve()).count("/d") == 1500


def test_a_glob_goes_deeper_than_calls_do(guest, tmp_path):
    place = tmp_path
    for _ in range(400):
        place = place / "d"
        place.mkdir()
    (place / "leaf").touch()
    import sys

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        found = [path.name for path in guest.path(tmp_path).rglob("leaf")]
    finally:
        sys.setrecursionlimit(before)
    assert found == ["leaf"]


def test_a_file_is_read_as_a_whole_up_to_a_limit(guest, tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    path = guest.path(tmp_path / "file")
    assert path.read_bytes(max_bytes=3) == b"abc"
    assert path.read_text(max_bytes=3) == "abc"
    for read in (path.read_bytes, path.read_text):
        with pytest.raises(FileTooLarge, match="more than 2 bytes") as raised:
            read(max_bytes=2)
        assert "max_bytes" in raised.value.hint
    # The connection goes on to be of use.
    assert path.read_bytes() == b"abc"
