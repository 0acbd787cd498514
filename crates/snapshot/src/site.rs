//! Where on the disk the layers of a process begin. ext4 without a journal does not give an inode away again for some minutes after it was deleted, and
//! passes over all of those of a block group for every file that it creates there. Where a store or an image was just removed,
//! unpacking an image took up to 5.6 s of kernel time instead of 0.6 s. So the layers begin in a directory of which the
//! file system is told that it has nothing to do with its neighbours (`chattr +T`), which puts each in another block group; and
//! where creating a file takes long all the same, another place is tried. Other file systems get a directory, and that is all.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rbuild_ports::LayerId;
use rustix::fs::{self, AtFlags, IFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::sys;

/// The magic number of ext2, ext3 and ext4.
const EXT4: u64 = 0xef53;
/// Creating a file takes some 10 microseconds, and 50 nanoseconds more for each deleted inode.
const FAST: Duration = Duration::from_micros(40);
/// Places that are tried.
const PLACES: usize = 16;

/// Makes a directory in `parent` where creating files is fast; gives its name too.
pub(crate) fn choose(parent: &OwnedFd) -> Result<(String, OwnedFd), Errno> {
    let known = spread(parent);
    let mut best: Option<(Duration, String, OwnedFd)> = None;
    for _ in 0..if known { PLACES } else { 1 } {
        // The name decides where the file system begins to look.
        let random = sys::random().map_err(|_| Errno::IO)?;
        let name = LayerId::named('a', &random).to_string();
        fs::mkdirat(parent, name.as_str(), Mode::RWXU)?;
        let dir = sys::open_at(parent, name.as_bytes(), sys::DIR)?;
        let time = if known { probe(&dir)? } else { Duration::ZERO };
        // The slower ones stay until the end: the file system puts none where one is.
        if best.as_ref().is_none_or(|(least, ..)| time < *least) {
            best = Some((time, name, dir));
        }
        if time < FAST {
            break;
        }
    }
    let (_, name, dir) = best.ok_or(Errno::NOENT)?;
    for (other, _) in sys::list(parent)? {
        if other.starts_with(b"a") && other != name.as_bytes() {
            fs::unlinkat(parent, other.as_slice(), AtFlags::REMOVEDIR)?;
        }
    }
    Ok((name, dir))
}

/// Says that the directories in `parent` have nothing to do with each other; whether that means something to the file system.
fn spread(parent: &OwnedFd) -> bool {
    let ext4 = fs::fstatfs(parent).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(EXT4));
    ext4 && fs::ioctl_getflags(parent)
        .and_then(|flags| fs::ioctl_setflags(parent, flags | IFlags::TOPDIR))
        .is_ok()
}

/// How long creating a file takes in `dir`. The first one also reads from the disk what the second finds in memory.
fn probe(dir: &OwnedFd) -> Result<Duration, Errno> {
    let mut time = Duration::ZERO;
    for name in ["1", "2"] {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let before = Instant::now();
        drop(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        time = before.elapsed();
    }
    fs::unlinkat(dir, "1", AtFlags::empty())?;
    fs::unlinkat(dir, "2", AtFlags::empty())?;
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_empty_directory_is_made() {
        // Not below /tmp, which may be in memory.
        let root = tempfile::tempdir_in(".").unwrap();
        let open = || sys::open_at(fs::CWD, root.path().as_os_str().as_encoded_bytes(), sys::DIR).unwrap();
        let (name, dir) = choose(&open()).unwrap();
        assert_eq!(
            sys::list(open()).unwrap().iter().map(|(it, _)| it.clone()).collect::<Vec<_>>(),
            [name.as_bytes()]
        );
        assert_eq!(sys::list(dir).unwrap(), []);
        let ext4 = u64::try_from(fs::fstatfs(open()).unwrap().f_type) == Ok(EXT4);
        let flagged = fs::ioctl_getflags(open()).is_ok_and(|flags| flags.contains(IFlags::TOPDIR));
        assert!(flagged || !ext4);
    }
}
