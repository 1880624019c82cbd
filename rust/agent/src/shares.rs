//! Directories and files of the host: one virtio-fs session for all of them, mounted where no program of the guest's looks,
//! and bound from there to where they are wanted.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};

use libc::MS_NODEV;
use supermachine_proto::agent::{Attach, SHARES_TAG, ShareMount};
use supermachine_proto::echo::INTERRUPT;

use crate::{fill, sys, user};

/// Where the session is mounted: in the initramfs, which the guest's root covers.
const PLACE: &str = "/shares";

/// The session's root directory.
static SESSION: OnceLock<OwnedFd> = OnceLock::new();
/// Where shares are mounted, in the order in which that was done.
static ATTACHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// include/uapi/linux/mount.h
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Begins the session, before the root, which is at `root` now, is changed. A machine without the device has no shares to
/// attach.
pub(crate) fn begin(root: &str, read_ahead_kib: u32) {
    let begun = fs::create_dir_all(PLACE)
        .and_then(|()| sys::mount(SHARES_TAG, PLACE, "virtiofs", MS_NODEV, ""))
        .and_then(|()| File::open(PLACE));
    if let Ok(session) = begun {
        let device = session.metadata().map_or(0, |found| found.dev());
        let (major, minor) = (libc::major(device), libc::minor(device));
        // Where it cannot be, it only takes longer.
        let _ = fs::write(
            format!("{root}/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
            read_ahead_kib.to_string(),
        );
        let _ = SESSION.set(session.into());
    }
}

/// Has processes that wait for a lock in a share, and have a signal, stop waiting. Their driver does not tell the server of
/// signals.
pub(crate) fn interrupt() {
    if let Some(session) = SESSION.get() {
        // SAFETY: the string is NUL-terminated, and the call writes nothing.
        unsafe { libc::faccessat(session.as_raw_fd(), INTERRUPT.as_ptr(), libc::F_OK, 0) };
    }
}

/// Writes what programs have changed in mappings of files. A clone would do so later, over what others have written since.
pub(crate) fn flush() {
    if let Some(session) = SESSION.get().filter(|_| !attached().is_empty()) {
        // SAFETY: the call takes a descriptor and touches no memory.
        unsafe { libc::syncfs(session.as_raw_fd()) };
    }
}

/// The session's root, where there is one.
pub(crate) fn root() -> Option<&'static OwnedFd> {
    SESSION.get()
}

fn attached() -> MutexGuard<'static, Vec<PathBuf>> {
    sys::lock(&ATTACHED)
}

/// Where they are mounted.
pub(crate) fn places() -> Vec<PathBuf> {
    attached().clone()
}

/// Unmounts them all.
pub(crate) fn detach_all() {
    for target in attached().drain(..).rev() {
        let _ = detach(&target);
    }
}

/// What all shares of a request are mounted by.
pub(crate) struct Session {
    root: &'static OwnedFd,
    /// Who owns what; `None` where host and guest agree.
    namespace: Option<OwnedFd>,
}

/// The session, for the user that the request names.
pub(crate) fn session(wanted: &Attach) -> Result<Session, String> {
    let root = SESSION.get().ok_or("this guest has no device for shares; boot it anew")?;
    let owner = user::resolve(&wanted.user)?;
    let ids = [(wanted.host_uid, owner.uid), (wanted.host_gid, owner.gid)];
    let namespace = if ids.iter().all(|(host, guest)| host == guest) {
        None
    } else {
        let made = id_map_namespace(&exchange(ids[0]), &exchange(ids[1]));
        Some(made.map_err(|e| format!("the owners of shared files cannot be mapped: {e}"))?)
    };
    Ok(Session { root, namespace })
}

impl Session {
    /// Binds one share.
    pub(crate) fn mount(&self, share: &ShareMount, target: &Path) -> io::Result<()> {
        if share.volume {
            return self.mount_volume(share, target);
        }
        let tree = open_tree(self.root, &share.index.to_string())?;
        let mut attributes = MountAttributes { set: 0, clear: 0, propagation: 0, userns_fd: 0 };
        if share.read_only {
            attributes.set |= MOUNT_ATTR_RDONLY;
        }
        if let Some(namespace) = &self.namespace {
            attributes.set |= MOUNT_ATTR_IDMAP;
            attributes.userns_fd = namespace.as_raw_fd().cast_unsigned().into();
        }
        if attributes.set != 0 {
            set_attributes(&tree, &attributes)?;
        }
        make_target(&tree, target)?;
        move_mount(&tree, target)?;
        attached().push(target.into());
        Ok(())
    }

    /// Binds a volume that is a directory of the host: what is seen of it is filled with what the image has at its place if it
    /// is new, and owners are as the guest says, whoever its user is.
    fn mount_volume(&self, share: &ShareMount, target: &Path) -> io::Result<()> {
        fs::create_dir_all(target)?;
        let image = File::open(target)?;
        let top = format!("/proc/self/fd/{}/{}", self.root.as_raw_fd(), share.index);
        let tree = if share.read_only && !sys::exists_now(&Path::new(&top).join(fill::VISIBLE))? {
            // What it would be filled with.
            open_tree(&OwnedFd::from(image), ".")?
        } else {
            fill::once(&image, Path::new(&top))?;
            open_tree(self.root, &format!("{}/{}", share.index, fill::VISIBLE))?
        };
        if share.read_only {
            set_read_only(&tree, true)?;
        }
        move_mount(&tree, target)?;
        attached().push(target.into());
        Ok(())
    }
}

/// A share is mounted over something of its own kind, made when there is nothing.
fn make_target(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let is_directory = File::from(tree.try_clone()?).metadata()?.is_dir();
    if is_directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => Ok(()),
        Err(_) => File::options().write(true).create_new(true).open(target).map(drop),
    }
}

/// Unmounts what is on top of a place.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    let target = sys::c_string(target.as_os_str().as_bytes())?;
    // SAFETY: the string is NUL-terminated and outlives the call.
    sys::check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

fn returned(value: libc::c_long) -> io::Result<i32> {
    sys::check(i32::try_from(value).unwrap_or(-1))
}

/// A mount of its own of what a name in a directory stands for.
pub(crate) fn open_tree(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let name = sys::c_string(name)?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the string is NUL-terminated and outlives the call.
    let fd =
        returned(unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), name.as_ptr(), flags) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Says whether things can be changed by way of this mount.
pub(crate) fn set_read_only(tree: &OwnedFd, read_only: bool) -> io::Result<()> {
    let (set, clear) = if read_only { (MOUNT_ATTR_RDONLY, 0) } else { (0, MOUNT_ATTR_RDONLY) };
    set_attributes(tree, &MountAttributes { set, clear, propagation: 0, userns_fd: 0 })
}

fn set_attributes(tree: &OwnedFd, attributes: &MountAttributes) -> io::Result<()> {
    // SAFETY: the empty path is NUL-terminated, and pointer and size are those of the structure.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    returned(done).map(drop)
}

/// Mounts a tree.
pub(crate) fn move_mount(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = sys::c_string(target.as_os_str().as_bytes())?;
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    returned(done).map(drop)
}

/// A map of all ids (user_namespaces(7)) in which two have changed places. A map must be one to one, and an id without a
/// place in it could make no files.
fn exchange((one, other): (u32, u32)) -> String {
    let (low, high) = (one.min(other), one.max(other));
    let mut map = String::new();
    let mut range = |from: u32, to: u32, count: u32| {
        if count > 0 {
            map.push_str(&format!("{from} {to} {count}\n"));
        }
    };
    // The last id stands for none.
    range(0, 0, low);
    if low == high {
        range(low, low, u32::MAX - low);
        return map;
    }
    range(low, high, 1);
    range(low + 1, low + 1, high - low - 1);
    range(high, low, 1);
    range(high + 1, high + 1, u32::MAX - high - 1);
    map
}

/// Bytes of stack of a process that ends at once.
const STACK: usize = 4096;

/// Where a process of its own begins.
extern "C" fn end_at_once(_: *mut libc::c_void) -> libc::c_int {
    0
}

/// A user namespace with these maps. It is made with a process, and as that shares this one's memory and has ended before
/// this one goes on, nothing is copied for it; until it is waited for the namespace is there.
fn id_map_namespace(uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    // Without a signal for its end no other thread collects it.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_NEWUSER;
    // SAFETY: the stack is the new process's alone, which ends before the call returns; it returns from a function that does
    // nothing, and the C library ends it by the system call.
    let child = sys::check(unsafe { libc::clone(end_at_once, top.cast(), flags, std::ptr::null_mut()) })?;
    let made = (|| {
        fs::write(format!("/proc/{child}/uid_map"), uids)?;
        fs::write(format!("/proc/{child}/gid_map"), gids)?;
        File::open(format!("/proc/{child}/ns/user")).map(OwnedFd::from)
    })();
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WCLONE) };
    drop(stack);
    made
}

#[cfg(test)]
mod tests {
    use super::exchange;

    #[test]
    fn two_ids_change_places() {
        assert_eq!(exchange((0, 1000)), "0 1000 1\n1 1 999\n1000 0 1\n1001 1001 4294966294\n");
        assert_eq!(exchange((1000, 0)), exchange((0, 1000)));
        assert_eq!(exchange((0, 1)), "0 1 1\n1 0 1\n2 2 4294967293\n");
        assert_eq!(exchange((33, 1000)), "0 0 33\n33 1000 1\n34 34 966\n1000 33 1\n1001 1001 4294966294\n");
        assert_eq!(exchange((5, 5)), "0 0 5\n5 5 4294967290\n");
    }
}
