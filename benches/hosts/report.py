"""What was found as rows, and those as a Markdown table."""

from __future__ import annotations

import platform
from statistics import median
from typing import Any

from .. import report
from . import sides

OURS = "supermachine"
#: What each measurement is to reach: seconds of the other side over ours.
TARGETS = {
    ("boot to a ready guest", "microsandbox"): 3.0,
    ("boot to a ready guest", "boxlite"): 3.0,
    ("whole command", "msb run"): 10.0,
    ("whole command", "msb restore, exec"): 1.0,
    ("whole command", "msb fork, exec"): 1.0,
}


def environment(repeats: int, memory_mib: int) -> dict[str, object]:
    return {
        **report.environment(repeats),
        "guest_memory_mib": memory_mib,
        "guest_vcpus": 1,
        "python": platform.python_version(),
        "peers": sides.PEERS,
    }


def rows(found: dict[str, dict[str, list[Any]]]) -> list[dict[str, Any]]:
    """For each measurement and side: medians, exits where they were counted, the median of its ratios to ours."""
    out = []
    for group, members in found.items():
        ours = [got["seconds"] for got in members[OURS]]
        for name, all_got in members.items():
            seconds = [got["seconds"] for got in all_got]
            row: dict[str, Any] = {"measurement": group, "side": name, "seconds": median(seconds)}
            row["least"], row["most"] = min(seconds), max(seconds)
            counts = [sum(got["exits"].values()) for got in all_got if "exits" in got]
            if counts:
                row["exits"] = [min(counts), max(counts)]
            if name != OURS:
                row["ratio"] = median(there / here for here, there in zip(ours, seconds, strict=True))
                row["target"] = TARGETS.get((group.split(": ", 1)[1], name))
            out.append(row)
    return out


def markdown(results: dict[str, Any]) -> str:
    e = results["environment"]
    kernels = ", ".join(f"{architecture} Linux {kernel}" for architecture, kernel in e["hosts"].items())
    peers = ", ".join(f"{name} {version}" for name, version in e["peers"].items())
    lines = [
        f"Emulated hosts ({kernels}; 2 CPUs; {e['qemu']}) on {e['cpu']}, {e['cores']} cores; {peers}; guests of 1 vCPU "
        f"and {e['guest_memory_mib']} MiB; {e['date']}, commit {e['commit']}; medians of {e['repeats']} rounds, all "
        f"sides by turns; load {e['load_at_start']} at the start.",
        "",
        "| | side | median | least to most | times ours | target | exits |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        exits = "" if "exits" not in row else "–".join(str(n) for n in sorted({*row["exits"]}))
        ratio = f"{row['ratio']:.1f}" if "ratio" in row else ""
        target = f"≥ {row['target']:g}" if row.get("target") else ""
        spread = f"{row['least']:.2f}–{row['most']:.2f} s"
        cells = [row["measurement"], row["side"], f"{row['seconds']:.2f} s", spread, ratio, target, exits]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
