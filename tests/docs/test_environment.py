"""Variables of the environment are written once, and their page says the same."""

import re
from pathlib import Path

from supermachine import env

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_the_modules():
    assert (ROOT / "docs" / "reference" / "environment.md").read_text() == env.page()


def test_no_module_names_a_variable_of_its_own():
    named = re.compile(r"""["']SUPERMACHINE_[A-Z_]+["']""")
    package = ROOT / "python" / "supermachine"
    found = [p.name for p in package.rglob("*.py") if p.name != "env.py" and named.search(p.read_text())]
    assert found == []


def test_every_variable_is_read_somewhere():
    package = ROOT / "python" / "supermachine"
    text = "".join(p.read_text() for p in package.rglob("*.py") if p.name != "env.py")
    names = {name for name, value in vars(env).items() if isinstance(value, str) and value.startswith("SUPERMACHINE_")}
    assert {getattr(env, name) for name in names} == env.VARIABLES.keys()
    assert [name for name in sorted(names) if f"env.{name}" not in text] == []
