"""What docs/reference/snapshot-format.md shows works, and what it says in numbers is so."""

from __future__ import annotations

import re
from pathlib import Path

import format_v9
import pytest
from supermachine import _core

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "snapshot-format.md"


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    sections = [("vcpu", 0, 1, True, b"registers")]
    _core.write_snapshot_v9("snapshot", format_v9.identity(), sections, bytes(4 * format_v9.PAGE), None, False)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "soft 1 16384 ['vcpu']\n"


def test_the_tables_of_fields():
    """Each fixed table adds up: every field begins where the one before ends."""
    sizes = {"u32": 4, "u64": 8}
    tables = re.findall(r"\| offset \| type \| field \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text())
    ends = []
    for table in tables:
        end = 0
        for row in table.splitlines():
            offset, kind = (cell.strip() for cell in row.split("|")[1:3])
            assert int(offset) == end, row
            end += sizes.get(kind) or int(kind.removesuffix(" bytes"))
        ends.append(end)
    assert ends == [format_v9.HEADER.size, format_v9.SECTION.size]
