"""HTTP for registries: schemes, proxies, redirects, time limits, retries. Knows nothing of images.

Plain HTTP and unverified TLS are used for a host only when the caller asked for it (of the registry itself, not of the
hosts that it names), when the host is listed in ``SUPERMACHINE_INSECURE_REGISTRIES`` (comma-separated ``host`` or
``host:port``), or when it is a loopback address, as docker does. Such a host is first tried over TLS, without
verification, and then over HTTP. Only a registry on loopback may name addresses on loopback: what listens there is this
machine's own affair.

Proxies come from the environment (``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``); loopback hosts are never proxied.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit
from weakref import WeakSet

from .. import descriptors, env
from ..errors import ConfigurationError, RegistryError, RegistryRateLimited, RegistryTimeout

if TYPE_CHECKING:
    import ssl

    import urllib3

    from .credentials import Credentials

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({500, 502, 503, 504})
_MAX_REDIRECTS = 10
_CHUNK = 256 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, except for `attempts` (of one request, or of one download without progress) and bytes."""

    connect: float = 15.0
    # Without a single byte; and for the whole of a response's headers, however they dribble.
    read: float = 60.0
    # A transfer that gets less than `stall_bytes` in `stall` seconds has hung, even if it dribbles.
    stall: float = 60.0
    stall_bytes: int = 4096
    attempts: int = 5
    backoff: float = 0.5
    backoff_max: float = 20.0
    # The longest Retry-After that is waited for.
    retry_after_max: float = 120.0

    @classmethod
    def from_environment(cls) -> Limits:
        text = os.environ.get(env.REGISTRY_TIMEOUT)
        if not text:
            return cls()
        try:
            seconds = float(text)
            if not 0 < seconds < 86400:
                raise ValueError
        except ValueError:
            raise ConfigurationError(
                f"{env.REGISTRY_TIMEOUT} is {text[:50]!r}", hint="give it a number of seconds"
            ) from None
        return cls(connect=min(seconds, 15.0), read=seconds, stall=seconds)


class Response:
    """A response whose body is read in pieces; `close` is always safe."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, url: str, limits: Limits) -> None:
        self._raw = raw
        self._limits = limits
        self.url = url
        self.status: int = raw.status
        self.headers: Mapping[str, str] = raw.headers

    def pieces(self) -> Iterator[bytes]:
        """The body; raises RegistryTimeout when it stalls and RegistryError when it is cut."""
        import urllib3

        window, received = time.monotonic(), 0
        try:
            while True:
                # read1 returns what has arrived; read would wait for the whole piece, however slowly it comes.
                data = self._raw.read1(_CHUNK, decode_content=False)
                if not data:
                    return
                received += len(data)
                now = time.monotonic()
                if now - window >= self._limits.stall:
                    if received < self._limits.stall_bytes:
                        raise RegistryTimeout(
                            f"{_place(self.url)} sent only {received} bytes in {self._limits.stall:g} seconds"
                        )
                    window, received = now, 0
                yield data
        except urllib3.exceptions.TimeoutError as error:
            raise _timed_out(self.url, self._limits.read, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, RegistryTimeout):
                raise
            raise RegistryError(f"{_place(self.url)} broke off in the middle of an answer", cause=str(error)) from error
        finally:
            self.close()

    def body(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes of it and one more, by which a caller sees that it is longer."""
        parts, size = [], 0
        for piece in self.pieces():
            parts.append(piece)
            size += len(piece)
            if size > limit:
                break
        self.close()
        return b"".join(parts)[: limit + 1]

    def abort(self) -> None:
        """Wakes a thread that waits for more of the body."""
        shutdown = getattr(self._raw, "shutdown", None)
        if shutdown is not None:
            with contextlib.suppress(OSError, ValueError):
                shutdown()

    def close(self) -> None:
        # Closing the connection rather than draining it: the rest of a body may be without end.
        self._raw.close()
        self._raw.release_conn()


class Transport:
    """Requests to one registry and to the hosts that it names. Used by several threads at once."""

    def __init__(
        self,
        *,
        insecure: bool = False,
        registry: str = "",
        limits: Limits | None = None,
        sleep: Callable[[float], None] = time.sleep,
        credentials: Mapping[str, Credentials] | None = None,
    ) -> None:
        self.insecure = insecure
        #: The registry's host, as its origin has it; what is not this host is one that it names.
        self.registry = registry
        # In a place of its own: a connection that knew its transport would keep it, and all others, after its use.
        self._times = [limits or Limits.from_environment()]
        #: By the name of a registry; they go before those of configuration files.
        self.credentials = credentials or {}
        self._sleep = sleep
        self._managers: dict[tuple[str, bool], Any] = {}
        self._making = threading.Lock()
        self._schemes: dict[str, str] = {}
        self._open: WeakSet[Response] = WeakSet()
        self._aborted = False

    @property
    def limits(self) -> Limits:
        """May be changed: they are those of requests that begin after that."""
        return self._times[0]

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._times[0] = limits

    def lenient(self, host: str) -> bool:
        """Whether `host` (with or without port) may be spoken to over plain HTTP or unverified TLS."""
        return (self.insecure and host == self.registry) or is_loopback(host) or _listed(host)

    def may_name(self, host: str) -> bool:
        """Whether a registry, by a redirect or a challenge, may send this machine to `host`."""
        return not is_loopback(host) or is_loopback(self.registry)

    def is_registry(self, url: str) -> bool:
        """Whether an answer from `url` is the registry's own."""
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc}" == self.origin(self.registry)

    def origin(self, host: str) -> str:
        """``https://host`` or, for a lenient host that has no TLS, ``http://host``."""
        return f"{self._schemes.get(host, 'https')}://{host}"

    def request(
        self,
        method: str,
        host: str,
        path: str,
        headers: Mapping[str, str],
        *,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """A request to the registry itself, retried while that makes sense."""
        while True:
            url = self.origin(host) + path
            try:
                return self.request_url(method, url, headers, fields=fields, body=body)
            except RegistryError as error:
                # Only ever before the first answer: afterwards the scheme is known.
                if host in self._schemes or not self.lenient(host) or not isinstance(error, _Unreachable):
                    raise
                self._schemes[host] = "http"
                try:
                    response = self.request_url(method, self.origin(host) + path, headers, fields=fields, body=body)
                except RegistryError:
                    del self._schemes[host]
                    raise
                return response

    def request_url(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
        retry: bool = True,
    ) -> Response:
        """A request to a URL; redirects are followed, without the Authorization header to any other origin.

        Without `retry` it is made once, for what must not be done twice.
        """
        first = urlsplit(url)
        probing = first.scheme == "https" and first.netloc not in self._schemes and self.lenient(first.netloc)
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._follow(method, url, headers, fields, body)
            except _Unreachable as error:
                # While it is open whether the host has TLS at all, the caller tries HTTP before anything is repeated.
                if probing or not retry or not error.transient or attempt >= self.limits.attempts:
                    raise
                self.pause(attempt)
                continue
            if first.netloc not in self._schemes:
                self._schemes[first.netloc] = first.scheme
            wait = self._retry_delay(response, attempt) if retry else None
            if wait is None:
                return response
            response.close()
            self._sleep(wait)

    def pause(self, attempt: int) -> None:
        """Waits before a repetition, longer each time, never quite the same."""
        self._sleep(self._backoff(attempt))

    def _backoff(self, attempt: int) -> float:
        ceiling = min(self.limits.backoff_max, self.limits.backoff * 2.0 ** (attempt - 1))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311

    def _retry_delay(self, response: Response, attempt: int) -> float | None:
        if response.status != 429 and response.status not in _TRANSIENT:
            return None
        asked = _retry_after(response.headers.get("Retry-After"))
        too_long = asked is not None and asked > self.limits.retry_after_max
        if attempt >= self.limits.attempts or too_long:
            if response.status != 429:
                return None
            response.close()
            raise RegistryRateLimited(
                f"{_place(response.url)} limits the rate of requests",
                cause=f"Retry-After: {asked:g} s" if asked is not None else None,
                hint="log in (supermachine login raises the limit), or try again later",
            )
        if asked is not None:
            return asked
        return self._backoff(attempt)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], fields: Mapping[str, str] | None, body: bytes | None
    ) -> Response:
        origin = urlsplit(url)
        sent = dict(headers)
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._once(method, url, sent, fields, body)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = self.named(url, location)
            there = urlsplit(target)
            if (there.scheme, there.netloc) != (origin.scheme, origin.netloc):
                # Credentials are for the host that asked for them.
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            if fields is not None:
                raise RegistryError(f"{_place(url)} redirects a login, which is not followed")
            url = target
        raise RegistryError(f"{_place(url)} redirects more than {_MAX_REDIRECTS} times")

    def named(self, url: str, location: str) -> str:
        """The address that the answer from `url` names. Raises RegistryError where this machine does not go."""
        target = urljoin(url, location)
        there = urlsplit(target)
        if there.scheme not in ("http", "https") or not there.hostname:
            raise RegistryError(f"{_place(url)} redirects to {target[:200]!r}, which is not an HTTP address")
        if not self.may_name(there.netloc):
            raise RegistryError(f"{_place(url)} redirects to {there.netloc}, which is on this machine")
        if there.scheme == "http" and urlsplit(url).scheme == "https" and not self.lenient(there.netloc):
            raise RegistryError(f"{_place(url)} redirects from HTTPS to plain HTTP at {there.netloc}")
        return target

    def _once(
        self, method: str, url: str, headers: Mapping[str, str], fields: Mapping[str, str] | None, body: bytes | None
    ) -> Response:
        import urllib3

        descriptors.reserve()
        parts = urlsplit(url)
        keywords: dict[str, Any] = {} if body is None else {"body": body}
        if fields is not None:
            keywords = {"fields": dict(fields), "encode_multipart": False}
        try:
            raw = self._manager(parts.scheme, parts.netloc).request(
                method,
                url,
                headers={"User-Agent": "supermachine", "Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self.limits.connect, read=self.limits.read),
                **keywords,
            )
        except urllib3.exceptions.NameResolutionError as error:
            raise _Unreachable(
                f"the host of {_place(url)} is not known", cause=str(error), transient=True, hint="check the name"
            ) from error
        except urllib3.exceptions.NewConnectionError as error:
            # Before the timeouts: in urllib3 it is one of them.
            raise _Unreachable(f"{_place(url)} cannot be reached", cause=str(error), transient=True) from error
        except urllib3.exceptions.ConnectTimeoutError as error:
            raise _timed_out(url, self.limits.connect, error) from error
        except urllib3.exceptions.TimeoutError as error:
            raise _timed_out(url, self.limits.read, error) from error
        except urllib3.exceptions.SSLError as error:
            raise _Unreachable(
                f"the TLS connection to {_place(url)} failed",
                cause=str(error),
                hint="SSL_CERT_FILE names another set of authorities; insecure=True (--insecure) accepts any "
                "certificate, and plain HTTP",
                transient=False,
            ) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _Unreachable(f"{_place(url)} cannot be reached", cause=str(error), transient=True) from error
        response = Response(raw, url, self.limits)
        self._open.add(response)
        if self._aborted:
            response.close()
            raise RegistryError(f"the request to {_place(url)} was given up")
        return response

    def _manager(self, scheme: str, netloc: str) -> Any:
        """A connection pool, through the proxy that the environment names for this host, if any."""
        verify = not self.lenient(netloc)
        proxy = _proxy(scheme, netloc)
        key = (proxy or "", verify)
        with self._making:
            if (manager := self._managers.get(key)) is None:
                manager = self._managers[key] = self._made(netloc, proxy, verify)
        return manager

    def _made(self, netloc: str, proxy: str | None, verify: bool) -> Any:
        """A pool for this host, `proxy` and whether certificates are looked at."""
        import urllib3

        # One for all connections: reading the host's authorities takes longer than a small answer.
        options: dict[str, Any] = {"maxsize": 8, "block": False, "ssl_context": _tls(verify)}
        if not verify:
            # Asked for (or loopback), so the warning that urllib3 prints on every request says nothing new.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            options |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
        if proxy is None:
            manager = urllib3.PoolManager(**options)
        else:
            parsed = urllib3.util.parse_url(proxy)
            if parsed.auth:
                options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=parsed.auth)
            try:
                manager = urllib3.ProxyManager(proxy, **options)
            except (ValueError, urllib3.exceptions.HTTPError) as error:
                raise ConfigurationError(
                    f"the proxy for {netloc} cannot be used", cause=str(error), hint="write it as http://host:port"
                ) from error
        manager.pool_classes_by_scheme = _pools(self._times)
        return manager

    def abort(self) -> None:
        """Makes the requests of all threads fail soon."""
        self._aborted = True
        for response in list(self._open):
            response.abort()

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()


class _Unreachable(RegistryError):
    """There was no HTTP answer at all."""

    def __init__(
        self, message: str = "", *, cause: str | None = None, hint: str | None = None, transient: bool = False
    ):
        super().__init__(message, cause=cause, hint=hint)
        self.transient = transient


def _tls(verify: bool) -> ssl.SSLContext:
    """What TLS is spoken by: with the authorities of this host, or without looking at certificates."""
    import ssl

    from urllib3.util import create_urllib3_context

    if not verify:
        return create_urllib3_context(cert_reqs=ssl.CERT_NONE)
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_default_certs()
    return context


def _pools(times: list[Limits]) -> dict[str, Any]:
    """urllib3's pools, of connections whose handshakes and headers end in these times.

    A time limit of a socket is for each read of it, and a server that sends a byte now and then meets it for ever.
    """
    from urllib3 import connection, connectionpool

    def hurried(base: Any) -> Any:
        def connect(self: Any) -> None:
            with _deadline(self, times[0].connect):
                base.connect(self)

        def getresponse(self: Any) -> Any:
            with _deadline(self, times[0].read):
                return base.getresponse(self)

        return type(base.__name__, (base,), {"connect": connect, "getresponse": getresponse})

    def pool(base: Any, connections: Any) -> Any:
        return type(base.__name__, (base,), {"ConnectionCls": hurried(connections)})

    return {
        "http": pool(connectionpool.HTTPConnectionPool, connection.HTTPConnection),
        "https": pool(connectionpool.HTTPSConnectionPool, connection.HTTPSConnection),
    }


@contextlib.contextmanager
def _deadline(connection: Any, seconds: float) -> Iterator[None]:
    """Shuts the connection when the block takes longer, which is a TimeoutError then."""
    import socket
    from threading import Event, Timer

    late = Event()

    def shut() -> None:
        late.set()
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise TimeoutError(f"no whole answer within {seconds:g} seconds") from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        # http.client takes the end of a stream for the end of the headers.
        raise TimeoutError(f"no whole answer within {seconds:g} seconds")


def is_loopback(netloc: str) -> bool:
    """Whether a host is this machine by its name or address; which other names lead here only resolving would tell."""
    import ipaddress

    host = (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _listed(netloc: str) -> bool:
    host = urlsplit(f"//{netloc}").hostname
    names = os.environ.get(env.INSECURE_REGISTRIES, "").split(",")
    return any(name.strip() in (netloc, host) for name in names if name.strip())


def _proxy(scheme: str, netloc: str) -> str | None:
    from urllib import request

    if is_loopback(netloc):
        return None
    proxies: dict[str, str] = request.getproxies_environment()
    proxy = proxies.get(scheme) or proxies.get("all")
    bypass: Any = request.proxy_bypass_environment  # type: ignore[attr-defined]
    if not proxy or bypass(netloc, proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _retry_after(value: str | None) -> float | None:
    """Seconds, given as such or as a date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value) if len(value) < 10 else float("inf")
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _timed_out(url: str, seconds: float, error: Exception) -> RegistryTimeout:
    return RegistryTimeout(
        f"{_place(url)} did not answer within {seconds:g} seconds",
        cause=str(error),
        hint="SUPERMACHINE_REGISTRY_TIMEOUT sets the limit",
    )


def _place(url: str) -> str:
    """Where, without the query: storage hosts put signatures there."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]
