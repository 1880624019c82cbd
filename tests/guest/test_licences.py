"""What the wheel is compiled from is all under licences that let it be passed on with their texts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import third_party
from tests.real import unavailable

ROOT = Path(__file__).parents[2]
SHIPPED = ["supermachine-worker", "supermachine-python", "supermachine-agent"]
FREE = {
    "Apache-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}
LINE = re.compile(r"^(\S+) (\d\S*): (.+)$", re.MULTILINE)


def test_every_crate_is_listed_with_a_licence_that_lets_it_be_passed_on() -> None:
    if shutil.which("cargo") is None:
        unavailable("not installed: cargo")
    text = third_party.collect(ROOT, SHIPPED, None)
    listed = {name: licence for name, _, licence in LINE.findall(text.split("-" * 80)[0])}
    assert {"libc", "postcard", "pyo3", "serde_derive"} <= listed.keys()
    # What only tests use is in no wheel.
    assert "proptest" not in listed
    for name, licence in listed.items():
        terms = re.split(r" OR | AND |/| WITH LLVM-exception|[()]", licence)
        assert {term.strip() for term in terms if term.strip()} <= FREE, f"{name} is under {licence}"
    assert "Permission is hereby granted, free of charge" in text


def test_the_agents_crates_are_named_in_the_guests_notice() -> None:
    if shutil.which("cargo") is None:
        unavailable("not installed: cargo")
    text = third_party.collect(ROOT, ["supermachine-agent"], "aarch64-unknown-linux-gnu")
    # Run while a macro is compiled, and are in no executable.
    compiling = {"proc-macro2", "quote", "syn", "unicode-ident"}
    notice = set(re.findall(r"[\w-]+", (ROOT / "guest" / "NOTICE").read_text()))
    listed = {name for name, _, _ in LINE.findall(text.split("-" * 80)[0])} - compiling
    assert listed
    assert listed <= notice
