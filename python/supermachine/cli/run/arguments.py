"""The command line of ``supermachine run`` as it is usually written, read without the library that knows all of it.

That library takes longer to load than a virtual machine takes to start. What is not plain here (an unknown option, a
value that may be wrong, ``--help``) is left to it, as are all errors, so both read a command line the same way.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypedDict

    class Arguments(TypedDict):
        """What `supermachine run` was told."""

        image: str
        command: tuple[str, ...]
        env: tuple[str, ...]
        env_file: tuple[str, ...]
        workdir: str | None
        user: str | None
        memory: str | None
        cpus: int
        engine: str
        entrypoint: str | None
        hostname: str | None
        publish: tuple[str, ...]
        no_snapshot: bool
        #: docker's habit; stdin is passed on without it.
        interactive: bool
        no_stdin: bool
        tty: bool | None
        timeout: float | None
        boot_timeout: float | None
        pull: Literal["missing", "always", "never"]
        platform: str | None
        insecure: bool
        require_hardware: bool | None
        timings: bool
        quiet: bool


# Options by what they take, each with its name in `Arguments`.
_FLAGS = {
    "--insecure": ("insecure", True),
    "--interactive": ("interactive", True),
    "-i": ("interactive", True),
    "--no-snapshot": ("no_snapshot", True),
    "--no-stdin": ("no_stdin", True),
    "-n": ("no_stdin", True),
    "--no-tty": ("tty", False),
    "-T": ("tty", False),
    "--quiet": ("quiet", True),
    "-q": ("quiet", True),
    "--require-hardware": ("require_hardware", True),
    "--timings": ("timings", True),
    "--tty": ("tty", True),
    "-t": ("tty", True),
}
_TEXTS = {
    "--engine": "engine",
    "--entrypoint": "entrypoint",
    "--hostname": "hostname",
    "--memory": "memory",
    "--name": "hostname",
    "--platform": "platform",
    "--user": "user",
    "--workdir": "workdir",
    "-m": "memory",
    "-u": "user",
    "-w": "workdir",
}
_LISTS = {"--env": "env", "-e": "env", "--publish": "publish", "-p": "publish"}
_SECONDS = {"--boot-timeout": "boot_timeout", "--timeout": "timeout"}
_PULLS = ("missing", "always", "never")


def parse(words: list[str]) -> Arguments | None:
    """What the words after ``run`` say; ``None`` for what is not plain."""
    lists: dict[str, list[str]] = {"env": [], "publish": []}
    found: dict[str, Any] = {
        **dict.fromkeys(("workdir", "user", "memory", "entrypoint", "hostname", "tty", "timeout", "boot_timeout")),
        **dict.fromkeys(("platform", "require_hardware")),
        **dict.fromkeys(("interactive", "no_stdin", "insecure", "timings", "quiet", "no_snapshot"), False),
        "env_file": (),
        "cpus": 1,
        "engine": "auto",
        "pull": "missing",
    }
    at = 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, value = words[at].partition("=")
        at += 1
        if name in _FLAGS and not equals:
            key, flag = _FLAGS[name]
            found[key] = flag
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
        if name in _TEXTS:
            found[_TEXTS[name]] = value
        elif name in _LISTS:
            lists[_LISTS[name]].append(value)
        elif name in _SECONDS and (seconds := _positive(value)) is not None:
            found[_SECONDS[name]] = seconds
        elif name == "--cpus" and value.isascii() and value.isdecimal() and len(value) < 4:
            found["cpus"] = int(value)
        elif name == "--pull" and value in _PULLS:
            found["pull"] = value
        else:
            return None
    if at >= len(words):
        return None
    found.update({k: tuple(v) for k, v in lists.items()}, image=words[at], command=tuple(words[at + 1 :]))
    return found  # type: ignore[return-value]


def command_words(said: Arguments) -> list[str]:
    """The words of the command: as with docker, after ``--`` or without it."""
    return list(said["command"][1:] if said["command"][:1] == ("--",) else said["command"])


def _positive(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None
