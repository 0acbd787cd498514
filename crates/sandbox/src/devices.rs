//! Devices of the machine that a step asked for, and what they bring along, as detached mounts. Which devices those are
//! is not decided here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rbuild_ports::{DeviceKind, DeviceNode, ErrorKind, HostMount, PortError, Result};
use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, Stat};

use crate::mnt;
use crate::rootfs::want;
use crate::sys::attr;
use crate::walk::Want;

/// The name of a node in a file system of its own.
const NODE: &str = "node";

/// The machine's own node: where none can be made.
pub(crate) fn lend(node: &DeviceNode) -> Result<OwnedFd> {
    let failed = |error: &io::Error| refused(node, &mnt::plain(error));
    let place = open(&node.host_path).map_err(|error| failed(&error))?;
    let stat = mnt::stat(place.as_fd()).map_err(|error| failed(&error))?;
    check(node, &stat)?;
    mnt::bind(place.as_fd()).map_err(|error| failed(&error))
}

/// A node made for the step, in a file system of its own: what the spec leaves open is as on the machine.
pub(crate) fn make(node: &DeviceNode, user: (u32, u32)) -> Result<OwnedFd> {
    let failed = |error: &io::Error| refused(node, &mnt::plain(error));
    let found = open(&node.host_path).and_then(|place| mnt::stat(place.as_fd()));
    let stat = match (found, node.kind, node.number) {
        (Ok(stat), ..) => {
            check(node, &stat)?;
            Some(stat)
        }
        // Fully described, so that it need not be there.
        (Err(_), Some(DeviceKind::Pipe), _) | (Err(_), Some(_), Some(_)) => None,
        (Err(error), ..) => return Err(failed(&error)),
    };
    let of_host = |value: fn(&Stat) -> u32| stat.as_ref().map(value);
    let kind = match (node.kind, &stat) {
        (Some(kind), _) => file_type(kind),
        (None, Some(stat)) => FileType::from_raw_mode(stat.st_mode),
        (None, None) => FileType::CharacterDevice,
    };
    let mode = node.mode.or(of_host(|stat| stat.st_mode)).unwrap_or(0o666) & 0o777;
    let number = match (node.number, &stat) {
        (Some((major, minor)), _) => rustix::fs::makedev(major, minor) as Dev,
        (None, Some(stat)) => stat.st_rdev as Dev,
        (None, None) => 0,
    };
    let owner = (node.uid.unwrap_or(user.0), node.gid.unwrap_or(user.1));
    let made = || -> io::Result<OwnedFd> {
        let own = mnt::tmpfs(64 << 10, 0o700, attr::NOSUID | attr::NOEXEC)?;
        let bits = Mode::from_raw_mode(mode);
        rustix::fs::mknodat(&own, NODE, kind, bits, number)?;
        rustix::fs::chmodat(&own, NODE, bits, AtFlags::empty())?;
        let (uid, gid) = mnt::owner(owner.0, owner.1);
        rustix::fs::chownat(&own, NODE, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        let place = mnt::place(own.as_fd(), NODE)?;
        mnt::bind_inside(own, place.as_fd())
    };
    made().map_err(|error| failed(&error))
}

/// A path of the machine, and what its place must be.
pub(crate) fn mount(mount: &HostMount) -> Result<(OwnedFd, Want)> {
    let HostMount { source, dest: _, recursive, readonly, nosuid, nodev, noexec } = mount;
    let flags =
        [(*readonly, attr::RDONLY), (*nosuid, attr::NOSUID), (*nodev, attr::NODEV), (*noexec, attr::NOEXEC)];
    let set = flags.iter().filter(|(on, _)| *on).fold(0, |set, (_, flag)| set | flag);
    let made = || -> io::Result<(OwnedFd, Want)> {
        let place = rustix::fs::openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let want = want(place.as_fd())?;
        let bind = mnt::bind_with(place.as_fd(), *recursive)?;
        mnt::set_attributes(bind.as_fd(), set, *recursive)?;
        Ok((bind, want))
    };
    made().map_err(|error| {
        let (source, why) = (source.display(), mnt::plain(&error));
        PortError::new(kind(&error), format!("cannot mount {source}, which a device needs: {why}"))
    })
}

/// Links are followed: they are the machine's own.
fn open(path: &std::path::Path) -> io::Result<OwnedFd> {
    if !path.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its path is not absolute"));
    }
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether what lies there is what the spec says.
fn check(node: &DeviceNode, stat: &Stat) -> Result<()> {
    let found = FileType::from_raw_mode(stat.st_mode);
    let known = [FileType::CharacterDevice, FileType::BlockDevice, FileType::Fifo];
    if !known.contains(&found) || node.kind.is_some_and(|kind| file_type(kind) != found) {
        return Err(refused(node, "it is of another type on this machine"));
    }
    Ok(())
}

fn file_type(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Pipe => FileType::Fifo,
    }
}

fn kind(error: &io::Error) -> ErrorKind {
    if error.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Io }
}

fn refused(node: &DeviceNode, why: &str) -> PortError {
    PortError::new(ErrorKind::Invalid, format!("cannot lend the device {}: {why}", node.host_path.display()))
        .help(
            "the specs of devices say where it should be; they are often made anew after a change of drivers",
        )
}
