//! Who runs a command: `USER` against the image's `/etc/passwd` and `/etc/group`. Pure; the rules and words are
//! those of the Docker tools. Numbers are always ids, never names.

/// The largest user or group id.
const MAX_ID: u32 = i32::MAX as u32;

/// A user, fully resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// From `/etc/passwd`; `/` otherwise.
    pub(crate) home: String,
}

/// Why there is no such user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("unable to use {0:?} as user: uids and gids must be in range 0-{MAX_ID}")]
    Range(String),
}

impl UserError {
    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::NoUser(_) => {
                "make the user in an earlier step, or name a user of the image or a number in USER"
            }
            Self::NoGroup(_) => {
                "make the group in an earlier step, or name a group of the image or a number in USER"
            }
            Self::Range(_) => "give a smaller number in USER",
        }
    }
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// A user or group as written.
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

/// Resolves `spec` (`user`, `user:group`, by name or number; empty is root). The databases are empty when the image
/// has none.
pub(crate) fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let (user_spec, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, group),
        None => (spec, ""),
    };
    let user_spec = if user_spec.is_empty() { "0" } else { user_spec };
    let wanted = parse(user_spec)?;
    let entry = passwd_entries(passwd).find(|entry| match wanted {
        Id::Number(uid) => entry.uid == uid,
        Id::Name(name) => entry.name == name.as_bytes(),
    });
    let mut user = match (&entry, wanted) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: String::from_utf8_lossy(entry.home).into_owned(),
        },
        (None, Id::Number(uid)) => User { uid, gid: 0, groups: Vec::new(), home: String::new() },
        (None, Id::Name(name)) => return Err(UserError::NoUser(name.to_owned())),
    };
    if user.home.is_empty() {
        user.home.push('/');
    }
    if !group_spec.is_empty() {
        user.gid = explicit_group(group_spec, group)?;
    } else if let Some(entry) = entry {
        user.groups =
            group_entries(group).filter(|g| members(g).any(|m| m == entry.name)).map(|g| g.gid).collect();
    }
    // The own group too: a file that denies its group something denies it to this process, whatever group it changes to.
    if !user.groups.contains(&user.gid) {
        user.groups.insert(0, user.gid);
    }
    if user.uid > MAX_ID || user.gid > MAX_ID || user.groups.iter().any(|gid| *gid > MAX_ID) {
        return Err(UserError::Range(spec.to_owned()));
    }
    Ok(user)
}

fn explicit_group(spec: &str, group: &[u8]) -> Result<u32, UserError> {
    match parse(spec)? {
        Id::Number(gid) => Ok(gid),
        Id::Name(name) => group_entries(group)
            .find(|entry| entry.name == name.as_bytes())
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::NoGroup(name.to_owned())),
    }
}

/// Only digits make a number: signs, spaces and prefixes make a name that nobody has.
fn parse(text: &str) -> Result<Id<'_>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Id::Name(text));
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Id::Number(id)),
        _ => Err(UserError::Range(text.to_owned())),
    }
}

fn number(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(field).ok()?.parse().ok()).flatten()
}

/// Lines of a database; a malformed line is none.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn passwd_entries(data: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(data).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let (name, _, uid, gid) =
            (fields.next()?, fields.next()?, number(fields.next()?)?, number(fields.next()?)?);
        let home = fields.nth(1).unwrap_or_default();
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(data: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(data).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let (name, _, gid) = (fields.next()?, fields.next()?, number(fields.next()?)?);
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn members<'a>(entry: &GroupEntry<'a>) -> impl Iterator<Item = &'a [u8]> {
    entry.members.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\nbad line\napp:x:1000:1000::/home/app:\n\
        zero:x:abc:0::/:\n2000:x:0:0::/evil:/bin/sh\nnohome:x:1001:5\nbig:x:4294967295:0::/:\n";
    const GROUP: &[u8] =
        b"root:x:0:root\nadm:x:4:root,app\nstaff:x:50:app\napp:x:1000:\nnobody\nwild:x:60: app \n";

    fn check(spec: &str, expected: &str) {
        let got = match resolve(spec, PASSWD, GROUP) {
            Ok(User { uid, gid, groups, home }) => format!("{uid}:{gid} {groups:?} {home}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "{spec:?}");
    }

    #[test]
    fn names_and_numbers() {
        check("", "0:0 [0, 4] /root");
        check("root", "0:0 [0, 4] /root");
        check("0", "0:0 [0, 4] /root");
        check("app", "1000:1000 [1000, 4, 50, 60] /home/app");
        check("1000", "1000:1000 [1000, 4, 50, 60] /home/app");
        check("app:staff", "1000:50 [50] /home/app");
        check("app:7", "1000:7 [7] /home/app");
        check("1000:1000", "1000:1000 [1000] /home/app");
        check("4711", "4711:0 [0] /");
        check("4711:4712", "4711:4712 [4712] /");
        check("nohome", "1001:5 [5] /");
        check(":staff", "0:50 [50] /root");
        check("app:", "1000:1000 [1000, 4, 50, 60] /home/app");
    }

    #[test]
    fn nothing_becomes_root_by_accident() {
        check("2000", "2000:0 [0] /");
        for spec in ["nobody", "+5", " 0", "0 ", "-1", "0x0", "zero", "１"] {
            check(spec, &format!("unable to find user {spec}: no matching entries in passwd file"));
        }
        for spec in ["4294967296", "2147483648", "18446744073709551616"] {
            let text = "uids and gids must be in range 0-2147483647";
            check(spec, &format!("unable to use {spec:?} as user: {text}"));
        }
        check("big", "unable to use \"big\" as user: uids and gids must be in range 0-2147483647");
        check("app:nope", "unable to find group nope: no matching entries in group file");
        check(
            "1000:4294967295",
            "unable to use \"4294967295\" as user: uids and gids must be in range 0-2147483647",
        );
    }

    #[test]
    fn images_without_databases() {
        assert_eq!(resolve("", b"", b"").map(|u| (u.uid, u.gid, u.home)), Ok((0, 0, "/".to_owned())));
        assert_eq!(resolve("root", b"", b""), Err(UserError::NoUser("root".to_owned())));
    }
}
