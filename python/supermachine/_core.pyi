"""The extension module; see rust/python."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict, final, type_check_only

from typing_extensions import Self

PROTOCOL_VERSION: int
VERSION: str
#: Bytes of RAM that a guest has at least and at most, and vCPUs at most by its architecture.
MIN_MEMORY: int
MAX_MEMORY: int
MEMORY_STEP: int
MAX_VCPUS: dict[str, int]
#: Where a guest has the certificates that it trusts, when some is its machine's own.
TRUST_BUNDLE: str
#: Bytes of a secret's value at least and at most.
MIN_SECRET: int
MAX_SECRET: int
#: Ranges of a working set at most.
MAX_WORKING_SET: int

#: dev, ino, mode, nlink, uid, gid, rdev, size, blocks, (atime_ns, mtime_ns, ctime_ns)
_Stat = tuple[int, int, int, int, int, int, int, int, int, tuple[int, int, int]]

#: Executable of the policy process, preset, rules that allow, rules that deny, name servers; a descriptor of the audit
#: log, with what names the machine in it; secrets: placeholder, value, hosts, in queries, in bodies; and the guest's
#: address where that is not the usual one.
_Network = tuple[
    str,
    str,
    Sequence[str],
    Sequence[str],
    Sequence[str],
    tuple[int, str] | None,
    Sequence[tuple[str, bytes, Sequence[str], bool, bool]],
    str | None,
]
#: Name, address, port, protocol, rule, reason, remedy, nanoseconds since 1970.
_Denial = tuple[str | None, str | None, int, str, str | None, str, str, int]

@type_check_only
class _Share(Protocol):
    """What a worker is told of a share."""

    @property
    def path(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def cache(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def quota_bytes(self) -> int | None: ...
    @property
    def watch(self) -> bool: ...

def check_network_rule(rule: str) -> bool: ...
def check_secret_host(host: str) -> None: ...

@final
class Worker:
    @staticmethod
    def spawn(
        path: str,
        *,
        engine: str,
        kernel: str,
        initramfs: str,
        disks: Sequence[tuple[str, bool]],
        memory_bytes: int,
        vcpus: int,
        hostname: str,
        machine_id: bytes,
        entropy: bytes,
        root_fs: str | None,
        volumes: Sequence[str] = ...,
        upper_bytes: int = 0,
        cmdline: str = ...,
        boot_timeout_ms: int = 60_000,
        agent: bool = True,
        require_confinement: bool = False,
        shares: Sequence[_Share] = ...,
        environment: Sequence[tuple[str, str]] = ...,
        network: _Network | None = None,
        scratch: tuple[int, int] | None = None,
        volume_disks: Sequence[tuple[int, int | None, int]] = ...,
    ) -> Worker: ...
    @staticmethod
    def restore(
        path: str,
        *,
        engine: str,
        files: Sequence[str],
        disks: Sequence[tuple[str, bool]],
        hostname: str,
        machine_id: bytes,
        entropy: bytes,
        working_set: Sequence[tuple[int, int, bool]] = ...,
        boot_timeout_ms: int = 60_000,
        agent: bool = True,
        require_confinement: bool = False,
        shares: Sequence[_Share] = ...,
        environment: Sequence[tuple[str, str]] = ...,
        network: _Network | None = None,
        scratch: tuple[int, Sequence[str]] | None = None,
        volume_disks: Sequence[tuple[int, int | None, int]] = ...,
        arriving: int | None = None,
        note_order: bool = False,
        code: str | None = None,
        template: Worker | None = None,
    ) -> Worker: ...
    @staticmethod
    def template(
        path: str,
        *,
        engine: str,
        files: Sequence[str],
        disks: Sequence[tuple[str, bool]],
        scratch: Sequence[str] | None = None,
        require_confinement: bool = False,
        environment: Sequence[tuple[str, str]] = ...,
        code: str | None = None,
    ) -> Worker: ...
    @staticmethod
    def bake(
        path: str,
        *,
        files: Sequence[str],
        places: Sequence[int],
        fd: int,
        require_confinement: bool = False,
    ) -> Worker: ...
    def capture(
        self,
        fd: int,
        *,
        diff: bool = False,
        v8: bool = False,
        image: str | None = None,
        api: bytes = ...,
        disk_elsewhere: bool = False,
        code: bool = False,
        volume_mark: bytes = ...,
        timeout: float | None = None,
    ) -> tuple[bytes, int, int, list[tuple[str, int]]] | None: ...
    def grow_volume(self, slot: int, size: int, timeout: float | None = None) -> bool: ...
    def code(self, timeout: float | None = None) -> list[int] | None: ...
    def working_set(self, timeout: float | None = None) -> list[tuple[int, int, bool]] | None: ...
    @property
    def pid(self) -> int: ...
    @property
    def exit(self) -> tuple[str, str, str] | None: ...
    def wait_ready(self, timeout: float | None = None) -> list[tuple[str, int]] | None: ...
    def wait(self, timeout: float | None = None) -> tuple[str, str, str] | None: ...
    def connect(self, port: int) -> int: ...
    def shutdown(self, grace_ms: int) -> None: ...
    def kill(self) -> None: ...
    def stats(self, timeout: float | None = None) -> tuple[list[tuple[str, int]], int] | None: ...
    @property
    def network_pid(self) -> int | None: ...
    @property
    def has_network(self) -> bool: ...
    @property
    def network_address(self) -> str | None: ...
    @property
    def network_address_v6(self) -> str | None: ...
    def join_segment(self, segment: int, names: Sequence[str], v6: bool) -> None: ...
    def leave_segment(self, segment: int) -> None: ...
    def meet(self, segment: int, names: Sequence[str], other: Worker, its: Sequence[str], v6: bool) -> None: ...
    def meet_remote(self, segment: int, address: str, names: Sequence[str], link: int) -> None: ...
    def denials(self, start: int = 0, timeout: float | None = None) -> tuple[list[_Denial], int]: ...
    def wait_denial(self, number: int, timeout: float | None = None) -> bool: ...
    def flows(self, timeout: float | None = None) -> list[tuple[str, int, str | None, str, int, int]] | None: ...
    def set_network_policy(self, preset: str, allow: Sequence[str], deny: Sequence[str]) -> None: ...
    def stale(self, start: int = 0, timeout: float | None = None) -> list[tuple[int, str, str]]: ...
    def exit_fd(self) -> int: ...

@final
class Remote:
    """Stands for a worker of another process's; `dial` gives a socket of a port of the guest."""

    def __new__(cls, dial: Callable[[int], Any]) -> Self: ...
    @property
    def exit(self) -> tuple[str, str, str] | None: ...
    def ended(self, reason: str, message: str, console_tail: str) -> None: ...
    def watched(self) -> Watched: ...

@final
class Watched:
    """Tells users of a `Remote` of its end; its descriptor reads as ended once there are none."""

    def fileno(self) -> int: ...
    def ended(self, reason: str, message: str, console_tail: str) -> None: ...

@final
class Forward:
    @staticmethod
    def start(worker: Worker, protocol: str, guest_port: int, host: str, port: int) -> Forward: ...
    @property
    def port(self) -> int: ...
    def close(self) -> None: ...

_Section = tuple[str, int, int, bool, bytes]

class _Identity(TypedDict):
    architecture: str
    engine: str
    engine_version: int
    cpu_features: list[str]
    kernel: str
    initramfs: str
    image: str | None
    devices: list[str]
    vcpus: int
    memory_bytes: int
    ram_gpa: int
    parent: str | None
    created_unix_ns: int

class _SnapshotV9(TypedDict):
    id: str
    minor: int
    ram_digest: str
    identity: _Identity
    sections: list[_Section]
    present: list[tuple[int, int]] | None

class _VcpuV8(TypedDict):
    vtimer_offset: int
    gp: list[tuple[int, int]]
    simd: list[tuple[int, int]]
    sys: list[tuple[int, int]]
    icc: list[tuple[int, int]]
    redist: list[tuple[int, int]]

class _DeviceV8(TypedDict):
    driver_features: tuple[int, int]
    status: int
    interrupt_status: int
    #: size, ready, desc, avail, used, last_avail_idx, next_used_idx
    queues: list[tuple[int, bool, int, int, int, int, int]]

class _SnapshotV8(TypedDict):
    captured_mach_time: int
    captured_cntvct: int
    gic_blob: bytes
    vcpus: list[_VcpuV8]
    devices: list[_DeviceV8]
    #: cid, peer_port, vm_port, family, socktype
    listeners: list[tuple[int, int, int, int, int]]
    memory_bytes: int
    ram_gpa: int

class _Snapshot(TypedDict):
    export: bool
    file_bytes: int
    disk_bytes: int
    ram_offset: int
    disk: tuple[int, int] | None
    v8: _SnapshotV8 | None
    v9: _SnapshotV9 | None

@final
class Publication:
    """A new file beside `path`, which gets that name by `commit` or, at the end of the block, not at all."""

    def __new__(cls, path: str) -> Self: ...
    def fileno(self) -> int: ...
    def commit(self) -> None: ...
    def __enter__(self) -> Publication: ...
    def __exit__(self, *exception: object) -> None: ...

def attach_shares(
    worker: Worker,
    volumes: Sequence[tuple[str, int, bytes, bool]],
    shares: Sequence[tuple[bytes, bool, bool]],
    user: str,
    host_uid: int,
    host_gid: int,
    *,
    tmpfs: Sequence[tuple[bytes, int, str]] = ...,
    shm_bytes: int = 0,
    read_only_root: bool = False,
) -> None: ...

@final
class Watch:
    """A share that is watched; `wait` tells the guest of what changes until its caller has to know something."""

    def wait(self) -> tuple[bool, bool] | None: ...

def watch_share(worker: Worker, share: int, path: str) -> Watch: ...
def grow_file_system(worker: Worker, device: str, size: int) -> None: ...
def sha256(data: bytes) -> str: ...
def read_snapshot(path: str) -> _Snapshot: ...
def device_names_v8(queues: Sequence[int]) -> list[str]: ...
def verify_snapshot(path: str) -> str | None: ...
def export_snapshot(path: str, out: str, replace: bool) -> int: ...
def import_snapshot(path: str, out: str, replace: bool) -> str | None: ...
def flatten_snapshots(paths: Sequence[str], out: str, replace: bool) -> str: ...
def write_snapshot_v8(path: str, state: _SnapshotV8, ram: bytes, replace: bool) -> None: ...
def write_snapshot_v9(
    path: str,
    identity: _Identity,
    sections: Sequence[_Section],
    ram: bytes,
    present: Sequence[tuple[int, int]] | None,
    replace: bool,
    disk: tuple[int, Sequence[tuple[int, int]], Sequence[tuple[int, int]], bytes] | None = None,
) -> str: ...
def pack_part(
    path: str,
    out: str,
    *,
    name: str,
    file: int,
    origin: int,
    length: int,
    order: Sequence[tuple[int, int]] | None = None,
    without: Sequence[tuple[int, int]] = ...,
    base: tuple[str, int] | None = None,
    kernel: Kernel | None = None,
    first: bool = False,
) -> tuple[bytes, int, str, int, int]: ...
def root_pages(
    path: str,
    root: str,
    *,
    origin: int,
    length: int,
    first: Sequence[tuple[int, int]],
    base: tuple[str, int] | None = None,
) -> tuple[tuple[list[tuple[int, int]], bytes], tuple[list[tuple[int, int]], bytes]]: ...
def public_key(secret: bytes) -> bytes: ...
def sign(secret: bytes, message: bytes) -> bytes: ...
def verify_signature(public: bytes, message: bytes, signature: bytes) -> bool: ...
def arrival_message(kind: str, runs: Sequence[tuple[int, int]] = ..., why: str = "") -> bytes: ...
def fleet_credentials() -> tuple[bytes, bytes]: ...
def secured(socket: int, credentials: bytes, timeout: float) -> int: ...

@final
class AwaitedPages:
    """Reads which pages of RAM a worker waits for."""

    def __new__(cls) -> Self: ...
    def push(self, data: bytes) -> list[int]: ...

@final
class Kernel:
    """A guest's kernel where it is loaded."""

    def __new__(cls, path: str, data: bytes) -> Self: ...

@final
class Unpacker:
    """Puts a snapshot's files together from the frames of its parts."""

    def __new__(cls, path: str, table: bytes, files: Sequence[int], max_bytes: int) -> Self: ...
    def parts(self) -> list[tuple[str, int, int, int, int]]: ...
    def groups(self, part: int, most: int) -> list[tuple[int, int, int]]: ...
    def pages(self, part: int, first: int, end: int) -> list[tuple[int, int]]: ...
    def frame_of(self, file: int, page: int) -> tuple[int, int] | None: ...
    def with_kernel(self, path: str, data: bytes) -> None: ...
    def read_kernel(self) -> None: ...
    def frames(self, part: int, first: int, data: bytes) -> int: ...
    def copy_base(self, part: int, base: str, origin: int) -> None: ...
    def from_root(self, part: int, image: str, said: bytes) -> bool: ...
    def finish(self) -> str | None: ...

@final
class Exec:
    @staticmethod
    def start(
        worker: Worker | Remote,
        args: Sequence[bytes],
        *,
        env: Sequence[bytes],
        cwd: bytes = ...,
        user: str = ...,
        tty: tuple[int, int] | None = None,
        stdin: bytes | int | str | None = None,
        stdout: int | str | None = None,
        stderr: int | str | None = None,
    ) -> Exec: ...
    @property
    def pipes(self) -> tuple[int | None, int | None, int | None]: ...
    @property
    def pid(self) -> int | None: ...
    def wait_started(self, timeout: float | None = None) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int | None: ...
    def take_output(self) -> tuple[bytes, bytes]: ...
    def send_signal(self, signal: int) -> None: ...
    def resize(self, rows: int, columns: int) -> None: ...
    def close(self) -> None: ...
    def done_fd(self) -> int: ...

@final
class Files:
    @staticmethod
    def open(worker: Worker | Remote, timeout: float = 180.0) -> Files: ...
    @property
    def reusable(self) -> bool: ...
    def close(self) -> None: ...
    def stat(self, path: bytes, follow: bool) -> _Stat: ...
    def list(self, path: bytes) -> list[tuple[bytes, _Stat]]: ...
    def read(
        self,
        path: bytes,
        offset: int,
        length: int,
        write: Callable[[bytes], Any],
        hole: Callable[[int], Any] | None = None,
    ) -> None: ...
    def write_open(self, path: bytes, mode: int, how: str) -> None: ...
    def write(self, data: bytes) -> None: ...
    def write_hole(self, length: int) -> None: ...
    def write_end(self) -> None: ...
    def make_dir(self, path: bytes, mode: int, parents: bool, exist_ok: bool) -> None: ...
    def make_fifo(self, path: bytes, mode: int) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def remove_dir(self, path: bytes) -> None: ...
    def remove_tree(self, path: bytes) -> None: ...
    def rename(self, source: bytes, target: bytes) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def link(self, target: bytes, path: bytes) -> None: ...
    def read_link(self, path: bytes) -> bytes: ...
    def resolve(self, path: bytes) -> bytes: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None: ...
    def set_times(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...

def convert_image(
    layers: Sequence[tuple[str, int, int | None, str | None, str | None, str | None]],
    output: str,
    max_bytes: int,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]: ...
def decompress_archive(path: str, output: str, max_bytes: int) -> None: ...
def reserve_standard_streams() -> None: ...
def make_volume(fd: int, size: int) -> None: ...
def grow_volume(fd: int, size: int, *, only_check: bool = ...) -> bool: ...
def look_at_volume(fd: int) -> tuple[int, int, bytes]: ...
def lock_volume(fd: int, shared: bool) -> bool: ...
def wish_of_volume(fd: int, size: int | None) -> None: ...
def answer_of_volume(fd: int) -> bool | None: ...
