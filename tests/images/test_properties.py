"""What strangers write (references, manifests, challenges, archives) and what people type: whatever it is, a value or a
typed error comes out, in bounded time.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from supermachine import errors
from supermachine.cli.run import arguments
from supermachine.oci.authentication import parse_challenge
from supermachine.oci.model import parse_config, parse_manifest
from supermachine.oci.references import RegistryReference, parse_reference
from supermachine.settings import parsing

from ..real import require
from .conftest import tar_of

words = st.text("abz09._-/:@[]~ \n\0é", max_size=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(words)
@example("a" * 100_000)
@example("[::1]:5000/a@sha256:" + "0" * 64)
def test_references(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except errors.InvalidReference as error:
        assert error.hint
        return
    if isinstance(parsed, RegistryReference):
        again = parse_reference(str(parsed))
        assert again == parsed
        assert not set("\n\0 ") & set(str(parsed))


@given(st.dictionaries(st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests"]), values))
def test_manifests(body: dict[str, object]) -> None:
    for data in (json.dumps(body).encode(), b"[" * 100_000):
        for media_type in (
            None,
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
        ):
            try:
                parse_manifest(data, media_type, "it")
            except errors.SupermachineError as error:
                assert "it" in str(error)


@given(st.dictionaries(st.sampled_from(["config", "rootfs", "os", "architecture", "history"]), values))
def test_configurations(body: dict[str, object]) -> None:
    try:
        parse_config(json.dumps(body).encode(), "it")
    except errors.SupermachineError as error:
        assert "it" in str(error)


@given(st.text(max_size=200))
@example("Bearer " + "a=" * 50_000)
@example('Bearer realm="' + "\\" * 50_000)
def test_challenges(header: str) -> None:
    scheme, parameters = parse_challenge(header)
    assert scheme == scheme.lower()
    assert all(name == name.lower() for name in parameters)


@given(st.dictionaries(st.sampled_from(["realm", "service", "scope"]), st.text('ab,"\\= ', max_size=20)))
def test_a_challenge_says_what_was_put_into_it(parameters: dict[str, str]) -> None:
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in parameters.values())
    header = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in zip(parameters, quoted, strict=True))
    assert parse_challenge(header) == ("bearer", parameters)


flags = st.sampled_from(
    ["-e", "--env", "-p", "-m", "--memory", "-u", "-w", "--cpus", "-q", "-n", "-it", "--", "-", "--x"]
)


@given(st.lists(flags | words, max_size=8))
def test_command_lines(argv: list[str]) -> None:
    """One that is not plain is left to the slow way; none is an error here."""
    said = arguments.parse(argv)
    assert said is None or isinstance(said["image"], str)


@given(words | st.text("0123456789.kmgtbi ", max_size=12))
def test_amounts_of_memory(text: str) -> None:
    try:
        size = parsing.memory_bytes(text)
    except errors.ConfigurationError:
        return
    assert size % (2 << 20) == 0


@given(st.lists(words, max_size=5))
def test_environments(items: list[str]) -> None:
    try:
        found = parsing.environment(items)
    except errors.ConfigurationError:
        return
    assert all(name and "=" not in name and "\0" not in name + value for name, value in found.items())


names = st.text("abc.", min_size=1, max_size=3).filter(lambda name: name.strip("."))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=9000), max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_written_is_an_erofs_image(tmp_path: Path, layers: list[dict[str, bytes]]) -> None:
    """erofs-utils read every image that comes of layers of files, some of them where others have directories."""
    require("fsck.erofs")
    from supermachine._core import convert_image  # type: ignore[attr-defined]

    parts = []
    for number, files in enumerate(layers):
        data = tar_of(files)
        path = tmp_path / f"layer{number}"
        path.write_bytes(data)
        parts.append((str(path), 0, len(data), None, None, None))
    output = tmp_path / "image"
    try:
        convert_image(parts, str(output), 1 << 24, None)
    except errors.InvalidImage as error:
        assert "not a directory" in str(error)
        return
    done = subprocess.run(["fsck.erofs", str(output)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
