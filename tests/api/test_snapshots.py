"""What needs no guest: keys, records, working sets, ports, and the command line of `run`."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import struct

import pytest
import supermachine
from hypothesis import given
from hypothesis import strategies as st
from supermachine import VM, Network, aio
from supermachine.cli.commands import run as run_command
from supermachine.cli.commands import told
from supermachine.cli.run import arguments, kept
from supermachine.errors import (
    BadSnapshot,
    ConfigurationError,
    NotSupported,
    SnapshotExists,
    SnapshotFailed,
    SnapshotInUse,
)
from supermachine.images import ImageConfig
from supermachine.network import ports
from supermachine.settings.machine import MachineOptions, MachineSettings
from supermachine.settings.table import SETTINGS
from supermachine.snapshots import baking, capture, records, working_set
from supermachine.storage.volumes import SLOTS


def members(kind) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Pool", "Image"])
def test_both_interfaces_have_the_same_names(name):
    assert members(getattr(supermachine, name)) == members(getattr(aio, name)) - {"reference"}


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_both_interfaces_take_the_same_arguments():
    for name in ("snapshot", "fork", "command", "run", "stop", "wait", "copy_in", "copy_out"):
        assert parameters(getattr(VM, name)) == parameters(getattr(aio.VM, name))
    for name in ("__init__", "acquire", "close"):
        assert parameters(getattr(supermachine.Pool, name)) == parameters(getattr(aio.Pool, name))
    assert parameters(supermachine.Image.bake) == parameters(aio.Image.bake)
    assert parameters(supermachine.bake) == parameters(aio.bake)


# Keys.


def test_a_warm_up_is_known_by_what_it_does():
    def key(warmup, name=None, context=()):
        return baking.warmup_key(warmup, name, context)

    def function(value):
        return lambda vm: vm.run(["echo", value])

    assert key(None) is None
    assert key(["a b"]) == key(["a b"]) != key([["a", "b"]])
    assert key(["a"], context=[1]) != key(["a"], context=[2])
    assert key(function("x")) == key(function("x")) != key(function("y"))
    assert key(lambda vm: vm.run("1")) != key(lambda vm: vm.run("2"))
    assert key(function(["a list"]), "named") == key(function(["another"]), "named") != key(print, "else")
    for unclear in (print, function(["a list"]), key.__get__(object())):
        with pytest.raises(ConfigurationError):
            key(unclear)
    with pytest.raises(ConfigurationError):
        key("a string")


def test_an_image_outside_the_cache_is_not_baked(stand_in):
    with VM("stand-in") as vm:
        assert vm.run(["true"]).returncode == 0
        assert vm._baked() is None
    with pytest.raises(SnapshotFailed):
        supermachine.bake("stand-in")


def test_a_warm_up_runs_at_each_boot_when_nothing_is_baked(stand_in, tmp_path):
    for _ in range(2):
        with VM("stand-in", bake=False, warmup=[f"echo warm >> {tmp_path}/log", ["true"]]):
            pass
    assert (tmp_path / "log").read_text() == "warm\nwarm\n"


# Records.

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
names = texts.filter(lambda name: name and "=" not in name)
# A dictionary first: of a named tuple all fields would be made up, and records do not have all of them.
configs = st.fixed_dictionaries(
    {
        "entrypoint": st.lists(texts, max_size=3).map(tuple),
        "cmd": st.lists(texts, max_size=3).map(tuple),
        "env": st.lists(texts, max_size=3).map(tuple),
        "working_dir": texts,
        "user": texts,
        "exposed_ports": st.lists(texts, max_size=2, unique=True).map(tuple),
        "labels": st.dictionaries(texts, texts, max_size=2),
        "stop_signal": texts,
        "healthcheck": st.none()
        | st.fixed_dictionaries(
            {"Test": st.lists(texts, max_size=3)}, optional={"Interval": st.integers(0, 1 << 40), "Retries": st.just(2)}
        ),
    }
).map(lambda fields: ImageConfig(**fields))
digits = st.text("0123456789abcdef", min_size=64, max_size=64)
some_records = st.builds(
    records.Record,
    reference=texts,
    digest=digits.map(lambda d: f"sha256:{d}"),
    platform=st.just("linux/arm64"),
    rootfs=digits,
    config=configs,
    environment=st.dictionaries(names, texts, max_size=3),
    working_dir=st.none() | texts,
    user=st.none() | texts,
    ports=st.dictionaries(
        texts,
        st.lists(st.tuples(st.sampled_from(["127.0.0.1", "::1"]), st.integers(0, 65535)), max_size=2, unique=True),
        max_size=2,
    ),
    parents=st.lists(st.tuples(digits, texts), max_size=3),
    network=st.none()
    | st.builds(
        Network,
        st.sampled_from(["none", "public", "all"]),
        allow=st.lists(st.sampled_from(["host", "*.example.org:443", "10.0.0.0/8"]), max_size=2),
        deny=st.lists(st.just("meta"), max_size=1),
    ),
    volumes=st.lists(
        st.tuples(
            st.sampled_from(["data", "a-b"]), st.just("/data"), st.sampled_from(SLOTS), digits.map(lambda d: d[:32])
        ),
        max_size=2,
        unique_by=lambda volume: volume[2],
    ).map(tuple),
)


@given(some_records)
def test_records_are_read_as_they_were_written(record):
    assert records.Record.decode(record.encode(), "it") == record


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(some_records, st.data())
def test_records_of_a_stranger_are_believed_in_nothing(record, data):
    body = json.loads(record.encode())
    place = body
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    try:
        found = records.Record.decode(json.dumps(body).encode(), "it")
    except BadSnapshot:
        return
    # Then it is one that could have been written, and above all names no file outside the cache.
    assert len(found.rootfs) == 64 and set(found.rootfs) <= set("0123456789abcdef")
    assert records.Record.decode(found.encode(), "it") == found


def test_a_network_of_a_stranger_gives_no_more_than_a_machine_here_has():
    here = Network("public", allow=["10.1.2.3:80"], deny=["evil.test"])
    stranger = Network("all", allow=["host", "10.0.0.0/8", "meta", "*.example.org", "10.1.2.3:80"], deny=["8.8.8.8"])
    found = here.within(stranger)
    assert found == Network("public", allow=["*.example.org", "10.1.2.3:80"], deny=["evil.test", "8.8.8.8"])
    assert here.within(Network("none")).is_none
    assert Network("none").within(stranger).is_none
    assert here.within(Network("none", allow=["example.org:443"])).preset == "none"


def test_ports_of_a_stranger_are_on_loopback_and_few():
    """Who restores a snapshot says where else it listens, and not who wrote it."""
    record = records.Record(
        reference="a",
        digest="sha256:" + "0" * 64,
        platform="linux/arm64",
        rootfs="1" * 64,
        config=ImageConfig(),
        environment={},
        working_dir=None,
        user=None,
        ports={},
        parents=[],
    )
    body = json.loads(record.encode())
    body["ports"] = {"80/tcp": [["0.0.0.0", 80], ["127.0.0.1", 80], ["::", 81], ["::1", 82]]}
    found = records.Record.decode(json.dumps(body).encode(), "it")
    assert found.ports == {"80/tcp": [("127.0.0.1", 80), ("127.0.0.1", 81), ("::1", 82)]}
    body["ports"] = {f"{port}/tcp": [["127.0.0.1", 0]] for port in range(1, 258)}
    with pytest.raises(BadSnapshot, match="more than 256 ports"):
        records.Record.decode(json.dumps(body).encode(), "it")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(BadSnapshot):
        records.Record.decode(data, "it")


# Working sets.

runs = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.booleans()), max_size=40)


def ranges(gaps):
    found, end = [], 0
    for gap, count, written in gaps:
        found.append((end + gap, count, written))
        end += gap + count
    return found


@given(runs)
def test_working_sets_are_read_as_they_were_written(gaps):
    assert working_set.decode(working_set.encode(ranges(gaps))) == ranges(gaps)


@given(runs.filter(bool), st.data())
def test_a_damaged_working_set_is_none(gaps, data):
    good = working_set.encode(ranges(gaps))
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), good[:at]):
        with pytest.raises(ValueError):
            working_set.decode(bad)


@pytest.mark.parametrize("body", [[(5, 1), (5, 1)], [(9, 1), (2, 8)], [(0, 0)], [(0, 1 << 30)]])
def test_a_working_set_that_cannot_be_is_none(body, tmp_path):
    data = b"".join(struct.pack("<II", start, count << 1) for start, count in body)
    path = tmp_path / "set"
    path.write_bytes(working_set._MAGIC + hashlib.sha256(data).hexdigest().encode() + data)
    assert working_set.load(path) == []
    assert working_set.load(tmp_path / "missing") == []


# Files.


def test_a_published_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), capture.published(path) as fd:
        os.write(fd, b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with capture.published(path) as fd:
        os.write(fd, b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SnapshotExists), capture.published(path):
        pass
    # Somebody was quicker.
    other = tmp_path / "other"
    with pytest.raises(SnapshotExists), capture.published(other):
        other.write_bytes(b"theirs")
    assert other.read_bytes() == b"theirs"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other"]


def test_what_is_leased_is_not_deleted(tmp_path):
    import fcntl

    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open() as lease:
        fcntl.flock(lease, fcntl.LOCK_SH)
        with pytest.raises(SnapshotInUse):
            capture.delete(path)
    capture.delete(path)
    assert not path.exists()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=6))
def test_copies_are_equal_and_as_sparse(tmp_path_factory, parts):
    place = tmp_path_factory.mktemp("sparse")
    source, copy = place / "source", place / "copy"
    with source.open("wb") as file:
        for hole, blocks in parts:
            if hole:
                file.seek(blocks << 16, os.SEEK_CUR)
            else:
                file.write(os.urandom(blocks << 16))
        file.truncate()
    with copy.open("wb") as file:
        capture.copy_sparse(source, file.fileno())
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks <= source.stat().st_blocks


# Ports.


def test_ports_as_docker_py_writes_them():
    assert ports.parse(None) == {}
    assert ports.parse({"80/tcp": 8080, "81": None, "82/tcp": ("0.0.0.0", 1), "83": [1, ("::1", None)]}) == {
        "80/tcp": [("127.0.0.1", 8080)],
        "81/tcp": [("127.0.0.1", 0)],
        "82/tcp": [("0.0.0.0", 1)],
        "83/tcp": [("127.0.0.1", 1), ("::1", 0)],
    }
    for wrong in ({"0": 1}, {"http": 1}, {"80": "x"}, {"80": 70000}, {"70000": 1}, {"80": (1, 2)}):
        with pytest.raises(ConfigurationError):
            ports.parse(wrong)
    assert ports.parse({"53/udp": 53}) == {"53/udp": [("127.0.0.1", 53)]}
    with pytest.raises(NotSupported):
        ports.parse({"80/sctp": 1})


def test_ports_as_docker_publishes_them():
    assert ports.published(["8080:80", "81", "0.0.0.0:1:82/tcp", "127.0.0.1::83", "[::1]:2:84"]) == {
        "80/tcp": [("127.0.0.1", 8080)],
        "81/tcp": [("127.0.0.1", 0)],
        "82/tcp": [("0.0.0.0", 1)],
        "83/tcp": [("127.0.0.1", 0)],
        "84/tcp": [("::1", 2)],
    }
    for wrong in ("", "x", "8080:", "x:80", "1:2:3:x", "host:99999:80"):
        with pytest.raises(ConfigurationError):
            ports.published([wrong])


# The command line.

words = st.sampled_from(
    [
        *arguments._COMMAND_FLAGS, *arguments._SETTINGS, *arguments._HELD, "-d", "--name", "--timings=html",
        "--entrypoint", "--timeout",
        "--cpus", "--pull", "--cpus=2", "--memory=1g", "-e", "A=1", "--env=B", "--env-file", "2", "1.5", "0", "nan",
        "inf", "1e400", "always", "-it", "-mx", "--help", "--", "-", "", "image", "echo", "--timeout=3", "--no-such",
        "--mem", "٣",
    ]
)  # fmt: skip


@given(st.lists(words, max_size=7))
def test_a_plain_command_line_is_read_as_click_reads_it(argv):
    plain = arguments.parse(list(argv))
    if plain is None:
        return
    context = run_command.make_context("run", list(argv))
    said, of_names = told(dict(context.params))
    assert not kept.wanted(of_names)
    assert plain == said


def test_every_setting_has_a_type_and_a_place():
    names = {setting.name for setting in SETTINGS}
    assert set(MachineOptions.__annotations__) == names
    checked = set(MachineSettings._fields)
    # These are used up when the settings are checked: the rules and secrets make the network, mounts the shares and
    # volumes.
    assert names - checked == {"require_hardware", "allow", "deny", "secrets", "mounts"}
    assert checked - names == {"shares"}


def test_usual_command_lines_are_plain():
    for line in ("image", "-q image echo hi", "-it -e A=b image", "--timings -p 8080:80 image -- sh -c x -e"):
        assert arguments.parse(line.split()) is not None
