"""docker-py, unchanged."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest
from docker import DockerClient
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import Healthcheck

from ..real import RealRegistry
from .conftest import BUSYBOX, IMAGE, Session, children

pytestmark = pytest.mark.vm


def test_run(client: DockerClient) -> None:
    assert client.containers.run(IMAGE, ["echo", "hello"], remove=True) == b"hello\n"
    with pytest.raises(ContainerError) as failed:
        client.containers.run(IMAGE, ["sh", "-c", "echo no >&2; exit 7"], remove=True)
    assert failed.value.exit_status == 7
    assert failed.value.stderr == b"no\n"
    with pytest.raises(ImageNotFound):
        client.images.get("no-such-image")
    with pytest.raises(NotFound):
        client.containers.get("no-such-container")
    with pytest.raises(APIError, match="executable file not found"):
        client.containers.run(IMAGE, ["no-such-program"])


def test_fields_that_clients_rely_on(client: DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sleep", "1000"], detach=True, ports={"80/tcp": ("127.0.0.1", None)})
    container.reload()
    found = container.attrs
    assert found["State"]["Status"] == "running"
    assert found["State"]["Pid"] > 0
    assert found["HostConfig"]["NetworkMode"] == "bridge"
    assert found["HostConfig"]["LogConfig"]["Type"] == "json-file"
    assert int(found["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]) > 0
    assert found["NetworkSettings"]["Networks"]["bridge"]["Gateway"] == "127.0.0.1"
    (line,) = client.api.containers()
    assert line["HostConfig"]["NetworkMode"] == "bridge"
    assert container.status == "running"
    container.stop(timeout=1)
    container.reload()
    assert not container.attrs["NetworkSettings"]["Ports"]


def test_memory_and_disk_have_the_size_that_is_said(client: DockerClient) -> None:
    shown = client.containers.run(
        IMAGE,
        ["sh", "-c", "df -m / | tail -n 1; head -n 1 /proc/meminfo"],
        remove=True,
        mem_limit="300m",
        storage_opt={"size": "1g"},
    ).decode()
    words = shown.split()
    assert 800 < int(words[1]) <= 1024
    assert 200 << 10 < int(words[-2]) <= 300 << 10
    with pytest.raises(APIError, match="not the size of a disk"):
        client.containers.create(IMAGE, storage_opt={"size": "tiny"})


def test_memory_and_a_root_that_is_only_read(client: DockerClient) -> None:
    script = (
        "! echo no > /file && echo 10.0.0.9 other >> /etc/hosts && grep -q 10.0.0.7.named /etc/hosts && "
        'awk \'$2 == "/run" || $2 == "/dev/shm" || $2 == "/data" {print $2, $3, $4}\' /proc/mounts | sort'
    )
    shown = client.containers.run(
        IMAGE,
        ["sh", "-c", script],
        remove=True,
        read_only=True,
        shm_size="2m",
        tmpfs={"/run": "size=1m,exec"},
        mounts=[docker.types.Mount("/data", None, type="tmpfs", tmpfs_size=4 << 20, tmpfs_mode=0o750)],
        extra_hosts={"named": "10.0.0.7"},
    )
    data, shm, run = (line.split() for line in shown.decode().splitlines())
    assert data[:2] == ["/data", "tmpfs"] and {"size=4096k", "mode=750", "noexec"} <= set(data[2].split(","))
    assert shm[:2] == ["/dev/shm", "tmpfs"] and "size=2048k" in shm[2].split(",")
    assert "size=1024k" in run[2].split(",") and "noexec" not in run[2].split(",")
    with pytest.raises(docker.errors.APIError, match="not understood"):
        client.containers.create(IMAGE, tmpfs={"/run": "size"})


def test_exec_streams(client: DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    assert container.exec_run(["sh", "-c", "echo $A; id -u"], environment={"A": "b"}).output == b"b\n0\n"
    code, (out, err) = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)
    assert (code, out, err) == (3, b"out\n", b"err\n")
    # More than fits into any buffer, to the last byte.
    code, output = container.exec_run(["sh", "-c", "head -c 5000000 /dev/zero"])
    assert (code, len(output)) == (0, 5_000_000)


def test_a_published_port_leads_into_the_guest(client: DockerClient) -> None:
    container = client.containers.run(
        IMAGE, ["sh", "-c", "while true; do nc -l -p 7777 -e cat; done"], detach=True, ports={"7777/tcp": None}
    )
    container.reload()
    port = int(container.ports["7777/tcp"][0]["HostPort"])
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.settimeout(10)
            with contextlib.suppress(OSError):
                connection.sendall(b"echo\n")
                if connection.recv(5) == b"echo\n":
                    break
        time.sleep(0.05)
    else:
        pytest.fail("nothing answered")


def test_archives_keep_what_they_hold(client: DockerClient) -> None:
    container = client.containers.create(IMAGE, ["sleep", "1000"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        directory = tarfile.TarInfo("d")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o750
        tar.addfile(directory)
        info = tarfile.TarInfo("d/file")
        info.size, info.mode, info.uid, info.gid, info.mtime = 5, 0o4755, 12, 34, 1_000_000_000
        tar.addfile(info, io.BytesIO(b"hello"))
        for kind, name, target in ((tarfile.SYMTYPE, "d/link", "file"), (tarfile.LNKTYPE, "d/hard", "d/file")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    assert container.put_archive("/tmp", buffer.getvalue())
    pieces, status = container.get_archive("/tmp/d")
    assert status["name"] == "d"
    assert status["mode"] & (1 << 31)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        members = {member.name: member for member in tar.getmembers()}
        file = members["d/file"] if members["d/file"].isreg() else members["d/hard"]
        assert (file.mode, file.uid, file.gid, file.mtime) == (0o4755, 12, 34, 1_000_000_000)
        assert tar.extractfile(file).read() == b"hello"  # type: ignore[union-attr]
        assert members["d"].mode == 0o750
        assert members["d/link"].linkname == "file"
        assert {members["d/file"].islnk(), members["d/hard"].islnk()} == {True, False}
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../outside"))
    with pytest.raises(APIError, match="outside"):
        container.put_archive("/tmp", evil.getvalue())
    with pytest.raises(NotFound):
        container.get_archive("/no/such/file")


def test_health_checks_are_run(client: DockerClient) -> None:
    check = Healthcheck(test=["CMD-SHELL", "echo looked; test -e /tmp/well"], interval=100_000_000, retries=2)
    container = client.containers.run(IMAGE, ["sleep", "1000"], detach=True, healthcheck=check)
    _until(lambda: _health(container) == "unhealthy")
    assert container.attrs["State"]["Health"]["Log"][-1]["Output"] == "looked\n"
    container.exec_run(["touch", "/tmp/well"])
    _until(lambda: _health(container) == "healthy")


def _health(container: object) -> str:
    container.reload()  # type: ignore[attr-defined]
    return str(container.attrs["State"]["Health"]["Status"])  # type: ignore[attr-defined]


def _until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_restart_policies(client: DockerClient) -> None:
    container = client.containers.run(
        IMAGE,
        ["sh", "-c", "echo run >> /tmp/runs; test $(wc -l < /tmp/runs) = 3"],
        detach=True,
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 5},
    )
    _until(lambda: client.api.inspect_container(container.id)["State"]["Status"] == "exited")
    found = client.api.inspect_container(container.id)
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (2, 0)


def test_one_that_always_restarts_ends_when_it_is_told_to(client: DockerClient) -> None:
    always = {"Name": "always"}
    one = client.containers.run(IMAGE, ["sh", "-c", "echo run; exit 3"], detach=True, restart_policy=always)
    _until(lambda: client.api.inspect_container(one.id)["RestartCount"] >= 2)
    # Wherever in its round it is: it runs, it waits, it is being started.
    for number in range(4):
        time.sleep(0.03 * number)
        one.stop(timeout=1)
        runs = one.logs().count(b"run")
        time.sleep(0.5)
        one.reload()
        assert (one.status, one.logs().count(b"run")) == ("exited", runs)
        one.start()
    one.remove(force=True)
    assert not client.containers.list(all=True)


def test_what_is_killed_while_it_is_paused_starts_again(client: DockerClient) -> None:
    one = client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    one.pause()
    one.kill()
    one.reload()
    assert one.status == "exited"
    one.start()
    assert one.exec_run(["echo", "runs"]).output == b"runs\n"
    one.pause()
    one.unpause()
    one.stop(timeout=1)
    with pytest.raises(APIError, match="is not running"):
        one.pause()


def test_a_new_volume_of_several_that_begin_at_once_is_filled_for_all(client: DockerClient) -> None:
    given = {"of-several": {"bind": "/bin", "mode": "rw"}}
    many = [client.containers.create(IMAGE, ["ls", "/bin"], volumes=given) for _ in range(3)]

    def one(number: int) -> int:
        time.sleep(number * 0.06)
        many[number].start()
        many[number].wait()
        return len(many[number].logs().splitlines())

    with ThreadPoolExecutor(3) as threads:
        counts = list(threads.map(one, range(3)))
    assert len(set(counts)) == 1 and counts[0] > 10
    for container in many:
        container.remove()
    client.volumes.get("of-several").remove()


def test_events_are_heard_as_they_happen(client: DockerClient, session: Session) -> None:
    other = docker.DockerClient(base_url=session.host)
    stream = other.api.events(decode=True, filters={"type": "container"})
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(event["Action"] for event in stream))
    listener.start()
    time.sleep(0.2)
    client.containers.run(IMAGE, ["true"], remove=True)
    _until(lambda: "destroy" in heard)
    stream.close()
    listener.join(10)
    assert [action for action in heard if action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_twenty_at_once(client: DockerClient, session: Session) -> None:
    def one(number: int) -> bytes:
        own = docker.DockerClient(base_url=session.host, timeout=120)
        try:
            return bytes(own.containers.run(IMAGE, ["echo", str(number)], remove=True))
        finally:
            own.close()

    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(one, range(20))) == [f"{n}\n".encode() for n in range(20)]
    assert client.containers.list(all=True) == []


def test_a_client_that_dies_leaves_the_container_alone(client: DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sh", "-c", "while true; do echo x; done"], detach=True)
    for _ in range(5):
        stream = container.logs(stream=True, follow=True)
        next(iter(stream))
        stream.close()
    attached = container.attach_socket(params={"stream": 1, "stdout": 1})
    attached._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    attached.close()
    container.reload()
    assert container.status == "running"
    container.kill()


def test_networks_and_volumes(client: DockerClient) -> None:
    network = client.networks.create("apart", labels={"mine": "yes"})
    assert [n.name for n in client.networks.list(filters={"label": "mine=yes"})] == ["apart"]
    container = client.containers.create(IMAGE, ["true"], network="apart")
    network.connect(container, aliases=["other"])
    container.reload()
    assert "other" in container.attrs["NetworkSettings"]["Networks"]["apart"]["Aliases"]
    network.remove()
    volume = client.volumes.create("kept", labels={"mine": "yes"})
    assert [v.name for v in client.volumes.list(filters={"label": "mine=yes"})] == ["kept"]
    volume.remove()
    with pytest.raises(NotFound):
        client.volumes.get("kept")


@pytest.fixture
def with_data(
    tmp_path: Path, sessions: Callable[..., contextlib.AbstractContextManager[Session]]
) -> Callable[[], contextlib.AbstractContextManager[DockerClient]]:
    """Sessions, one after another, with the same volumes of a user's."""

    @contextlib.contextmanager
    def started() -> Iterator[DockerClient]:
        with (
            sessions(SUPERMACHINE_DATA=str(tmp_path)) as session,
            contextlib.closing(docker.DockerClient(base_url=session.host, timeout=60)) as client,
        ):
            yield client

    return started


def test_a_volume_that_is_a_disk(with_data: Callable[[], contextlib.AbstractContextManager[DockerClient]]) -> None:
    read = ["sh", "-c", "cat /data/file; stat -c %u:%g /data/passwd; df -k /data | tail -n 1"]
    with with_data() as client:
        volume = client.volumes.create("data", driver="supermachine", driver_opts={"size": "1g"})
        assert (volume.attrs["Driver"], volume.attrs["Options"]) == ("supermachine", {"size": "1g"})
        # Filled from the image, with owners that the host's user could not give, and flushed when its container goes.
        write = "test -e /etc/passwd && chown 70:70 /etc/passwd && echo kept > /etc/file && sleep 1000"
        given = {"data": {"bind": "/etc", "mode": "rw"}}
        container = client.containers.run(IMAGE, ["sh", "-c", write], volumes=given, detach=True)
        container.reload()
        (mount,) = container.attrs["Mounts"]
        assert (mount["Name"], mount["Driver"], mount["Type"]) == ("data", "supermachine", "volume")
        with pytest.raises(APIError, match="in use by the virtual machine"):
            client.containers.run(IMAGE, ["true"], volumes=given)
        with pytest.raises(APIError, match="volume is in use"):
            volume.remove()
        while container.exec_run(["test", "-e", "/etc/file"]).exit_code:
            time.sleep(0.1)
        container.remove(force=True)
        given = {"data": {"bind": "/data", "mode": "ro"}}
        kept, owner, size = client.containers.run(IMAGE, read, volumes=given, remove=True).decode().splitlines()
        assert (kept, owner) == ("kept", "70:70") and 900_000 < int(size.split()[1]) < 1_100_000
        for size, said in (("1k", "outside 16 MiB to"), ("much", "not the size of a disk")):
            with pytest.raises(APIError, match=said):
                client.volumes.create("small", driver="supermachine", driver_opts={"size": size})
        with pytest.raises(APIError, match="device"):
            client.volumes.create("small", driver="supermachine", driver_opts={"device": "/dev/sda"})
        with pytest.raises(APIError, match="local and supermachine are"):
            client.volumes.create("small", driver="rexray")
    # Another session knows it once it is told of it, and it grows.
    with with_data() as client:
        assert client.volumes.list() == []
        volume = client.volumes.create("data", driver="supermachine", driver_opts={"size": "2g"})
        given = {"data": {"bind": "/data", "mode": "rw"}}
        said = client.containers.run(IMAGE, read, volumes=given, remove=True).decode().splitlines()
        assert said[:2] == ["kept", "70:70"] and int(said[2].split()[1]) > 1_900_000
        for container in client.containers.list(all=True):
            container.remove(force=True)
        volume.remove()
        assert client.volumes.list() == []


def test_a_volume_that_is_a_lasting_directory(
    with_data: Callable[[], contextlib.AbstractContextManager[DockerClient]],
) -> None:
    options = {"kind": "directory"}
    with with_data() as client:
        volume = client.volumes.create("common", driver="supermachine", driver_opts=options)
        given = {"common": {"bind": "/etc", "mode": "rw"}}
        # Several at once, with owners that the host's user could not give.
        one = client.containers.run(IMAGE, ["sleep", "1000"], volumes=given, detach=True)
        given = {"common": {"bind": "/data", "mode": "rw"}}
        two = client.containers.run(IMAGE, ["sleep", "1000"], volumes=given, user="70:70", detach=True)
        made = "echo kept > /etc/file && chown 70:70 /etc/file && mkdir -m 777 /etc/open"
        assert one.exec_run(["sh", "-c", made]).exit_code == 0
        while two.exec_run(["sh", "-c", "echo more >> /data/file && touch /data/open/own"]).exit_code:
            time.sleep(0.1)
        # What another has changed is seen within a second.
        deadline = time.monotonic() + 60
        while (seen := one.exec_run(["sh", "-c", "cat /etc/file; stat -c %u /etc/open/own"]).output) == b"kept\n70\n":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert seen == b"kept\nmore\n70\n"
        with pytest.raises(APIError, match="volume is in use"):
            volume.remove()
        for container in (one, two):
            container.remove(force=True)
        for wrong in ({"kind": "tape"}, {"kind": "directory", "size": "1g"}):
            with pytest.raises(APIError, match=r"kind|size of its own"):
                client.volumes.create("other", driver="supermachine", driver_opts=wrong)
    with with_data() as client:
        volume = client.volumes.create("common", driver="supermachine", driver_opts=options)
        said = client.containers.run(IMAGE, ["cat", "/data/file"], volumes=given, remove=True)
        assert said == b"kept\nmore\n"
        volume.remove()


def test_a_network_that_is_left_is_not_there_any_more(
    sessions: Callable[..., contextlib.AbstractContextManager[Session]],
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ask = ["wget", "-q", "-O", "/dev/null", f"http://host.docker.internal:{server.server_port}/"]
    with sessions("--network", "all") as session:
        client = docker.DockerClient(base_url=session.host, timeout=60)
        container = client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
        assert container.exec_run(ask).exit_code == 0
        apart = client.networks.create("apart", internal=True)
        client.networks.get("bridge").disconnect(container)
        assert container.exec_run(ask).exit_code != 0
        apart.connect(container)
        assert container.exec_run(ask).exit_code != 0
        client.networks.get("bridge").connect(container)
        assert container.exec_run(ask).exit_code == 0
        alone = client.containers.run(IMAGE, ["sleep", "1000"], detach=True, network_mode="none")
        assert alone.exec_run(ask).exit_code != 0
        with pytest.raises(APIError, match="started without a network"):
            apart.connect(alone)
            client.networks.get("bridge").connect(alone)
        client.close()
    server.shutdown()
    server.server_close()


def test_what_has_changed_on_a_root(client: DockerClient, cli: Callable[..., str]) -> None:
    program = "mkdir -p /a/b; echo >/a/b/c; ln -s c /a/b/d; rm -r /usr /bin/zcat; chmod 700 /bin/ls; echo >>/etc/group"
    container = client.containers.run(IMAGE, ["sh", "-c", program], name="changed", detach=True)
    assert container.wait()["StatusCode"] == 0
    kinds = {change["Path"]: change["Kind"] for change in container.diff()}
    assert kinds == {
        "/a": 1,
        "/a/b": 1,
        "/a/b/c": 1,
        "/a/b/d": 1,
        "/bin": 0,
        "/bin/busybox": 0,
        "/bin/zcat": 2,
        "/etc": 0,
        "/etc/group": 0,
        "/usr": 2,
    }
    assert cli("diff", "changed").splitlines() == [f"{'CAD'[kinds[path]]} {path}" for path in sorted(kinds)]
    assert client.containers.create(IMAGE, ["true"]).diff() is None


def test_what_is_not_there_says_so(client: DockerClient) -> None:
    with pytest.raises(APIError) as refused:
        client.images.search("busybox")
    assert refused.value.status_code == 501
    assert "does not serve GET" in str(refused.value)
    assert "/images/search of Docker's API" in str(refused.value)


def test_a_session_that_is_killed_takes_its_machines_along(
    sessions: Callable[..., contextlib.AbstractContextManager[Session]],
) -> None:
    with sessions() as session:
        client = docker.DockerClient(base_url=session.host)
        for _ in range(3):
            client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
        workers = children(session.process.pid)
        assert len(workers) >= 3
        session.end(signal.SIGKILL)
        _until(lambda: not any(_lives(pid) for pid in workers))
        client.close()
        directory = session.socket.parent
    assert directory.exists()
    with sessions():
        assert not directory.exists()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_socket_is_this_user_s_alone(session: Session) -> None:
    assert os.stat(session.socket.parent).st_mode & 0o777 == 0o700
    assert os.stat(session.socket).st_mode & 0o777 == 0o600


def test_pulls_from_registries_that_want_a_login(client: DockerClient, tmp_path: Path) -> None:
    registry = RealRegistry(tmp_path / "private", password=True)
    try:
        registry.push(f"oci-archive:{BUSYBOX}", "team/busybox:1", "--dest-creds=user:secret")
        name = f"{registry.host}/team/busybox"
        with pytest.raises(APIError):
            client.images.pull(name, tag="1")
        with pytest.raises(APIError, match="does not know"):
            client.login("user", "wrong", registry=registry.host, reauth=True)
        assert client.login("user", "secret", registry=registry.host, reauth=True)["Status"] == "Login Succeeded"
        lines = list(client.api.pull(name, tag="1", stream=True, decode=True))
        assert lines[0]["status"] == "Pulling from team/busybox"
        assert lines[-2]["status"].startswith("Digest: sha256:")
        assert lines[-1]["status"].endswith(f" for {name}:1")
        image = client.images.get(f"{name}:1")
        assert any(digest.startswith(f"{name}@sha256:") for digest in image.attrs["RepoDigests"])
        assert f"{name}:1" in image.tags
        assert client.containers.run(image.id, ["echo", "pulled"], remove=True) == b"pulled\n"
        with pytest.raises(NotFound):
            client.images.pull(name, tag="2")
        client.images.remove(f"{name}:1")
        with pytest.raises(ImageNotFound):
            client.images.get(f"{name}:1")
    finally:
        registry.close()
