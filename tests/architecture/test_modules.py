"""No circle between modules: neither in the Python package nor, at any level, in a Rust crate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grimp
import pytest

from .rust_modules import arrows, between_siblings

ROOT = Path(__file__).parents[2]
CRATES = sorted(path.parents[1] for path in ROOT.glob("rust/*/src/lib.rs")) + sorted(
    path.parents[1] for path in ROOT.glob("rust/*/src/main.rs") if not path.with_name("lib.rs").exists()
)

#: Arrows that may run back, each with the reason; one that is not there any more fails the test.
PYTHON_ALLOWED = {
    ("supermachine.machine.snapshot", "supermachine.machine.vm"): (
        "VM.snapshot gives a Snapshot and Snapshot.restore a VM: that is what users write"
    ),
}


def circles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The strongly connected sets of more than one module (Tarjan, SIAM J. Comput. 1972)."""
    graph: dict[str, set[str]] = {}
    for source, target in arrows:
        graph.setdefault(source, set()).add(target)
        graph.setdefault(target, set())
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for after in graph[node]:
            if after not in number:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], number[after])
        if low[node] == number[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in number:
            visit(node)
    return found


def test_the_python_package_has_no_circle() -> None:
    """Imports inside functions count; those that only a type checker sees do not."""
    graph = grimp.build_graph("supermachine", exclude_type_checking_imports=True, cache_dir=None)
    found = {(name, other) for name in graph.modules for other in graph.find_modules_directly_imported_by(name)}
    assert set(PYTHON_ALLOWED) <= found
    assert circles(found - set(PYTHON_ALLOWED)) == []


#: Circles between modules of a Rust crate that stand, each with the reason. One that is gone fails the test.
RUST_ALLOWED: dict[str, list[tuple[set[str], str]]] = {
    "agent": [
        (
            {"exec", "server", "spare", "spawn"},
            "spawn takes one function of server's; the process that spare keeps becomes what spawn has prepared",
        ),
    ],
    "engine": [
        ({"kvm::arm64::vcpu", "kvm::arm64::vm"}, "a vCPU holds what it shares with its VM, which makes it"),
        ({"kvm::x86_64::vcpu", "kvm::x86_64::vm"}, "a vCPU holds what it shares with its VM, which makes it"),
    ],
    "netd": [
        ({"incoming", "judging", "resolver", "segments", "server"}, "methods of Server, a file for each of its parts"),
    ],
    "snapshot": [
        ({"digest", "error"}, "errors name digests"),
        ({"v9::disk", "v9::reader"}, "a snapshot's disk is read through the snapshot"),
    ],
    "soft": [
        (
            {
                *("baked", "code", "cpu", "debug", "interp", "jit", "mem", "mmu", "requests", "state", "sysreg"),
                *("vcpu", "vm"),
            },
            "methods of one Cpu, a file for each of its parts: an instruction may need any of them",
        ),
        ({"jit::x86_64::block", "jit::x86_64::flags"}, "methods of one Translator"),
    ],
}


@pytest.mark.parametrize("crate", CRATES, ids=lambda path: path.name)
def test_a_crate_has_no_circle(crate: Path) -> None:
    found = between_siblings(arrows(crate))
    unexplained = []
    allowed = [names for names, _ in RUST_ALLOWED.get(crate.name, [])]
    for circle in circles(found):
        ties = {
            f"{'::'.join(one.source)} -> {'::'.join(one.target)}: {one.name}"
            for (a, b), ones in found.items()
            if a in circle and b in circle
            for one in ones
        }
        known = [names for names in allowed if set(circle) <= names]
        unexplained += [] if known else sorted(ties)
        allowed = [names for names in allowed if names not in known]
    assert unexplained == []
    assert allowed == [], "this circle is open now: take it from the list"


def test_the_reader_of_modules_sees_arrows(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "b").mkdir(parents=True)
    (source / "lib.rs").write_text("mod a;\nmod b;\nmod c;\npub use c::Error;\n")
    (source / "a.rs").write_text("use crate::b::{self, inner::{Deep, Deeper}};\n// use crate::c::No;\n")
    (source / "b" / "mod.rs").write_text("mod inner;\nmod twin;\nfn f() -> super::Error { }\n")
    (source / "b" / "inner.rs").write_text('const TEXT: &str = "crate::a::X"; use super::twin::Twin;\n')
    (source / "b" / "twin.rs").write_text("#[cfg(test)]\nmod tests {\n    use super::super::inner::Deep;\n}\n")
    (source / "c.rs").write_text("pub enum Error { A(crate::a::A) }\n")
    found = between_siblings(arrows(tmp_path))
    assert set(found) == {("a", "b"), ("b", "c"), ("b::inner", "b::twin"), ("c", "a")}
    assert {arrow.name for arrow in found["a", "b"]} == {"", "Deep", "Deeper"}
    assert circles(found) == [["a", "b", "c"]]
