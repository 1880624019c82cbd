"""What a wheel holds beside its extension module, as a CycloneDX 1.5 document; maturin writes that of the module.

The executables' crates, with the digests of Cargo.lock; what a guest boots, with the digests of guest/manifest.json and
the crates of its agent; and the Python packages that are installed along. There is no time and no serial number: the
same sources give the same document.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import third_party

#: The agent's own architectures, whatever the wheel is for.
AGENT = "supermachine-agent"


def document(root: Path, packages: list[str], target: str | None, guest_files: list[str]) -> dict[str, Any]:
    """The whole for these packages of the workspace on a target, and these files of guest/."""
    checksums = _checksums(root)
    metadata = third_party.metadata(root, target)
    own = next(package for package in metadata["packages"] if package["name"] == packages[0])
    crates = {crate["id"]: crate for crate in third_party.crates(metadata, [*packages, AGENT])}
    components = [_crate(crate, checksums) for crate in crates.values()]
    components += [_guest_file(root, name) for name in guest_files if name.endswith(".zst")]
    components += [_kernel(root)]
    components += [_python(text) for text in _requirements(root)]
    components.sort(key=lambda component: (component["type"], component["name"], component.get("version", "")))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "supermachine",
                "name": "supermachine",
                "version": own["version"],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": f"pkg:pypi/supermachine@{own['version']}",
            }
        },
        "components": components,
        "dependencies": [{"ref": "supermachine", "dependsOn": [component["bom-ref"] for component in components]}],
    }


def write(path: Path, root: Path, packages: list[str], target: str | None, guest_files: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(root, packages, target, guest_files), indent=1) + "\n")
    return path


def _checksums(root: Path) -> dict[tuple[str, str], str]:
    """SHA-256 of crates by name and version, from Cargo.lock, whose form is Cargo's own."""
    found = {}
    for entry in (root / "Cargo.lock").read_text().split("[[package]]")[1:]:
        said = dict(re.findall(r'^(name|version|checksum) = "([^"]+)"$', entry, re.MULTILINE))
        if "checksum" in said:
            found[said["name"], said["version"]] = said["checksum"]
    return found


def _crate(crate: dict[str, Any], checksums: dict[tuple[str, str], str]) -> dict[str, Any]:
    name, version = crate["name"], crate["version"]
    purl = f"pkg:cargo/{name}@{version}"
    made: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if crate["license"]:
        # Cargo once took a slash for OR.
        made["licenses"] = [{"expression": crate["license"].replace("/", " OR ")}]
    if (name, version) in checksums:
        made["hashes"] = [{"alg": "SHA-256", "content": checksums[name, version]}]
    return made


def _guest_file(root: Path, name: str) -> dict[str, Any]:
    said = json.loads((root / "guest" / "manifest.json").read_text())[name]
    return {
        "type": "file",
        "bom-ref": f"guest/{name}",
        "name": f"supermachine/_guest/{name}",
        "hashes": [{"alg": "SHA-256", "content": said["sha256"]}],
    }


def _kernel(root: Path) -> dict[str, Any]:
    """Linux, as guest/NOTICE says where its source is."""
    found = re.search(r"source package linux-[\d.]+, version ([\w.~-]+)", (root / "guest" / "NOTICE").read_text())
    if found is None:
        raise ValueError("guest/NOTICE does not say which source the kernel is built from")
    purl = f"pkg:deb/debian/linux@{found[1]}"
    return {
        "type": "operating-system",
        "bom-ref": purl,
        "name": "linux",
        "version": found[1],
        "purl": purl,
        "licenses": [{"expression": "GPL-2.0-only WITH Linux-syscall-note"}],
    }


def _requirements(root: Path) -> list[str]:
    found = re.search(r"^dependencies = \[(.*)\]$", (root / "pyproject.toml").read_text(), re.MULTILINE)
    return re.findall(r'"([^"]+)"', found[1]) if found is not None else []


def _python(text: str) -> dict[str, Any]:
    """A package that is installed along; which version is for the installer to say."""
    name = re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0]
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "purl": f"pkg:pypi/{name}",
        "properties": [{"name": "supermachine:requirement", "value": text}],
    }
