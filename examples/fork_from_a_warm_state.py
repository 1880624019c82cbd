"""Prepares a machine once and forks it for each case, so that no case sees another's changes."""

from pathlib import Path

import supermachine

IMAGE = str(Path(__file__).parents[1] / "demo" / "busybox.oci.tar")

with supermachine.VM(IMAGE, memory="128m") as template:
    template.path("/tmp/state").write_text("prepared")
    for case in ("a", "b"):
        (vm,) = template.fork()
        with vm:
            vm.run(f"echo {case} >> /tmp/state", shell=True, check=True)
            assert vm.path("/tmp/state").read_text() == f"prepared{case}\n"
    assert template.path("/tmp/state").read_text() == "prepared"
    print("two forks, one template, no changes in it")
