"""What the commands ``supermachine snapshot …`` print."""

from __future__ import annotations

import dataclasses
import json

from ..snapshots.files import SnapshotInfo
from .format import human


def as_json(info: SnapshotInfo) -> str:
    """One JSON object with the names of :class:`SnapshotInfo`."""
    fields = dataclasses.asdict(info)
    fields["created"] = info.created.isoformat() if info.created else None
    return json.dumps(fields, indent=2)


def as_text(info: SnapshotInfo) -> str:
    """One line each for what is known."""
    kind = f"diff to {info.parent}" if info.parent else "whole"
    minor = f".{info.minor}" if info.version == 9 else ""
    engine = f"{info.engine} (version {info.engine_version})" if info.engine else None
    present = f", of which {human(info.present_bytes)} in this diff" if info.present_bytes is not None else ""
    lines = {
        "format": f"version {info.version}{minor}, {kind}" + (", exported" if info.exported else ""),
        "id": info.id,
        "created": info.created.isoformat(sep=" ", timespec="seconds") if info.created else None,
        "guest": f"{info.architecture}, {info.vcpus} vCPU{'s' * (info.vcpus != 1)}",
        "memory": f"{human(info.memory_bytes)} at {info.ram_gpa:#x}{present}",
        "file": f"{human(info.file_bytes)}, {human(info.disk_bytes)} on disk",
        "engine": engine,
        "CPU features": " ".join(info.cpu_features),
        "image": info.image,
        "kernel": info.kernel,
        "initramfs": info.initramfs,
        "devices": " ".join(info.devices),
        "listeners": " ".join(f"{port}/vsock" for port in info.listeners),
    }
    width = max(len(name) for name in lines) + 2
    text = [f"{name + ':':{width}}{value}" for name, value in lines.items() if value]
    for section in info.sections:
        required = "" if section.required else ", optional"
        name = f"{section.kind} {section.index}"
        text.append(f"{'section:':{width}}{name} (version {section.version}{required}), {human(section.size)}")
    return "\n".join(text)
