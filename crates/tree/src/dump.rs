//! Entries as stable text, one line each, for goldens and people: `/bin/app f 0755 0:0 @5.25 12 user.a=x`.

use std::fmt::Write as _;

use crate::{Entry, Kind};

/// One line: path, kind letter, mode, owner, time, then size, target or device, then extended attributes. Bytes
/// that are not printable are escaped.
#[must_use]
pub fn dump_entry(entry: &Entry) -> String {
    let Entry { path, kind, mode, uid, gid, mtime, xattrs } = entry;
    let (letter, rest) = match kind {
        Kind::File { size } => ('f', format!(" {size}")),
        Kind::Dir => ('d', String::new()),
        Kind::Symlink { target } => ('l', format!(" -> {}", target.escape_ascii())),
        Kind::Hardlink { target } => ('h', format!(" -> {target:?}")),
        Kind::CharDevice { major, minor } => ('c', format!(" {major}:{minor}")),
        Kind::BlockDevice { major, minor } => ('b', format!(" {major}:{minor}")),
        Kind::Fifo => ('p', String::new()),
    };
    let mut out = format!("{path:?} {letter} {mode:04o} {uid}:{gid} @{}", mtime.secs);
    if mtime.nanos != 0 {
        let nanos = format!("{:09}", mtime.nanos);
        let _ = write!(out, ".{}", nanos.trim_end_matches('0'));
    }
    out.push_str(&rest);
    for (key, value) in xattrs {
        let _ = write!(out, " {}={}", key.escape_ascii(), value.escape_ascii());
    }
    out
}
