"""A pytest plugin: the fixture `vm` is a fresh virtual machine of ``@pytest.mark.supermachine(image, **options)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..machine.vm import VM


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("supermachine_image", "image of the fixture `vm` where no marker names one")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "supermachine(image, **options): image and options of the fixture `vm`")


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Iterator[VM]:
    """A running virtual machine, killed when the test ends."""
    from ..machine.vm import VM

    marker = request.node.get_closest_marker("supermachine")
    args = marker.args if marker is not None else ()
    options = dict(marker.kwargs) if marker is not None else {}
    image = args[0] if args else options.pop("image", None) or request.config.getini("supermachine_image")
    if not image:
        pytest.fail("the fixture `vm` needs @pytest.mark.supermachine(image) or supermachine_image in pytest's ini")
    with VM(image, **options) as machine:
        yield machine
