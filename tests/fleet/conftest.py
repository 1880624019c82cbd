"""Fleets of the demo's image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import supermachine
from supermachine.fleet import Fleet

BUSYBOX = str(Path(__file__).parents[2] / "demo" / "busybox.oci.tar")
#: What every machine of these tests is; and what the fleet is beside that.
SMALL: dict[str, Any] = {"memory": "64m"}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own, in which the image is baked."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(path))
        patch.setenv("SUPERMACHINE_KEYS", str(path / "keys"))
        supermachine.bake(BUSYBOX, **SMALL)
        yield path


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two hosts, three machines each."""
    options = {"hosts": 2}
    with Fleet(BUSYBOX, driver="processes", per_host=3, driver_options=options, **SMALL) as fleet:
        yield fleet
