"""States that a snapshot may hold."""

from __future__ import annotations

import format_v8
import format_v9
from hypothesis import strategies as st

u16, u32, u64, u128 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64, 128))
RAM_GPA = 0x8000_0000


@st.composite
def sparse_ram(draw: st.DrawFn, pages: int) -> bytes:
    """Zeros with some bytes in them."""
    ram = bytearray(pages * format_v9.PAGE)
    for at, content in draw(st.dictionaries(st.integers(0, len(ram) - 64), st.binary(max_size=64), max_size=6)).items():
        ram[at : at + len(content)] = content
    for page in draw(st.lists(st.integers(0, pages - 1), max_size=4)):
        start = page * format_v9.PAGE
        ram[start : start + format_v9.PAGE] = bytes([draw(st.integers(0, 255))]) * format_v9.PAGE
    return bytes(ram)


@st.composite
def registers(draw: st.DrawFn, ids: tuple[int, ...], mandatory, values) -> list[tuple[int, int]]:
    """In any order; what is not mandatory may be left out. An id that is there twice has one value."""
    kept = [number for number in ids if number in mandatory or draw(st.booleans())]
    given_values = {number: draw(values) for number in dict.fromkeys(kept)}
    order = draw(st.permutations(kept)) if draw(st.booleans()) else kept
    return [(number, given_values[number]) for number in order]


@st.composite
def vcpus(draw: st.DrawFn) -> dict:
    return {
        "vtimer_offset": draw(u64),
        "gp": draw(registers(format_v8.GENERAL, format_v8.GENERAL, u64)),
        "simd": draw(registers(format_v8.SIMD, format_v8.SIMD, u128)),
        "sys": draw(registers(format_v8.SYSTEM_IDS, format_v8.MANDATORY_IDS, u64)),
        "icc": draw(registers(format_v8.ICC_IDS, (), u64)),
        "redist": draw(registers(format_v8.REDISTRIBUTOR, format_v8.REDISTRIBUTOR, u64)),
    }


@st.composite
def queues(draw: st.DrawFn) -> tuple:
    if not draw(st.booleans()):
        return (draw(u16), False, draw(u64), draw(u64), draw(u64), draw(u16), draw(u16))
    size = 2 ** draw(st.integers(0, 6))
    next_used = draw(u16)
    last_avail = (next_used + draw(st.integers(0, size))) % 2**16
    # Places in the first page, far enough from its end.
    desc, avail, used = (RAM_GPA + 16 * draw(st.integers(0, 128)) for _ in range(3))
    return (size, True, desc, avail, used, last_avail, next_used)


@st.composite
def devices(draw: st.DrawFn) -> dict:
    return {
        "driver_features": (draw(u32), draw(u32)),
        "status": draw(u32),
        "interrupt_status": draw(u32),
        "queues": draw(st.lists(queues(), max_size=4)),
    }


@st.composite
def snapshots_v8(draw: st.DrawFn) -> tuple[dict, bytes]:
    """A state, and RAM."""
    ram = draw(sparse_ram(draw(st.sampled_from([1, 3, 16, 33]))))
    state = {
        "captured_mach_time": draw(u64),
        "captured_cntvct": draw(u64),
        "gic_blob": draw(st.binary(max_size=300)),
        "vcpus": draw(st.lists(vcpus(), min_size=1, max_size=3)),
        "devices": draw(st.lists(devices(), max_size=3)),
        "listeners": draw(st.lists(st.tuples(u64, u32, u32, u16, u16), max_size=4)),
        "memory_bytes": len(ram),
        "ram_gpa": RAM_GPA,
    }
    return state, ram


texts = st.text(st.characters(exclude_categories=("C",)), max_size=40)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
kinds = st.text("abcdefghijklmnopqrstuvwxyz0123456789-._", min_size=1, max_size=16)
sections = st.lists(
    st.tuples(kinds, u32, u32, st.booleans(), st.binary(max_size=200)),
    max_size=8,
    unique_by=lambda section: section[:2],
)


@st.composite
def snapshots_v9(draw: st.DrawFn) -> tuple[dict, list, bytes, list | None]:
    """An identity, sections, RAM, and what of it a diff holds."""
    pages = draw(st.integers(1, 20))
    ram = draw(sparse_ram(pages))
    parent = draw(st.none() | digests)
    identity = {
        "architecture": draw(texts),
        "engine": draw(texts),
        "engine_version": draw(u32),
        "cpu_features": draw(st.lists(texts, max_size=5)),
        "kernel": draw(digests),
        "initramfs": draw(digests),
        "image": draw(st.none() | texts),
        "devices": draw(st.lists(texts, max_size=5)),
        "vcpus": draw(st.integers(1, 2**32 - 1)),
        "memory_bytes": len(ram),
        "ram_gpa": draw(st.integers(0, 2**40)) * format_v9.PAGE,
        "parent": parent,
        "created_unix_ns": draw(u64),
    }
    present = None
    if parent is not None:
        edges = draw(st.lists(st.integers(0, pages), max_size=6, unique=True).map(sorted))
        page = format_v9.PAGE
        present = [(first * page, end * page) for first, end in zip(edges[::2], edges[1::2], strict=False)]
    return identity, draw(sections), ram, present
