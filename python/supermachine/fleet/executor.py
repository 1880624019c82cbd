"""Functions that run in virtual machines: an executor of the standard library's kind.

A function travels by cloudpickle into the Python of a fresh guest, and its result back. The guest may be anybody's:
what comes back is read as plain values only, unless the caller says that it believes the guest.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import io
import pickle
import py_compile
import sys
import tempfile
import threading
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import ConfigurationError, FleetFailed, RemoteError

if TYPE_CHECKING:
    from .fleet import Fleet
    from .vm import FleetVM

T = TypeVar("T")

#: Bytes of a result at most.
_MAX_RESULT = 256 << 20
_RESULT = "/tmp/.supermachine-result"  # noqa: S108 - in the guest

#: What runs in the guest: reads the version, the archive of cloudpickle and the call; writes how it went.
_RUNNER = f"""
import pickle, struct, sys
read = sys.stdin.buffer.read
length, = struct.unpack('<I', read(4))
version = pickle.loads(read(length))
length, = struct.unpack('<I', read(4))
with open('{_RESULT}.zip', 'wb') as out:
    out.write(read(length))
sys.path.insert(0, '{_RESULT}.zip')
call = read()
if version != list(sys.version_info[:2]):
    said = ('version', list(sys.version_info[:2]))
else:
    try:
        function, args, keywords = pickle.loads(call)
        value = function(*args, **keywords)
        try:
            said = ('done', pickle.dumps(value, 4))
        except Exception:
            import cloudpickle
            said = ('done', cloudpickle.dumps(value, 4))
    except BaseException as error:
        import traceback
        text = traceback.format_exc()
        try:
            said = ('raised', type(error).__name__, [a for a in error.args], str(error), text)
            pickle.dumps(said)
        except BaseException:
            said = ('raised', type(error).__name__, None, str(error), text)
with open('{_RESULT}', 'wb') as out:
    out.write(pickle.dumps(said, 4))
"""

#: Classes whose values say no more than what they are.
_PLAIN = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        bytearray,
        complex,
        frozenset,
        range,
        set,
        slice,
        collections.OrderedDict,
        collections.deque,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        datetime.timezone,
        decimal.Decimal,
        fractions.Fraction,
        uuid.UUID,
    )
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _PLAIN.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return found


def _plain(data: bytes, what: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:
        raise FleetFailed(
            f"{what} is no plain value, and a guest is not believed more than that",
            cause=f"{type(error).__name__}: {error}",
            hint='return numbers, strings, bytes and containers of them; results="pickle" believes the guest',
        ) from None


class FleetExecutor(Executor):
    """Runs functions in virtual machines of a fleet, each in one that nobody has used, with `python` of the image.

    The image has the same minor version of Python as this process; cloudpickle, which must be installed here, travels
    with the call, modules that the function imports must be in the image. `timeout` is for one call, in seconds. With
    ``results="pickle"`` results are unpickled whatever they are: that lets the guest run code here.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        python: str = "python3",
        timeout: float | None = None,
        results: Literal["plain", "pickle"] = "plain",
    ) -> None:
        if results not in ("plain", "pickle"):
            raise ConfigurationError(f"results is {results!r}; choose plain or pickle")
        self._fleet = fleet
        self._python = python
        self._timeout = timeout
        self._results = results
        self._archive = _cloudpickle()
        self._futures: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._shut = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs ``fn(*args, **kwargs)`` in a virtual machine. Its exception is raised if it is a builtin one.

        Others are `RemoteError`. Raises `HostLost` when the host is lost; the call is not repeated.
        """
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]

        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            call: bytes = cloudpickle.dumps((fn, args, kwargs), protocol=4)
            future: Future[T] = self._fleet.submit(self._call, call)
            self._futures.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)

    def _call(self, vm: FleetVM, call: bytes) -> Any:
        version = pickle.dumps(list(sys.version_info[:2]), 4)
        told = b"".join(len(part).to_bytes(4, "little") + part for part in (version, self._archive)) + call
        done = vm.run([self._python, "-c", _RUNNER], input=told, timeout=self._timeout)
        result = vm.path(_RESULT)
        try:
            size = result.stat().st_size
        except FileNotFoundError:
            tail = bytes(done.stderr)[-2000:].decode("utf-8", "replace")
            raise FleetFailed(
                f"the function's process ended with {done.returncode} and no result", cause=tail
            ) from None
        if size > _MAX_RESULT:
            raise FleetFailed(f"the result has {size} bytes, and {_MAX_RESULT} is the limit")
        said = _plain(result.read_bytes(), "what came back")
        return self._read(said)

    def _read(self, said: Any) -> Any:
        if not isinstance(said, tuple) or not said:
            raise FleetFailed("what came back from the guest is no result")
        kind, *rest = said
        if kind == "version":
            own = ".".join(map(str, sys.version_info[:2]))
            raise ConfigurationError(
                f"the image's Python is {'.'.join(map(str, rest[0]))}, and this one {own}",
                hint="functions travel between the same minor versions only",
            )
        if kind == "done":
            if self._results == "pickle":
                return pickle.loads(rest[0])  # noqa: S301 - asked for
            return _plain(rest[0], "the result")
        name, args, text, traceback = rest
        error = getattr(builtins, str(name), None)
        if isinstance(error, type) and issubclass(error, Exception) and isinstance(args, list):
            try:
                raised = error(*args)
            except Exception:
                raised = RemoteError(f"{name}: {text}", cause=str(traceback))
            raise raised
        raise RemoteError(f"{name}: {text}", cause=str(traceback))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more; the fleet goes on. See `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._shut = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            from concurrent.futures import wait as wait_for

            wait_for(futures)


def _cloudpickle() -> bytes:
    """The package as an archive that Python imports from, compiled: guests have the same version of Python."""
    try:
        import cloudpickle
    except ImportError:
        raise ConfigurationError(
            "functions travel by cloudpickle, which is not installed", hint="pip install 'supermachine[fleet]'"
        ) from None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path(str(cloudpickle.__file__)).parent.glob("*.py")):
            with tempfile.NamedTemporaryFile(suffix=".pyc") as compiled:
                mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                py_compile.compile(str(path), compiled.name, path.name, doraise=True, invalidation_mode=mode)
                archive.writestr(f"cloudpickle/{path.stem}.pyc", Path(compiled.name).read_bytes())
    return buffer.getvalue()
