"""A new user of a Debian where nothing is but what Debian has, and this package, follows the tour word for word."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import click
import pytest
import supermachine

from ..real import require, require_root
from .test_tour import PAGE, ROOT, matches, steps

USER = 61003
PYTHON = "/usr/bin/python3"

#: Debian's own programs, read-only, below a root of its own; nothing of this host's /etc, /home, /tmp or /run.
FRESH = """
set -e
mount -t tmpfs -o mode=755 fresh "$1"
cd "$1"
mkdir -p usr proc dev etc run home/anna/demo opt/bin opt/package opt/site
mkdir -m 1777 tmp
for name in bin lib lib64 sbin; do ln -s usr/$name $name; done
mount --bind /usr usr; mount -o remount,bind,ro usr
mount --bind "$2" opt/package; mount -o remount,bind,ro opt/package
mount --bind "$3" opt/site; mount -o remount,bind,ro opt/site
mount --rbind /dev dev
mount -t proc proc proc
echo root:x:0:0:root:/root:/bin/sh > etc/passwd
echo anna:x:$5:$5::/home/anna:/bin/bash >> etc/passwd
echo root:x:0: > etc/group
printf '#!/bin/sh\\nexec %s -m supermachine "$@"\\n' "$6" > opt/bin/supermachine
printf '#!/bin/sh\\nexec %s "$@"\\n' "$6" > opt/bin/python
chmod 755 opt/bin/*
cp "$4" home/anna/demo/
chown -R $5:$5 home/anna
exec chroot --userspec=$5:$5 . /usr/bin/env -i HOME=/home/anna USER=anna LANG=C.UTF-8 \
    PATH=/opt/bin:/usr/bin:/bin PYTHONPATH=/opt/package:/opt/site "$6" -c "$7"
"""

#: Runs the commands that it reads, and tells what each says.
DRIVER = """
import json, os, subprocess, sys
os.chdir("/home/anna")
for line in sys.stdin:
    done = subprocess.run(
        ["bash", "-c", json.loads(line)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=300,
    )
    print(json.dumps(done.stdout.decode("utf-8", "replace")), flush=True)
"""


@pytest.mark.vm
def test_a_fresh_user_follows_the_tour(tmp_path: Path) -> None:
    require_root("a root file system of its own")
    require("unshare", "chroot")
    package = Path(supermachine.__file__).parents[1]
    site = Path(click.__file__).parents[1]
    check = subprocess.run(
        [PYTHON, "-c", "import click, rich, supermachine._core"],
        env={"PYTHONPATH": f"{package}{os.pathsep}{site}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if check.returncode:
        pytest.skip(f"Debian's Python cannot import what is here: {check.stderr.splitlines()[-1:]}")
    root = tmp_path / "fresh"
    root.mkdir()
    image = ROOT / "demo" / "busybox.oci.tar"
    arguments = [root, package, site, image, USER, PYTHON, DRIVER]
    # In a process namespace of its own, so that nothing that the tour starts is left.
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", FRESH, "sh", *map(str, arguments)]
    found = [*steps(PAGE.read_text(encoding="utf-8")), ("ls -A ~ /tmp", "/home/anna:\n…tour.snapshot\n…")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for command, expected in found:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, f"$ {command}: the driver has ended"
            said = "".join(
                each
                for each in json.loads(line).splitlines(keepends=True)
                if not each.startswith(("supermachine: warning: the soft engine", "supermachine: converting"))
            )
            assert matches(said, expected), f"$ {command}{said}"
        process.stdin.close()
        assert process.wait(60) == 0
