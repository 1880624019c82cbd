"""Hosts of a fleet under Ray: a detached actor on each node, which other fleets use as well.

Ray starts the actors and carries the address and the credentials of each; what machines say and are told does not go
through it. An actor takes no processor from Ray's account. Where a node has the custom resource ``supermachine``, only
such nodes are hosts, and it says how many machines they take.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ..errors import ConfigurationError, FleetFailed
from .driver import Driver
from .wire import Address

_NAMESPACE = "supermachine"
_RESOURCE = "supermachine"
#: Seconds for an actor to come up, and to answer.
_START = 60.0


class HostActor:
    """The process of a host. Ray makes an actor of this class."""

    def __init__(self, capacity: int | None, address: str) -> None:
        from .host import Host

        self._host = Host(capacity, address)

    def address(self) -> tuple[int, bytes]:
        """Where it listens, and with what credentials."""
        return self._host.port, self._host.credentials


class RayDriver(Driver):
    """Uses the cluster that this process is connected to, or connects to the one that the environment names."""

    def __init__(self, capacity: int | None) -> None:
        try:
            import ray  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            raise ConfigurationError("Ray is not installed", hint="pip install 'supermachine[ray]'") from None
        self._ray: Any = ray
        self._capacity = capacity
        if not ray.is_initialized():
            ray.init(namespace=_NAMESPACE, log_to_driver=False)

    def addresses(self) -> list[Address]:
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        declared = [node for node in nodes if node["Resources"].get(_RESOURCE, 0) >= 1]
        asked = []
        for node in declared or nodes:
            with contextlib.suppress(Exception):
                actor = self._actor(node, bool(declared))
                asked.append((node, actor, actor.address.remote()))
        found: list[Address] = []
        failure: Exception | None = None
        for node, _, answer in asked:
            try:
                port, credentials = self._ray.get(answer, timeout=_START)
            except Exception as error:
                failure = error
                continue
            labels = {"node": str(node["NodeID"]), **{str(k): str(v) for k, v in (node.get("Labels") or {}).items()}}
            found.append(
                Address(str(node["NodeID"])[:12], str(node["NodeManagerAddress"]), int(port), credentials, labels)
            )
        if not found:
            raise FleetFailed("no node of the Ray cluster has a host", cause=str(failure) if failure else None)
        return found

    def _actor(self, node: dict[str, Any], declared: bool) -> Any:
        from ray.util.scheduling_strategies import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            NodeAffinitySchedulingStrategy,
        )

        capacity = int(node["Resources"][_RESOURCE]) if declared and self._capacity is None else self._capacity
        made = self._ray.remote(HostActor).options(
            name=f"host-{node['NodeID']}-{capacity or 'auto'}",
            namespace=_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            # A trace of it, so that an autoscaler sees who needs such nodes.
            resources={_RESOURCE: 0.001} if declared else None,
            max_restarts=-1,
            # A request is never made twice.
            max_task_retries=0,
            max_concurrency=8,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        return made.remote(capacity, str(node["NodeManagerAddress"]))

    def close(self) -> None:
        """Leaves the actors: they have no machines without a lease, and the next fleet finds them ready."""


def remove() -> int:
    """Ends the host actors of all nodes, and the machines on them; gives their number."""
    import ray
    from ray.util import list_named_actors  # type: ignore[import-not-found,import-untyped,unused-ignore]

    names = [actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == _NAMESPACE]
    for name in names:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=_NAMESPACE), no_restart=True)
    return len(names)
