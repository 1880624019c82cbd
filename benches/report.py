"""Results as JSON and as Markdown tables, with what they were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from .machines import MEMORY, QEMU, of_suite

Results = dict[str, Any]


def _first_line(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def environment(repeats: int, place: Path | None = None, newer: str | None = None) -> dict[str, object]:
    """What the numbers depend on; `newer` is a suite of Debian's whose QEMU took part."""
    versions = [_first_line(QEMU, "--version")]
    if place is not None and newer is not None:
        versions.append(_first_line(*of_suite(place, newer), "--version"))
    names = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "CPU part"))
    }
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": ", ".join(sorted(names)),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "rustc": _first_line("rustc", "--version"),
        "qemu": ", ".join(versions),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
        "repeats": repeats,
        "guest_memory_mib": MEMORY >> 20,
    }


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def markdown(results: Results) -> str:
    """The tables for the README."""
    e = results["environment"]
    lines = [
        f"{e['cpu']}, {e['cores']} cores, Linux {e['kernel']}, {e['rustc']}, {e['qemu']}; {e['date']}; medians of "
        f"{e['repeats']} runs, both sides by turns; load {e['load_at_start']} at the start.",
    ]
    if rows := results.get("comparison"):
        heads = [
            "guest's work",
            "soft",
            "QEMU TCG",
            "times QEMU's speed",
            "by processor time",
            "a newer QEMU's",
            "target",
        ]
        lines += ["", _row(*heads), _row("---", *["---:"] * (len(heads) - 1))]
        for r in rows:
            cells = [f"{r['soft_s']:.3f} s", f"{r['qemu_s']:.3f} s", f"{r['ratio']:.2f}", f"{r['cpu_ratio']:.2f}"]
            cells.append(f"{r['newer_cpu_ratio']:.2f}" if "newer_cpu_ratio" in r else "")
            lines.append(_row(r["name"], *cells, f"≥ {r['target']:g}"))
    targets: list[tuple[str, str, str]] = []
    if rates := results.get("instruction_rates"):
        targets += [
            ("guest instructions, kernel boot", f"{rates['boot']:.0f} M/s", "≥ 100 M/s"),
            ("guest instructions, integer user code", f"{rates['integers']:.0f} M/s", "≥ 100 M/s"),
        ]
    if product := results.get("product"):
        targets += [
            ("boot to a ready agent, 256 MiB, 1 vCPU", _ms(product["boot_s"]), "≤ 1000 ms"),
            ("`supermachine run` of a cached image, no snapshot", _ms(product["run_booted_s"]), "≤ 2000 ms"),
            ("start from the image's snapshot", _ms(product["restore_s"]), ""),
            ("`supermachine run` from its snapshot", _ms(product["run_restored_s"]), ""),
            ("a command in a running VM", _ms(product["command_in_running_vm_s"]), ""),
            ("worker's memory beyond guest RAM", f"{product['memory_beyond_ram_mib']:.0f} MiB", "≤ 40 MiB"),
            ("an idle guest", f"{product['idle_cpu_percent']:.2f} % of a core", "< 2 %"),
        ]
    if targets:
        lines += ["", _row("", "measured", "target"), _row("---", "---:", "---:")]
        lines += [_row(*cells) for cells in targets]
    return "\n".join(lines) + "\n"
