//! From a temporary file to a published one, whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::{Error, Result, fault};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// In the name of every temporary file: `.NAME.partial-PID-NUMBER`, the number in decimal or hexadecimal.
const MARK: &str = ".partial-";

/// A file that will be published, beside its final name; dropping it without [`Publication::commit`] removes it.
///
/// It is locked (flock(2)) for as long as this process, or another that has the descriptor, lives, so that
/// [`remove_stale`] can tell what kill -9 left behind from what is being written.
#[derive(Debug)]
pub struct Publication {
    file: File,
    temporary: PathBuf,
    destination: PathBuf,
    published: bool,
}

impl Publication {
    /// Creates an empty file of mode 0600 in the directory of `destination`, open for reading and writing.
    pub fn begin(destination: &Path) -> Result<Self> {
        let Some(name) = destination.file_name() else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
            return Err(Error::path("create", destination)(error));
        };
        let directory = directory_of(destination);
        // Also of other names: nobody may ever write those again.
        let _ = remove_stale_of(directory, None);
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(MARK);
        loop {
            let mut name = prefix.clone();
            name.push(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
            let temporary = directory.join(name);
            let opened = File::options().read(true).write(true).create_new(true).mode(0o600).open(&temporary);
            match opened {
                Ok(file) => {
                    fault::point("created");
                    match file.try_lock() {
                        // Another process may have seen it before the lock, and removed it; then take a new name.
                        Ok(()) if !temporary.exists() => {}
                        Err(TryLockError::WouldBlock) => {}
                        // Where there are no locks, nobody removes what the dead have left.
                        Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                            let _ = fs::remove_file(&temporary);
                            return Err(Error::path("lock", &temporary)(error));
                        }
                        Ok(()) | Err(TryLockError::Error(_)) => {
                            let destination = destination.to_owned();
                            return Ok(Self { file, temporary, destination, published: false });
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::NoDirectory { path: destination.to_owned() });
                }
                Err(error) => return Err(Error::path("create", &temporary)(error)),
            }
        }
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it will be.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Makes the file durable and gives it its name. What has that name is an error or, with `replace`, gives way:
    /// its file stays as it is for those who have it open.
    pub fn commit(mut self, replace: bool) -> Result<()> {
        self.file.sync_all().map_err(Error::path("write", &self.destination))?;
        fault::point("synced");
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.destination, flags) {
            // The file system has no such renames; a link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if replace => {
                fs::rename(&self.temporary, &self.destination)
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                fs::hard_link(&self.temporary, &self.destination).map(|()| {
                    let _ = fs::remove_file(&self.temporary);
                })
            }
            other => other.map_err(Into::into),
        };
        match renamed {
            Ok(()) => {
                self.published = true;
                // Whoever still has the descriptor must not look like a writer.
                let _ = self.file.unlock();
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { path: self.destination.clone() });
            }
            Err(error) => return Err(Error::path("publish", &self.destination)(error)),
        }
        fault::point("renamed");
        // Not every file system can sync a directory; the file is whole either way.
        let _ = File::open(directory_of(&self.destination)).and_then(|directory| directory.sync_all());
        fault::point("directory-synced");
        Ok(())
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes the temporary files in `directory` whose writers are gone, and gives the number of bytes freed.
pub fn remove_stale(directory: &Path) -> Result<u64> {
    remove_stale_of(directory, None).map_err(Error::path("look through", directory))
}

/// What cannot be removed does no harm, and stays.
fn remove_stale_of(directory: &Path, destination: Option<&OsStr>) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;

    let mut freed = 0;
    for entry in fs::read_dir(directory)?.flatten() {
        if is_temporary(&entry.file_name(), destination)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::options().read(true).open(entry.path())
            && file.try_lock().is_ok()
            && fs::remove_file(entry.path()).is_ok()
        {
            freed += file.metadata().map_or(0, |found| found.blocks() * 512);
        }
    }
    Ok(freed)
}

/// Whether a name is one that [`Publication::begin`] gives, of this destination if one is named.
fn is_temporary(name: &OsStr, destination: Option<&OsStr>) -> bool {
    let name = name.as_encoded_bytes();
    let Some(rest) = name.strip_prefix(b".") else { return false };
    let Some(at) = rest.windows(MARK.len()).rposition(|window| window == MARK.as_bytes()) else {
        return false;
    };
    let (of, numbers) = (&rest[..at], &rest[at + MARK.len()..]);
    let are_numbers = match numbers.split(|byte| *byte == b'-').collect::<Vec<_>>()[..] {
        [pid, number] => [pid, number].iter().all(|n| !n.is_empty() && n.iter().all(u8::is_ascii_hexdigit)),
        _ => false,
    };
    are_numbers && !of.is_empty() && destination.is_none_or(|wanted| wanted.as_encoded_bytes() == of)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v9;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::process::Command;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("supermachine-publish-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_published_whole_with_mode_0600_or_not_at_all() {
        let place = directory("whole");
        let path = place.join("a");
        let publication = Publication::begin(&path).unwrap();
        publication.file().write_all_at(b"first", 0).unwrap();
        assert!(!path.exists());
        publication.commit(false).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

        let publication = Publication::begin(&path).unwrap();
        publication.file().write_all_at(b"second", 0).unwrap();
        assert!(matches!(publication.commit(false), Err(Error::Exists { path: found }) if found == path));
        assert_eq!(fs::read(&path).unwrap(), b"first");

        let old = File::open(&path).unwrap();
        let publication = Publication::begin(&path).unwrap();
        publication.file().write_all_at(b"third", 0).unwrap();
        publication.commit(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        let mut kept = [0; 5];
        old.read_exact_at(&mut kept, 0).unwrap();
        assert_eq!(&kept, b"first");

        drop(Publication::begin(&path).unwrap());
        assert_eq!(names(&place), ["a"]);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn stale_files_are_known_by_name_and_lock() {
        let place = directory("stale");
        let alive = Publication::begin(&place.join("a")).unwrap();
        let others = [".a.partial-x-1", "a.partial-1-1", ".partial-1-1", ".a.partial-1", ".a.partial-1-1-1"];
        for name in others.into_iter().chain([".a.partial-1-1", ".b.partial-22-3f"]) {
            fs::write(place.join(name), [1; 5000]).unwrap();
        }
        remove_stale_of(&place, Some(OsStr::new("a"))).unwrap();
        assert!(!place.join(".a.partial-1-1").exists());
        assert!(place.join(".b.partial-22-3f").exists());
        assert!(remove_stale(&place).unwrap() >= 5000);
        let mut left: Vec<_> = others.into_iter().map(str::to_owned).collect();
        left.push(alive.temporary.file_name().unwrap().to_str().unwrap().to_owned());
        left.sort();
        assert_eq!(names(&place), left);
        drop(alive);
        fs::remove_dir_all(place).unwrap();
    }

    fn snapshot_of(byte: u8) -> (v9::Metadata, Vec<u8>) {
        let identity = v9::Identity { vcpus: 1, memory_bytes: 64 << 10, ..v9::Identity::default() };
        (v9::Metadata { identity, sections: vec![] }, vec![byte; 64 << 10])
    }

    fn publish(path: &Path, byte: u8, replace: bool) -> Result<()> {
        let (metadata, ram) = snapshot_of(byte);
        let publication = Publication::begin(path)?;
        let mut writer = v9::Writer::begin(publication.file(), &metadata)?;
        writer.write_ram(&ram)?;
        writer.finish()?;
        publication.commit(replace)
    }

    /// The byte that fills the snapshot's RAM, after all of it was verified.
    fn published(path: &Path) -> u8 {
        let file = File::open(path).unwrap();
        let found = v9::verify(&file).unwrap().snapshot;
        let mut byte = [0];
        file.read_exact_at(&mut byte, found.ram_offset()).unwrap();
        byte[0]
    }

    /// Runs in a process of its own, which is killed at each step in turn.
    #[test]
    fn killed_at_any_step_a_writer_leaves_the_old_snapshot_or_the_new() {
        const PLACE: &str = "SUPERMACHINE_TEST_PUBLISH";
        const NAME: &str = "publish::tests::killed_at_any_step_a_writer_leaves_the_old_snapshot_or_the_new";
        if let Some(path) = std::env::var_os(PLACE) {
            publish(Path::new(&path), 2, true).unwrap();
            return;
        }
        let before =
            ["created", "ram", "digest", "metadata", "data-synced", "header", "header-synced", "synced"];
        let after = ["renamed", "directory-synced", "none"];
        let place = directory("killed");
        for old in [false, true] {
            for step in before.into_iter().chain(after) {
                let path = place.join(format!("{step}-{old}"));
                if old {
                    publish(&path, 1, false).unwrap();
                }
                let child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", NAME])
                    .env(PLACE, &path)
                    .env(fault::VARIABLE, step)
                    .output()
                    .unwrap();
                assert_eq!(child.status.success(), step == "none", "{step}: {child:?}");
                if after.contains(&step) {
                    assert_eq!(published(&path), 2, "{step}");
                } else if old {
                    assert_eq!(published(&path), 1, "{step}");
                } else {
                    assert!(!path.exists(), "{step}");
                }
                // The next writer is not in its way, and clears up, also one of another name.
                publish(&place.join("another"), 4, true).unwrap();
                fs::remove_file(place.join("another")).unwrap();
                assert!(names(&place).iter().all(|name| !name.starts_with('.')), "{step}");
                publish(&path, 3, true).unwrap();
                assert_eq!(published(&path), 3);
                assert_eq!(names(&place), [path.file_name().unwrap().to_str().unwrap()]);
                fs::remove_file(&path).unwrap();
            }
        }
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn of_publishers_at_once_one_wins_and_all_the_others_are_told() {
        let place = directory("race");
        let path = place.join("a");
        let results = std::thread::scope(|scope| {
            let publishers: Vec<_> = (1..=8)
                .map(|byte| {
                    scope.spawn({
                        let path = &path;
                        move || publish(path, byte, false)
                    })
                })
                .collect();
            publishers.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let won: Vec<_> = results.iter().filter(|result| result.is_ok()).collect();
        assert_eq!(won.len(), 1);
        assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(Error::Exists { .. }))));
        let winner = results.iter().position(Result::is_ok).unwrap() as u8 + 1;
        assert_eq!(published(&path), winner);
        assert_eq!(names(&place), ["a"]);
        fs::remove_dir_all(place).unwrap();
    }
}
