"""``--format`` as docker's users write it: the part of Go's templates that prints fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')
_PATH = re.compile(r"\.(?:\w+(?:\.\w+)*)?")
#: Parts of docker's documents whose fields are in the document itself here.
_ALIASES = frozenset({"state", "config", "hostconfig", "networksettings"})
_ESCAPES = {"\\t": "\t", "\\n": "\n"}


class Template:
    """A template, read once for many rows."""

    def __init__(self, text: str) -> None:
        """Raises UsageError for what is no template, and for the parts of the language that are not known here."""
        head, space, rest = text.partition(" ")
        #: Whether rows are columns beneath their titles.
        self.table = head == "table" and bool(space)
        text = re.sub(r"\\[tn]", lambda found: _ESCAPES[found[0]], rest if self.table else text)
        parts = _ACTION.split(text)
        if any("{{" in part or "}}" in part for part in parts):
            raise click.UsageError(f"--format {text!r}: a {{{{ without its }}}}, or the other way round")
        self._parts = [_action(part) if odd % 2 else part for odd, part in enumerate(parts)]

    def row(self, document: Mapping[str, Any]) -> str:
        """What it makes of a document. Raises UsageError for a field that there is not."""
        return "".join(part if isinstance(part, str) else _evaluated(part, document) for part in self._parts)

    def titles(self) -> str:
        """The row of titles: the fields' names."""
        return "".join(part if isinstance(part, str) else part[-1].strip(".").upper() for part in self._parts)


def _action(text: str) -> list[str]:
    words = _WORD.findall(text)
    paths = [word for word in words if word.startswith(".")]
    functions = {"json": 2, "upper": 2, "lower": 2, "len": 2, "println": 2, "index": 3, "join": 3}
    known = len(words) == 1 if words and words[0].startswith(".") else len(words) == functions.get("".join(words[:1]))
    if not known or len(paths) != 1 or not _PATH.fullmatch(paths[0]):
        raise click.UsageError(
            f"--format: {{{{{text}}}}} is not known here; {{{{.Field}}}}, {{{{json .Field}}}}, "
            f'{{{{index .Field "key"}}}}, join, len, upper and lower are. --format json prints all of it'
        )
    # The path is last, for `titles`.
    return [word for word in words if word not in paths] + paths


def _evaluated(words: list[str], document: Mapping[str, Any]) -> str:
    *function, path = words
    value = _field(document, path)
    name = function[0] if function else ""
    argument = json.loads(function[1]) if len(function) > 1 and function[1].startswith('"') else None
    if name == "json":
        return json.dumps(value)
    if name == "len":
        return str(len(value)) if isinstance(value, (str, Sequence, Mapping)) else "0"
    if name == "index":
        if isinstance(value, Sequence) and not isinstance(value, str) and function[1].isdecimal():
            return _shown(value[int(function[1])] if int(function[1]) < len(value) else None)
        return _shown(value.get(argument, "") if isinstance(value, Mapping) else None)
    if name == "join":
        return str(argument).join(map(_shown, value)) if isinstance(value, Sequence) else _shown(value)
    shown = _shown(value)
    return {"upper": shown.upper(), "lower": shown.lower(), "println": f"{shown}\n"}.get(name, shown)


def _field(document: Any, path: str) -> Any:
    value = document
    for name in path.strip(".").split(".") if path != "." else ():
        fields = {_plain(key): key for key in value} if isinstance(value, Mapping) else {}
        if _plain(name) in fields:
            value = value[fields[_plain(name)]]
        elif value is not document or _plain(name) not in _ALIASES:
            there = f"; there are {', '.join(map(str, value))}" if fields else ""
            raise click.UsageError(f"--format: {path} has no field {name}{there}")
    return value


def _plain(name: object) -> str:
    """``exit_code`` and ``ExitCode`` are the same."""
    return str(name).replace("_", "").lower()


def _shown(value: Any) -> str:
    """As Go prints it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "<no value>"}[value]
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_shown(value[key])}' for key in sorted(value, key=str))}]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{' '.join(map(_shown, value))}]"
    return str(value)


def show(form: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints each row as a template says."""
    from .format import table

    template = Template(form)
    lines = [template.row(row) for row in rows]
    if template.table:
        click.echo(table([line.split("\t") for line in [template.titles(), *lines]]))
        return
    for line in lines:
        click.echo(line)
