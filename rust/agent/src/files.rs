//! File commands: each is one system call or a short walk, answered in turn.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use supermachine_proto::agent::{Chunk, FileCommand, FileReply, Stat, WriteMode};
use supermachine_proto::frame::{self, MAX_DATA};

use crate::sys;

/// Entries in one reply.
const MAX_ENTRIES: usize = 256;

/// Serves one connection to its end.
pub fn serve(connection: File) -> Result<(), frame::Error> {
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
        nlink: m.nlink() as u32,
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

fn read(
    replies: &mut File,
    at: &Chunk,
    offset: u64,
    length: u64,
    holes: bool,
) -> Result<io::Result<FileReply>, frame::Error> {
    let opened = File::open(path(at)).and_then(|mut file| {
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(file)
    });
    let mut file = match opened {
        Ok(file) => file,
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
        match file.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(n) => {
                frame::write(replies, &FileReply::Data(buffer[..n].to_vec().into()))?;
                position += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(FileReply::Done))
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
    let mut file = match options.open(path(at)) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    frame::write(replies, &FileReply::Done)?;
    // The first failure is told at the end; the data that follow it are read and dropped.
    let mut done = Ok(FileReply::Done);
    loop {
        match frame::read(commands)? {
            Some(FileCommand::WriteData(data)) => {
                if done.is_ok()
                    && let Err(error) = file.write_all(&data.0)
                {
                    done = Err(error);
                }
            }
            Some(FileCommand::WriteHole { length }) => {
                if done.is_ok()
                    && let Err(error) = skip(&mut file, length, how)
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

/// Leaves a hole of this length where the file is being written; devices and pipes get its zeros.
fn skip(file: &mut File, length: u64, how: WriteMode) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    if matches!(how, WriteMode::Append) {
        return Err(invalid());
    }
    if !file.metadata()?.is_file() {
        return io::copy(&mut io::repeat(0).take(length), file).map(|_| ());
    }
    let length = i64::try_from(length).map_err(|_| invalid())?;
    let position = file.seek(SeekFrom::Current(length))?;
    file.set_len(position)
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
}
