"""What a guest may reach: presets and rules. Its policy process holds to them; here they are checked early."""

from __future__ import annotations

import os

from .. import env
from ..errors import ConfigurationError

# As `typing` has it: this module is on the way of every `supermachine run`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .secrets import Secret, Secrets

#: What holds where no rule matches: nothing, public addresses, or all but metadata and link-local addresses.
PRESETS = ("none", "public", "all")
DEFAULT = "public"
#: What a word of a network begins with that is a private segment.
_SEGMENT = "segment:"


class Network:
    """What a virtual machine may reach.

    `preset` holds where no rule matches. A rule is ``TARGET[:PORTS][/PROTOCOL]``; the target is a name, ``*.name``, an
    address, a network as ``10.0.0.0/8``, or a group: ``public``, ``private``, ``host``, ``meta``, ``any``. `deny` comes
    before `allow`. `dns` are addresses of name servers in place of the host's, each with a port if need be. `audit` is
    a file to which each connection's begin and end and each denial are appended, one JSON object a line. Raises
    ConfigurationError for what is no rule.

    `secrets` are values that the guest uses without having them, by the names of the variables in which it has their
    placeholders: ``{"TOKEN": Secret(value, hosts=["api.example.com"])}``. Their hosts are allowed. They are only for a
    network that allows nothing else than its rules do: with them the preset is ``none``, and may be no other.
    """

    __slots__ = ("allow", "audit", "deny", "dns", "has_own_address", "preset", "secrets", "segments", "shared")

    #: Private segments that the machine is on from its start, each with names beside the host name.
    segments: tuple[tuple[str, tuple[str, ...]], ...]
    #: Whether it has an address that no other machine of this process has, as it needs on a segment.
    has_own_address: bool
    #: Whether no other machine of this user has it, and its segments are those of all processes of the user.
    shared: bool

    def __init__(
        self,
        preset: str | None = None,
        *,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        dns: Sequence[str] = (),
        audit: str | os.PathLike[str] | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        self.secrets = _named(secrets)
        preset = preset or ("none" if self.secrets else DEFAULT)
        if preset not in PRESETS:
            raise ConfigurationError(f"{preset!r} is not a network; {', '.join(PRESETS)} are")
        if self.secrets and preset != "none":
            raise ConfigurationError(
                f"a network with secrets allows nothing but what its rules do, and {preset!r} allows more",
                hint="say network='none' and allow= what the guest needs beside the secrets' hosts",
            )
        from .._core import check_network_rule

        hosts = [rule for secret in self.secrets.values() for rule in secret.rules()]
        allow = [*allow, *(rule for rule in dict.fromkeys(hosts) if rule not in allow)]
        for rule in (*allow, *deny):
            try:
                check_network_rule(rule)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
        self.preset = preset
        self.allow = tuple(allow)
        self.deny = tuple(deny)
        self.dns = tuple(dns)
        self.audit = None if audit is None else os.fspath(audit)
        self.segments = ()
        self.has_own_address = False
        self.shared = False

    @classmethod
    def private(
        cls,
        name: str,
        preset: str | None = None,
        *,
        names: Sequence[str] = (),
        shared: bool = False,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        dns: Sequence[str] = (),
        audit: str | os.PathLike[str] | None = None,
        secrets: Secrets | None = None,
    ) -> Network:
        """A network that machines of this process have in common, beside what the rest lets each of them reach.

        Machines whose `private` has the same `name` reach each other at every port, by their host names, by `names`,
        and by address; rules that deny hold there too. A process has up to 239 such machines at once.

        With `shared` the network is that of all processes of this user: programs, and machines with names. All that
        run as this user can put machines on it; a user has up to 254 such machines at once. The text "segment:NAME"
        is the same for `network=` and ``--network``.

        Raises ConfigurationError for what is no rule and no name.
        """
        from . import segments

        if shared:
            segments.checked_segment(name)
        network = cls(preset, allow=allow, deny=deny, dns=dns, audit=audit, secrets=secrets)
        network.segments = ((name, segments.checked(names)),)
        network.has_own_address = True
        network.shared = shared
        return network

    def with_own_address(self) -> Network:
        """This, for a machine that may be put on segments later."""
        network = self.replaced()
        network.has_own_address = True
        return network

    def like(self, other: Network) -> Network:
        """This policy, on the segments of the other one."""
        network = self.replaced()
        network.segments = other.segments
        network.has_own_address = other.has_own_address
        network.shared = other.shared
        return network

    def replaced(self, **changes: Any) -> Network:
        """This with some of its arguments changed, on the same segments."""
        said = {name: getattr(self, name) for name in ("preset", "allow", "deny", "dns", "audit", "secrets")}
        network = Network(**{**said, **changes})
        network.segments, network.has_own_address = self.segments, self.has_own_address
        network.shared = self.shared
        return network

    def also(self, allow: Sequence[str] = (), deny: Sequence[str] = (), secrets: Secrets | None = None) -> Network:
        """This and more rules and secrets."""
        if not allow and not deny and not secrets:
            return self
        return self.replaced(
            allow=[*self.allow, *allow],
            deny=[*self.deny, *deny],
            secrets={**self.secrets, **_named(secrets)},
        )

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the guest's processes: placeholders of secrets, and what certificates they trust."""
        if not self.secrets:
            return {}
        from .secrets import environment

        return environment(self.secrets)

    @property
    def is_none(self) -> bool:
        """Whether nothing at all is allowed: then the guest has no network."""
        return self.preset == "none" and not self.allow and not self.has_own_address

    def record(self) -> list[object]:
        """What a snapshot says of it: nothing of secrets."""
        return [self.preset, list(self.allow), list(self.deny)]

    def within(self, recorded: Network) -> Network:
        """What both allow: the machine of a snapshot gets no more than it had, nor more than it would get here.

        Of the recorded rules that allow, those stay that this has as well, and those for names, which lead to public
        addresses only, where these are allowed here.
        """
        from .._core import check_network_rule

        least = min(self.preset, recorded.preset, key=PRESETS.index)
        public = self.preset != "none"
        allow = [rule for rule in recorded.allow if rule in self.allow or (public and check_network_rule(rule))]
        return Network(least, allow=allow, deny=[*self.deny, *recorded.deny], dns=self.dns, audit=self.audit)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(
            (
                self.preset,
                self.allow,
                self.deny,
                self.dns,
                self.audit,
                self.segments,
                self.has_own_address,
                self.shared,
                *self.secrets,
            )
        )

    def __repr__(self) -> str:
        rules = "".join(
            f", {name}={list(getattr(self, name))}"
            for name in ("allow", "deny", "dns", "segments")
            if getattr(self, name)
        ) + (f", audit={self.audit!r}" if self.audit else "")
        if self.shared:
            rules += ", shared=True"
        if self.secrets:
            rules += f", secrets={self.secrets}"
        return f"Network({self.preset!r}{rules})"


def _named(value: Secrets | None) -> dict[str, Secret]:
    if not value:
        return {}
    from .secrets import secrets

    return secrets(value)


def network(
    value: Network | str | None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    secrets: Secrets | None = None,
) -> Network:
    """The network that is asked for, by default what SUPERMACHINE_NETWORK says, with further rules.

    A text is a preset's name, and after it, with spaces between them, rules that allow; a rule after "!" denies. In
    place of the preset, or after it, may be "segment:NAME".
    """
    if isinstance(value, Network):
        return value.also(allow, deny, secrets)
    words = (value or os.environ.get(env.NETWORK) or "").split()
    segments = [word.removeprefix(_SEGMENT) for word in words if word.startswith(_SEGMENT)]
    words = [word for word in words if not word.startswith(_SEGMENT)]
    # After a segment alone there may be rules at once.
    preset = words.pop(0) if words and (words[0] in PRESETS or not segments) else None
    rules = words
    allow = [*(rule for rule in rules if not rule.startswith("!")), *allow]
    deny = [*(rule[1:] for rule in rules if rule.startswith("!")), *deny]
    if not segments:
        return Network(preset, allow=allow, deny=deny, secrets=secrets)
    found = Network.private(segments[0], preset, shared=True, allow=allow, deny=deny, secrets=secrets)
    from .segments import checked_segment

    found.segments = tuple((checked_segment(name), ()) for name in dict.fromkeys(segments))
    return found
