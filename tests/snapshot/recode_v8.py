"""Takes a snapshot file of version 8 apart and puts it together again, with nothing of the writer that ships.

`recode_v8.py recode IN OUT` checks all that a writer promises and writes the same again; `recode_v8.py bare IN OUT`
leaves out what a writer may leave out.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import format_v8

#: Stretches of RAM that are zero become holes.
HOLE = 65536
#: Registers that a writer could not read may be missing.
OPTIONAL_SYSTEM = {format_v8.encoding(format_v8.SYSTEM[name]) for name in ("CONTEXTIDR_EL1", "PAR_EL1")}
OPTIONAL_ICC = {format_v8.encoding(format_v8.ICC["RPR"])}


def check(state: dict, metadata: bytes, length: int) -> None:
    """Asserts what every writer promises; `metadata` is all that is before RAM."""
    assert metadata == format_v8.encode_metadata(state)
    assert length == len(metadata) + state["memory_bytes"]
    assert state["vcpus"]
    counter = state["captured_mach_time"] - state["vcpus"][0]["vtimer_offset"]
    assert counter % 2**64 == state["captured_cntvct"]
    for vcpu in state["vcpus"]:
        ids = {name: tuple(number for number, _ in vcpu[name]) for name in ("gp", "simd", "sys", "icc", "redist")}
        assert ids["gp"] == format_v8.GENERAL
        assert ids["simd"] == format_v8.SIMD
        assert ids["sys"] == tuple(register for register in format_v8.SYSTEM_IDS if register in ids["sys"])
        assert ids["icc"] == tuple(register for register in format_v8.ICC_IDS if register in ids["icc"])
        assert ids["redist"] == format_v8.REDISTRIBUTOR
        assert vcpu["gp"][29] == vcpu["gp"][31], "FP"
        assert vcpu["gp"][30] == vcpu["gp"][32], "LR"


def bare(state: dict) -> None:
    """Leaves out registers that a writer could not read."""
    for vcpu in state["vcpus"]:
        vcpu["sys"] = [entry for entry in vcpu["sys"] if entry[0] not in OPTIONAL_SYSTEM]
        vcpu["icc"] = [entry for entry in vcpu["icc"] if entry[0] not in OPTIONAL_ICC]


def recode(source: Path, target: Path, change: Callable[[dict], None] = lambda _: None) -> dict:
    """Writes the same snapshot, changed, to a new file. Gives its state."""
    with (
        source.open("rb") as taken,
        target.open("xb") as made,
        mmap.mmap(taken.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        state, ram_offset = format_v8.decode(data)
        check(state, data[:ram_offset], len(data))
        change(state)
        made.write(format_v8.encode_metadata(state))
        ram = made.tell()
        made.truncate(ram + state["memory_bytes"])
        for start in range(0, state["memory_bytes"], HOLE):
            chunk = data[ram_offset + start : ram_offset + min(start + HOLE, state["memory_bytes"])]
            if chunk.count(0) != len(chunk):
                made.seek(ram + start)
                made.write(chunk)
    return state


def main() -> None:
    how, source, target = sys.argv[1:]
    state = recode(Path(source), Path(target), {"recode": lambda _: None, "bare": bare}[how])
    print(
        f"vcpus {len(state['vcpus'])} devices {len(state['devices'])} "
        f"memory {state['memory_bytes']} ram_gpa {state['ram_gpa']:#x}"
    )


if __name__ == "__main__":
    main()
