"""Images of PostgreSQL, Redis and SQLite as `docker save` writes them, made of Debian's packages for arm64."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

from ..real import require, run

#: The programs, and what they are linked with; not what else Debian would install with them, above all LLVM.
_COMMON = (
    "busybox-static libc6 libgcc-s1 libgcrypt20 libgpg-error0 libcap2 liblz4-1 liblzma5 libssl3 libsystemd0 libzstd1"
)
_POSTGRES = (
    "postgresql-15 postgresql-client-15 libaudit1 libcap-ng0 libcom-err2 libffi8 libgmp10 libgnutls30 "
    "libgssapi-krb5-2 libhogweed6 libicu72 libidn2-0 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libldap-2.5-0 "
    "libnettle8 libp11-kit0 libpam0g libpq5 libreadline8 libsasl2-2 libstdc++6 libtasn1-6 libtinfo6 libunistring2 "
    "libxml2 tzdata zlib1g"
)
_REDIS = "redis-server redis-tools libatomic1 libjemalloc2 liblzf1 libstdc++6"
_SQLITE = "sqlite3 libreadline8 libsqlite3-0 libtinfo6 zlib1g"
_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/postgresql/15/man",
    "usr/lib/postgresql/15/lib/bitcode",
)
_APPLETS = "cat chmod chown date echo env grep head id kill ls mkdir pidof printf rm sed sh sleep sync test touch true"
_PASSWD = "root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70:PostgreSQL:/var/lib/postgresql:/bin/sh\n"
_GROUP = "root:x:0:\npostgres:x:70:\n"

#: What the image of the hub does with these variables, as far as tests need it.
_START_POSTGRES = """#!/bin/sh
set -e
export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
printf %s "$POSTGRES_PASSWORD" > /tmp/password
initdb --no-sync --no-locale -E UTF8 -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 >/dev/null
rm /tmp/password
echo "host all all all scram-sha-256" >> $PGDATA/pg_hba.conf
echo "CREATE DATABASE \\"$POSTGRES_DB\\";" | postgres --single -c fsync=off postgres >/dev/null
exec postgres -c listen_addresses='*' -c fsync=off -c jit=off -c unix_socket_directories=/tmp "$@"
"""


def postgres(place: Path) -> Path:
    files = {"usr/local/bin/docker-entrypoint.sh": (_START_POSTGRES.encode(), 0o755)}
    config = {
        "Entrypoint": ["docker-entrypoint.sh"],
        "User": "postgres",
        "Env": ["PATH=/usr/local/bin:/usr/lib/postgresql/15/bin:/usr/bin:/bin"],
        "ExposedPorts": {"5432/tcp": {}},
        "StopSignal": "SIGINT",
    }
    return _image(place, "postgres:16", _COMMON + " " + _POSTGRES, files, config)


def redis(place: Path) -> Path:
    config = {
        "Cmd": ["redis-server", "--protected-mode", "no", "--save", ""],
        "Env": ["PATH=/usr/bin:/bin"],
        "WorkingDir": "/data",
        "ExposedPorts": {"6379/tcp": {}},
    }
    return _image(place, "redis:7", _COMMON + " " + _REDIS, {}, config)


def sqlite(place: Path) -> Path:
    return _image(place, "sqlite:3", _COMMON + " " + _SQLITE, {}, {"Env": ["PATH=/usr/bin:/bin"]})


def _image(
    place: Path, name: str, packages: str, files: dict[str, tuple[bytes, int]], config: dict[str, object]
) -> Path:
    require("apt-get", "dpkg-deb")
    debs = place / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    run(
        "apt-get",
        "-q",
        "download",
        *(package if package == "tzdata" else f"{package}:arm64" for package in packages.split()),
        cwd=debs,
    )
    layer = _layer(sorted(debs.glob("*.deb")), files)
    for deb in debs.iterdir():
        deb.unlink()
    diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
    description = json.dumps(
        {
            "architecture": "arm64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    config_name = hashlib.sha256(description).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    archive = place / f"{name.partition(':')[0]}.tar"
    with tarfile.open(archive, "w") as tar:
        for member, data in (("manifest.json", manifest), (config_name, description), ("layer.tar", layer)):
            _add(tar, member, data, 0o644)
    return archive


def _layer(debs: list[Path], files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        made = set()
        for name in ("usr", "usr/bin", "usr/sbin", "usr/lib", "etc", "var", "var/lib", "tmp", "root", "data"):
            _directory(out, name, 0o1777 if name == "tmp" else 0o755)
            made.add(name)
        _directory(out, "var/lib/postgresql", 0o755, 70)
        for name, target in (("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")):
            _link(out, name, target)
        for deb in debs:
            packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                for member in tar:
                    name = _merged(member.name)
                    if not name or name in made or name.startswith(_LEFT_OUT):
                        continue
                    if member.isdir():
                        made.add(name)
                    member.name = name
                    member.linkname = _merged(member.linkname) if member.islnk() else member.linkname
                    member.pax_headers = {}
                    out.addfile(member, tar.extractfile(member) if member.isreg() else None)
        for applet in _APPLETS.split():
            _link(out, f"usr/bin/{applet}", "busybox")
        _add(out, "etc/passwd", _PASSWD.encode(), 0o644)
        _add(out, "etc/group", _GROUP.encode(), 0o644)
        for name, (data, mode) in files.items():
            _add(out, name, data, mode)
    return buffer.getvalue()


def _merged(name: str) -> str:
    name = name.removeprefix("./").rstrip("/")
    return f"usr/{name}" if name.split("/")[0] in ("bin", "sbin", "lib") else name


def _directory(tar: tarfile.TarFile, name: str, mode: int, owner: int = 0) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
    tar.addfile(info)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))
