"""Real guests that go on from what a registry had, on the command line and in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import supermachine
from supermachine import VM, errors
from supermachine.artifacts.trust import Keys
from supermachine.machine import remote
from supermachine.machine.remote import push_baked

from .registry import Registry

pytestmark = pytest.mark.vm
BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"


def with_demo(registry: Registry) -> str:
    """Puts the demo's image into a registry."""
    with tarfile.open(BUSYBOX) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    for name, data in files.items():
        if name.startswith("blobs/"):
            registry.blobs["demo", name.removeprefix("blobs/").replace("/", ":")] = data
    entry = json.loads(files["index.json"])["manifests"][0]
    manifest = registry.blobs["demo", entry["digest"]]
    registry.put("demo", manifest, "application/vnd.oci.image.manifest.v1+json", "1")
    return f"{registry.host}/demo:1"


@pytest.fixture
def image(registry: Registry) -> str:
    """The demo's image in the registry."""
    return with_demo(registry)


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / name))
    monkeypatch.setenv("SUPERMACHINE_KEYS", str(tmp_path / f"{name}-keys"))


def command(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "supermachine", *words], capture_output=True, text=True, timeout=300, env=os.environ
    )
    print(done.stderr, file=sys.stderr)
    return done.returncode, done.stdout, done.stderr


def baked() -> list[Path]:
    return list(Path(os.environ["SUPERMACHINE_CACHE"]).glob("snapshots/*/snapshot"))


def test_an_image_starts_from_the_snapshot_at_its_registry(
    registry: Registry, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = Keys().generate("builder").text
    done = push_baked(image, sign="builder")
    (original,) = baked()
    contents = original.read_bytes()

    another_machine(monkeypatch, tmp_path, "stranger")
    asked = registry.count("GET", "/referrers/")
    assert command("run", "-q", image, "echo", "hi")[:2] == (0, "hi\n")
    assert registry.count("GET", "/referrers/") == asked, "who trusts nobody does not ask"
    (own,) = baked()
    assert own.read_bytes() != contents

    another_machine(monkeypatch, tmp_path, "friend")
    Keys().trust(public, "builder")
    status, output, said = command("run", "-q", "--timings", image, "echo", "hi")
    assert (status, output) == (0, "hi\n"), said
    (adopted,) = baked()
    assert adopted.read_bytes() == contents
    assert (adopted.parent / "working-set").read_bytes() == (original.parent / "working-set").read_bytes()
    asked = len(registry.requests)
    assert command("run", "-q", image, "echo", "again")[:2] == (0, "again\n")
    assert len(registry.requests) == asked, "what is baked is not asked for"

    another_machine(monkeypatch, tmp_path, "other")
    Keys().generate("somebody")
    status, output, said = command("run", "-q", image, "echo", "hi")
    assert (status, output) == (0, "hi\n")
    assert "the guest boots" in said and "no key that is trusted" in said

    # A registry that lies, or has gone, costs the boot.
    another_machine(monkeypatch, tmp_path, "unlucky")
    Keys().trust(public, "builder")
    blobs = {layer["digest"] for layer in json.loads(registry.manifests["demo", done.digest][1])["layers"]}
    registry.change = lambda name, data: data[:-1] + b"x" if name in blobs else data
    status, output, said = command("run", "-q", image, "echo", "hi")
    assert (status, output) == (0, "hi\n")
    assert "the guest boots" in said
    assert len(baked()) == 1


def test_a_baked_snapshot_is_found_and_fetched_with_one_login(
    registry: Registry, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = Keys().generate("builder").text
    push_baked(image, sign="builder", memory="128m", engine="soft")
    another_machine(monkeypatch, tmp_path, "friend")
    Keys().trust(public, "builder")
    assert command("pull", "-q", image)[0] == 0
    registry.token = "secret"
    blobs = registry.count("GET", "/blobs/")
    with VM(image, memory="128m", engine="soft") as vm:
        assert vm.run(["echo", "hi"], text=True).stdout == "hi\n"
        assert remote.arrival_of(vm) is not None
    assert registry.count("GET", "/blobs/") > blobs and len(registry.scopes) == 1


def test_a_snapshot_runs_on_another_machine(
    registry: Registry, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supermachine.bake(image)
    with VM(image, environment={"COLOUR": "green"}) as vm:
        vm.run("echo here > /tmp/greeting", shell=True, check=True)
        whole = vm.snapshot(tmp_path / "whole")
        vm.path("/tmp/more").write_text("more")
        diff = vm.snapshot(tmp_path / "diff", diff=True)
    first = whole.push(f"{registry.host}/demo:whole")
    assert first.environment == ("COLOUR",)
    second = diff.push(f"{registry.host}/demo:diff")
    assert second.sent < first.sent / 10

    another_machine(monkeypatch, tmp_path, "other")
    script = "cat /tmp/greeting; echo $COLOUR"
    assert command("run", "-q", first.reference, "sh", "-c", script)[:2] == (0, "here\ngreen\n")
    status, output, said = command("run", "-q", f"{registry.host}/demo:whole", "true")
    assert (status, output) == (125, "")
    assert "is code" in said and "@sha256:" in said and "key trust" in said
    status, _, said = command("run", "-q", "--memory", "1g", first.reference, "true")
    assert status == 125 and "has its memory already" in said
    with supermachine.pull(second.reference).restore() as vm:
        assert vm.path("/tmp/more").read_text() == "more"
    assert not [path for method, path in registry.requests if not path.startswith(("/v2/demo", "/v2/bb"))]


def test_push_and_pull_on_the_command_line(
    registry: Registry, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, reference, said = command("push", "-q", image)
    assert status == 0 and reference.startswith(f"{registry.host}/demo@sha256:"), said
    status, digest, said = command("pull", "-q", "-o", str(tmp_path / "out"), reference.strip())
    assert status == 0, said
    assert reference.endswith(digest)
    assert (tmp_path / "out").read_bytes() == baked()[0].read_bytes()
    assert command("pull", "-q", reference.strip())[1] == digest
    assert command("push", "-q", str(tmp_path / "out"))[0] == 125
    assert command("push", "-q", str(tmp_path / "out"), f"{registry.host}/demo:copy")[0] == 0
    assert command("push", "-q", str(BUSYBOX))[0] == 125
    another_machine(monkeypatch, tmp_path, "other")
    with pytest.raises(errors.SnapshotReference):
        VM(reference.strip()).start()


def working_set_of(registry: Registry, reference: str) -> set[int]:
    """The pages that a start from it fetches first."""
    from supermachine.artifacts.model import Config
    from supermachine.snapshots import working_set

    manifest = json.loads(registry.manifests["demo", reference.strip().partition("@")[2]][1])
    config = Config.decode(registry.blobs["demo", manifest["config"]["digest"]], "x")
    ranges = working_set.decode(config.working_set)
    return {page for start, count, _ in ranges for page in range(start, start + count)}


def test_a_push_says_what_guests_are_started_for(registry: Registry, image: str) -> None:
    """The demo's image has a shell as its command, which ends without input; the one that is named needs more."""
    large = "head -c 6000000 /dev/urandom > /dev/shm/x && sha256sum /dev/shm/x"
    status, reference, said = command("push", "-q", image)
    assert status == 0, said
    own = working_set_of(registry, reference)
    status, reference, said = command("push", "-q", "--first", f"sh -c '{large}'", image)
    assert status == 0, said
    named = working_set_of(registry, reference)
    assert own and len(named) > len(own) + 1000
    status, reference, said = command("push", "-q", image)
    assert status == 0 and working_set_of(registry, reference) == named, "what is recorded here already is kept"

    for words, reason in ((["sh -c 'echo what >&2; exit 3'"], "what"), (["'"], "cannot be read"), ([""], "no command")):
        status, _, said = command("push", "-q", "--first", *words, image)
        assert status == 125 and reason in said
    assert command("push", "-q", "--first", "true", str(baked()[0]), f"{registry.host}/demo:x")[0] == 125


def test_the_working_set_of_an_image_is_that_of_its_own_command(
    registry: Registry, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it writes something: it may never end."""
    monkeypatch.setattr(
        VM, "command", lambda _vm: ["sh", "-c", "head -c 6000000 /dev/urandom > /dev/shm/x; echo; sleep 100"]
    )
    pages = working_set_of(registry, push_baked(image).reference)
    monkeypatch.undo()
    monkeypatch.setattr(remote, "_OWN_COMMAND", 0.5)
    monkeypatch.setattr(VM, "command", lambda _vm: ["sleep", "100"])
    fewer = working_set_of(registry, push_baked(image, memory="128m").reference)
    assert fewer and len(pages) > len(fewer) + 1000
