//! A socket of the step's own that leads to the user's ssh agent: with the owner and mode that the step asked for, and
//! without the agent's own socket ever being in reach of the step.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rbuild_ports::{PortError, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{AtFlags, Mode};

/// Connections at the same time; more have to wait.
const MAX_CONNECTIONS: usize = 32;

/// Forwards connections until dropped.
pub(crate) struct Proxy {
    stop: OwnedFd,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Makes the socket `name` in `dir`.
    pub(crate) fn start(
        dir: BorrowedFd<'_>,
        name: &str,
        agent: &Path,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Self> {
        let failed = |error: io::Error| PortError::io("forward the ssh agent", agent, error);
        let listener = listen(dir, name, mode, owner).map_err(failed)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let stopped = stop.try_clone().map_err(failed)?;
        let agent = agent.to_owned();
        let accepting = std::thread::Builder::new()
            .name("ssh-agent".to_owned())
            .spawn(move || accept(&listener, &stopped, &agent))
            .map_err(failed)?;
        Ok(Self { stop, accepting: Some(accepting) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _told = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

fn listen(dir: BorrowedFd<'_>, name: &str, mode: u32, (uid, gid): (u32, u32)) -> io::Result<UnixListener> {
    // The directory has no path; this leads into it.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    let (uid, gid) = crate::mnt::owner(uid, gid);
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode & 0o777), AtFlags::empty())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

type Open = Arc<Mutex<Vec<Option<[UnixStream; 2]>>>>;

/// One thread a direction of a connection: an agent has few, and they are short.
fn accept(listener: &UnixListener, stop: &OwnedFd, agent: &PathBuf) {
    let open: Open = Arc::default();
    std::thread::scope(|scope| {
        while wait(listener, stop) {
            let Ok((step, _)) = listener.accept() else { continue };
            let Ok((slot, [step, agent])) = connect(step, agent, &open) else { continue };
            let open = open.clone();
            scope.spawn(move || {
                let back = agent.try_clone().ok().zip(step.try_clone().ok());
                std::thread::scope(|both| {
                    if let Some((from, to)) = back {
                        both.spawn(move || copy(from, to));
                    }
                    copy(step, agent);
                });
                if let Some(slot) = open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(slot) {
                    *slot = None;
                }
            });
        }
        for stream in open.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().flatten() {
            let _ended = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Waits for the next connection; false when it is time to stop.
fn wait(listener: &UnixListener, stop: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) => fds.first().is_some_and(|stop| stop.revents().is_empty()),
        Err(rustix::io::Errno::INTR) => true,
        Err(_) => false,
    }
}

fn connect(step: UnixStream, agent: &PathBuf, open: &Open) -> io::Result<(usize, [UnixStream; 2])> {
    step.set_nonblocking(false)?;
    let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
    let slot = open.iter().position(Option::is_none).unwrap_or(open.len());
    if slot >= MAX_CONNECTIONS {
        return Err(io::Error::other("too many connections"));
    }
    let agent = UnixStream::connect(agent)?;
    let ends = Some([step.try_clone()?, agent.try_clone()?]);
    match open.get_mut(slot) {
        Some(free) => *free = ends,
        None => open.push(ends),
    }
    Ok((slot, [step, agent]))
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0u8; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(Shutdown::Write);
    let _closed = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn bytes_go_both_ways_and_dropping_ends_it() {
        let temp = tempfile::tempdir().unwrap();
        let agent = UnixListener::bind(temp.path().join("agent")).unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let me = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let proxy = Proxy::start(dir.as_fd(), "s", &temp.path().join("agent"), 0o600, me).unwrap();
        let mut step = UnixStream::connect(temp.path().join("s")).unwrap();
        let (mut inside, _) = agent.accept().unwrap();
        let mut text = [0; 4];
        step.write_all(b"ping").unwrap();
        inside.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"ping");
        inside.write_all(b"pong").unwrap();
        step.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"pong");
        drop(proxy);
        assert_eq!(step.read(&mut text).unwrap(), 0);
        assert_eq!(inside.read(&mut text).unwrap(), 0);
        assert!(UnixStream::connect(temp.path().join("s")).is_err());
    }
}
