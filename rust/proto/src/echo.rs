//! What a guest's agent and the file server of its shares say to each other, beside FUSE: that processes are to stop waiting
//! for locks, and, of shares that are watched, which requests are echoes.
//!
//! A kernel tells its programs (inotify(7)) of what is done by way of it. So the agent does once more what the host has done,
//! by a thread that has made itself known; the server answers as if that had changed what is so already. The names are
//! looked for in the session's root, which only root reaches in a guest.

use std::ffi::CStr;

/// Has the processes that wait for a lock look for signals: Linux's driver does not tell of those
/// (virtio_fs_send_interrupt).
pub const INTERRUPT: &CStr = c"interrupt";
/// The thread that asks makes itself known.
pub const BEGIN: &CStr = c"watch";
/// And is forgotten.
pub const END: &CStr = c"unwatch";
/// The extended attribute by which a directory's next change is announced; its value is an [`Announcement`].
pub const ANNOUNCEMENT: &CStr = c"user.supermachine.change";
/// EALREADY, as Linux numbers it: the server has understood. Success would be a change, which a kernel tells of.
pub const UNDERSTOOD: i32 = 114;
/// ECANCELED: the guest has made the change itself.
pub const OWN: i32 = 125;

/// What the next request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// It makes the name.
    Created = 1,
    /// It takes the name away.
    Removed = 2,
    /// It takes the name away, and gives the file the one of the next announcement.
    From = 3,
    /// It gives the name to what had the one before.
    To = 4,
    /// It changes contents.
    Modified = 5,
    /// It closes a file that was open for writing.
    Written = 6,
    /// It changes attributes.
    Attributes = 7,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Created, Self::Removed, Self::From, Self::To, Self::Modified, Self::Written, Self::Attributes];
}

/// What is announced of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// What is done.
    pub step: Step,
    /// Whether it is done to a directory.
    pub directory: bool,
    /// One component; empty for what the attribute is set of.
    pub name: &'a [u8],
}

impl<'a> Announcement<'a> {
    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        [&[self.step as u8, u8::from(self.directory)][..], self.name].concat()
    }

    /// What a value says; nothing where it is none.
    pub fn decode(value: &'a [u8]) -> Option<Self> {
        let [step, directory, name @ ..] = value else { return None };
        let step = Step::ALL.into_iter().find(|known| *known as u8 == *step)?;
        Some(Self { step, directory: *directory != 0, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_read_as_they_are_written() {
        for step in Step::ALL {
            for directory in [false, true] {
                let said = Announcement { step, directory, name: b"name" };
                assert_eq!(Announcement::decode(&said.encode()), Some(said));
            }
        }
        let named = Announcement { step: Step::Removed, directory: true, name: b"" };
        assert_eq!(named.encode(), [2, 1]);
        for wrong in [&b""[..], b"\x01", b"\x00\x00name", b"\x08\x00name"] {
            assert_eq!(Announcement::decode(wrong), None);
        }
    }
}
