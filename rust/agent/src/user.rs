//! Resolves docker's USER in the guest's own passwd and group files.

use crate::sys;

/// Looked at of either file, which is the image's and may be anything.
const MAX_BYTES: u64 = 4 << 20;

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
    let read = |path| {
        sys::read_file(path, MAX_BYTES)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    };
    lookup(spec, &read("/etc/passwd"), &read("/etc/group"))
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
    fn who_is_not_there_is_named() {
        assert!(ids("nobody").unwrap_err().contains("user nobody"));
        assert!(ids("web:wheel").unwrap_err().contains("group wheel"));
    }
}
