"""The command line of ``supermachine run`` as it is usually written, read without the library that knows all of it.

That library takes longer to load than a virtual machine takes to start. What is not plain here (an unknown option, a
value that may be wrong, ``--help``) is left to it, as are all errors, so both read a command line the same way.
"""

from __future__ import annotations

import math

# Options by what they take, each with the name of its parameter in `run_command`.
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


def parse(words: list[str]) -> dict[str, object] | None:
    """The arguments of `run_command`; ``None`` for what is not plain."""
    lists: dict[str, list[str]] = {"env": [], "publish": []}
    found: dict[str, object] = {
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
    return {**found, **{k: tuple(v) for k, v in lists.items()}, "image": words[at], "command": tuple(words[at + 1 :])}


def _positive(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
