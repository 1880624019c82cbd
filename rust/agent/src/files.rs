//! File commands: each is one system call or a short walk, answered in turn.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::Path;
use std::time::Duration;

use supermachine_proto::agent::{Chunk, FileCommand, FileReply, Stat, WriteMode};
use supermachine_proto::frame::{self, MAX_DATA};

use crate::sys;

/// Entries in one reply.
const MAX_ENTRIES: usize = 256;
/// Between two attempts to open what cannot be opened yet.
const RETRY: Duration = Duration::from_millis(50);

/// Serves one connection to its end.
pub(crate) fn serve(connection: File) -> Result<(), frame::Error> {
    let mut commands = BufReader::new(connection.try_clone()?);
    let mut replies = connection;
    while let Some(command) = frame::read::<FileCommand>(&mut commands)? {
        let done = match command {
            FileCommand::Write { path, mode, how } => write(&mut commands, &mut replies, &path, mode, how)?,
            FileCommand::Read { path, offset, length, holes } => {
                read(&mut replies, &path, offset, length, holes)?
            }
            FileCommand::List { path } => list(&mut replies, &path)?,
            other => simple(other),
        };
        let reply = done.unwrap_or_else(|error| FileReply::Failed { errno: errno(&error) });
        frame::write(&mut replies, &reply)?;
    }
    Ok(())
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::InvalidFilename => libc::ENAMETOOLONG,
        _ => libc::EIO,
    })
}

fn path(bytes: &Chunk) -> &Path {
    Path::new(OsStr::from_bytes(&bytes.0))
}

/// Commands with one answer.
fn simple(command: FileCommand) -> io::Result<FileReply> {
    match &command {
        FileCommand::Stat { path: at, follow } => {
            let metadata = if *follow { fs::metadata(path(at)) } else { fs::symlink_metadata(path(at)) };
            return Ok(FileReply::Stat(stat(&metadata?)));
        }
        FileCommand::ReadLink { path: at } => {
            return Ok(FileReply::Target(fs::read_link(path(at))?.into_os_string().into_vec().into()));
        }
        FileCommand::Resolve { path: at } => {
            return Ok(FileReply::Target(fs::canonicalize(path(at))?.into_os_string().into_vec().into()));
        }
        FileCommand::MakeDir { path: at, mode, parents, exist_ok } => {
            make_dir(path(at), *mode, *parents, *exist_ok)?
        }
        FileCommand::Unlink { path: at } => fs::remove_file(path(at))?,
        FileCommand::RemoveDir { path: at } => fs::remove_dir(path(at))?,
        FileCommand::RemoveTree { path: at } => match fs::symlink_metadata(path(at))?.is_dir() {
            true => fs::remove_dir_all(path(at))?,
            false => fs::remove_file(path(at))?,
        },
        FileCommand::Rename { from, to } => fs::rename(path(from), path(to))?,
        FileCommand::Symlink { target, path: at } => symlink(path(target), path(at))?,
        FileCommand::Link { target, path: at } => fs::hard_link(path(target), path(at))?,
        FileCommand::Chmod { path: at, mode } => {
            fs::set_permissions(path(at), Permissions::from_mode(*mode))?
        }
        FileCommand::Chown { path: at, uid, gid, follow } => {
            let id = |id: u32| (id != u32::MAX).then_some(id);
            let change = if *follow { chown } else { lchown };
            change(path(at), id(*uid), id(*gid))?;
        }
        FileCommand::SetTimes { path: at, atime_ns, mtime_ns } => {
            sys::set_times(&at.0, *atime_ns, *mtime_ns)?;
        }
        FileCommand::MakeFifo { path: at, mode } => sys::make_fifo(&at.0, *mode)?,
        // These come only after a write, or are served by the caller.
        FileCommand::WriteData(_)
        | FileCommand::WriteHole { .. }
        | FileCommand::WriteEnd
        | FileCommand::Write { .. }
        | FileCommand::Read { .. }
        | FileCommand::List { .. } => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    Ok(FileReply::Done)
}

fn make_dir(at: &Path, mode: u32, parents: bool, exist_ok: bool) -> io::Result<()> {
    if parents && let Some(parent) = at.parent() {
        // With the usual mode, as mkdir -p does.
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(mode).create(at) {
        Err(error) if exist_ok && error.kind() == io::ErrorKind::AlreadyExists && at.is_dir() => Ok(()),
        done => done,
    }
}

fn stat(m: &Metadata) -> Stat {
    let ns =
        |seconds: i64, nanoseconds: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    Stat {
        dev: m.dev(),
        ino: m.ino(),
        mode: m.mode(),
        nlink: u32::try_from(m.nlink()).unwrap_or(u32::MAX),
        uid: m.uid(),
        gid: m.gid(),
        rdev: m.rdev(),
        size: m.size(),
        blocks: m.blocks(),
        atime_ns: ns(m.atime(), m.atime_nsec()),
        mtime_ns: ns(m.mtime(), m.mtime_nsec()),
        ctime_ns: ns(m.ctime(), m.ctime_nsec()),
    }
}

fn list(replies: &mut File, at: &Chunk) -> Result<io::Result<FileReply>, frame::Error> {
    let entries = match fs::read_dir(path(at)) {
        Ok(entries) => entries,
        Err(error) => return Ok(Err(error)),
    };
    let mut batch = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Ok(Err(error)),
        };
        // One that has just gone is not listed.
        if let Ok(metadata) = entry.metadata() {
            batch.push((entry.file_name().into_vec().into(), stat(&metadata)));
        }
        if batch.len() == MAX_ENTRIES {
            frame::write(replies, &FileReply::Entries(std::mem::take(&mut batch)))?;
        }
    }
    if !batch.is_empty() {
        frame::write(replies, &FileReply::Entries(batch))?;
    }
    Ok(Ok(FileReply::Done))
}

/// Opens what may be no regular file, never waiting longer than there is somebody who asks: a FIFO or a terminal may have
/// nobody at its other end for ever. Gives also whether reads and writes may have to wait.
fn open(
    options: &mut OpenOptions,
    at: &Path,
    caller: &File,
) -> Result<io::Result<(File, bool)>, frame::Error> {
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    loop {
        let error = match options.open(at) {
            Ok(file) => return Ok(file.metadata().map(|found| (file, !found.is_file() && !found.is_dir()))),
            Err(error) => error,
        };
        // open(2): a FIFO has no reader yet; or another process gives up its lease now, and is given time for it.
        let fifo = || fs::metadata(at).is_ok_and(|found| found.file_type().is_fifo());
        match error.raw_os_error() {
            Some(libc::ENXIO) if fifo() => {}
            Some(libc::EWOULDBLOCK) => {}
            _ => return Ok(Err(error)),
        }
        let mut fds = [hang_up(caller)];
        sys::poll(&mut fds, Some(RETRY))?;
        if fds[0].revents != 0 {
            return Err(frame::Error::Truncated);
        }
    }
}

/// Waits until one that is no regular file can be read or written, or until whoever asks has gone.
fn wait(file: &File, events: i16, caller: &File) -> Result<(), frame::Error> {
    let mut fds = [libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 }, hang_up(caller)];
    while fds.iter().all(|fd| fd.revents == 0) {
        sys::poll(&mut fds, None)?;
    }
    if fds[1].revents == 0 { Ok(()) } else { Err(frame::Error::Truncated) }
}

/// What is asked of poll(2) for the end of a connection, whatever has yet to be read of it.
fn hang_up(caller: &File) -> libc::pollfd {
    libc::pollfd { fd: caller.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 }
}

fn read(
    replies: &mut File,
    at: &Chunk,
    offset: u64,
    length: u64,
    holes: bool,
) -> Result<io::Result<FileReply>, frame::Error> {
    let opened = open(OpenOptions::new().read(true), path(at), replies)?.and_then(|(mut file, waits)| {
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok((file, waits))
    });
    let (mut file, waits) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let end = if length == 0 { u64::MAX } else { offset.saturating_add(length) };
    let mut buffer = vec![0; MAX_DATA];
    let mut position = offset;
    // Bytes up to here are data; zero when it has to be looked for.
    let mut data_end = if holes { 0 } else { u64::MAX };
    while position < end {
        if position >= data_end {
            let (start, stop) = match next_data(&mut file, position) {
                Ok(found) => found,
                Err(error) => return Ok(Err(error)),
            };
            if start > position {
                frame::write(replies, &FileReply::Hole { length: start.min(end) - position })?;
            }
            (position, data_end) = (start, stop);
            continue;
        }
        let most = buffer.len().min(usize::try_from(end.min(data_end) - position).unwrap_or(usize::MAX));
        if waits {
            wait(&file, libc::POLLIN, replies)?;
        }
        match file.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(n) => {
                frame::write(replies, &FileReply::Data(buffer[..n].to_vec().into()))?;
                position += n as u64;
            }
            Err(error) if goes_on(&error, waits) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(FileReply::Done))
}

/// Whether the same call may succeed later.
fn goes_on(error: &io::Error, waits: bool) -> bool {
    error.kind() == io::ErrorKind::Interrupted || (waits && error.kind() == io::ErrorKind::WouldBlock)
}

/// Where the next data of a file are at or after `position`, where the file is left: their start and their end. At the
/// end of the file both are its size, and what cannot say where its holes are is data to its end.
fn next_data(file: &mut File, position: u64) -> io::Result<(u64, u64)> {
    let start = match sys::seek(file, position, libc::SEEK_DATA) {
        Ok(start) => start,
        // lseek(2): no data from here on.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let size = file.metadata()?.len().max(position);
            file.seek(SeekFrom::Start(size))?;
            return Ok((size, u64::MAX));
        }
        Err(_) => return Ok((position, u64::MAX)),
    };
    let stop = sys::seek(file, start, libc::SEEK_HOLE)?;
    file.seek(SeekFrom::Start(start))?;
    // A file system that gives no sense is read as it comes.
    Ok((start, if stop > start { stop } else { u64::MAX }))
}

fn write(
    commands: &mut impl Read,
    replies: &mut File,
    at: &Chunk,
    mode: u32,
    how: WriteMode,
) -> Result<io::Result<FileReply>, frame::Error> {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    match how {
        WriteMode::Truncate => options.create(true).truncate(true),
        WriteMode::Append => options.create(true).append(true),
        WriteMode::CreateNew => options.create_new(true),
    };
    let (mut file, waits) = match open(&mut options, path(at), replies)? {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    frame::write(replies, &FileReply::Done)?;
    // The first failure is told at the end; the data that follow it are read and dropped.
    let mut done = Ok(FileReply::Done);
    loop {
        match frame::read(commands)? {
            Some(FileCommand::WriteData(data)) => {
                if done.is_ok()
                    && let Err(error) = write_all(&mut file, &data.0, waits, replies)?
                {
                    done = Err(error);
                }
            }
            Some(FileCommand::WriteHole { length }) => {
                if done.is_ok()
                    && let Err(error) = skip(&mut file, length, how, waits, replies)?
                {
                    done = Err(error);
                }
            }
            Some(FileCommand::WriteEnd) => return Ok(done),
            Some(_) => return Ok(Err(io::Error::from_raw_os_error(libc::EINVAL))),
            None => return Err(frame::Error::Truncated),
        }
    }
}

fn write_all(
    file: &mut File,
    mut data: &[u8],
    waits: bool,
    caller: &File,
) -> Result<io::Result<()>, frame::Error> {
    while !data.is_empty() {
        if waits {
            wait(file, libc::POLLOUT, caller)?;
        }
        match file.write(data) {
            Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => data = &data[n..],
            Err(error) if goes_on(&error, waits) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// Leaves a hole of this length where the file is being written; devices and pipes get its zeros.
fn skip(
    file: &mut File,
    mut length: u64,
    how: WriteMode,
    waits: bool,
    caller: &File,
) -> Result<io::Result<()>, frame::Error> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    if matches!(how, WriteMode::Append) {
        return Ok(Err(invalid()));
    }
    if waits {
        let zeros = vec![0; MAX_DATA];
        while length > 0 {
            let part = zeros.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            if let Err(error) = write_all(file, &zeros[..part], waits, caller)? {
                return Ok(Err(error));
            }
            length -= part as u64;
        }
        return Ok(Ok(()));
    }
    let Ok(length) = i64::try_from(length) else { return Ok(Err(invalid())) };
    Ok(file.seek(SeekFrom::Current(length)).and_then(|position| file.set_len(position)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// What the host does with one connection, and the replies to it.
    fn served(host: impl FnOnce(&mut UnixStream) -> Vec<FileReply>) -> Vec<FileReply> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let agent = std::thread::spawn(|| serve(File::from(std::os::fd::OwnedFd::from(theirs))));
        let replies = host(&mut ours);
        drop(ours);
        agent.join().unwrap().unwrap();
        replies
    }

    fn reply(stream: &mut UnixStream) -> FileReply {
        frame::read(stream).unwrap().unwrap()
    }

    #[test]
    fn holes_are_written_and_read_as_holes() {
        const HOLE: u64 = 8 << 40;
        let name = std::env::temp_dir().join(format!("supermachine-holes-{}", std::process::id()));
        let at = Chunk(name.as_os_str().as_bytes().to_vec());
        let written = served(|stream| {
            let open = FileCommand::Write { path: at.clone(), mode: 0o600, how: WriteMode::Truncate };
            frame::write(stream, &open).unwrap();
            let opened = reply(stream);
            for command in [
                FileCommand::WriteData(b"start".to_vec().into()),
                FileCommand::WriteHole { length: HOLE },
                FileCommand::WriteData(b"end".to_vec().into()),
                FileCommand::WriteHole { length: 1 << 20 },
                FileCommand::WriteEnd,
            ] {
                frame::write(stream, &command).unwrap();
            }
            vec![opened, reply(stream)]
        });
        assert_eq!(written, [FileReply::Done, FileReply::Done]);
        let metadata = fs::metadata(&name).unwrap();
        assert_eq!(metadata.len(), 5 + HOLE + 3 + (1 << 20));
        assert!(metadata.blocks() * 512 < 1 << 20);
        let read = served(|stream| {
            let command = FileCommand::Read { path: at.clone(), offset: 0, length: 0, holes: true };
            frame::write(stream, &command).unwrap();
            let mut replies = vec![];
            while replies.last() != Some(&FileReply::Done) {
                replies.push(reply(stream));
            }
            replies
        });
        let (mut data, mut holes) = (Vec::<u8>::new(), 0);
        for reply in &read {
            match reply {
                FileReply::Data(part) => data.extend(part.0.iter().filter(|byte| **byte != 0)),
                FileReply::Hole { length } => holes += length,
                other => assert_eq!(*other, FileReply::Done),
            }
        }
        assert_eq!(data, b"startend");
        assert!(holes > HOLE, "{holes}");
        let cut = served(|stream| {
            let command = FileCommand::Read { path: at.clone(), offset: 1 << 20, length: 10, holes: true };
            frame::write(stream, &command).unwrap();
            vec![reply(stream), reply(stream)]
        });
        assert_eq!(cut, [FileReply::Hole { length: 10 }, FileReply::Done]);
        fs::remove_file(name).unwrap();
    }

    /// A FIFO of this test's own, opened by an agent that is asked with `command`.
    fn asked_of_a_fifo(
        name: &str,
        command: impl FnOnce(Chunk) -> FileCommand,
    ) -> (std::path::PathBuf, UnixStream, std::thread::JoinHandle<Result<(), frame::Error>>) {
        let name = std::env::temp_dir().join(format!("supermachine-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&name);
        sys::make_fifo(name.as_os_str().as_bytes(), 0o600).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let agent = std::thread::spawn(|| serve(File::from(std::os::fd::OwnedFd::from(theirs))));
        frame::write(&mut ours, &command(Chunk(name.as_os_str().as_bytes().to_vec()))).unwrap();
        (name, ours, agent)
    }

    #[test]
    fn nobody_waits_at_a_fifo_for_a_caller_that_has_gone() {
        let reads = |path| FileCommand::Read { path, offset: 0, length: 0, holes: true };
        let writes = |path| FileCommand::Write { path, mode: 0o600, how: WriteMode::Truncate };
        let opened_by_us = |name: &Path| OpenOptions::new().read(true).write(true).open(name).unwrap();
        // At the opening, and with somebody at the other end who neither reads nor writes.
        for other_end in [false, true] {
            let (name, ours, agent) = asked_of_a_fifo("unread", reads);
            let held = other_end.then(|| opened_by_us(&name));
            std::thread::sleep(RETRY);
            drop(ours);
            assert!(agent.join().unwrap().is_err());
            drop(held);
            let (name_2, mut ours, agent) = asked_of_a_fifo("unwritten", writes);
            let held = other_end.then(|| opened_by_us(&name_2));
            if other_end {
                assert_eq!(reply(&mut ours), FileReply::Done);
                let zeros = FileCommand::WriteData(vec![0; MAX_DATA].into());
                // More than the FIFO takes.
                frame::write(&mut ours, &zeros).unwrap();
                frame::write(&mut ours, &FileCommand::WriteHole { length: 1 << 40 }).unwrap();
            }
            std::thread::sleep(RETRY);
            drop(ours);
            assert!(agent.join().unwrap().is_err());
            drop(held);
            for name in [name, name_2] {
                fs::remove_file(name).unwrap();
            }
        }
    }

    #[test]
    fn a_fifo_is_read_to_the_end_of_its_writer_and_written_to() {
        let reads = |path| FileCommand::Read { path, offset: 0, length: 0, holes: true };
        let (name, mut ours, agent) = asked_of_a_fifo("read", reads);
        std::thread::sleep(RETRY);
        let mut writer = OpenOptions::new().write(true).open(&name).unwrap();
        writer.write_all(b"one").unwrap();
        assert_eq!(reply(&mut ours), FileReply::Data(b"one".to_vec().into()));
        std::thread::sleep(RETRY);
        writer.write_all(b"two").unwrap();
        assert_eq!(reply(&mut ours), FileReply::Data(b"two".to_vec().into()));
        drop(writer);
        assert_eq!(reply(&mut ours), FileReply::Done);
        drop(ours);
        agent.join().unwrap().unwrap();
        fs::remove_file(name).unwrap();

        let writes = |path| FileCommand::Write { path, mode: 0o600, how: WriteMode::Truncate };
        let (name, mut ours, agent) = asked_of_a_fifo("written", writes);
        let mut reader = File::open(&name).unwrap();
        assert_eq!(reply(&mut ours), FileReply::Done);
        for command in [
            FileCommand::WriteData(b"three".to_vec().into()),
            FileCommand::WriteHole { length: 200_000 },
            FileCommand::WriteEnd,
        ] {
            frame::write(&mut ours, &command).unwrap();
        }
        let mut found = vec![0; 5 + 200_000];
        reader.read_exact(&mut found).unwrap();
        assert_eq!((&found[..5], found[5..].iter().max()), (&b"three"[..], Some(&0)));
        assert_eq!(reply(&mut ours), FileReply::Done);
        drop(ours);
        agent.join().unwrap().unwrap();
        fs::remove_file(name).unwrap();
    }
}
