"""Dockerfiles, as the classic builder reads them: instructions, their flags and variables, what they say of an image.

The reference is docker's "Dockerfile reference". What came with BuildKit (``RUN --mount``, here-documents) is refused
by name, so that nothing is built otherwise than it was meant.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError
from ..settings.durations import duration
from .errors import BadRequest, NotImplementedHere

#: Bytes of a Dockerfile, and instructions in it, at most.
MAX_BYTES = 1 << 20
_MAX_INSTRUCTIONS = 2000
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(.+)")
_VARIABLE = re.compile(r"\\(.)|\$(?:\{(\w+)(?::([-+])((?:[^\\}]|\\.)*))?\}|(\w+))", re.DOTALL)
#: What is looked at as one piece: braces, so that quotes in them are theirs, and quotations.
_QUOTED = re.compile(r"""(\$\{[^}]*\}|'[^']*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
#: Those in whose words variables stand for their values; in the others the shell or nobody looks at them.
_EXPANDED = frozenset(["ADD", "COPY", "ENV", "EXPOSE", "FROM", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"])
#: The flags that each knows.
_FLAGS: dict[str, frozenset[str]] = {
    "FROM": frozenset({"platform"}),
    "COPY": frozenset({"chown", "chmod", "from"}),
    "ADD": frozenset({"chown", "chmod"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_KNOWN = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
_SHELL = ("/bin/sh", "-c")


@dataclass
class Instruction:
    name: str
    #: All after the name and the flags, as it was written.
    text: str
    flags: dict[str, str] = field(default_factory=dict)
    line: int = 0

    def __str__(self) -> str:
        flags = "".join(f"--{name}={value} " for name, value in self.flags.items())
        return f"{self.name} {flags}{self.text}"

    def array(self) -> list[str] | None:
        """The words of the form ``["a", "b"]``; ``None`` for the other."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None

    def words(self) -> list[str]:
        """The words of either form. Raises BadRequest where a quotation is not closed."""
        array = self.array()
        if array is not None:
            return array
        try:
            return shlex.split(self.text, posix=True)
        except ValueError as error:
            raise self.wrong(str(error)) from None

    def wrong(self, why: str) -> BadRequest:
        return BadRequest(f"dockerfile parse error on line {self.line}: {self.name}: {why}")


def parse(text: str) -> list[Instruction]:
    """Raises BadRequest for what is no Dockerfile, NotImplementedHere for what is BuildKit's."""
    escape, lines = "\\", text.lstrip("\ufeff").splitlines()
    for line in lines:
        directive = _DIRECTIVE.fullmatch(line.strip())
        if directive is None:
            break
        if directive[1].lower() == "escape":
            escape = directive[2].strip()
    found: list[Instruction] = []
    held, began = "", 0
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#") or (held and not line.strip()):
            continue
        began = began if held else number
        stripped = line.rstrip()
        if stripped.endswith(escape):
            held += stripped[:-1] if held else stripped[:-1].lstrip()
            # So that a line of the escape alone goes on, too.
            held = held or " "
            continue
        whole, held = (held + line).strip(), ""
        if whole:
            found.append(_instruction(whole, began))
    if held.strip():
        found.append(_instruction(held.strip(), began))
    if len(found) > _MAX_INSTRUCTIONS:
        raise BadRequest(f"the Dockerfile has more than {_MAX_INSTRUCTIONS} instructions")
    if not any(instruction.name == "FROM" for instruction in found):
        raise BadRequest("the Dockerfile has no FROM")
    return found


def _instruction(line: str, number: int) -> Instruction:
    name, _, rest = line.partition(" ")
    name, _, more = name.partition("\t")
    made = Instruction(name.upper(), f"{more} {rest}".strip() if more else rest.strip(), line=number)
    if made.name not in _KNOWN:
        raise BadRequest(f"dockerfile parse error on line {number}: unknown instruction: {made.name[:50]}")
    if made.name == "ONBUILD":
        raise NotImplementedHere("ONBUILD is not built here")
    while (flag := re.match(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)", made.text)) is not None and made.name != "CMD":
        if flag[1] not in _FLAGS.get(made.name, frozenset()):
            raise NotImplementedHere(f"{made.name} --{flag[1]} is of BuildKit, and is not built here")
        made.flags[flag[1]] = flag[2] or ""
        made.text = made.text[flag.end() :]
    if made.name in ("RUN", "COPY", "ADD") and re.search(r"(?:^|\s)<<-?[\"']?\w+[\"']?\s*$", made.text):
        raise NotImplementedHere(f"here-documents are of BuildKit, and not built here: {made.name} on line {number}")
    if not made.text:
        raise made.wrong("it needs arguments")
    return made


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with variables' values: $NAME, ${NAME}, ${NAME:-else}, ${NAME:+then}; a backslash keeps one as it is."""

    def value(found: re.Match[str]) -> str:
        if found[1] is not None:
            return found[1] if found[1] == "$" else found[0]
        name = found[2] or found[5]
        said = variables.get(name, "")
        if found[3] == "-":
            return said or expand(found[4], variables)
        if found[3] == "+":
            return expand(found[4], variables) if said else ""
        return said

    # What is in single quotes stays as it is, as in a shell.
    pieces = (piece if piece.startswith("'") else _VARIABLE.sub(value, piece) for piece in _QUOTED.split(text))
    return "".join(pieces)


def expanded(instruction: Instruction, variables: Mapping[str, str]) -> Instruction:
    """The instruction with its variables' values, where it is one that has them."""
    if instruction.name not in _EXPANDED:
        return instruction
    flags = {name: expand(value, variables) for name, value in instruction.flags.items()}
    return Instruction(instruction.name, expand(instruction.text, variables), flags, instruction.line)


def pairs(instruction: Instruction) -> list[tuple[str, str]]:
    """Names and values of ENV, LABEL and ARG: ``A=b C="d e"``, or of the old form ``A all the rest``."""
    first = instruction.text.split(maxsplit=1)
    if "=" not in first[0] and instruction.name != "ARG":
        if len(first) != 2:
            raise instruction.wrong("it needs two arguments")
        return [(first[0], first[1])]
    found = []
    for word in instruction.words():
        name, equals, value = word.partition("=")
        if not name or (not equals and instruction.name != "ARG"):
            raise instruction.wrong(f"{word[:100]!r} is not NAME=value")
        found.append((name, value))
    return found


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a configuration."""
    return dict(str(item).partition("=")[::2] for item in config.get("Env") or ())


def shell(config: Mapping[str, Any]) -> list[str]:
    """What runs commands that are a line of text."""
    said = config.get("Shell")
    return list(said) if isinstance(said, list) and said else list(_SHELL)


def command(instruction: Instruction, config: Mapping[str, Any]) -> list[str]:
    array = instruction.array()
    return array if array is not None else [*shell(config), instruction.text]


def apply(config: dict[str, Any], instruction: Instruction) -> None:
    """What an instruction that touches no file says of an image's configuration. Raises BadRequest for another."""
    name = instruction.name
    if name == "ENV":
        config["Env"] = [f"{n}={v}" for n, v in {**environment(config), **dict(pairs(instruction))}.items()]
    elif name == "LABEL":
        config["Labels"] = {**(config.get("Labels") or {}), **dict(pairs(instruction))}
    elif name == "CMD":
        config["Cmd"] = command(instruction, config)
    elif name == "ENTRYPOINT":
        config["Entrypoint"] = command(instruction, config)
        # As docker has it: a command of the image before it was for another program.
        config["Cmd"] = None
    elif name == "EXPOSE":
        ports = [port if "/" in port else f"{port}/tcp" for port in instruction.words()]
        config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **{port: {} for port in ports}}
    elif name == "VOLUME":
        config["Volumes"] = {**(config.get("Volumes") or {}), **{place: {} for place in instruction.words()}}
    elif name == "USER":
        config["User"] = instruction.text
    elif name == "WORKDIR":
        config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", instruction.text))
    elif name == "STOPSIGNAL":
        config["StopSignal"] = instruction.text
    elif name == "SHELL":
        if not (words := instruction.array()):
            raise instruction.wrong('it needs the form ["program", "option"]')
        config["Shell"] = words
    elif name == "HEALTHCHECK":
        config["Healthcheck"] = _health(instruction)
    elif name != "MAINTAINER":
        raise instruction.wrong("it is not a change of the configuration")


def _health(instruction: Instruction) -> dict[str, Any]:
    kind, _, rest = instruction.text.partition(" ")
    if kind.upper() == "NONE":
        return {"Test": ["NONE"]}
    if kind.upper() != "CMD" or not rest.strip():
        raise instruction.wrong("it needs CMD and a command, or NONE")
    inner = Instruction("CMD", rest.strip(), line=instruction.line)
    array = inner.array()
    made: dict[str, Any] = {"Test": ["CMD", *array] if array is not None else ["CMD-SHELL", inner.text]}
    for flag, value in instruction.flags.items():
        try:
            if flag == "retries":
                made["Retries"] = int(value)
            else:
                made[flag.title().replace("-", "")] = round(duration(value) * 1e9)
        except (ConfigurationError, ValueError) as error:
            raise instruction.wrong(f"--{flag}={value}: {error}") from None
    return made
