//! Resolves docker's USER in the guest's own passwd and group files.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys;

/// Looked at of either file, which is the image's and may be anything.
const MAX_BYTES: u64 = 4 << 20;
const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// How long ago a file must have changed for a later change to show in its times, whose clock has steps.
const SETTLED: Duration = Duration::from_secs(2);

/// What is another as soon as a file is; nothing where there is none.
type Stamp = Option<[i64; 6]>;

/// A user that was asked for, what the files were then, and who it is.
type Known = (String, [Stamp; 2], User);

/// Who was looked up last, and what the files were then: to read and search them takes a restored guest longer than to
/// start a process.
static LAST: Mutex<Option<Known>> = Mutex::new(None);

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Looks `spec` up: "", "name", "uid", and either with ":group" or ":gid".
pub(crate) fn resolve(spec: &str) -> Result<User, String> {
    resolve_in(spec, FILES, &LAST)
}

/// Looks root up, so that a guest that is restored has no more to do for its first command.
pub(crate) fn prepare() {
    if sys::lock(&LAST).is_none() {
        let _ = resolve("");
    }
}

fn resolve_in(spec: &str, files: [&str; 2], last: &Mutex<Option<Known>>) -> Result<User, String> {
    let found = files.map(|path| fs::metadata(path).ok());
    let stamps = found.each_ref().map(|found| found.as_ref().map(stamp));
    if let Some((known, then, user)) = &*sys::lock(last)
        && known == spec
        && *then == stamps
    {
        return Ok(user.clone());
    }
    let read = |path| {
        sys::read_file(path, MAX_BYTES)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    };
    let user = lookup(spec, &read(files[0]), &read(files[1]))?;
    let settled = found.iter().flatten().all(has_settled);
    *sys::lock(last) = settled.then(|| (spec.to_owned(), stamps, user.clone()));
    Ok(user)
}

fn stamp(file: &Metadata) -> [i64; 6] {
    let number = u64::cast_signed;
    [number(file.dev()), number(file.ino()), file.ctime(), file.ctime_nsec(), file.mtime(), file.mtime_nsec()]
}

/// Whether a change from now on gives the file other times. One that changed after now is of a clock that was set back.
fn has_settled(file: &Metadata) -> bool {
    let (Ok(s), Ok(ns)) = (u64::try_from(file.ctime()), u64::try_from(file.ctime_nsec())) else {
        return true;
    };
    let changed = UNIX_EPOCH + Duration::from_secs(s) + Duration::from_nanos(ns);
    SystemTime::now().duration_since(changed).is_ok_and(|since| since > SETTLED)
}

fn lookup(spec: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = match spec.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    // passwd(5): name, password, uid, gid, comment, home, shell.
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && (fields[0] == name || number.is_some() && fields[2].parse::<u32>().ok() == number)
    });
    let mut user = match &entry {
        Some(fields) => User {
            uid: fields[2]
                .parse()
                .map_err(|_| format!("the uid of user {name} in /etc/passwd is not a number"))?,
            gid: fields[3]
                .parse()
                .map_err(|_| format!("the gid of user {name} in /etc/passwd is not a number"))?,
            groups: Vec::new(),
            home: fields[5].to_owned(),
        },
        None => {
            let uid = number.ok_or_else(|| format!("there is no user {name} in the image's /etc/passwd"))?;
            User { uid, gid: 0, groups: Vec::new(), home: "/".into() }
        }
    };
    // group(5): name, password, gid, members.
    let groups: Vec<Vec<&str>> = group
        .lines()
        .map(|line| line.split(':').collect())
        .filter(|fields: &Vec<_>| fields.len() >= 3)
        .collect();
    if let Some(wanted) = group_name {
        let known =
            groups.iter().find(|fields| fields[0] == wanted).and_then(|fields| fields[2].parse().ok());
        user.gid = known
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| format!("there is no group {wanted} in the image's /etc/group"))?;
    } else if let Some(fields) = &entry {
        let member = |list: &str| list.split(',').any(|member| member == fields[0]);
        let of = groups.iter().filter(|fields| fields.len() > 3 && member(fields[3]));
        user.groups = of.filter_map(|fields| fields[2].parse().ok()).collect();
    }
    if !user.groups.contains(&user.gid) {
        user.groups.push(user.gid);
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/var/www:/bin/false\nbad line\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:web,other\nvideo:x:44:other\nwww:x:34:\n";

    fn ids(spec: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        lookup(spec, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups, user.home))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(ids("").unwrap(), (0, 0, vec![0], "/root".into()));
        assert_eq!(ids("web").unwrap(), (33, 34, vec![50, 34], "/var/www".into()));
        assert_eq!(ids("33").unwrap(), (33, 34, vec![50, 34], "/var/www".into()));
        assert_eq!(ids("web:staff").unwrap(), (33, 50, vec![50], "/var/www".into()));
        assert_eq!(ids("1234").unwrap(), (1234, 0, vec![0], "/".into()));
        assert_eq!(ids("1234:77").unwrap(), (1234, 77, vec![77], "/".into()));
        assert_eq!(ids(":44").unwrap(), (0, 44, vec![44], "/root".into()));
    }

    #[test]
    fn files_are_read_again_when_they_have_changed() {
        let directory = std::env::temp_dir().join(format!("supermachine-agent-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (passwd, group) = (directory.join("passwd"), directory.join("group"));
        let files = [passwd.to_str().unwrap(), group.to_str().unwrap()];
        let last = Mutex::new(None);
        let home = || resolve_in("7", files, &last).unwrap().home;
        let line = |home| fs::write(&passwd, format!("a:x:7:7::{home}:/bin/sh\n")).unwrap();
        line("/one");
        assert_eq!(home(), "/one");
        // It has just been written: the next change may have the same time.
        assert!(last.lock().unwrap().is_none());
        let stamps = files.map(|path| fs::metadata(path).ok().as_ref().map(stamp));
        let known = User { uid: 7, gid: 7, groups: vec![7], home: "/known".into() };
        *last.lock().unwrap() = Some(("7".into(), stamps, known));
        assert_eq!(home(), "/known");
        assert_eq!(resolve_in("8", files, &last).unwrap().home, "/");
        *last.lock().unwrap() = Some(("7".into(), stamps, resolve_in("8", files, &last).unwrap()));
        fs::write(&group, "b:x:9:a\n").unwrap();
        assert_eq!(resolve_in("7", files, &last).unwrap().groups, [9, 7]);
        fs::remove_file(&passwd).unwrap();
        assert_eq!(home(), "/");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert!(ids("nobody").unwrap_err().contains("user nobody"));
        assert!(ids("web:wheel").unwrap_err().contains("group wheel"));
    }
}
