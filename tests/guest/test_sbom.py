"""The list of what is in a wheel: complete, and of a form that others read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import build_backend
import sbom
import third_party
from tests.real import unavailable

ROOT = Path(__file__).parents[2]
FILES = [name for names in build_backend.GUEST_FILES.values() for name in names]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    if shutil.which("cargo") is None:
        unavailable("not installed: cargo")
    return sbom.document(ROOT, [build_backend.WORKER, build_backend.NETD], None, FILES)


def test_it_has_all_that_the_licences_are_collected_of(document: dict[str, Any]) -> None:
    text = third_party.collect(ROOT, [build_backend.WORKER, build_backend.NETD], None).split("-" * 80)[0]
    listed = set(re.findall(r"^(\S+) (\d\S*): ", text, re.MULTILINE))
    crates = {(c["name"], c["version"]): c for c in document["components"] if c["bom-ref"].startswith("pkg:cargo/")}
    assert listed
    assert listed <= crates.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", crate["hashes"][0]["content"]) for crate in crates.values())
    assert all(crate["licenses"][0]["expression"] for crate in crates.values())


def test_what_a_guest_boots_and_what_is_installed_along_are_in_it(document: dict[str, Any]) -> None:
    names = {component["name"] for component in document["components"]}
    manifest = json.loads((ROOT / "guest" / "manifest.json").read_text())
    assert {f"supermachine/_guest/{name}" for name in manifest} == {n for n in names if "/" in n}
    assert {"linux", "click", "rich", "urllib3"} <= names


def test_references_are_its_own_and_each_is_there_once(document: dict[str, Any]) -> None:
    references = [component["bom-ref"] for component in document["components"]]
    assert len(set(references)) == len(references)
    assert document["dependencies"] == [{"ref": "supermachine", "dependsOn": references}]


def test_the_same_sources_give_the_same_document(document: dict[str, Any]) -> None:
    again = sbom.document(ROOT, [build_backend.WORKER, build_backend.NETD], None, FILES)
    assert json.dumps(again) == json.dumps(document)
    assert str(ROOT) not in json.dumps(document)
