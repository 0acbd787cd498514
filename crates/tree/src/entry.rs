//! One entry of a tree: what it is and its metadata, without its content. The common vocabulary of tar
//! streams, snapshots, contexts and exports.

use std::collections::BTreeMap;

use crate::RelPath;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A file, directory, link or node with its metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it is; the root for the tree's own directory.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Extended attributes, `security.capability` among them.
    pub xattrs: Xattrs,
}

/// Kinds of entries. Sockets have none: no archive can hold them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes of content.
        size: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points, verbatim.
        target: Vec<u8>,
    },
    /// Another name of a regular file (or node) that is already there.
    Hardlink {
        /// The name it was met under first.
        target: RelPath,
    },
    /// A character device.
    CharDevice {
        /// Driver.
        major: u32,
        /// Device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Driver.
        major: u32,
        /// Device.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A time as seconds and nanoseconds since 1970; `nanos` counts forwards also before 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Seconds since 1970, rounded down.
    pub secs: i64,
    /// 0 to 999 999 999.
    pub nanos: u32,
}

impl Time {
    /// Whole seconds since 1970.
    #[must_use]
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }

    /// From nanoseconds since 1970.
    #[must_use]
    pub fn from_nanos(nanos: i64) -> Self {
        let rest = nanos.rem_euclid(1_000_000_000);
        Self { secs: nanos.div_euclid(1_000_000_000), nanos: u32::try_from(rest).unwrap_or(0) }
    }

    /// The same without the part below a second.
    #[must_use]
    pub const fn truncated(self) -> Self {
        Self { secs: self.secs, nanos: 0 }
    }
}

impl Entry {
    /// A root-owned entry of 1970 without extended attributes.
    #[must_use]
    pub fn new(path: RelPath, kind: Kind, mode: u32) -> Self {
        Self { path, kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: Xattrs::new() }
    }

    /// Bytes of content that go with it: a regular file's size, otherwise 0.
    #[must_use]
    pub fn content_size(&self) -> u64 {
        match self.kind {
            Kind::File { size } => size,
            _ => 0,
        }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(Time::from_nanos(-1), Time { secs: -1, nanos: 999_999_999 });
        assert_eq!(Time::from_nanos(1_500_000_000), Time { secs: 1, nanos: 500_000_000 });
        assert_eq!(Time { secs: 3, nanos: 9 }.truncated(), Time::from_secs(3));
    }
}
