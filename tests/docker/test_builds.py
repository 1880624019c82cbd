"""``build``, ``commit``, ``save``, ``load``, ``export``, ``push`` by docker-py, docker's command line and others."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from docker import DockerClient
from docker.errors import BuildError
from hypothesis import given
from hypothesis import strategies as st
from supermachine.docker import dockerfile
from supermachine.docker.errors import ApiError

from ..real import RealRegistry, require
from .conftest import IMAGE, Session

pytestmark = pytest.mark.vm

DOCKERFILE = f"""\
# escape=\\
ARG BASE={IMAGE}
FROM ${{BASE}} AS one
ARG WHO=nobody
ENV GREETING="hello ${{WHO:-x}}" PLACE=/srv/app
RUN mkdir -p /out && echo "$GREETING" > /out/greeting \\
    # a comment between
    && ln -s greeting /out/link && ln /out/greeting /out/second
FROM {IMAGE}
LABEL tier=front said="a b"
WORKDIR /srv
WORKDIR app
COPY --from=one /out/greeting /out/link ./
COPY . ctx/
COPY --chown=1000:1000 --chmod=600 a.txt sub/*.txt files/
ADD pack.tar /unpacked
EXPOSE 80 53/udp
USER 1000
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=5s --retries=2 CMD test -e /srv
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat greeting; id -u"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    (directory / "sub" / "deep").mkdir(parents=True)
    (directory / "a.txt").write_text("a\n")
    (directory / "sub" / "b.txt").write_text("b\n")
    (directory / "sub" / "deep" / "c.txt").write_text("c\n")
    (directory / "debug.log").write_text("not to be sent\n")
    (directory / ".dockerignore").write_text("*.log\n")
    with tarfile.open(directory / "pack.tar", "w") as tar:
        tar.add(directory / "sub", "sub")
    (directory / "Dockerfile").write_text(DOCKERFILE)
    return directory


def test_a_dockerfile_of_two_stages(client: DockerClient, context: Path) -> None:
    image, lines = client.images.build(path=str(context), tag="built:1", buildargs={"WHO": "you"})
    said = "".join(line.get("stream", "") for line in lines)
    assert f"Step 1/17 : FROM {IMAGE} AS one" in said
    assert "Successfully tagged built:1" in said
    config = image.attrs["Config"]
    assert config["Labels"]["said"] == "a b"
    assert config["WorkingDir"] == "/srv/app"
    assert set(config["ExposedPorts"]) == {"80/tcp", "53/udp"}
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "test -e /srv"], "Interval": 5_000_000_000, "Retries": 2}
    assert config["StopSignal"] == "SIGUSR1"
    assert client.containers.run("built:1", remove=True) == b"hello you\n1000\n"
    found = client.containers.run("built:1", ["cd /srv/app; find . /unpacked -type f -exec ls -ln {} +"], remove=True)
    files = {line.split()[8]: tuple(line.split()[:4:2]) for line in found.decode().splitlines()}
    assert files["./files/b.txt"] == ("-rw-------", "1000")
    assert files["./ctx/sub/deep/c.txt"][1] == "0"
    assert "/unpacked/sub/deep/c.txt" in files
    assert "./ctx/debug.log" not in files
    assert "./ctx/Dockerfile" in files
    # What it depends on is as it was: so is the image.
    again, lines = client.images.build(path=str(context), buildargs={"WHO": "you"})
    assert again.id == image.id
    assert any("Using cache" in line.get("stream", "") for line in lines)
    other, _ = client.images.build(path=str(context), buildargs={"WHO": "them"}, target="one")
    assert other.id != image.id
    assert client.containers.run(other.id, ["cat", "/out/second"], remove=True) == b"hello them\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FROM tests/busybox:1\nRUN echo before; exit 3", "returned a non-zero code: 3"),
        ("FROM tests/busybox:1\nCOPY none /", "file not found in build context"),
        ("FROM tests/busybox:1\nCOPY ../../etc/passwd /", "outside"),
        ("FROM tests/busybox:1\nRUN --mount=type=cache,target=/x true", "BuildKit"),
        ("FROM tests/busybox:1\nRUN <<EOF\ntrue\nEOF", "here-documents"),
        ("FROM scratch\nCOPY a.txt /", "scratch"),
        ("FROM tests/busybox:1\nMAKE it", "unknown instruction: MAKE"),
        ("RUN true", "no FROM"),
        ("FROM tests/busybox:1\nUSER nobody-there\nRUN true", "nobody-there"),
    ],
)
def test_what_fails_says_why(client: DockerClient, context: Path, text: str, words: str) -> None:
    (context / "Dockerfile").write_text(text)
    with pytest.raises(BuildError) as failed:
        client.images.build(path=str(context))
    assert words in str(failed.value)


def test_commit_and_export(client: DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sh", "-c", "echo kept > /kept; mkfifo /pipe; sleep 1000"], detach=True)
    while container.exec_run(["test", "-e", "/pipe"]).exit_code:
        pass
    image = container.commit("committed", "2", changes=['CMD ["cat", "/kept"]', "ENV A=b"])
    assert client.containers.run("committed:2", remove=True) == b"kept\n"
    assert "A=b" in image.attrs["Config"]["Env"]
    assert container.exec_run(["cat", "/kept"]).output == b"kept\n"  # it goes on
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
        names = {member.name.removeprefix("./") for member in tar}
    assert {"kept", "pipe", "bin/busybox"} <= names
    assert not any(name.startswith("proc/") for name in names)


def test_history_has_the_steps(client: DockerClient, context: Path, tmp_path: Path, cli: Callable[..., str]) -> None:
    """As docker-py and docker's command line show it: the newest first, those of the base last."""
    base = client.images.get(IMAGE).history()
    (context / "Dockerfile").write_text(f'FROM {IMAGE}\nENV A=b\nRUN echo one >/one\nCMD ["cat", "/one"]\n')
    image, _ = client.images.build(path=str(context), tag="steps:1")
    lines = image.history()
    assert [line["CreatedBy"] for line in lines[:3]] == ['CMD ["cat", "/one"]', "RUN echo one >/one", "ENV A=b"]
    assert [line["CreatedBy"] for line in lines[3:]] == [line["CreatedBy"] for line in base if line["CreatedBy"]]
    assert [line["Id"] for line in lines] == [image.id, *["<missing>"] * (len(lines) - 1)]
    assert lines[0]["Tags"] == ["steps:1"] and sum(line["Size"] for line in lines) == image.attrs["Size"]
    shown = cli("history", "--no-trunc", "--format", "{{.ID}} {{.CreatedBy}}", "steps:1").splitlines()
    assert shown[:2] == [f'{image.id} CMD ["cat", "/one"]', "<missing> RUN echo one >/one"]
    # What others are given of it says the same, of one layer.
    archive = tmp_path / "steps.tar"
    cli("save", "-o", str(archive), "steps:1")
    require("skopeo")
    command = ["skopeo", "inspect", "--config", f"docker-archive:{archive}"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["history"]
    assert [line["created_by"] for line in told[-3:]] == ["ENV A=b", "RUN echo one >/one", 'CMD ["cat", "/one"]']
    assert [line.get("empty_layer", False) for line in told].count(False) == 1
    container = client.containers.run("steps:1", ["sh", "-c", "echo two >/two"], detach=True)
    container.wait()
    made = container.commit("steps", "2", message="by hand")
    first = made.history()[0]
    assert (first["CreatedBy"], first["Comment"]) == ("sh -c 'echo two >/two'", "by hand")
    assert made.history()[1]["CreatedBy"] == 'CMD ["cat", "/one"]'


def test_what_is_saved_is_an_image_for_others(
    client: DockerClient, session: Session, context: Path, tmp_path: Path, cli: Callable[..., str]
) -> None:
    require("skopeo")
    image, _ = client.images.build(path=str(context), tag="saved:1")
    archive = tmp_path / "saved.tar"
    cli("save", "-o", str(archive), "saved:1", IMAGE)
    seen = subprocess.run(
        ["skopeo", "inspect", "--config", f"docker-archive:{archive}:saved:1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(seen.stdout)["config"]["StopSignal"] == "SIGUSR1"
    cli("rmi", "-f", "saved:1")
    assert "Loaded image: saved:1" in cli("load", "-i", str(archive))
    assert client.images.get("saved:1").id == image.id
    assert cli("run", "--rm", "saved:1", "cat a.txt ctx/a.txt; true").endswith("a\n")


def test_push(client: DockerClient, registry: RealRegistry, context: Path) -> None:
    name = f"{registry.host}/team/built"
    client.images.build(path=str(context), tag=f"{name}:1")
    lines = list(client.images.push(name, "1", stream=True, decode=True))
    digest = next(line["aux"]["Digest"] for line in lines if "aux" in line)
    seen = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--override-arch", "arm64", f"docker://{name}:1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(seen.stdout)["Digest"] == digest
    client.images.remove(f"{name}:1", force=True)
    assert client.containers.run(f"{name}@{digest}", ["cat ctx/a.txt"], remove=True) == b"a\n"
    refused = list(client.images.push("127.0.0.1:1/none", stream=True, decode=True)) if _tagged(client) else []
    assert "error" in refused[-1]


def _tagged(client: DockerClient) -> bool:
    return bool(client.api.tag(IMAGE, "127.0.0.1:1/none", "latest"))


def test_docker_s_command_line_and_compose_build(
    cli: Callable[..., str], session: Session, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")
    assert "Successfully tagged of-cli:1" in cli("build", "-t", "of-cli:1", str(context))
    assert cli("run", "--rm", "of-cli:1") == "hello nobody\n1000\n"
    assert "no-such-step" in cli("build", "-", input=f"FROM {IMAGE}\nRUN no-such-step\n", status=1)
    monkeypatch.setenv("DOCKER_BUILDKIT", "1")
    said = cli("build", str(context), status=1)
    # Newer clients want buildx of their own, and do not get as far.
    assert "DOCKER_BUILDKIT=0" in said or "buildx" in said
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")
    require("docker-compose")
    (context / "docker-compose.yml").write_text("version: '3'\nservices:\n  web:\n    build: .\n")
    done = subprocess.run(
        ["/usr/bin/docker-compose", "--no-ansi", "run", "--rm", "-T", "web"],
        cwd=context,
        env={**os.environ, "DOCKER_HOST": session.host, "COMPOSE_DOCKER_CLI_BUILD": "0"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "hello nobody\n1000" in done.stdout, done.stderr


# The parser.


@given(st.text(st.sampled_from("FROM RUN COPY x$\\{}:-+#\n \t[]\"'=<>--"), max_size=200))
def test_no_dockerfile_is_too_odd_to_be_refused(text: str) -> None:
    try:
        for instruction in dockerfile.parse(text):
            expanded = dockerfile.expanded(instruction, {"x": "y"})
            if expanded.name not in ("FROM", "ARG", "RUN", "COPY", "ADD"):
                dockerfile.apply({}, expanded)
    except ApiError as refused:
        assert refused.message


def test_variables() -> None:
    known = {"a": "1", "empty": ""}
    for text, wanted in [
        ("$a ${a} \\$a", "1 1 $a"),
        ("${b:-else}${a:-else}", "else1"),
        ("${a:+then}${empty:+then}", "then"),
        ("${b:-${a", "${b:-${a"),
        ("x$", "x$"),
        ("'$a' \"$a'$a'\" ${b:-'q'}", "'$a' \"1'1'\" 'q'"),
        ("it's $a", "it's 1"),
    ]:
        assert dockerfile.expand(text, known) == wanted
