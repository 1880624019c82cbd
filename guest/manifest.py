"""What the committed guest files were built from: manifest.json says, and the check holds it against the tree.

manifest.py check                     every file is what the manifest says, and so is what it was built from
manifest.py record FILE...            after FILE (x86_64/vmlinux.zst …) was built from the tree as it is
manifest.py tools FILE                whether this machine has the tools that FILE was built with
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = "guest/manifest.json"
KERNELS = {"aarch64/Image.zst": "aarch64", "x86_64/vmlinux.zst": "x86_64"}
INITRAMFSES = {"aarch64/initramfs.cpio.zst": "aarch64", "x86_64/initramfs.cpio.zst": "x86_64"}
FILES = [*KERNELS, *INITRAMFSES]
AGENT = "supermachine-agent"
#: Debian packages whose code is in a file, or that decide its bytes.
TOOLS = {
    "kernel-aarch64": ("binutils-aarch64-linux-gnu", "gcc-12-aarch64-linux-gnu", "zstd"),
    "kernel-x86_64": ("binutils", "gcc-12", "zstd"),
    "initramfs-aarch64": ("binutils-aarch64-linux-gnu", "gcc-12-aarch64-linux-gnu", "libc6-dev-arm64-cross",
                          "libstd-rust-web-dev:arm64", "rustc-web", "zstd"),
    "initramfs-x86_64": ("binutils", "gcc-12", "libc6-dev", "libstd-rust-web-dev:amd64", "rustc-web", "zstd"),
}  # fmt: skip


def sha256(data: bytes) -> str:
    """The hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def inputs(name: str, root: Path = ROOT) -> dict[str, str]:
    """What a guest file is built from: path in the tree, or the name of a part of a file, and digest."""
    if name in KERNELS:
        paths = ["guest/build-kernel.sh", "guest/kernel/common.config", f"guest/kernel/{KERNELS[name]}.config"]
        paths += ["guest/kernel/source.env", "guest/branches.py"]
        parts = {}
    else:
        paths = ["guest/build-initramfs.sh", "guest/branches.py", "guest/cpio.py"]
        paths += [str(path.relative_to(root)) for crate in ("agent", "proto") for path in sources(root, crate)]
        parts = {"Cargo.lock (the agent's part)": locked(root), "Cargo.toml (the agent's part)": settings(root)}
    digests = {path: sha256((root / path).read_bytes()) for path in paths}
    return digests | {part: sha256(text.encode()) for part, text in parts.items()}


def sources(root: Path, crate: str) -> Iterator[Path]:
    """A crate's files, tests beside it left out."""
    directory = root / "rust" / crate
    yield directory / "Cargo.toml"
    yield from sorted((directory / "src").rglob("*.rs"))


def dependencies(root: Path) -> dict[str, str]:
    """The agent and all crates it depends on, each with its entry of Cargo.lock."""
    entries: dict[str, list[str]] = {}
    for entry in (root / "Cargo.lock").read_text().split("[[package]]\n")[1:]:
        found = re.search(r'^name = "(.*)"$', entry, re.MULTILINE)
        entries.setdefault(found.group(1) if found else "", []).append(entry.strip())
    wanted: dict[str, str] = {}
    waiting = [AGENT]
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        # Two versions of one crate are both taken for needed.
        wanted[name] = "\n".join(entries[name])
        needs = re.findall(r"^dependencies = \[\n(.*?)^\]", wanted[name], re.MULTILINE | re.DOTALL)
        waiting += re.findall(r'^ "([\w-]+)', "".join(needs), re.MULTILINE)
    return wanted


def locked(root: Path) -> str:
    """What Cargo.lock says of the agent's dependencies: other crates' come and go without a change to the agent."""
    return "\n".join(entry for _, entry in sorted(dependencies(root).items()))


def settings(root: Path) -> str:
    """What the workspace's Cargo.toml says that concerns the agent."""
    needed = dependencies(root)
    section, lines = "", []
    for line in (root / "Cargo.toml").read_text().splitlines():
        if line.startswith("["):
            section = line
        name = line.split("=")[0].strip()
        if section in ("[workspace.package]", "[profile.release]") or (
            section == "[workspace.dependencies]" and name in needed
        ):
            lines.append(line)
    return "\n".join(line for line in lines if line)


def tools(name: str) -> dict[str, str]:
    """The versions on this machine of the Debian packages that a guest file is built with; "" where there is none."""
    kind, architecture = ("kernel", KERNELS[name]) if name in KERNELS else ("initramfs", INITRAMFSES[name])
    versions = {}
    for package in TOOLS[f"{kind}-{architecture}"]:
        command = ["dpkg-query", "-W", "-f", "${Version}", package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        except FileNotFoundError:
            done = None
        versions[package] = done.stdout.strip() if done and done.returncode == 0 else ""
    return versions


def load(root: Path = ROOT) -> dict[str, Any]:
    """The manifest: per file its digest, length, inputs and tools."""
    try:
        loaded: dict[str, Any] = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError:
        return {}
    return loaded


def record(names: list[str], root: Path = ROOT) -> None:
    """Writes down what these files were built from."""
    manifest = load(root)
    for name in names:
        data = (root / "guest" / name).read_bytes()
        manifest[name] = {
            "sha256": sha256(data),
            "bytes": len(data),
            "inputs": inputs(name, root),
            "tools": tools(name),
        }
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def problems(root: Path = ROOT) -> Iterator[str]:
    """What is not as the manifest says, each with the way out."""
    manifest = load(root)
    for name in FILES:
        again = f"build it again with: make guest-{'kernels' if name in KERNELS else 'initramfs'}"
        entry = manifest.get(name)
        path = root / "guest" / name
        if entry is None or not path.is_file():
            yield f"guest/{name} is missing or not in {MANIFEST}; {again}"
            continue
        if sha256(path.read_bytes()) != entry["sha256"]:
            yield f"guest/{name} is not the file that {MANIFEST} tells of; {again}"
        now = inputs(name, root)
        changed = sorted(part for part in now.keys() | entry["inputs"] if now.get(part) != entry["inputs"].get(part))
        if changed:
            yield f"guest/{name} was built before these changed: {', '.join(changed)}; {again}"
    for name in manifest.keys() - set(FILES):
        yield f"{MANIFEST} tells of {name}, which is no guest file"


def main(arguments: list[str]) -> int:
    """Does what the command line says."""
    match arguments:
        case ["check"]:
            found = list(problems())
            print(
                "\n".join(found) or "the guest files are what their sources give",
                file=sys.stderr if found else sys.stdout,
            )
            return bool(found)
        case ["record", *names] if names and set(names) <= set(FILES):
            record(names)
            return 0
        case ["tools", name] if name in FILES:
            then, now = load()[name]["tools"], tools(name)
            other = [
                f"{package} {now[package] or '(none)'}, not {then[package]}"
                for package in then
                if now[package] != then[package]
            ]
            print("; ".join(other) or "the same tools")
            return bool(other)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
