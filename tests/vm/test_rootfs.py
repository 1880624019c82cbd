"""The root file system that a guest sees is the one that `umoci unpack` puts on a disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from supermachine import VM

from . import layers
from .conftest import Unpack, umoci_layout

pytestmark = pytest.mark.vm

SURVEY = Path(__file__).parent / "survey.py"
#: What the agent mounts or writes over the image.
AGENTS = ["proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/machine-id", "etc/resolv.conf"]

#: Debian's own files, which one look is enough for, and where this test mounts the image.
DEEP = ["usr/lib", "usr/share", "run"]
#: Directories that no layer describes.
IMPLIED = ["absolute", "climbing", "implied", "implied/directories", "implied/directories/to"]

Survey = dict[str, dict[str, Any]]


def parse(text: str) -> Survey:
    found: Survey = {}
    for line in text.splitlines():
        name, status = json.loads(line)
        path = bytes.fromhex(name).decode("utf-8", "backslashreplace")
        assert path not in found
        found[path] = status
    return found


def differences(ours: Survey, theirs: Survey) -> list[str]:
    lines = [f"{path!r}: {'only in the guest' if path in ours else 'missing'}" for path in ours.keys() ^ theirs.keys()]
    for path in ours.keys() & theirs.keys():
        for key in ours[path].keys() | theirs[path].keys():
            mine, other = ours[path].get(key), theirs[path].get(key)
            if mine != other:
                lines.append(f"{path!r}: {key} is {mine!r}, unpacked {other!r}")
    return sorted(lines)


@pytest.fixture(scope="module")
def unpacked(everything: str, unpack: Unpack, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    root = unpack(everything, tmp_path_factory.mktemp("unpacked") / "bundle")
    done = subprocess.run([sys.executable, SURVEY, root], capture_output=True, text=True, timeout=300, check=True)
    return parse(done.stdout)


@pytest.fixture(scope="module")
def seen(everything: str) -> dict[str, Survey]:
    """What the guest sees: its root, and the image without the overlay."""
    with VM(everything, memory="1g", environment={"PYTHONDONTWRITEBYTECODE": "1"}) as vm:
        vm.copy_in(SURVEY, "/run/survey.py")
        vm.path("/run/image").mkdir()
        vm.run(["busybox", "mount", "-t", "erofs", "-o", "ro", "/dev/vda", "/run/image"], check=True)
        surveys = {}
        for name, command in (("overlay", ["/", *AGENTS, *DEEP]), ("image", ["/run/image"])):
            done = vm.run(["python3", "/run/survey.py", *command], text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            surveys[name] = parse(done.stdout)
        return surveys


def without_times(survey: Survey, *paths: str) -> Survey:
    return {p: {k: v for k, v in s.items() if k != "mtime" or p not in paths} for p, s in survey.items()}


def test_the_image_is_what_umoci_unpacks(seen: dict[str, Survey], unpacked: Survey) -> None:
    image = seen["image"]
    assert len(unpacked) > 5000
    # When these came to be is the moment of unpacking, which no image has.
    assert {image[path]["mtime"] for path in IMPLIED} == {0}
    # umoci leaves the root as the last layer's files made it; its entry in the archive says another time.
    assert image["."]["mtime"] // 10**9 == int(layers.MOMENT)
    apart = (".", *IMPLIED)
    assert differences(without_times(image, *apart), without_times(unpacked, *apart)) == []


def test_the_guests_root_is_the_image(seen: dict[str, Survey]) -> None:
    def inside(path: str) -> bool:
        return any(path == top or path.startswith(top + "/") for top in (*AGENTS, *DEEP))

    image = {path: status for path, status in seen["image"].items() if not inside(path)}
    # The root is a directory of the overlay's own, and the agent has written to /etc.
    apart = (".", "etc")
    assert differences(without_times(seen["overlay"], *apart), without_times(image, *apart)) == []


def test_a_sparse_file_of_gnu_tar_in_an_image_with_nothing_else(tmp_path: Path) -> None:
    source = layers.gnu_sparse(tmp_path / "layer.tar", tmp_path)
    image = umoci_layout(tmp_path / "oci", [tmp_path / "layer.tar"])
    with VM(image) as vm, vm.path("/sparse").open("rb") as ours, source.open("rb") as theirs:
        assert vm.path("/sparse").stat().st_size == layers.SPARSE_LENGTH
        assert vm.image.size < 1 << 20
        for offset in (*layers.SPARSE_DATA, 5000, 1 << 31, (1 << 32) - 30_000, layers.SPARSE_LENGTH - 60_000):
            start = max(0, offset - 10_000)
            ours.seek(start)
            theirs.seek(start)
            assert ours.read(70_000) == theirs.read(70_000)
