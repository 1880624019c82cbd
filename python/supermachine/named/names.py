"""Names of machines, as docker has them."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator

from ..errors import ConfigurationError

_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"
#: Characters at most; a host name has no more.
MAX_NAME = 64
#: Characters of a name that others are called after, by numbers.
_ROOM = 56

_ADJECTIVES = """
able amber ample apt azure bold brave brief bright brisk broad calm civil clear clever cosy crisp daring deft eager
early easy even fair fancy fast fine firm fleet fond frank free fresh gentle giddy glad golden good grand green
handy happy hardy humble jolly keen kind large light lively lucid lucky mellow merry mild neat nimble noble plain
plucky polite prime proud quick quiet rapid ready regal robust rosy round royal sharp shy silent smart snug sober
solid spry stable steady stout sunny sure swift tidy true vivid warm wise witty
"""
_NOUNS = """
acorn alder anchor anvil apple arch ash aspen badger barley basin beacon beaver beech birch bison brook canyon cedar
cherry cliff clover cobalt comet copper coral crane creek crow delta dune eagle elm ember falcon fern finch fjord
flint forest fox garnet geyser glacier grove gull harbor hare hawk hazel heron hill ibis iris island ivy jasper
juniper kestrel lagoon lake larch lark laurel lemon lily lynx maple marsh meadow mesa moss oak olive onyx orchid
osprey otter owl pearl pebble pine plover pond poplar quail quartz raven reed ridge river robin rowan sage salmon
sedge shore slate sparrow spruce stone swan teal thistle tulip willow wren
"""


def check(name: str) -> str:
    """The name, if it can be one. Raises ConfigurationError."""
    if len(name) > MAX_NAME or not re.fullmatch(_NAME, name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a machine",
            hint=f"2 to {MAX_NAME} letters, digits, dots, hyphens and underscores, the first a letter or a digit",
        )
    return name


def made_up() -> str:
    """A name that is probably not taken."""
    return f"{secrets.choice(_ADJECTIVES.split())}-{secrets.choice(_NOUNS.split())}-{secrets.randbelow(1000)}"


def candidates(after: str | None) -> Iterator[str]:
    """Names for a machine that was given none: those after another machine's, by numbers, or a hundred made-up ones."""
    if after is not None:
        return (f"{after[:_ROOM]}-{number}" for number in itertools.count(1))
    return (made_up() for _ in range(100))
