"""Programs that write, read back and compare, on the root's disk, a volume and a share: fio and stress-ng."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from supermachine import VM, Volume

from ..vm.conftest import packages, umoci_layout
from ..vm.guests import output

pytestmark = pytest.mark.vm

PROGRAMS = "fio,stress-ng,coreutils,dash,base-files,base-passwd"
#: Where, and how fio goes about it there; each block is read again and its checksum compared.
FIO = "fio --name=job --size=16m --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal"
JOBS = {
    "in no order, with fsync": "--rw=randwrite --bs=4k --ioengine=psync --fsync=512",
    "by a mapping": "--rw=randwrite --bs=4k --ioengine=mmap",
    "past the cache, many at once": "--rw=randwrite --bs=16k --ioengine=libaio --iodepth=16 --direct=1",
    "blocks of many sizes": "--rw=randrw --bsrange=512-128k --bs_unaligned=1 --ioengine=psync",
}
STRESS = (
    "--hdd 2 --hdd-bytes 16m --hdd-opts wr-rnd,rd-rnd",
    "--dir 1 --rename 1 --link 1 --fallocate 1 --fallocate-bytes 8m --seek 1 --seek-size 8m",
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    place = tmp_path_factory.mktemp("verified")
    tar = packages(place / "rootfs.tar", PROGRAMS)
    image = umoci_layout(place / "oci", [tar], "--config.env", "PATH=/usr/bin:/bin")
    (place / "share").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_DATA", str(place / "data"))
        mounts = {"/volume": Volume("disk", size="1g"), "/share": place / "share"}
        with VM(image, memory="512m", vcpus=2, disk="1g", mounts=mounts) as vm:
            yield vm


@pytest.mark.parametrize("place", ["/root", "/volume", "/share"])
@pytest.mark.parametrize("job", JOBS, ids=list(JOBS))
def test_fio_reads_what_it_wrote(guest: VM, place: str, job: str) -> None:
    output(guest, f"mkdir -p {place}/fio && {FIO} --directory={place}/fio {JOBS[job]} && rm -r {place}/fio")


@pytest.mark.parametrize("place", ["/root", "/volume", "/share"])
@pytest.mark.parametrize("how", STRESS, ids=["contents", "names"])
def test_stress_ng_finds_nothing_wrong(guest: VM, place: str, how: str) -> None:
    output(guest, f"mkdir -p {place}/stress && stress-ng --temp-path {place}/stress --verify -t 10 {how} 2>&1")
    assert output(guest, f"ls {place}/stress") == ""


def test_what_was_verified_is_there_after_the_caches_are_empty(guest: VM) -> None:
    """The device's own contents, not those of the guest's memory."""
    for place in ("/root", "/volume", "/share"):
        job = f"{FIO} --directory={place} --rw=write --bs=64k --ioengine=psync --end_fsync=1"
        output(guest, f"{job} --do_verify=0 && sync && echo 3 > /proc/sys/vm/drop_caches")
        output(guest, f"{job} --verify_only && rm {place}/job.0.0")
