"""Version 8 of the snapshot file, read and written by nothing but the description of the format and `struct`."""

from __future__ import annotations

import struct

MAGIC = bytes.fromhex("534d534e41500800")
HEADER = struct.Struct("<8sQQQQQIIQQ")
ALIGNMENT = 16384

#: Encodings op0 op1 CRn CRm op2 of the registers, as the Arm Architecture Reference Manual has them.
SYSTEM = {
    "MPIDR_EL1": (3, 0, 0, 0, 5),
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "CPACR_EL1": (3, 0, 1, 0, 2),
    "TCR_EL1": (3, 0, 2, 0, 2),
    "TTBR0_EL1": (3, 0, 2, 0, 0),
    "TTBR1_EL1": (3, 0, 2, 0, 1),
    "MAIR_EL1": (3, 0, 10, 2, 0),
    "AMAIR_EL1": (3, 0, 10, 3, 0),
    "VBAR_EL1": (3, 0, 12, 0, 0),
    "CONTEXTIDR_EL1": (3, 0, 13, 0, 1),
    "TPIDR_EL1": (3, 0, 13, 0, 4),
    "SPSR_EL1": (3, 0, 4, 0, 0),
    "ELR_EL1": (3, 0, 4, 0, 1),
    "SP_EL0": (3, 0, 4, 1, 0),
    "SP_EL1": (3, 4, 4, 1, 0),
    "ESR_EL1": (3, 0, 5, 2, 0),
    "FAR_EL1": (3, 0, 6, 0, 0),
    "PAR_EL1": (3, 0, 7, 4, 0),
    "TPIDR_EL0": (3, 3, 13, 0, 2),
    "TPIDRRO_EL0": (3, 3, 13, 0, 3),
    "CNTKCTL_EL1": (3, 0, 14, 1, 0),
    "CSSELR_EL1": (3, 2, 0, 0, 0),
    "MDSCR_EL1": (2, 0, 0, 2, 2),
    **{
        f"AP{key}KEY{half}_EL1": (3, 0, 2, 1 + n // 2, 2 * (n % 2) + (half == "HI"))
        for n, key in enumerate(("IA", "IB", "DA", "DB", "GA"))
        for half in ("LO", "HI")
    },
    "CNTV_CTL_EL0": (3, 3, 14, 3, 1),
    "CNTV_CVAL_EL0": (3, 3, 14, 3, 2),
    "CNTP_CTL_EL0": (3, 3, 14, 2, 1),
    "CNTP_CVAL_EL0": (3, 3, 14, 2, 2),
}
MANDATORY = ("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1", "VBAR_EL1")
ICC = {
    "PMR": (3, 0, 4, 6, 0),
    "BPR0": (3, 0, 12, 8, 3),
    "BPR1": (3, 0, 12, 12, 3),
    "AP0R0": (3, 0, 12, 8, 4),
    "AP1R0": (3, 0, 12, 9, 0),
    "RPR": (3, 0, 12, 11, 3),
    "CTLR": (3, 0, 12, 12, 4),
    "SRE": (3, 0, 12, 12, 5),
    "IGRPEN0": (3, 0, 12, 12, 6),
    "IGRPEN1": (3, 0, 12, 12, 7),
}
REDISTRIBUTOR = (0x10080, 0x10100, 0x10C04, 0x10200, 0x10300, *(0x10400 + 4 * n for n in range(8)))
#: X0 to X30, FP, LR, PC, CPSR, FPCR, FPSR.
GENERAL = (*range(31), 29, 30, 31, 34, 32, 33)
SIMD = tuple(range(32))


def encoding(fields: tuple[int, int, int, int, int]) -> int:
    op0, op1, crn, crm, op2 = fields
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


SYSTEM_IDS = tuple(encoding(fields) for fields in SYSTEM.values())
MANDATORY_IDS = frozenset(encoding(SYSTEM[name]) for name in MANDATORY)
ICC_IDS = tuple(encoding(fields) for fields in ICC.values())


def encode_metadata(state: dict) -> bytes:
    """Everything before RAM, with the padding."""
    body = bytearray(state["gic_blob"])
    for vcpu in state["vcpus"]:
        lists = [vcpu[name] for name in ("gp", "simd", "sys", "icc", "redist")]
        body += struct.pack("<Q5I", vcpu["vtimer_offset"], *map(len, lists))
        for name, registers in zip(("gp", "simd", "sys", "icc", "redist"), lists, strict=True):
            for number, value in registers:
                body += struct.pack("<I", number) + value.to_bytes(16 if name == "simd" else 8, "little")
    body += struct.pack("<I", len(state["devices"]))
    for device in state["devices"]:
        low, high = device["driver_features"]
        queues = device["queues"]
        body += struct.pack("<5I", low, high, device["status"], device["interrupt_status"], len(queues))
        for size, ready, desc, avail, used, last_avail, next_used in queues:
            body += struct.pack("<HBBQQQHH", size, ready, 0, desc, avail, used, last_avail, next_used)
    body += struct.pack("<I", len(state["listeners"]))
    for listener in state["listeners"]:
        body += struct.pack("<QIIHH", *listener)
    ram_offset = -(-(HEADER.size + len(body)) // ALIGNMENT) * ALIGNMENT
    header = HEADER.pack(
        MAGIC,
        8,
        state["captured_mach_time"],
        state["captured_cntvct"],
        state["memory_bytes"],
        len(state["gic_blob"]),
        len(state["vcpus"]),
        0,
        state["ram_gpa"],
        ram_offset,
    )
    return (header + bytes(body)).ljust(ram_offset, b"\0")


def encode(state: dict, ram: bytes) -> bytes:
    assert len(ram) == state["memory_bytes"]
    return encode_metadata(state) + ram


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values


def decode(data: bytes) -> tuple[dict, int]:
    """The state, and the offset of RAM. Checks nothing that `struct` does not."""
    cursor = _Cursor(data)
    magic, version, mach_time, cntvct, memory_bytes, blob, vcpus, reserved, ram_gpa, ram_offset = cursor.take(
        HEADER.format.lstrip("<")
    )
    assert (magic, version, reserved) == (MAGIC, 8, 0)
    state: dict = {
        "captured_mach_time": mach_time,
        "captured_cntvct": cntvct,
        "gic_blob": cursor.take(f"{blob}s")[0],
        "vcpus": [],
        "devices": [],
        "memory_bytes": memory_bytes,
        "ram_gpa": ram_gpa,
    }
    for _ in range(vcpus):
        vtimer_offset, *counts = cursor.take("Q5I")
        vcpu: dict = {"vtimer_offset": vtimer_offset}
        for name, count in zip(("gp", "simd", "sys", "icc", "redist"), counts, strict=True):
            width = 16 if name == "simd" else 8
            pairs = [cursor.take(f"I{width}s") for _ in range(count)]
            vcpu[name] = [(number, int.from_bytes(value, "little")) for number, value in pairs]
        state["vcpus"].append(vcpu)
    for _ in range(cursor.take("I")[0]):
        low, high, status, interrupt_status, queues = cursor.take("5I")
        device: dict = {"driver_features": (low, high), "status": status, "interrupt_status": interrupt_status}
        device["queues"] = []
        for _ in range(queues):
            size, ready, _pad, *rest = cursor.take("HBBQQQHH")
            device["queues"].append((size, bool(ready), *rest))
        state["devices"].append(device)
    state["listeners"] = [cursor.take("QIIHH") for _ in range(cursor.take("I")[0])]
    return state, ram_offset


def vcpu(seed: int = 0) -> dict:
    """A record with everything in it, each value different."""
    return {
        "vtimer_offset": seed,
        "gp": [(number, number << 32 | seed) for number in GENERAL],
        "simd": [(number, number << 96 | seed << 64 | 1) for number in SIMD],
        "sys": [(number, number << 16 | seed) for number in SYSTEM_IDS],
        "icc": [(number, number << 8 | seed) for number in ICC_IDS],
        "redist": [(number, number | seed << 40) for number in REDISTRIBUTOR],
    }


def small() -> dict:
    """A guest with a page of RAM, a device in use and a listener."""
    base = 0x4000_0000
    queue = (8, True, base, base + 0x200, base + 0x400, 5, 3)
    return {
        "captured_mach_time": 123_456_789,
        "captured_cntvct": 123_456_789 - 1,
        "gic_blob": bytes(range(40)),
        "vcpus": [vcpu(1)],
        "devices": [{"driver_features": (1, 1), "status": 15, "interrupt_status": 1, "queues": [queue]}],
        "listeners": [(3, 1024, 8080, 40, 1)],
        "memory_bytes": 4096,
        "ram_gpa": base,
    }
