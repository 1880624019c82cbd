"""``docker build``, as the classic builder does it: a stage is a machine in which its instructions are carried out.

What an image consists of is known when its stage has ended, and is one layer. There is no image of a step in between,
and so no cache of steps; a build whose Dockerfile, context, arguments and bases are as before gives the image it gave.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SupermachineError
from ..guest.processes import DEVNULL, PIPE, STDOUT
from ..guest.users import ids
from ..machine.starts import Root
from ..machine.vm import VM
from ..settings.machine import MachineSettings
from . import archives, dockerfile
from .build_context import Context
from .dockerfile import Instruction
from .errors import ApiError, BadRequest, NotImplementedHere, as_api_error
from .made import Layout, step
from .specification import DEFAULT_MEMORY

if TYPE_CHECKING:
    from .images import Image
    from .session import Session

#: Stages of a Dockerfile at most: each has a machine until the end.
_MAX_STAGES = 32
#: Variables that need no ARG.
_GIVEN = tuple(
    name
    for base in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (base, base.lower())
)


@dataclass
class Wanted:
    """What a client asks to be built."""

    dockerfile: str = "Dockerfile"
    names: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    target: str = ""
    platform: str = ""
    pull: bool = False
    use_cache: bool = True
    quiet: bool = False
    memory: int = 0
    #: Whether the network is none at all.
    no_network: bool = False


@dataclass
class _Stage:
    number: int
    name: str
    vm: VM
    config: dict[str, Any]
    base: Image
    arguments: dict[str, str] = field(default_factory=dict)
    #: What has been done, that of the base first.
    history: list[dict[str, Any]] = field(default_factory=list)


def _platform(stage: _Stage) -> str:
    assert stage.base.resolved is not None
    return str(stage.base.resolved.platform)


class Build:
    """One build; `run` blocks, in a thread, and `cancel` ends it from another."""

    def __init__(self, session: Session, wanted: Wanted, archive: Path) -> None:
        self._session = session
        self._wanted = wanted
        self._archive = archive
        self._write: Callable[[bytes], None]
        self._stages: list[_Stage] = []
        self._lock = threading.Lock()
        self._cancelled = False
        self._scratch = archive.with_suffix(".d")
        self._step, self._steps = 0, 0

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            stages = list(self._stages)
        for stage in stages:
            stage.vm.kill()

    def run(self, write: Callable[[bytes], None]) -> None:
        """Tells the client all of it, what goes wrong included."""
        self._write = write
        try:
            self._scratch.mkdir()
            self._build()
        except (ApiError, SupermachineError, OSError, ValueError) as error:
            told = as_api_error(error)
            self._tell({"errorDetail": {"code": 1, "message": told.message}, "error": told.message})
        finally:
            self.cancel()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _tell(self, line: Mapping[str, Any]) -> None:
        self._write(json.dumps(line).encode() + b"\r\n")

    def _say(self, text: str) -> None:
        if not self._wanted.quiet:
            self._tell({"stream": text})

    # The whole.

    def _build(self) -> None:
        wanted = self._wanted
        context = Context(self._archive, self._session.max_upload)
        text = context.read(wanted.dockerfile, dockerfile.MAX_BYTES)
        if text is None:
            raise BadRequest(f"Cannot locate specified Dockerfile: {wanted.dockerfile[:200]}")
        try:
            instructions = dockerfile.parse(text.decode())
        except UnicodeDecodeError:
            raise BadRequest(f"{wanted.dockerfile[:200]} is not UTF-8") from None
        globals_: dict[str, str] = {}
        self._steps = sum(1 for instruction in instructions if instruction.name != "ARG")
        plan = self._plan(instructions, globals_)
        key = self._key(text, context, plan)
        made = self._session.made.built(key) if wanted.use_cache else None
        if made is not None:
            self._say(" ---> Using cache\n")
            self._finished(made)
            return
        for index, (from_, rest) in enumerate(plan):
            self._open(index, from_)
            for instruction in rest:
                self._carry_out(self._stages[-1], instruction, context, globals_)
            if from_.text.split()[-1] == wanted.target or wanted.target == str(index):
                break
        last = self._stages[-1]
        last.config["Labels"] = {**(last.config.get("Labels") or {}), **wanted.labels}
        self._say("Writing the image\n")
        history = last.history or [step("", "build")]
        made = self._session.made.of_guest(last.vm, last.config, _platform(last), history=history)
        self._session.made.remember(key, made)
        self._finished(made)

    def _finished(self, image: Image) -> None:
        names = self._session.made.name(self._wanted.names, image)
        self._tell({"aux": {"ID": image.id}})
        if self._wanted.quiet:
            self._tell({"stream": f"{image.id}\n"})
        self._say(f"Successfully built {image.id[7:19]}\n")
        for name in names:
            self._say(f"Successfully tagged {name}\n")

    def _plan(
        self, instructions: list[Instruction], globals_: dict[str, str]
    ) -> list[tuple[Instruction, list[Instruction]]]:
        """The stages, each with its FROM, whose variables are those of the ARGs before the first."""
        plan: list[tuple[Instruction, list[Instruction]]] = []
        for instruction in instructions:
            if instruction.name == "FROM":
                plan.append((dockerfile.expanded(instruction, globals_), []))
            elif plan:
                plan[-1][1].append(instruction)
            elif instruction.name == "ARG":
                for name, value in dockerfile.pairs(instruction):
                    globals_[name] = self._wanted.arguments.get(name, dockerfile.expand(value, globals_))
            else:
                raise instruction.wrong("only ARG is before the first FROM")
        if len(plan) > _MAX_STAGES:
            raise BadRequest(f"the Dockerfile has more than {_MAX_STAGES} stages")
        target = self._wanted.target
        if target and not any(f.text.split()[-1] == target or target == str(i) for i, (f, _) in enumerate(plan)):
            raise BadRequest(f"failed to reach build target {target[:100]} in Dockerfile")
        return plan

    def _key(self, text: bytes, context: Context, plan: list[tuple[Instruction, list[Instruction]]]) -> str:
        """What the result depends on, but for what the network says."""
        hashed = hashlib.sha256()
        with context.path.open("rb") as file:
            while block := file.read(1 << 20):
                hashed.update(block)
        names = {from_.text.split()[-1] for from_, _ in plan}
        bases = [from_.text.split()[0] for from_, _ in plan]
        outside = [
            self._base(base, from_).id for base, (from_, _) in zip(bases, plan, strict=True) if base not in names
        ]
        wanted = self._wanted
        said = [wanted.arguments, wanted.labels, wanted.target, wanted.platform, outside, text.decode()]
        return hashlib.sha256((json.dumps(said, sort_keys=True) + hashed.hexdigest()).encode()).hexdigest()

    def _base(self, name: str, from_: Instruction) -> Image:
        if name == "scratch":
            raise NotImplementedHere("FROM scratch is not built here: a machine needs something to run")
        platform = from_.flags.get("platform") or self._wanted.platform or self._session.platform
        return self._session.images.pulled(name, platform, always=self._wanted.pull)

    # Stages.

    def _open(self, number: int, from_: Instruction) -> None:
        self._announce(from_)
        words = from_.text.split()
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise from_.wrong("it needs an image, or an image AS a name")
        before = next((stage for stage in self._stages if stage.name == words[0].lower()), None)
        name = words[2].lower() if len(words) == 3 else ""
        if before is not None:
            # Goes on from there, with what is there by now.
            path = self._scratch / f"stage-{number}"
            platform = _platform(before)
            history = before.history or [step("", "build")]
            resolved = Layout.write(path, before.vm, before.config, platform, history=history).resolved(platform)
            shutil.rmtree(path)
            base, config = before.base, dict(before.config)
        else:
            base = self._base(words[0], from_)
            assert base.resolved is not None
            resolved, config, history = base.resolved, dict(base.config), base.history
        self._say(f" ---> {base.id[7:19]}\n")
        network = "none" if self._wanted.no_network else self._session.policy({"bridge": []})
        settings = MachineSettings.of(
            memory=self._wanted.memory or DEFAULT_MEMORY, network=network, platform=str(resolved.platform), user="0:0"
        )
        vm = VM._of(words[0], settings, Root(resolved))
        with self._lock:
            if self._cancelled:
                raise BadRequest("the build was cancelled")
            self._stages.append(_Stage(number, name, vm, config, base, history=list(history)))
        vm.start()

    def _announce(self, instruction: Instruction) -> None:
        self._step += 1
        self._say(f"Step {self._step}/{self._steps} : {instruction}\n")

    def _carry_out(
        self, stage: _Stage, instruction: Instruction, context: Context, globals_: Mapping[str, str]
    ) -> None:
        if instruction.name == "ARG":
            for name, value in dockerfile.pairs(instruction):
                usual = dockerfile.expand(value, self._variables(stage)) if value else globals_.get(name, "")
                stage.arguments[name] = self._wanted.arguments.get(name, usual)
            return
        self._announce(instruction)
        instruction = dockerfile.expanded(instruction, self._variables(stage))
        if instruction.name == "RUN":
            self._run(stage, instruction)
        elif instruction.name in ("COPY", "ADD"):
            self._copy(stage, instruction, context)
        else:
            dockerfile.apply(stage.config, instruction)
            if instruction.name == "WORKDIR":
                self._directory(stage)
        stage.history.append(step(str(instruction)))

    def _variables(self, stage: _Stage) -> dict[str, str]:
        given = {name: self._wanted.arguments[name] for name in _GIVEN if name in self._wanted.arguments}
        return {**given, **stage.arguments, **dockerfile.environment(stage.config)}

    def _directory(self, stage: _Stage) -> str:
        place = str(stage.config.get("WorkingDir") or "/")
        if not stage.vm.path(place).is_dir():
            stage.vm.path(place).mkdir(parents=True, exist_ok=True)
        return place

    def _run(self, stage: _Stage, instruction: Instruction) -> None:
        words = dockerfile.command(instruction, stage.config)
        if not words:
            raise instruction.wrong("it needs a command")
        process = stage.vm.popen(
            words,
            stdout=PIPE,
            stderr=STDOUT,
            stdin=DEVNULL,
            env=self._variables(stage),
            cwd=self._directory(stage),
            user=str(stage.config.get("User") or "") or None,
            bufsize=0,
        )
        assert process.stdout is not None
        with process.stdout as output:
            while data := output.read(1 << 16):
                self._say(data.decode("utf-8", "replace"))
        code = process.wait()
        if code:
            code = 128 - code if code < 0 else code
            text = f"The command '{' '.join(words)}' returned a non-zero code: {code}"
            raise ApiError(500, text)

    def _copy(self, stage: _Stage, instruction: Instruction, context: Context) -> None:
        words = instruction.words()
        if len(words) < 2:
            raise instruction.wrong("it needs a source and a destination")
        *sources, target = words
        if any(source.startswith(("http://", "https://", "git@")) for source in sources):
            raise NotImplementedHere("ADD of an address is not built here: RUN wget, or curl, does it")
        place = posixpath.join(str(stage.config.get("WorkingDir") or "/"), target)
        slash = "/" if target.endswith(("/", "/.")) or target == "." else ""
        place = posixpath.normpath(place).rstrip("/") + (slash or ("/" if posixpath.normpath(place) == "/" else ""))
        vm, flags = stage.vm, instruction.flags
        owner: tuple[int, int] | None = (0, 0)
        if flags.get("chown"):
            owner = vm.path("/")._do(lambda files: ids(files, flags["chown"]))
        mode = None
        if flags.get("chmod"):
            try:
                mode = int(flags["chmod"], 8) & 0o7777
            except ValueError:
                raise instruction.wrong(f"--chmod={flags['chmod'][:50]} is no octal number") from None
        if "from" in flags:
            for source in sources:
                taken, name = self._from_stage(flags["from"], source)
                self._put(stage, taken, [name], place, owner if flags.get("chown") else None, mode)
                taken.path.unlink()
            return
        names = [name for source in sources for name in context.matching(source)]
        if instruction.name == "ADD":
            for name in [name for name in names if context.is_archive(name)]:
                names.remove(name)
                piece = self._scratch / "add.tar"
                context.extract(name, piece)
                self._directory_at(stage, place)
                archives.unpack(vm, place, piece, keep_kinds=False, limit=self._session.max_upload)
        if names:
            self._put(stage, context, names, place, owner, mode)

    def _directory_at(self, stage: _Stage, place: str) -> None:
        if not stage.vm.path(place).is_dir():
            stage.vm.path(place).mkdir(parents=True, exist_ok=True)

    def _put(
        self,
        stage: _Stage,
        source: Context,
        names: list[str],
        place: str,
        owner: tuple[int, int] | None,
        mode: int | None,
    ) -> None:
        archive = self._scratch / "copy.tar"
        source.copy(stage.vm, names, place, archive, owner=owner, mode=mode)
        archives.unpack(stage.vm, "/", archive, keep_kinds=False, limit=self._session.max_upload)
        archive.unlink()

    def _from_stage(self, wanted: str, source: str) -> tuple[Context, str]:
        """What is at a path of another stage or of an image, as a context, and its name there."""
        stages = self._stages[:-1]
        found = next((s for s in stages if wanted.lower() == s.name or wanted == str(s.number)), None)
        if found is not None:
            vm = found.vm
        else:
            base = self._base(wanted, Instruction("COPY", wanted))
            assert base.resolved is not None
            vm = VM._of(
                wanted, MachineSettings.of(network="none", platform=str(base.resolved.platform)), Root(base.resolved)
            )
            with self._lock:
                self._stages.insert(0, _Stage(-1, f"\0{wanted}", vm, {}, base))
            vm.start()
        if any(c in source for c in "*?["):
            raise NotImplementedHere("COPY --from with a pattern is not built here: name the files, or their directory")
        place = vm.path("/" + source.lstrip("/")).resolve()
        archive = self._scratch / "from.tar"
        with archive.open("wb") as file:
            if str(place) == "/":
                archives.pack_root(vm, file.write)
            else:
                archives.pack(vm, str(place), file.write)
        return Context(archive, self._session.max_upload), "." if str(place) == "/" else place.name
