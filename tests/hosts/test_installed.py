"""supermachine as it is installed, on hosts of both architectures."""

from __future__ import annotations

import json

import pytest

from tests.hosts.fixtures import SITE, Hosts

pytestmark = [pytest.mark.vm, pytest.mark.slow]


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_it_is_whole_and_finds_kvm(architecture: str, hosts: Hosts) -> None:
    host = hosts.installed(architecture)
    command = ["python3", "-m", "supermachine", "doctor", "--json"]
    done = host.run(command, 300, env={"PYTHONPATH": SITE}, text=True)
    report = json.loads(done.stdout)
    assert report["missing"] == [], done.stdout
    probed = host.run([f"{SITE}/supermachine/_bin/supermachine-worker", "--probe-kvm"], 120, text=True, check=True)
    assert json.loads(probed.stdout)["usable"], probed.stdout
