"""One session: every container, volume, network, name of an image and log there is, and the end of them all."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..host import engines
from .container import Container
from .containers import Containers
from .errors import ApiError
from .events import Events
from .executions import Executions
from .http import Body
from .images import Images
from .made import Made
from .networks import Networks
from .volumes import Volumes

T = TypeVar("T")

#: Machines of containers that have ended, which are kept for their files. The one that ended first goes first.
MAX_PARKED = 16
#: Bytes of one archive that is put into a container, or loaded.
MAX_UPLOAD = 64 << 30
_THREADS = 128


class Session:
    """Made in the event loop that serves it. `directory` is private to this process."""

    def __init__(
        self,
        directory: Path,
        *,
        engine: str = "auto",
        policy: str | None = None,
        images: Mapping[str, str] | None = None,
    ) -> None:
        """`images` are names with what they stand for: other references, or paths of layouts and archives."""
        self.directory = directory
        self.loop = asyncio.get_running_loop()
        self.engine = engines.choose(engine, None, None)
        #: Of images that nobody says more about.
        self.platform = f"linux/{self.engine.architecture}"
        self._policy = policy
        self.max_upload = MAX_UPLOAD
        self.closing = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="supermachine-docker")
        self._tasks: set[asyncio.Task[None]] = set()
        self._parked: OrderedDict[str, Container] = OrderedDict()
        self._uploads = 0
        self.events = Events()
        self.images = Images(self, images or {})
        self.made = Made(self)
        self.networks = Networks(self)
        self.volumes = Volumes(self)
        self.containers = Containers(self)
        self.executions = Executions(self)

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        """`work` in a thread; it goes on when its caller is cancelled."""
        return await asyncio.shield(self.loop.run_in_executor(self._threads, work, *args))

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs on its own; what it raises concerns nobody."""

        async def guarded() -> None:
            with contextlib.suppress(ApiError):
                await work

        task = self.loop.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def policy(self, networks: Mapping[str, object]) -> str | None:
        """What a container of these networks may reach; ``None`` for what any virtual machine may."""
        internal = all(self.networks.get(name).internal or name == "none" for name in networks)
        return "none" if internal else self._policy

    # Machines that wait.

    def park(self, container: Container) -> None:
        self._parked[container.id] = container
        while len(self._parked) > MAX_PARKED:
            _, oldest = self._parked.popitem(last=False)
            self.background(oldest.drop_parked())

    def unpark(self, container: Container) -> None:
        self._parked.pop(container.id, None)

    # Uploads.

    @contextlib.asynccontextmanager
    async def upload(self, body: Body) -> Any:
        """A request's body as a file, for as long as the block runs."""
        self._uploads += 1
        path = self.directory / f"upload-{self._uploads}.tar"
        try:
            with path.open("wb") as file:
                size = 0
                while piece := await body.read():
                    size += len(piece)
                    if size > self.max_upload:
                        raise ApiError(413, f"the archive has more than {self.max_upload} bytes")
                    file.write(piece)
            yield path
        finally:
            path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Ends all of it."""
        self.closing = True
        self.events.close()
        # Without a word to their processes, which nobody waits for any more.
        await asyncio.gather(*(c.drop_machine() for c in self.containers.all()), return_exceptions=True)
        removals = (c.remove(force=True, volumes=False) for c in self.containers.all())
        await asyncio.gather(*removals, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.made.forget()
        self._threads.shutdown(wait=False)
        shutil.rmtree(self.directory, ignore_errors=True)
