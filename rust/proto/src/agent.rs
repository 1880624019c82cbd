//! What host and guest agent say to each other, over virtio-vsock.
//!
//! At boot the agent connects to [`HOST_CID`]:[`BOOT_PORT`] and says [`BootEvent::Hello`]; the host answers with
//! [`BootCommand::Configure`]; the agent mounts the root, listens on [`REQUEST_PORT`] and says
//! [`BootEvent::Ready`]. That connection stays open for what concerns the guest as a whole.
//!
//! Each request is a connection of its own to [`REQUEST_PORT`]: the host sends one [`Request`]. For
//! [`Request::Exec`] the host then sends [`ExecInput`] and receives [`ExecOutput`] until
//! [`ExecOutput::Exited`] or [`ExecOutput::Failed`]; closing the connection kills the process group. For
//! [`Request::Files`] the host sends [`FileCommand`]s, one at a time, each answered by one [`FileReply`] (or
//! several, where the command says so).

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The host's vsock context id.
pub const HOST_CID: u32 = 2;
/// The guest's vsock context id.
pub const GUEST_CID: u32 = 3;
/// The tag of the virtio-fs device that all shares are behind.
pub const SHARES_TAG: &str = "supermachine";
/// Host port that the agent connects to at boot.
pub const BOOT_PORT: u32 = 1024;
/// Guest port that the agent serves requests on.
pub const REQUEST_PORT: u32 = 1025;
/// Bytes of stdin the host may send beyond what [`ExecOutput::StdinConsumed`] has acknowledged.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// Bytes of a stream or a file; at most [`crate::frame::MAX_DATA`] in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Agent to host, on the boot connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootEvent {
    /// The first message. `version` is [`crate::VERSION`].
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u32,
        /// The running kernel's release, as uname(2) tells it.
        kernel: String,
    },
    /// The root is mounted and requests are served. Answers [`BootCommand::Configure`].
    Ready,
    /// The guest could not be made ready (a mount failed …); the guest powers off after it.
    Failed {
        /// Which step failed, and the kernel's reason.
        message: String,
    },
    /// Answers [`BootCommand::Renew`]: every step is confirmed, and processes run again.
    Renewed,
    /// Answers [`BootCommand::Freeze`]: no process but the agent runs.
    Frozen,
    /// Answers [`BootCommand::Thaw`].
    Thawed,
    /// Answers [`BootCommand::Shutdown`]: processes are gone, file systems are synced; power-off follows.
    Stopping,
    /// Answers [`BootCommand::Clock`].
    ClockSet,
    /// Answers [`BootCommand::Room`].
    RoomSet,
    /// Answers [`BootCommand::Grow`]: whether the file system has become so large.
    Grown {
        /// False when the kernel refused, or the disk is not that large yet.
        done: bool,
    },
}

/// Host to agent, on the boot connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootCommand {
    /// The first answer to [`BootEvent::Hello`] of a guest that boots.
    Configure(Configure),
    /// Before a snapshot is taken: stops every process but the agent, and the file systems of volumes, which have all that was
    /// written to them then. Connections that break from here to
    /// [`BootCommand::Thaw`] or [`BootCommand::Renew`] leave their processes running, without a reader of their output.
    Freeze,
    /// After a snapshot has been taken, in the guest that goes on.
    Thaw,
    /// After a restore, before anything of the user's runs: new identity, entropy and wall clock; then processes are
    /// let run again. The host sends it in answer to [`BootEvent::Hello`] in place of [`BootCommand::Configure`].
    Renew(Identity),
    /// SIGTERM to every process, SIGKILL after `grace_ms` milliseconds, sync, unmount, power off.
    Shutdown {
        /// From 0: SIGKILL follows at once.
        grace_ms: u32,
    },
    /// To a guest that runs, when the host's wall clock has moved against the counter that the guest's goes by: the
    /// host has slept, or its clock was set. Nanoseconds since 1970, as the message is sent.
    Clock {
        /// What CLOCK_REALTIME is set to.
        wall_clock_ns: u64,
    },
    /// What the host has room for of what the guest may still write to a disk ("/dev/vdb"), where that is less than the disk
    /// has free: so many bytes, which its file system gives out and no more. `u64::MAX` when there is enough again.
    Room {
        /// The path of the block device in the guest.
        device: String,
        /// From 0 on.
        bytes: u64,
    },
    /// As [`Request::Grow`], where another process than the one that the machine is of has made the disk larger.
    Grow {
        /// The path of the block device in the guest.
        device: String,
        /// What the disk has now.
        bytes: u64,
    },
}

/// What makes this guest different from every other that runs the same image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What sethostname(2) is told; /etc/hostname and /etc/hosts name it as well.
    pub hostname: String,
    /// Written as 32 hexadecimal digits to /etc/machine-id where the image has that file.
    pub machine_id: [u8; 16],
    /// 64 bytes of fresh host entropy, credited to the kernel's pool (RNDADDENTROPY, then RNDRESEEDCRNG).
    pub entropy: Chunk,
    /// Nanoseconds since 1970 (CLOCK_REALTIME on the host as the message is sent).
    pub wall_clock_ns: u64,
    /// The guest's place on its network; `None` for a guest without one.
    pub network: Option<Network>,
    /// The certificate, in PEM, of the authority that this machine's policy process opens TLS with; empty for none. The
    /// guest trusts it, in place of the one from before a restore.
    pub authority: String,
}

/// The guest's place on a network that is its own: no other guest is on it, so all have the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Of the guest's interface [`INTERFACE`].
    pub address: Ipv4Addr,
    /// Bits of `address` that are the network's, 0 to 32.
    pub prefix: u8,
    /// Router and name server; the host, under names that [`HOST_NAMES`] has.
    pub gateway: Ipv4Addr,
    /// Domains in which names are looked for, and the dots that a name has which is looked up as it is first
    /// (resolv.conf(5)).
    pub search: Vec<String>,
    /// From 0 to 15, as resolv.conf(5) has it.
    pub ndots: u8,
    /// Where the host has a way to public addresses of IPv6, and for a guest that may be on private segments.
    pub v6: Option<NetworkV6>,
}

/// The same of IPv6. The prefix is a unique local one of these guests' own (RFC 4193).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkV6 {
    /// Of the guest's interface, beside the link-local one.
    pub address: Ipv6Addr,
    /// Bits of `address` that are the network's, 0 to 128.
    pub prefix: u8,
    /// Router and name server, as [`Network::gateway`].
    pub gateway: Ipv6Addr,
    /// Whether there is a way outwards: else there is no default route, so that programs do not try one in vain.
    pub outwards: bool,
}

impl NetworkV6 {
    /// The place of the guest that has this address of IPv4, which its own of IPv6 ends with unless it is the usual one.
    pub fn beside(address: Ipv4Addr, outwards: bool) -> Self {
        let prefix = Ipv6Addr::new(0xfd53, 0x4d2f, 0x9c17, 0, 0, 0, 0, 0);
        let of = |last: u32| Ipv6Addr::from_bits(prefix.to_bits() | u128::from(last));
        let last = if address == Network::default().address { 0x15 } else { address.to_bits() };
        Self { address: of(last), prefix: 64, gateway: of(2), outwards }
    }
}

impl Default for Network {
    fn default() -> Self {
        let (address, gateway) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 2));
        Self { address, prefix: 24, gateway, search: Vec::new(), ndots: 1, v6: None }
    }
}

/// The host's names in its guests.
pub const HOST_NAMES: [&str; 3] = ["host.docker.internal", "host.supermachine.internal", "gateway"];
/// Where a guest has all certificates that it trusts, once it trusts one of its machine's own.
pub const TRUST_BUNDLE: &str = "/etc/ssl/supermachine-bundle.pem";
/// The network interface of a guest that has one.
pub const INTERFACE: &str = "eth0";

/// How the guest's root comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// Who this guest is.
    pub identity: Identity,
    /// What becomes "/".
    pub root: Root,
    /// Size limit of the tmpfs upper layer in bytes; 0 for the kernel's default (half of memory).
    pub upper_bytes: u64,
    /// Further mounts, made after the root in this order.
    pub mounts: Vec<Mount>,
    /// The image's VOLUMEs: directories that are made where there are none, owned by root.
    pub volumes: Vec<String>,
    /// The block device with an ext4 file system that the overlay's upper layer is on, in place of a tmpfs.
    pub upper_device: Option<String>,
}

/// The root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The initramfs itself: for tests of kernel and agent.
    Initramfs,
    /// A read-only file system (`fs`, "erofs") on block device `device` ("/dev/vda") below an overlay whose upper
    /// layer is a tmpfs.
    Overlay {
        /// Path of the block device, "/dev/vda".
        device: String,
        /// The type that mount(2) is told, "erofs".
        fs: String,
    },
}

/// A block device to mount at a path inside the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path of the block device, "/dev/vdb".
    pub device: String,
    /// The type that mount(2) is told, "ext4".
    pub fs: String,
    /// An absolute path in the root; made when there is nothing.
    pub target: String,
    /// Mounted with MS_RDONLY.
    pub read_only: bool,
}

/// First message of the host on a connection to [`REQUEST_PORT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Starts a process; [`ExecInput`] and [`ExecOutput`] follow.
    Exec(Exec),
    /// File commands follow.
    Files,
    /// The connection becomes a byte stream to a TCP port on the guest's loopback; the agent answers with one
    /// [`FileReply::Done`] or [`FileReply::Failed`] first.
    Forward {
        /// Of 127.0.0.1 in the guest.
        port: u16,
    },
    /// Answered by one [`AttachReply`].
    Attach(Attach),
    /// Has the file system of a volume that is mounted take in all of its disk, which has become so large. Answered by one
    /// [`AttachReply`].
    Grow {
        /// The path of the block device in the guest.
        device: String,
        /// What the disk has now.
        bytes: u64,
    },
    /// The guest's kernel is to tell its programs of what changes in a share on the host. [`Changes`] follow; the agent answers
    /// this, and each of them, by one [`AttachReply`].
    Watch,
}

/// Changes in a share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The share's place among the machine's.
    pub share: u32,
    /// In the order in which they came about.
    pub changes: Vec<Change>,
}

/// What the host has changed in a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What was done.
    pub kind: ChangeKind,
    /// Whether it is a directory that was changed so.
    pub directory: bool,
    /// Below the share; empty for the share itself.
    pub path: Chunk,
    /// What it is called since, where that is another name; else empty.
    pub to: Chunk,
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It is new under its name.
    Created,
    /// Its name is gone.
    Removed,
    /// It has another name.
    Renamed,
    /// Its contents.
    Modified,
    /// It was open for writing, and is closed.
    Written,
    /// Its mode, owner or times.
    Attributes,
}

/// What the guest is given beside its image. Shares and volumes take the place of those that an earlier request has attached,
/// so that a guest that was restored has what its new host gives and nothing else. What lies within another is mounted after
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Mounted in this order, unless one lies within another.
    pub shares: Vec<ShareMount>,
    /// Whom the shares' files belong to in the guest when they are the host's user's own; as [`Exec::user`].
    pub user: String,
    /// The host's user and group.
    pub host_uid: u32,
    /// The group of the same user.
    pub host_gid: u32,
    /// Mounted as the shares are.
    pub volumes: Vec<VolumeMount>,
    /// Mounted beside those that earlier requests have had mounted: what is in them is the guest's memory, and stays.
    pub tmpfs: Vec<TmpfsMount>,
    /// Bytes that /dev/shm holds; 0 leaves it as it is.
    pub shm_bytes: u64,
    /// Whether nothing can be written to the root from here on but by way of what is mounted in it; one that is so stays so.
    pub read_only_root: bool,
}

/// A tmpfs, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsMount {
    /// An absolute path; made when there is nothing. A directory that is there gives its mode, unless `options` have one.
    pub target: Chunk,
    /// MS_NOSUID and others (mount(2)).
    pub flags: u64,
    /// Its own (tmpfs(5)): "size=1048576,mode=1777".
    pub options: String,
}

/// A volume, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Its block device, "/dev/vdc".
    pub device: String,
    /// Of the disk: the kernel may still be told of it.
    pub bytes: u64,
    /// An absolute path; made when there is nothing. What the image has there is copied into a volume that is empty.
    pub target: Chunk,
    /// Mounted with MS_RDONLY.
    pub read_only: bool,
}

/// A share, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// Its place among the machine's shares.
    pub index: u32,
    /// An absolute path; made when there is nothing.
    pub target: Chunk,
    /// Mounted with MS_RDONLY; the host's side of the share holds that as well.
    pub read_only: bool,
    /// Whether it is a volume's: what is seen is a directory in it, into which what the image has at its place is copied when
    /// it is not there yet, and owners are as they are kept, whomever the host's user is in the guest.
    pub volume: bool,
}

/// Agent to host after [`Request::Attach`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachReply {
    /// All that was asked for is mounted.
    Done,
    /// What was mounted before it stays.
    Failed {
        /// What could not be mounted, and the kernel's reason.
        message: String,
    },
}

/// A process to start. Strings are bytes because arguments, environment and paths are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments. The program is searched in PATH of `env` when it holds no slash.
    pub args: Vec<Chunk>,
    /// The whole environment, `NAME=value`. HOME is added from the user's passwd entry when absent, PATH with
    /// docker's default when absent, HOSTNAME when absent, TERM=xterm when absent and `tty` is set.
    pub env: Vec<Chunk>,
    /// Working directory; created when absent (as docker does for WORKDIR). Empty: "/".
    pub cwd: Chunk,
    /// As docker's USER: "", "name", "uid", "name:group", "uid:gid" …, resolved in the guest's own files.
    pub user: String,
    /// A terminal of this size in place of three pipes; then all output is `Stdout`.
    pub tty: Option<WindowSize>,
    /// Whether stdin is a pipe from the host; otherwise it is /dev/null.
    pub stdin: bool,
    /// Milliseconds after which the whole process group is killed; 0 for never.
    pub timeout_ms: u64,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines of text.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

/// Host to agent after [`Request::Exec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecInput {
    /// What the process reads next; at most [`STDIN_WINDOW`] of it are on their way.
    Stdin(Chunk),
    /// No more stdin.
    StdinEnd,
    /// A Linux signal number for the process group.
    Signal(i32),
    /// The terminal has this size now, which the process is told by SIGWINCH.
    Resize(WindowSize),
}

/// Agent to host after [`Request::Exec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecOutput {
    /// The first message: the process runs.
    Started {
        /// Its number in the guest.
        pid: u32,
    },
    /// What the process has written to its stdout, or to its terminal.
    Stdout(Chunk),
    /// What the process has written to its stderr.
    Stderr(Chunk),
    /// So many bytes of stdin more have been taken by the process (or dropped because it closed its end).
    StdinConsumed(u32),
    /// The last message: the process has exited and its output has been sent whole. Output that its orphans may
    /// still write after it is not waited for longer than 100 ms.
    Exited(ExitStatus),
    /// The last message: the process could not be started.
    Failed {
        /// Which of the reasons that a shell tells apart.
        kind: ExecError,
        /// The same for people, with the path or the name it is about.
        message: String,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It has exited with this code, 0 to 255.
    Code(i32),
    /// This Linux signal number has killed it.
    Signal(i32),
    /// The agent killed it because [`Exec::timeout_ms`] had passed.
    TimedOut,
}

/// Why a process could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecError {
    /// The program does not exist (a shell would say 127).
    NotFound,
    /// The program cannot be executed (a shell would say 126).
    NotExecutable,
    /// The user or group is not in the guest's passwd or group file.
    UnknownUser,
    /// The working directory cannot be entered.
    BadDirectory,
    /// The request itself cannot be served (empty arguments, a NUL inside a string …).
    Invalid,
    /// Anything else of the kernel's (out of processes, out of memory …).
    Other,
}

/// Host to agent after [`Request::Files`]. Paths are absolute, in the guest's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileCommand {
    /// Answered by [`FileReply::Stat`].
    Stat {
        /// Of what is looked at.
        path: Chunk,
        /// Whether a link at the end of the path is followed: stat(2) and not lstat(2).
        follow: bool,
    },
    /// Answered by [`FileReply::Entries`], as often as needed, then [`FileReply::Done`].
    List {
        /// Of a directory.
        path: Chunk,
    },
    /// Answered by [`FileReply::Data`] as often as needed, then [`FileReply::Done`]. `length` 0 is to the end. With
    /// `holes` what a file has no data for comes as [`FileReply::Hole`].
    Read {
        /// Of a file.
        path: Chunk,
        /// Bytes from the file's start.
        offset: u64,
        /// Bytes to read.
        length: u64,
        /// Whether the receiver knows what to do with [`FileReply::Hole`].
        holes: bool,
    },
    /// Answered by [`FileReply::Done`] once open; then the host sends [`FileCommand::WriteData`] (not answered) and
    /// [`FileCommand::WriteEnd`], which is answered by [`FileReply::Done`] or the first failure.
    Write {
        /// Of the file that is written.
        path: Chunk,
        /// Permission bits of a file that is created, less the umask 0o022.
        mode: u32,
        /// What becomes of a file that is there.
        how: WriteMode,
    },
    /// The next bytes of the file that is written.
    WriteData(Chunk),
    /// The file that is written is whole.
    WriteEnd,
    /// Makes a directory.
    MakeDir {
        /// Of the new directory.
        path: Chunk,
        /// Its permission bits, less the umask 0o022.
        mode: u32,
        /// Whether the directories above it are made as well, with mode 0o755.
        parents: bool,
        /// Whether a directory that is there already is no failure.
        exist_ok: bool,
    },
    /// A file or symbolic link.
    Unlink {
        /// Of what is removed; a link itself and not what it refers to.
        path: Chunk,
    },
    /// Removes a directory that is empty.
    RemoveDir {
        /// Of the directory.
        path: Chunk,
    },
    /// A directory with all that is in it, or a file.
    RemoveTree {
        /// Of what is removed; no link is followed.
        path: Chunk,
    },
    /// As rename(2): what has the new name is replaced.
    Rename {
        /// The old path.
        from: Chunk,
        /// The new path.
        to: Chunk,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What it refers to, as it is written.
        target: Chunk,
        /// Where the link is made.
        path: Chunk,
    },
    /// Makes another name of a file.
    Link {
        /// The path that it has.
        target: Chunk,
        /// The path that is made.
        path: Chunk,
    },
    /// Answered by [`FileReply::Target`].
    ReadLink {
        /// Of a symbolic link.
        path: Chunk,
    },
    /// The canonical path; answered by [`FileReply::Target`].
    Resolve {
        /// Of what there must be; each link on the way is followed.
        path: Chunk,
    },
    /// Changes permission bits; links are followed.
    Chmod {
        /// Of a file or directory.
        path: Chunk,
        /// Its new permission bits.
        mode: u32,
    },
    /// An id of `u32::MAX` leaves that id as it is.
    Chown {
        /// Of what gets another owner.
        path: Chunk,
        /// Its new user.
        uid: u32,
        /// Its new group.
        gid: u32,
        /// Whether a link at the end of the path is followed: chown(2) and not lchown(2).
        follow: bool,
    },
    /// Sets both times; links are followed.
    SetTimes {
        /// Of a file or directory.
        path: Chunk,
        /// Of the last access, in nanoseconds since 1970.
        atime_ns: i64,
        /// Of the last change of its contents, in nanoseconds since 1970.
        mtime_ns: i64,
    },
    /// Makes a named pipe (fifo(7)).
    MakeFifo {
        /// Of the new pipe.
        path: Chunk,
        /// Its permission bits, less the umask 0o022.
        mode: u32,
    },
    /// In place of [`FileCommand::WriteData`]: like so many zero bytes, which take no room; not when appending.
    WriteHole {
        /// Bytes.
        length: u64,
    },
}

/// How [`FileCommand::Write`] opens the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteMode {
    /// Create or truncate.
    Truncate,
    /// Create or append.
    Append,
    /// Create; fails with EEXIST.
    CreateNew,
}

/// Agent to host after [`Request::Files`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// The command was done, or all answers to it were sent.
    Done,
    /// Answers [`FileCommand::Stat`].
    Stat(Stat),
    /// Some of a directory's entries, each by its name alone; links are not followed.
    Entries(Vec<(Chunk, Stat)>),
    /// The next bytes of a file.
    Data(Chunk),
    /// The path that was asked for.
    Target(Chunk),
    /// A Linux errno of the guest's.
    Failed {
        /// Positive, by Linux's numbers.
        errno: i32,
    },
    /// So many bytes of the file are zero, and have no room on the disk.
    Hole {
        /// Bytes.
        length: u64,
    },
}

/// As stat(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The device it is on (st_dev).
    pub dev: u64,
    /// Its inode number (st_ino).
    pub ino: u64,
    /// Type and permission bits (st_mode).
    pub mode: u32,
    /// How many names it has (st_nlink).
    pub nlink: u32,
    /// Its user (st_uid).
    pub uid: u32,
    /// Its group (st_gid).
    pub gid: u32,
    /// Which device it stands for, where it is one (st_rdev).
    pub rdev: u64,
    /// Bytes (st_size).
    pub size: u64,
    /// Units of 512 bytes that it has on the disk (st_blocks).
    pub blocks: u64,
    /// Of the last access, in nanoseconds since 1970.
    pub atime_ns: i64,
    /// Of the last change of its contents, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Of the last change of contents or attributes, in nanoseconds since 1970.
    pub ctime_ns: i64,
}
