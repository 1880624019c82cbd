"""Keeps a running program's state in a file and comes back to it."""

import tempfile
from pathlib import Path

import supermachine

IMAGE = str(Path(__file__).parents[1] / "demo" / "busybox.oci.tar")

with tempfile.TemporaryDirectory() as place:
    with supermachine.VM(IMAGE, memory="128m") as vm:
        vm.run("mkdir /tmp/work && echo half > /tmp/work/done", shell=True, check=True)
        snapshot = vm.snapshot(Path(place) / "half-way")
    with supermachine.VM.restore(snapshot.path) as vm:
        assert vm.path("/tmp/work/done").read_text() == "half\n"
    print(f"{snapshot.data_bytes >> 20} MiB of state, restored")
