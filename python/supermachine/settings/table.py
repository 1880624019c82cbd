"""Every setting of a virtual machine, written once.

A row gives a setting's default, its documentation, its option on the command line and what it is part of. From the rows
come the options of ``supermachine run``, the keywords that a fork and a restore pass on, the key of a remembered start
and the documentation of :class:`supermachine.VM`; ``settings/machine.py`` has the types. Nothing here loads a module:
it is on the way of every ``supermachine run``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    #: What an option takes: nothing, a text, texts (it may be repeated), a positive number of seconds, a whole number.
    Kind = Literal["flag", "text", "texts", "seconds", "number"]
    #: What a remembered start makes of a setting on the command line: it is part of the start's key; each process is
    #: given it anew; or whoever sets it starts the full way.
    Remembered = Literal["key", "process", "full"]


class Setting:
    """A row: a keyword of :class:`supermachine.VM`, and how it is written on the command line."""

    __slots__ = ("choices", "default", "doc", "help", "kind", "metavar", "name", "options", "remembered", "value")

    def __init__(
        self,
        name: str,
        default: object,
        doc: str,
        *,
        options: tuple[str, ...] = (),
        kind: Kind = "text",
        metavar: str = "",
        help: str = "",  # noqa: A002
        choices: tuple[str, ...] = (),
        value: object = True,
        remembered: Remembered = "key",
    ) -> None:
        self.name = name
        self.default = default
        self.doc = doc
        #: Spellings on the command line; none for what only programs can say.
        self.options = options
        self.kind = kind
        self.metavar = metavar
        self.help = help
        self.choices = choices
        #: What a flag stands for.
        self.value = value
        self.remembered = remembered


#: RAM of a virtual machine, in docker's notation. The host gives a page only when the guest touches it.
DEFAULT_MEMORY = "512m"
#: The root's disk, in the same notation. It takes no room before it is written to.
DEFAULT_DISK = "64g"
#: Seconds that a guest has to become ready.
DEFAULT_BOOT_TIMEOUT = 60.0

SETTINGS = (
    Setting(
        "memory",
        DEFAULT_MEMORY,
        'RAM: bytes, or "512m", "2g" … The host gives a page when the guest first touches it.',
        options=("-m", "--memory"),
        metavar="SIZE",
        help="RAM, as 512m or 2g.  [default: 512m]",
    ),
    Setting(
        "disk",
        DEFAULT_DISK,
        "Size of the disk that is written to as the root, in the notation of `memory`. The host gives room when it is "
        "written to, and gets it back when files are removed. 0 is for none: half of the RAM can be written to then.",
        options=("--disk",),
        metavar="SIZE",
        help="Size of the root's disk; 0 for none.  [default: 64g]",
    ),
    Setting(
        "vcpus",
        1,
        "Number of virtual processors.",
        options=("--cpus",),
        kind="number",
        help="Number of vCPUs.",
    ),
    Setting(
        "engine",
        "auto",
        '"auto", "kvm", "hvf" or "soft"; "auto" takes the first that is usable and runs the platform.',
        options=("--engine",),
        help="auto, kvm, hvf or soft.",
    ),
    Setting(
        "environment",
        None,
        "Variables of processes, before what the image says: a mapping, or NAME=value strings.",
        options=("-e", "--env"),
        kind="texts",
        metavar="NAME[=VALUE]",
        help="Set a variable; a bare name passes it on.",
        remembered="process",
    ),
    Setting(
        "working_dir",
        None,
        "Working directory of processes, before what the image says.",
        options=("-w", "--workdir"),
        metavar="DIR",
        help="Working directory.",
        remembered="process",
    ),
    Setting(
        "user",
        None,
        "Who runs processes: name or number, with :GROUP if wanted; before what the image says.",
        options=("-u", "--user"),
        metavar="USER[:GROUP]",
        help="Who runs the command.",
        remembered="process",
    ),
    Setting(
        "hostname",
        None,
        "Host name of the guest; a random one unless given.",
        options=("--hostname",),
        metavar="NAME",
        help="Host name of the guest.",
        remembered="full",
    ),
    Setting(
        "require_hardware",
        None,
        "Refuse isolation in software (default: SUPERMACHINE_REQUIRE_HARDWARE).",
        options=("--require-hardware",),
        kind="flag",
        help="Refuse isolation in software.",
    ),
    Setting(
        "require_confinement",
        None,
        "Refuse a host that cannot confine the worker (default: SUPERMACHINE_REQUIRE_CONFINEMENT).",
        options=("--require-confinement",),
        kind="flag",
        help="Refuse a host that cannot confine the guest's process.",
        remembered="full",
    ),
    Setting(
        "ports",
        None,
        'Ports to publish: {"80/tcp": 8080, "53/udp": 53}, None for any free one, (address, port), or a list of these.',
        options=("-p", "--publish"),
        kind="texts",
        metavar="[[ADDR:]PORT:]GUEST",
        help="Listen here for a port of the guest.",
        remembered="full",
    ),
    Setting(
        "network",
        None,
        'What the guest may reach: "none", "public", "all", one of them and rules as "public host:8080 !evil.test", '
        'or a `Network` (default: SUPERMACHINE_NETWORK, else "public").',
        options=("--network",),
        metavar="'PRESET [RULE] [!RULE]… [segment:NAME]'",
        help="What the guest may reach: none, public or all, rules as host:8080, the machines of a private segment.  "
        "[default: public]",
        remembered="process",
    ),
    Setting(
        "allow",
        (),
        "Rules that let the guest reach more than `network` says.",
        options=("--allow",),
        kind="texts",
        metavar="RULE",
        help="Let the guest reach TARGET[:PORTS][/PROTOCOL]: a name, *.name, an address, a network, or a group.",
        remembered="process",
    ),
    Setting(
        "deny",
        (),
        "Rules of what the guest may not reach, before all that allow.",
        options=("--deny",),
        kind="texts",
        metavar="RULE",
        help="Deny the same to the guest, whatever else allows it.",
        remembered="process",
    ),
    Setting(
        "secrets",
        (),
        'Values that the guest uses without having them: {"TOKEN": Secret(value, hosts=["api.example.com"])}, or texts '
        'as "TOKEN@api.example.com". The network is then "none" and rules.',
        options=("--secret",),
        kind="texts",
        metavar="NAME[=FILE]@HOST[,HOST]…",
        help="Put the value of the variable NAME, or FILE's, into requests to HOST; the guest has a placeholder.",
        remembered="process",
    ),
    Setting(
        "volumes",
        None,
        'Directories and files of the host, and volumes: ["./src:/work:ro", "name:/data"], or as docker-py does.',
        options=("-v", "--volume"),
        kind="texts",
        metavar="SRC:DEST[:ro]",
        help="Share a directory or a file of the host, or mount the volume SRC.",
        remembered="full",
    ),
    Setting(
        "mounts",
        None,
        'The same by the guest\'s path: {"/work": "./src"}, a Share or a Volume; or a list in the form of "--mount", '
        "which may name a tmpfs as well.",
        options=("--mount",),
        kind="texts",
        metavar="type=TYPE,src=SRC,dst=DEST[,ro]",
        help="The same as docker's --mount: type bind, volume or tmpfs.",
        remembered="full",
    ),
    Setting(
        "tmpfs",
        None,
        'Directories in the guest\'s memory: ["/run:size=64m,mode=755"], or as docker-py: {"/run": "size=64m"}.',
        options=("--tmpfs",),
        kind="texts",
        metavar="DEST[:OPTIONS]",
        help="A directory in memory, with docker's options: /run:size=64m,mode=755.",
        remembered="full",
    ),
    Setting(
        "read_only",
        False,
        "True for a root that cannot be written to once the guest is ready; what is mounted in it can be.",
        options=("--read-only",),
        kind="flag",
        help="A root that cannot be written to.",
        remembered="full",
    ),
    Setting(
        "shm_size",
        None,
        "Size of /dev/shm, in the notation of `memory` (default: half of the RAM).",
        options=("--shm-size",),
        metavar="SIZE",
        help="Size of /dev/shm.  [default: half of the RAM]",
        remembered="full",
    ),
    Setting(
        "platform",
        None,
        'Platform of the image, as "linux/arm64"; the engine is one that runs it.',
        options=("--platform",),
        metavar="OS/ARCH",
        help="Platform of the image; the engine is one that runs it.",
    ),
    Setting(
        "pull",
        "missing",
        'When to ask the registry: "missing", "always" or "never".',
        options=("--pull",),
        choices=("missing", "always", "never"),
        remembered="process",
    ),
    Setting(
        "insecure",
        False,
        "Allow plain HTTP and unverified TLS for the image's registry.",
        options=("--insecure",),
        kind="flag",
        help="Allow plain HTTP and unverified TLS for this registry.",
        remembered="process",
    ),
    Setting("progress", None, "Called with each step of a download and a conversion.", remembered="process"),
    Setting(
        "boot_timeout",
        DEFAULT_BOOT_TIMEOUT,
        "Seconds that the guest has to become ready.",
        options=("--boot-timeout",),
        kind="seconds",
        metavar="SECONDS",
        help="[default: 60]",
        remembered="process",
    ),
    Setting(
        "bake",
        None,
        "False always boots; True bakes a snapshot for the next start (default: unless SUPERMACHINE_NO_SNAPSHOT).",
        options=("--no-snapshot",),
        kind="flag",
        value=False,
        help="Boot, and neither use nor bake a snapshot.",
        remembered="full",
    ),
    Setting("warmup", None, "What runs in the guest before it is baked: commands, or a callable that is given the VM."),
    Setting("warmup_key", None, "Names the warm-up where its code does not tell all that it does."),
    Setting("prefault", None, "False neither records nor uses the pages that clones need first."),
)
#: Those that the command line can say.
WRITTEN = tuple(setting for setting in SETTINGS if setting.options)


def documentation() -> str:
    """The settings as paragraphs of a docstring."""
    return "\n".join(f"    `{setting.name}`: {setting.doc}" for setting in SETTINGS)
