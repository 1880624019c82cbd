"""The sides of a comparison: the software CPU, Debian's QEMU, and where it is wanted a newer QEMU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

from . import machines
from .machines import Times

#: How a machine is started, by where its files may be, the kernel, the initramfs, and the kernel's arguments.
Start = Callable[..., list[str]]


def of(place: Path, newer: str | None) -> dict[str, Start]:
    """What takes turns; `newer` is the suite of Debian's whose QEMU is the third."""
    found: dict[str, Start] = {"soft": machines.soft, "qemu": machines.Qemu()}
    if newer is not None:
        found["newer"] = machines.Qemu(machines.of_suite(place, newer))
    return found


def build_soft(root: Path) -> None:
    """Makes the software CPU's example."""
    build = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "supermachine-soft", "--example", "boot"]
    subprocess.run(build, check=True, cwd=root)


def by_turns(
    name: str, sides: dict[str, Start], take: Callable[[Start], Times], repeats: int, say: Callable[[str], None]
) -> dict[str, object]:
    """Takes each side's times by turns: the medians, and those of the ratios of neighbouring runs."""
    runs: dict[str, list[Times]] = {side: [] for side in sides}
    for n in range(repeats):
        for side, start in sides.items():
            runs[side].append(take(start))
        took = ", ".join(f"{side} {times[-1].cpu:.3f}" for side, times in runs.items())
        say(f"{name} {n + 1}/{repeats}, seconds of processor time: {took}")
    row: dict[str, object] = {"name": name}
    ours = runs["soft"]
    for side, times in runs.items():
        row |= {f"{side}_s": median(t.wall for t in times), f"{side}_cpu_s": median(t.cpu for t in times)}
        if times is not ours:
            prefix = "" if side == "qemu" else f"{side}_"
            row[f"{prefix}ratio"] = median(b.wall / a.wall for a, b in zip(ours, times, strict=True))
            row[f"{prefix}cpu_ratio"] = median(b.cpu / a.cpu for a, b in zip(ours, times, strict=True))
    return row
