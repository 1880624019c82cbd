"""Hosts of a fleet under Dask: one in each worker process of a `distributed` cluster."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigurationError, FleetFailed
from .driver import Driver
from .wire import Address

_NAME = "supermachine-fleet-host"


def _serve(capacity: int | None, dask_worker: Any) -> tuple[int, bytes]:
    """Runs in a worker: its host, which is started the first time."""
    from .host import Host

    host = dask_worker.extensions.get(_NAME)
    if host is None:
        address = urlsplit(dask_worker.address).hostname or "127.0.0.1"
        host = dask_worker.extensions[_NAME] = Host(capacity, address)
    return host.port, host.credentials


def _end(dask_worker: Any) -> None:
    host = dask_worker.extensions.pop(_NAME, None)
    if host is not None:
        host.close()


class DaskDriver(Driver):
    """Uses `client`, or the one that is the default in this process."""

    def __init__(self, capacity: int | None, client: Any) -> None:
        try:
            from distributed import get_client  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            raise ConfigurationError("Dask is not installed", hint="pip install 'supermachine[dask]'") from None
        try:
            self._client: Any = client or get_client()
        except ValueError:
            raise ConfigurationError(
                "there is no client of a Dask cluster", hint="make one first: distributed.Client(address)"
            ) from None
        self._capacity = capacity

    def addresses(self) -> list[Address]:
        answers = self._client.run(_serve, self._capacity, on_error="return")
        found = [
            Address(name, urlsplit(name).hostname or "127.0.0.1", answer[0], answer[1], {"worker": name})
            for name, answer in answers.items()
            if isinstance(answer, tuple)
        ]
        if not found:
            raise FleetFailed("no worker of the Dask cluster has a host", cause=str(next(iter(answers.values()), None)))
        return found

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.run(_end, on_error="return")
