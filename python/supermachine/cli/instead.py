"""What docker's users type and this command line has not, and what does it here."""

from __future__ import annotations

from typing import Any

import click

#: Commands.
_COMMANDS = {
    "build": "`DOCKER_BUILDKIT=0 supermachine docker -- docker build …`; `supermachine run oci:DIR` runs it",
    "buildx": "`DOCKER_BUILDKIT=0 supermachine docker -- docker build …`",
    "commit": "`supermachine snapshot create NAME FILE` keeps all of it, running processes included",
    "compose": "`supermachine docker -- docker-compose up`; `supermachine run -d --name SERVICE IMAGE` is one service",
    "container": "`supermachine ps -a` lists machines; `supermachine rm $(supermachine ps -qf status=exited)` is prune",
    "context": "there is no daemon that could be elsewhere",
    "create": "`supermachine run -d IMAGE` creates and starts it",
    "diff": "look inside: `supermachine exec NAME COMMAND`",
    "export": "`supermachine cp NAME:/ DIRECTORY`",
    "history": "`supermachine inspect IMAGE`",
    "image": "`supermachine images` lists them, `supermachine rmi IMAGE` removes one",
    "import": "`supermachine run oci-archive:FILE` runs an archive as it is",
    "info": "`supermachine doctor`",
    "load": "`supermachine run docker-archive:FILE` runs an archive as it is",
    "manifest": "`skopeo inspect --raw docker://IMAGE`",
    "network": "a machine's network is a policy: `supermachine run --network none|public|all`, `--allow`, `--deny`",
    "plugin": "there are none",
    "save": "`skopeo copy docker://IMAGE docker-archive:FILE`",
    "search": "registries have web pages for that",
    "service": "`supermachine run -d --restart always` keeps one running; `supermachine.Fleet`, in Python, many",
    "stack": "start each service with `supermachine run -d --name SERVICE IMAGE`",
    "swarm": "`supermachine.Fleet`, in Python, starts machines on several hosts",
    "system": "`supermachine images`, `supermachine volume ls` say what takes room, `supermachine prune` gives it back",
    "tag": "images keep the names that they were pulled by",
    "update": "stop it, and run it again with other options",
    "version": "`supermachine --version`",
}

#: docker's long forms of commands that there are.
_LONG = {
    "container": {
        **{"ls": "ps", "list": "ps", "ps": "ps"},
        **{name: name for name in ("run", "exec", "logs", "top", "start", "stop", "restart", "pause", "rm")},
        **{name: name for name in ("cp", "port", "wait", "stats", "inspect", "attach", "unpause", "kill", "rename")},
    },
    "image": {"ls": "images", "list": "images", "rm": "rmi", "pull": "pull", "push": "push", "inspect": "inspect"}
    | {"prune": "prune"},
    "system": {"prune": "prune", "info": "doctor", "events": "events"},
}

_OWN_KERNEL = "leave it out: the kernel is the machine's own, in which root may do all, and nothing of it is the host's"
_NO_NAMESPACES = "leave it out: a machine has no namespaces in common with the host or with another"
_NETWORK = "what a guest may reach is said with --network, --allow and --deny"
_MEMORY = "-m sets the RAM of a machine, which is all that it can use"
#: Options of `run`.
_RUN = {
    **dict.fromkeys(
        (
            "--cap-add",
            "--cap-drop",
            "--privileged",
            "--security-opt",
            "--userns",
            "--cgroupns",
            "--sysctl",
            "--runtime",
        ),
        _OWN_KERNEL,
    ),
    **dict.fromkeys(("--pid", "--ipc", "--uts", "--cgroup-parent"), _NO_NAMESPACES),
    **dict.fromkeys(("--net", "--network-alias", "--ip", "--ip6", "--mac-address", "--link"), _NETWORK),
    **dict.fromkeys(("--memory-swap", "--memory-reservation", "--memory-swappiness", "--kernel-memory"), _MEMORY),
    **dict.fromkeys(("-c", "--cpu-shares", "--cpu-quota", "--cpu-period", "--cpuset-cpus"), "--cpus N sets the vCPUs"),
    "--add-host": "`supermachine exec NAME sh -c 'echo ADDRESS NAME >> /etc/hosts'`, once it runs",
    "--cidfile": "`supermachine run -d` prints the name, which --name sets",
    "--device": "devices of the host are not passed on; -v shares files and directories",
    "--dns": "guests ask the resolver of this host",
    "--gpus": "GPUs are not passed on",
    "--label-file": "--label NAME=VALUE, once for each",
    "--log-driver": "logs are files; `supermachine logs NAME` reads them",
    "--log-opt": "logs are files of 16 MiB at most",
    "--pids-limit": "a guest's processes are bounded by its memory: -m",
    "--publish-all": "-p PORT publishes a port at a free one of the host, once for each",
    "-P": "-p PORT publishes a port at a free one of the host, once for each",
    "--ulimit": "`sh -c 'ulimit …; exec COMMAND'`",
    "--sysctl": "`supermachine exec NAME sysctl -w …`, once it runs",
    "--volumes-from": "name the same volumes with -v NAME:DIR",
    "-a": "both outputs are shown in the foreground; with -d, `supermachine logs`",
    "--attach": "both outputs are shown in the foreground; with -d, `supermachine logs`",
    "--detach-keys": "Control-P Control-Q leaves what `supermachine attach` shows; start it with -d",
    "--expose": "-p publishes a port",
    "--stop-grace-period": "--stop-timeout SECONDS",
}


class HintingGroup(click.Group):
    """Knows docker's long forms, and says of its commands that there are not what does it here."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            short = _LONG.get(args[0], {}).get(args[1]) if len(args) > 1 else None
            if short is not None:
                return super().resolve_command(ctx, [short, *args[2:]])
            if (instead := _COMMANDS.get(args[0])) is not None:
                raise click.UsageError(f"There is no command '{args[0]}' here: {instead}.", ctx) from None
            raise


class RunCommand(click.Command):
    """Takes ``--timings`` with a value or without; the library knows options that have either. Says of docker's
    options that there are not what does it here.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from .run.arguments import is_page

        flags = {name for p in self.params if isinstance(p, click.Option) and p.is_flag for name in p.opts}
        flags |= {name for p in self.params if isinstance(p, click.Option) for name in p.secondary_opts}
        words, at = list(args), 0
        # As far as the image's name.
        while at < len(words) and words[at].startswith("-") and words[at] != "--":
            name, equals, value = words[at].partition("=")
            if name == "--timings" and equals:
                if not is_page(value):
                    raise click.UsageError(f"--timings={value}: html, or a file NAME.html or NAME.svg", ctx)
                words[at] = f"--timings-page={value}"
            takes = not equals and name not in flags and (name.startswith("--") or len(name) == 2)
            at += 2 if takes else 1
        try:
            return super().parse_args(ctx, words)
        except click.NoSuchOption as error:
            if (instead := _RUN.get(error.option_name)) is not None:
                raise click.UsageError(f"There is no option '{error.option_name}' here: {instead}.", ctx) from None
            raise
