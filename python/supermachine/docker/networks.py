"""Networks by name, and what containers are called there.

Containers in a network that a user has made reach each other by name, alias, host name and short id, each by way of its
own machine's policy process. In the predefined ones they do not: there are no names there with docker either.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import names
from .errors import ApiError, Conflict, NotFound, NotImplementedHere
from .filters import Filters
from .logs import timestamp

if TYPE_CHECKING:
    from .container import Container
    from .session import Session

MAX_NETWORKS = 1000
#: The address at which this host has a container's published ports. Test libraries that find themselves in a container
#: connect to the gateway of a network.
GATEWAY = "127.0.0.1"
#: Bits of the containers' common network.
PREFIX = 24
#: Those that are always there, and what they are called in `HostConfig.NetworkMode`.
_PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}


@dataclass
class Network:
    id: str
    name: str
    driver: str
    labels: dict[str, str]
    options: dict[str, str]
    internal: bool = False
    attachable: bool = False
    created_ns: int = field(default_factory=time.time_ns)

    @property
    def predefined(self) -> bool:
        return self.name in _PREDEFINED


class Networks:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._networks: dict[str, Network] = {}
        for name, driver in _PREDEFINED.items():
            network = Network(names.new_id(), name, driver, {}, {})
            self._networks[network.id] = network

    def get(self, wanted: str) -> Network:
        try:
            return names.find("network", wanted, self._networks, lambda n: [n.name])
        except NotFound:
            raise NotFound(f"network {wanted[:255]} not found") from None

    def segment(self, name: str) -> str | None:
        """What machines join for a network of this name; ``None`` for a predefined one."""
        found = next((n for n in self._networks.values() if n.name == name), None)
        return None if found is None or found.predefined else f"docker:{found.id}"

    def of_mode(self, mode: str) -> Network | None:
        """The network of HostConfig.NetworkMode; ``None`` for another container's."""
        if mode.startswith("container:"):
            raise NotImplementedHere("a container here cannot use another one's network: each has a machine of its own")
        return self.get("bridge" if mode in ("", "default") else mode)

    def create(self, body: dict[str, Any]) -> Network:
        name = str(body.get("Name") or "")
        if not name:
            raise ApiError(400, "a network needs a name")
        names.check("network", name)
        if any(n.name == name for n in self._networks.values()):
            raise Conflict(f"network with name {name} already exists")
        driver = str(body.get("Driver") or "bridge")
        if driver != "bridge":
            raise NotImplementedHere(f"the network driver {driver[:50]} is not there: bridge is")
        if len(self._networks) >= MAX_NETWORKS:
            raise Conflict(f"this session has {MAX_NETWORKS} networks, which is the most it keeps")
        network = Network(
            names.new_id(),
            name,
            driver,
            _texts(body.get("Labels")),
            _texts(body.get("Options")),
            bool(body.get("Internal")),
            bool(body.get("Attachable")),
        )
        self._networks[network.id] = network
        self._session.events.publish("network", "create", network.id, {"name": name, "type": driver})
        return network

    def remove(self, network: Network) -> None:
        if network.predefined:
            raise ApiError(403, f"{network.name} is a pre-defined network and cannot be removed")
        if self.members(network):
            raise ApiError(403, f"error while removing network: network {network.name} has active endpoints")
        del self._networks[network.id]
        for container in self._session.containers.all():
            container.networks.pop(network.name, None)
        self._session.events.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})

    def members(self, network: Network) -> list[Container]:
        """The containers that run in it."""
        return [c for c in self._session.containers.all() if network.name in c.networks and c.alive]

    async def connect(self, network: Network, container: Container, endpoint: dict[str, Any]) -> None:
        await container.change_networks({**container.networks, network.name: aliases(endpoint)})
        self._announce("connect", network, container)

    async def disconnect(self, network: Network, container: Container) -> None:
        if network.name not in container.networks:
            raise ApiError(403, f"container {container.id} is not connected to network {network.name}")
        await container.change_networks({n: called for n, called in container.networks.items() if n != network.name})
        self._announce("disconnect", network, container)

    def _announce(self, action: str, network: Network, container: Container) -> None:
        attributes = {"container": container.id, "name": network.name, "type": network.driver}
        self._session.events.publish("network", action, network.id, attributes)

    def matching(self, filters: Filters) -> list[Network]:
        def fits(network: Network) -> bool:
            kind = "builtin" if network.predefined else "custom"
            wanted = filters.values("name")
            return (
                filters.labels(network.labels)
                and filters.one_of("driver", network.driver)
                and filters.one_of("type", kind)
                and filters.one_of("scope", "local")
                and (not wanted or any(name in network.name for name in wanted))
                and (not filters.values("id") or any(network.id.startswith(i) for i in filters.values("id")))
            )

        return [network for network in self._networks.values() if fits(network)]

    def prune(self, filters: Filters) -> list[str]:
        used = {name for c in self._session.containers.all() for name in c.networks}
        gone = [
            n
            for n in list(self._networks.values())
            if not n.predefined and n.name not in used and filters.labels(n.labels)
        ]
        for network in gone:
            self.remove(network)
        return [network.name for network in gone]

    def document(self, network: Network) -> dict[str, Any]:
        return {
            "Name": network.name,
            "Id": network.id,
            "Created": timestamp(network.created_ns),
            "Scope": "local",
            "Driver": network.driver,
            "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Options": None, "Config": []},
            "Internal": network.internal,
            "Attachable": network.attachable,
            "Ingress": False,
            "ConfigFrom": {"Network": ""},
            "ConfigOnly": False,
            "Containers": {
                c.id: {
                    "Name": c.name,
                    "EndpointID": endpoint_id(network, c),
                    "MacAddress": "",
                    "IPv4Address": f"{c.address}/{PREFIX}" if c.address and not network.predefined else "",
                    "IPv6Address": "",
                }
                for c in self.members(network)
            },
            "Options": network.options,
            "Labels": network.labels,
        }

    def endpoints(self, container: Container) -> dict[str, Any]:
        """``NetworkSettings.Networks`` of a container."""
        found = {}
        for name, called in container.networks.items():
            network = next((n for n in self._networks.values() if n.name == name), None)
            # Of a predefined network there is none: this host reaches nobody there.
            address = container.address if network is not None and not network.predefined else ""
            found[name] = {
                "IPAMConfig": None,
                "Links": None,
                "Aliases": called,
                "MacAddress": "",
                "DriverOpts": None,
                "NetworkID": network.id if network is not None else "",
                "EndpointID": endpoint_id(network, container) if network is not None and container.alive else "",
                "Gateway": GATEWAY if container.alive else "",
                "IPAddress": address,
                "IPPrefixLen": PREFIX if address else 0,
                "IPv6Gateway": "",
                "GlobalIPv6Address": "",
                "GlobalIPv6PrefixLen": 0,
                "DNSNames": [container.name, *called, container.id[:12]],
            }
        return found


def endpoint_id(network: Network, container: Container) -> str:
    return network.id[:32] + container.id[:32]


def aliases(endpoint: dict[str, Any]) -> list[str]:
    """What a container is called in a network, by what ``EndpointsConfig`` says."""
    said = endpoint.get("Aliases")
    return [str(alias) for alias in said[:100]] if isinstance(said, list) else []


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in list(value.items())[:1024]} if isinstance(value, dict) else {}
