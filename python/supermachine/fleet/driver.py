"""Where a fleet's hosts come from: an engine of distribution starts them and says where they are."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .wire import Address


class Driver(abc.ABC):
    """Starts hosts."""

    @abc.abstractmethod
    def addresses(self) -> list[Address]:
        """The hosts that there are now; those that are missing are started. Raises FleetFailed."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends what this driver has started."""
