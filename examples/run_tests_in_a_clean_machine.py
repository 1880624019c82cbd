"""Copies a tree into a fresh machine, runs a command on it and copies the result out."""

import tempfile
from pathlib import Path

import supermachine

IMAGE = str(Path(__file__).parents[1] / "demo" / "busybox.oci.tar")

with tempfile.TemporaryDirectory() as place, supermachine.VM(IMAGE, memory="128m") as vm:
    tree = Path(place) / "project"
    tree.mkdir()
    (tree / "numbers").write_text("3\n1\n2\n")
    vm.copy_in(tree, "/tmp/project")
    vm.run("sort -n numbers > sorted", shell=True, cwd="/tmp/project", check=True)
    vm.copy_out("/tmp/project/sorted", Path(place) / "sorted")
    assert (Path(place) / "sorted").read_text() == "1\n2\n3\n"
    print("sorted in a machine of its own")
