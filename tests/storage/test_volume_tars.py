"""What is in a volume as a tar, and back: by the command line, against Python's own tarfile."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from supermachine import VM, errors
from supermachine.machine.volume_tars import export_volume, import_volume
from supermachine.storage import volumes

from ..vm.guests import output

BUSYBOX = str(Path(__file__).parents[2] / "demo" / "busybox.oci.tar")

pytestmark = pytest.mark.usefixtures("data")


def cli(*words: str | Path, given: bytes = b"", code: int = 0) -> bytes:
    done = subprocess.run([sys.executable, "-m", "supermachine", *words], input=given, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


#: What a tar keeps of each entry; links and FIFOs are as new as what they were unpacked into.
LISTED = (
    "cd /data; find . ! -type d -exec stat -c '%n %F %a %u:%g %h %s' {} +; find . -type f -exec stat -c '%n %Y' {} +; "
    "find . -type d -exec stat -c '%n %a %u:%g %Y' {} +; find . -type f -exec md5sum {} +; readlink deep/link"
)


def test_out_and_in_again(tmp_path: Path) -> None:
    with VM(BUSYBOX, memory="64m", volumes=["one:/data"]) as vm:
        output(
            vm,
            "cd /data; chown 70:71 . && chmod 700 .; mkdir -p deep/er; head -c 3000000 /dev/urandom > deep/er/file; "
            "ln deep/er/file deep/hard; ln -s er/file deep/link; mkfifo fifo; chmod 4711 deep/hard; chown 5:6 fifo; "
            "touch -d '2001-02-03 04:05:06' deep/er; echo text > $(printf 'odd\\nname'); : > empty",
        )
        listed = sorted(output(vm, LISTED).splitlines())
        with pytest.raises(errors.VolumeInUse):
            export_volume("one", io.BytesIO())
    cli("volume", "export", "one", "-o", tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        top, hard = tar.getmember("."), tar.getmember("./deep/hard")
        assert (top.uid, top.gid, top.mode) == (70, 71, 0o700) and hard.islnk() and hard.linkname == "./deep/er/file"
        assert tar.getmember("./odd\nname").size == 5
    for name, given in (("two", b""), ("three", gzip.compress((tmp_path / "one.tar").read_bytes()))):
        source = "-" if given else tmp_path / "one.tar"
        assert cli("volume", "import", name, source, given=given).decode() == f"{name}\n"
        with VM(BUSYBOX, memory="64m", volumes=[f"{name}:/data"]) as vm:
            assert sorted(output(vm, LISTED).splitlines()) == listed
    # What was there stays.
    extra = io.BytesIO()
    with tarfile.open(fileobj=extra, mode="w:xz") as tar:
        tar.addfile(tarfile.TarInfo("extra"))
    cli("volume", "import", "two", "-", given=extra.getvalue())
    with VM(BUSYBOX, memory="64m", volumes=["two:/data"]) as vm:
        assert output(vm, "ls /data").split() == ["deep", "empty", "extra", "fifo", "odd?name"]


def test_what_fails_leaves_nothing() -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        member = tarfile.TarInfo("large")
        member.size = 40 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(OSError, match="No space left"):
        import_volume("small", io.BytesIO(whole.getvalue()), "32m")
    outside = io.BytesIO()
    with tarfile.open(fileobj=outside, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    for bad in (b"no tar", gzip.compress(whole.getvalue())[:2000], whole.getvalue()[:100_000], outside.getvalue()):
        with pytest.raises(errors.InvalidArchive):
            import_volume("bad", io.BytesIO(bad))
    assert volumes.names() == []
    assert b"no volume none" in cli("volume", "export", "none", code=125)
    with pytest.raises(errors.VolumeNotFound):
        export_volume("none", io.BytesIO())
