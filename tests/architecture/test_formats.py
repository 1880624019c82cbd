"""A changed format is noticed, and a constant that has to be raised with it is."""

from __future__ import annotations

import json

import pytest

from . import formats
from .formats import FORMATS, POLICY, RECORD, Format


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_stays_or_its_change_is_meant(name: str) -> None:
    before, now = json.loads(RECORD.read_text(encoding="utf-8"))[name], formats.states()[name]
    kind = FORMATS[name]
    if kind.version is not None and before["shape"] != now["shape"]:
        assert before["version"] != now["version"], (
            f"{name}: {kind.file} has changed and {kind.version[1]} of {kind.version[0]} has not; "
            f"read {POLICY}, then {kind.first}"
        )
    assert now == before, (
        f"{name}: {kind.file} has changed; read {POLICY}, then {kind.first}; "
        "then `python -m tests.architecture.formats` writes it down"
    )


def test_every_format_is_written_down() -> None:
    assert set(json.loads(RECORD.read_text(encoding="utf-8"))) == set(FORMATS)


PYTHON = """
_MAGIC = b"x"
class Saved:
    "What is saved."
    count: int
    def encode(self):
        "Its bytes."
        return [self.count]
    def other(self):
        return 1
"""
RUST = """
pub const MAGIC: [u8; 2] = *b"xy";
/// What is saved.
pub struct Saved {
    /// How many.
    pub count: u32,
}
impl Saved {
    pub(super) fn encode(&self) -> Vec<u8> {
        if self.count == 0 {
            return vec![];
        }
        self.count.to_le_bytes().to_vec()
    }
    fn other(&self) -> u32 {
        1
    }
}
#[cfg(test)]
mod tests {
    struct Unsaved {
        a: u8,
    }
}
"""
#: Names that are asked for, replacements that are seen, and such that are not.
CASES = [
    (
        *("a.py", PYTHON, ("_MAGIC", "Saved", "Saved.encode")),
        [('b"x"', 'b"y"'), ("count: int", "count: str"), ("[self.count]", "[self.count, 0]")],
        [("Its bytes", "All bytes"), ("return 1", "return 2")],
    ),
    (
        *("a.rs", RUST, ("MAGIC", "Saved", "encode")),
        [('b"xy"', 'b"xz"'), ("count: u32", "count: u64"), ("to_le_bytes", "to_be_bytes")],
        [("How many", "Number"), ("        1\n", "        2\n"), ("a: u8", "a: u16")],
    ),
    (
        *("b.rs", RUST, ()),
        [("count: u32", "count: u64")],
        [("How many", "Number"), ("to_le_bytes", "to_be_bytes"), ("a: u8", "a: u16")],
    ),
]


@pytest.mark.parametrize(("file", "text", "names", "seen", "unseen"), CASES, ids=[case[0] for case in CASES])
def test_what_decides_the_bytes_counts_and_nothing_else(file, text, names, seen, unseen, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "ROOT", tmp_path)

    def shape(changed: str) -> str:
        (tmp_path / file).write_text(changed, encoding="utf-8")
        return formats.shape(Format(file, names, ""))

    before = shape(text)
    for old, new in [*seen, *unseen]:
        assert old in text
        assert (shape(text.replace(old, new)) != before) == ((old, new) in seen), (old, new)


def test_a_name_that_is_gone_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "ROOT", tmp_path)
    (tmp_path / "a.rs").write_text(RUST, encoding="utf-8")
    with pytest.raises(AssertionError, match="not there any more: \\['gone'\\]"):
        formats.shape(Format("a.rs", ("encode", "gone"), ""))
