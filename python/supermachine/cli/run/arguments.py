"""The command line of ``supermachine run`` as it is usually written, read without the library that knows all of it.

That library takes longer to load than a virtual machine takes to start. What is not plain here (an unknown option, a
value that may be wrong, ``--help``) is left to it, as are all errors, so both read a command line the same way.
"""

from __future__ import annotations

from ...settings.table import WRITTEN, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class Arguments(TypedDict):
        """What `supermachine run` was told."""

        image: str
        command: tuple[str, ...]
        #: Of the virtual machine, by their names in `settings.table`, as they were written.
        settings: dict[str, Any]
        #: Files of variables.
        env_file: tuple[str, ...]
        entrypoint: str | None
        #: docker's habit; stdin is passed on without it.
        interactive: bool
        no_stdin: bool
        tty: bool | None
        timeout: float | None
        #: Whether to say them; or ``html``, or a file, to draw them.
        timings: bool | str
        quiet: bool


#: Options of the command alone, beside those of the machine.
_COMMAND_FLAGS = {
    "--interactive": ("interactive", True),
    "-i": ("interactive", True),
    "--no-stdin": ("no_stdin", True),
    "-n": ("no_stdin", True),
    "--no-tty": ("tty", False),
    "-T": ("tty", False),
    "--quiet": ("quiet", True),
    "-q": ("quiet", True),
    "--timings": ("timings", True),
    "--tty": ("tty", True),
    "-t": ("tty", True),
}
#: docker's habits, which hold here without being asked for: nothing stays of it, and its first process reaps.
_HELD = ("--init", "--rm")
_SETTINGS = {option: setting for setting in WRITTEN for option in setting.options}


def defaults() -> dict[str, Any]:
    """The settings of a machine that nothing is said of, as the command line writes them."""
    return {s.name: () if s.kind == "texts" else s.default for s in WRITTEN}


def parse(words: list[str]) -> Arguments | None:
    """What the words after ``run`` say; ``None`` for what is not plain."""
    settings = defaults()
    found: dict[str, Any] = {
        **dict.fromkeys(("entrypoint", "tty", "timeout")),
        **dict.fromkeys(("interactive", "no_stdin", "timings", "quiet"), False),
        "env_file": (),
    }
    at = 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, value = words[at].partition("=")
        at += 1
        setting = _SETTINGS.get(name)
        if name in _HELD and not equals:
            continue
        if name in _COMMAND_FLAGS and not equals:
            key, flag = _COMMAND_FLAGS[name]
            found[key] = flag
            continue
        if setting is not None and setting.kind == "flag" and not equals:
            settings[setting.name] = setting.value
            continue
        if name == "--timings" and is_page(value):
            found["timings"] = value
            continue
        if name in ("-it", "-ti") and not equals:
            found["interactive"] = found["tty"] = True
            continue
        if not equals:
            if at >= len(words):
                return None
            value = words[at]
            at += 1
        elif not name.startswith("--"):
            return None
        if value.startswith("-") or not value:
            return None
        if name == "--entrypoint":
            found["entrypoint"] = value
        elif name == "--timeout" and (seconds := _positive(value)) is not None:
            found["timeout"] = seconds
        elif setting is None or not _set(settings, setting, value):
            return None
    if at >= len(words):
        return None
    found.update(settings=settings, image=words[at], command=tuple(words[at + 1 :]))
    return found  # type: ignore[return-value]


def is_page(value: str) -> bool:
    """Whether this, of `--timings`, is where to draw them."""
    return value == "html" or value.endswith((".html", ".htm", ".svg"))


def _set(settings: dict[str, Any], setting: Setting, value: str) -> bool:
    """Sets what an option with a value says; false for a value that is not plain."""
    made: object
    if setting.choices:
        made = value if value in setting.choices else None
    elif setting.kind == "text":
        made = value
    elif setting.kind == "texts":
        made = (*settings[setting.name], value)
    elif setting.kind == "seconds":
        made = _positive(value)
    elif setting.kind == "number" and value.isascii() and value.isdecimal() and len(value) < 4:
        made = int(value)
    else:
        made = None
    if made is None:
        return False
    settings[setting.name] = made
    return True


def machine(said: Arguments) -> dict[str, Any]:
    """The keywords of :class:`supermachine.VM`. Raises ConfigurationError, and OSError for a file of variables."""
    from ...settings.parsing import environment_files

    options = dict(said["settings"])
    options["environment"] = [*environment_files(said["env_file"]), *options["environment"]]
    if options["ports"]:
        from ...network.ports import published

        options["ports"] = published(options["ports"])
    return options


def command_words(said: Arguments) -> list[str]:
    """The words of the command: as with docker, after ``--`` or without it."""
    return list(said["command"][1:] if said["command"][:1] == ("--",) else said["command"])


def _positive(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None
