"""``--filter NAME=VALUE``, as docker has it: of one name any value will do, of several all must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import click

T = TypeVar("T")


def parse(texts: Sequence[str], known: Mapping[str, object]) -> dict[str, list[str]]:
    """The values of each name. Raises UsageError for a name that is not known."""
    wanted: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in known or not equals:
            raise click.UsageError(f"--filter {text!r}: NAME=VALUE, with a NAME of {', '.join(known)}")
        wanted.setdefault(name, []).append(value)
    return wanted


def matching(texts: Sequence[str], known: Mapping[str, Callable[[T, str], bool]]) -> Callable[[T], bool]:
    """Tells whether something passes. Raises UsageError for a name that is not known."""
    wanted = parse(texts, known)
    return lambda one: all(any(known[name](one, value) for value in values) for name, values in wanted.items())
