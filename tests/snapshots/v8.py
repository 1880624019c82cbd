"""Snapshot files of version 8, decoded and encoded with nothing but their description and struct.

An oracle for the reader and the writer that ship: `v8.py recode IN OUT` takes a file apart, checks all that the format
promises, and writes it again; `v8.py bare IN OUT` leaves out what a writer may leave out.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass, field
from typing import BinaryIO

MAGIC = b"SMSNAP\x08\x00"
HEADER = struct.Struct("<8sQQQQQIIQQ")
ALIGNMENT = 16384
HOLE = 65536


def _system(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


X = list(range(31))
FP, LR, PC, FPCR, FPSR, CPSR = 29, 30, 31, 32, 33, 34
GENERAL = [*X, FP, LR, PC, CPSR, FPCR, FPSR]
SIMD = list(range(32))
SYSTEM = [
    _system(3, 0, 0, 0, 5),  # MPIDR_EL1
    _system(3, 0, 1, 0, 0),  # SCTLR_EL1
    _system(3, 0, 1, 0, 2),  # CPACR_EL1
    _system(3, 0, 2, 0, 2),  # TCR_EL1
    _system(3, 0, 2, 0, 0),  # TTBR0_EL1
    _system(3, 0, 2, 0, 1),  # TTBR1_EL1
    _system(3, 0, 10, 2, 0),  # MAIR_EL1
    _system(3, 0, 10, 3, 0),  # AMAIR_EL1
    _system(3, 0, 12, 0, 0),  # VBAR_EL1
    _system(3, 0, 13, 0, 1),  # CONTEXTIDR_EL1
    _system(3, 0, 13, 0, 4),  # TPIDR_EL1
    _system(3, 0, 4, 0, 0),  # SPSR_EL1
    _system(3, 0, 4, 0, 1),  # ELR_EL1
    _system(3, 0, 4, 1, 0),  # SP_EL0
    _system(3, 4, 4, 1, 0),  # SP_EL1
    _system(3, 0, 5, 2, 0),  # ESR_EL1
    _system(3, 0, 6, 0, 0),  # FAR_EL1
    _system(3, 0, 7, 4, 0),  # PAR_EL1
    _system(3, 3, 13, 0, 2),  # TPIDR_EL0
    _system(3, 3, 13, 0, 3),  # TPIDRRO_EL0
    _system(3, 0, 14, 1, 0),  # CNTKCTL_EL1
    _system(3, 2, 0, 0, 0),  # CSSELR_EL1
    _system(2, 0, 0, 2, 2),  # MDSCR_EL1
    *(_system(3, 0, 2, crm, op2) for crm in (1, 2) for op2 in range(4)),  # APIA, APIB, APDA, APDB
    *(_system(3, 0, 2, 3, op2) for op2 in range(2)),  # APGA
    _system(3, 3, 14, 3, 1),  # CNTV_CTL_EL0
    _system(3, 3, 14, 3, 2),  # CNTV_CVAL_EL0
    _system(3, 3, 14, 2, 1),  # CNTP_CTL_EL0
    _system(3, 3, 14, 2, 2),  # CNTP_CVAL_EL0
]
CONTEXTIDR, PAR = SYSTEM[9], SYSTEM[17]
ICC = [
    _system(3, 0, 4, 6, 0),  # PMR
    _system(3, 0, 12, 8, 3),  # BPR0
    _system(3, 0, 12, 12, 3),  # BPR1
    _system(3, 0, 12, 8, 4),  # AP0R0
    _system(3, 0, 12, 9, 0),  # AP1R0
    _system(3, 0, 12, 11, 3),  # RPR
    _system(3, 0, 12, 12, 4),  # CTLR
    _system(3, 0, 12, 12, 5),  # SRE
    _system(3, 0, 12, 12, 6),  # IGRPEN0
    _system(3, 0, 12, 12, 7),  # IGRPEN1
]
RPR = ICC[5]
REDISTRIBUTOR = [0x10080, 0x10100, 0x10C04, 0x10200, 0x10300, *(0x10400 + 4 * n for n in range(8))]


@dataclass
class Vcpu:
    vtimer_offset: int
    gp: list[tuple[int, int]]
    simd: list[tuple[int, bytes]]
    sys: list[tuple[int, int]]
    icc: list[tuple[int, int]]
    redist: list[tuple[int, int]]


@dataclass
class Device:
    features: tuple[int, int]
    status: int
    interrupt_status: int
    queues: list[tuple[int, int, int, int, int, int, int, int]]


@dataclass
class Snapshot:
    mach_time: int
    cntvct: int
    memory: int
    ram_gpa: int
    gic: bytes
    ram_offset: int = 0
    vcpus: list[Vcpu] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    listeners: list[tuple[int, int, int, int, int]] = field(default_factory=list)


def decode(file: BinaryIO) -> Snapshot:
    """Everything but RAM, with all that the format promises asserted."""

    def take(layout: str) -> tuple[int, ...]:
        packed = struct.Struct("<" + layout)
        return packed.unpack(file.read(packed.size))

    magic, version, mach, cntvct, memory, gic_length, n_vcpus, reserved, gpa, ram_offset = HEADER.unpack(
        file.read(HEADER.size)
    )
    assert (magic, version, reserved) == (MAGIC, 8, 0)
    assert n_vcpus >= 1
    assert ram_offset % ALIGNMENT == 0
    snapshot = Snapshot(mach, cntvct, memory, gpa, file.read(gic_length), ram_offset)
    for _ in range(n_vcpus):
        (offset,) = take("Q")
        counts = take("5I")
        gp = [take("IQ") for _ in range(counts[0])]
        simd = [(take("I")[0], file.read(16)) for _ in range(counts[1])]
        sys_registers, icc, redist = ([take("IQ") for _ in range(count)] for count in counts[2:])
        snapshot.vcpus.append(Vcpu(offset, gp, simd, sys_registers, icc, redist))
    assert (mach - snapshot.vcpus[0].vtimer_offset) % 2**64 == cntvct
    for vcpu in snapshot.vcpus:
        ids = [[number for number, _ in part] for part in (vcpu.gp, vcpu.simd, vcpu.sys, vcpu.icc, vcpu.redist)]
        assert ids[0] == GENERAL
        assert ids[1] == SIMD
        assert ids[2] == [register for register in SYSTEM if register in ids[2]]
        assert ids[3] == [register for register in ICC if register in ids[3]]
        assert ids[4] == REDISTRIBUTOR
        assert vcpu.gp[29] == vcpu.gp[31], "FP"
        assert vcpu.gp[30] == vcpu.gp[32], "LR"
    for _ in range(take("I")[0]):
        low, high, status, interrupt_status, n_queues = take("5I")
        queues = [take("HBBQQQHH") for _ in range(n_queues)]
        assert all(queue[1] in (0, 1) and queue[2] == 0 for queue in queues)
        snapshot.devices.append(Device((low, high), status, interrupt_status, queues))
    for _ in range(take("I")[0]):
        snapshot.listeners.append(take("QIIHH"))
    padding = file.read(ram_offset - file.tell())
    assert len(padding) < ALIGNMENT
    assert not padding.strip(b"\0")
    assert os.fstat(file.fileno()).st_size == ram_offset + memory
    return snapshot


def encode(snapshot: Snapshot, ram: BinaryIO, file: BinaryIO) -> None:
    """Writes a file, with RAM from another one that is at its first byte of RAM."""
    body = [snapshot.gic]
    for vcpu in snapshot.vcpus:
        parts = (vcpu.gp, vcpu.simd, vcpu.sys, vcpu.icc, vcpu.redist)
        body.append(struct.pack("<Q5I", vcpu.vtimer_offset, *map(len, parts)))
        for part in parts:
            for number, value in part:
                body.append(struct.pack("<I", number))
                body.append(value if isinstance(value, bytes) else struct.pack("<Q", value))
    body.append(struct.pack("<I", len(snapshot.devices)))
    for device in snapshot.devices:
        head = (*device.features, device.status, device.interrupt_status, len(device.queues))
        body.append(struct.pack("<5I", *head))
        body += [struct.pack("<HBBQQQHH", *queue) for queue in device.queues]
    body.append(struct.pack("<I", len(snapshot.listeners)))
    body += [struct.pack("<QIIHH", *listener) for listener in snapshot.listeners]
    metadata = b"".join(body)
    ram_offset = -(-(HEADER.size + len(metadata)) // ALIGNMENT) * ALIGNMENT
    header = HEADER.pack(
        MAGIC,
        8,
        snapshot.mach_time,
        snapshot.cntvct,
        snapshot.memory,
        len(snapshot.gic),
        len(snapshot.vcpus),
        0,
        snapshot.ram_gpa,
        ram_offset,
    )
    file.write(header + metadata)
    file.truncate(ram_offset + snapshot.memory)
    for start in range(0, snapshot.memory, HOLE):
        chunk = ram.read(min(HOLE, snapshot.memory - start))
        if chunk.count(0) != len(chunk):
            file.seek(ram_offset + start)
            file.write(chunk)


def bare(snapshot: Snapshot) -> None:
    """Leaves out registers that a writer could not read."""
    for vcpu in snapshot.vcpus:
        vcpu.sys = [entry for entry in vcpu.sys if entry[0] not in (CONTEXTIDR, PAR)]
        vcpu.icc = [entry for entry in vcpu.icc if entry[0] != RPR]


def main() -> None:
    how, source, target = sys.argv[1:]
    with open(source, "rb") as taken, open(target, "xb") as made:
        snapshot = decode(taken)
        if how == "bare":
            bare(snapshot)
        taken.seek(snapshot.ram_offset)
        encode(snapshot, taken, made)
    print(
        f"vcpus {len(snapshot.vcpus)} devices {len(snapshot.devices)} "
        f"memory {snapshot.memory} ram_gpa {snapshot.ram_gpa:#x}"
    )


if __name__ == "__main__":
    main()
