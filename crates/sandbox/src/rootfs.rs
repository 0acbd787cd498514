//! Everything a step sees, put together as detached mounts and a list of what the child attaches where. Nothing of it
//! is visible to anybody else, and all of it vanishes with its descriptors.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rbuild_ports::{
    DeviceNode, ErrorKind, ExecMount, ExecRequest, HostMount, MountSource, PortError, Result,
};
use rustix::fs::{CWD, Dev, FileType, Mode, OFlags};

use crate::child::Op;
use crate::devices;
use crate::mnt;
use crate::overlay::{self, Tree, Work};
use crate::plan::{self, Mount};
use crate::ssh::Proxy;
use crate::stubs::Stubs;
use crate::sys::attr;
use crate::user::{self, User};
use crate::walk::{Found, WalkError, Walker, Want};

/// Larger user databases are not read.
const MAX_DATABASE: u64 = 10 << 20;
/// Size of `/dev/shm`, as BuildKit makes it.
const SHM_SIZE: u64 = 64 << 20;

/// What the machine and the request decide about the whole.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// No masks and no locks.
    pub(crate) insecure: bool,
    /// In a user namespace, where device nodes cannot be made.
    pub(crate) user_namespace: bool,
    /// Whether group 5 exists in it.
    pub(crate) tty_group: bool,
}

/// The root of a step, ready to be attached.
pub(crate) struct Rootfs {
    /// The detached mount of the root.
    pub(crate) root: Rc<OwnedFd>,
    /// The detached mount of what is lent.
    pub(crate) scratch: OwnedFd,
    /// What to attach, in order.
    pub(crate) ops: Vec<Op>,
    /// For messages: where each of `ops` goes.
    pub(crate) dests: Vec<String>,
    /// An empty file and an empty directory in `scratch`.
    pub(crate) masks: (OwnedFd, OwnedFd),
    pub(crate) cwd: Cwd,
    /// The null device of the step.
    pub(crate) null: OwnedFd,
    /// Where changes of the root go.
    pub(crate) upper: Option<OwnedFd>,
    /// What to remove from there when the step is over.
    pub(crate) stubs: Stubs,
    /// Whether anything lies below `upper`.
    pub(crate) merged: bool,
    /// What must live as long as the step.
    _kept: Kept,
}

/// What must live as long as a step: what its mounts refer to, and who serves it.
#[derive(Default)]
struct Kept {
    places: Vec<Rc<OwnedFd>>,
    proxies: Vec<Proxy>,
    work: Vec<Work>,
}

/// The working directory.
pub(crate) enum Cwd {
    Open(Rc<OwnedFd>),
    Path(CString),
}

impl Rootfs {
    /// Ends the step's use of its root, and removes what was made for its mounts. All its processes are gone.
    pub(crate) fn finish(self) -> Result<()> {
        let Parts { upper, stubs, merged } = self.into_parts();
        match upper {
            Some(upper) => remove_stubs(upper.as_fd(), &stubs, merged),
            None => Ok(()),
        }
    }

    /// Closes everything that keeps the mounts alive.
    fn into_parts(self) -> Parts {
        Parts { upper: self.upper, stubs: self.stubs, merged: self.merged }
    }
}

struct Parts {
    upper: Option<OwnedFd>,
    stubs: Stubs,
    merged: bool,
}

fn remove_stubs(upper: BorrowedFd<'_>, stubs: &Stubs, merged: bool) -> Result<()> {
    crate::stubs::remove(upper, stubs, merged).map_err(|error| {
        PortError::new(
            ErrorKind::Io,
            format!("cannot remove mount points after the step: {}", mnt::plain(&error)),
        )
    })
}

/// The root alone, and who runs there.
pub(crate) struct Base {
    tree: Tree,
    style: Style,
}

impl Base {
    /// Mounts the layers of the root.
    pub(crate) fn mount(request: &ExecRequest, style: Style) -> Result<Self> {
        let attrs = if style.insecure { 0 } else { attr::NODEV };
        Ok(Self { tree: overlay::mount(&request.root, attrs, style.user_namespace)?, style })
    }

    /// Looks up `USER` in there.
    pub(crate) fn user(&self, spec: &str) -> Result<User> {
        let read = |path: &str| match database(self.tree.mount.as_fd(), path) {
            // The default user is root whatever the image looks like.
            Err(_) if spec.is_empty() => Ok(Vec::new()),
            other => other,
        };
        user::resolve(spec, &read("etc/passwd")?, &read("etc/group")?)
            .map_err(|error| PortError::new(ErrorKind::Invalid, error.to_string()).help(error.remedy()))
    }

    /// Puts everything on it. `hosts` and `resolv_conf` are the texts of the files of that name.
    pub(crate) fn furnish(
        self,
        request: &ExecRequest,
        user: &User,
        hosts: &str,
        resolv_conf: &str,
    ) -> Result<Rootfs> {
        let mounts = plan::mounts(request)?;
        let scratch = Scratch::new().map_err(|error| setup("memory for the step's files", &error))?;
        let root = Rc::new(self.tree.mount);
        let upper = self.tree.upper;
        let kept = Kept { work: self.tree.work.into_iter().collect(), ..Kept::default() };
        let mut builder = Builder {
            walker: Walker::new(root.clone(), upper.as_ref().map(AsFd::as_fd)),
            style: self.style,
            user: (user.uid, user.gid),
            scratch: &scratch,
            ops: Vec::new(),
            dests: Vec::new(),
            kept,
            null: None,
        };
        let result = builder.all(&mounts, hosts, resolv_conf).and_then(|()| builder.cwd(&request.cwd));
        let Builder { walker, ops, dests, kept, null, .. } = builder;
        let stubs = walker.into_stubs();
        let (cwd, null) = match (result, null) {
            (Ok(cwd), Some(null)) => (cwd, null),
            (result, _) => {
                drop((ops, kept, root));
                if let Some(upper) = &upper {
                    remove_stubs(upper.as_fd(), &stubs, self.tree.merged)?;
                }
                return Err(result
                    .err()
                    .unwrap_or_else(|| PortError::new(ErrorKind::Internal, "no null device")));
            }
        };
        if request.root_readonly {
            mnt::set_attributes(root.as_fd(), attr::RDONLY, false)
                .map_err(|error| setup("the root", &error))?;
        }
        let (scratch, masks) = scratch.finish().map_err(|error| setup("the step's files", &error))?;
        let merged = self.tree.merged;
        Ok(Rootfs { root, scratch, ops, dests, masks, cwd, null, upper, stubs, merged, _kept: kept })
    }
}

fn setup(what: &str, error: &io::Error) -> PortError {
    PortError::new(ErrorKind::Io, format!("cannot set up {what}: {}", mnt::plain(error)))
}

/// A user database: a regular file of reasonable size. One that is missing is empty.
fn database(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let wrong =
        |why: String| PortError::new(ErrorKind::Invalid, format!("cannot use /{path} of the image: {why}"));
    let at = match mnt::open_inside(root, path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(Vec::new());
        }
        other => other.map_err(|error| wrong(mnt::plain(&error)))?,
    };
    let stat = mnt::stat(at.as_fd()).map_err(|error| wrong(mnt::plain(&error)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong("it is no regular file".to_owned()));
    }
    if stat.st_size as u64 > MAX_DATABASE {
        return Err(wrong(format!("it has {} bytes, more than {MAX_DATABASE}", stat.st_size)));
    }
    // The same file, whatever happens to its name.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, format!("/proc/self/fd/{}", at.as_raw_fd()), flags, Mode::empty())
        .map_err(|error| wrong(mnt::plain(&error.into())))?;
    let mut data = Vec::new();
    std::fs::File::from(file)
        .take(MAX_DATABASE)
        .read_to_end(&mut data)
        .map_err(|error| wrong(mnt::plain(&error)))?;
    Ok(data)
}

/// Files that are lent to the step: seen by it through read-only copies of this mount, and never swapped out where
/// possible. (This mount itself cannot be made read-only: a child that another thread makes may hold files open for
/// writing for a moment.)
struct Scratch {
    mount: OwnedFd,
}

impl Scratch {
    fn new() -> io::Result<Self> {
        Ok(Self { mount: mnt::unswapped_tmpfs()? })
    }

    fn finish(self) -> io::Result<(OwnedFd, (OwnedFd, OwnedFd))> {
        let dir = self.mount.as_fd();
        let file = mnt::put_file(dir, "masked", b"", 0o444, (0, 0))?;
        rustix::fs::mkdirat(dir, "empty", Mode::from_raw_mode(0o555))?;
        let empty = mnt::place(dir, "empty")?;
        Ok((self.mount, (file, empty)))
    }
}

struct Builder<'a> {
    walker: Walker<'a>,
    style: Style,
    /// Whom devices belong to when nothing else is said.
    user: (u32, u32),
    scratch: &'a Scratch,
    ops: Vec<Op>,
    dests: Vec<String>,
    kept: Kept,
    null: Option<OwnedFd>,
}

impl Builder<'_> {
    fn all(&mut self, mounts: &[Mount<'_>], hosts: &str, resolv_conf: &str) -> Result<()> {
        for mount in mounts {
            let dest = mount.dest();
            match mount {
                Mount::Proc => self.kernel(dest, |to| Op::Proc { to })?,
                Mount::Sys => self.kernel(dest, |to| Op::Sys { to })?,
                Mount::Dev => self.dev(dest)?,
                Mount::Hosts => self.text(dest, "hosts", hosts)?,
                Mount::ResolvConf => self.text(dest, "resolv.conf", resolv_conf)?,
                Mount::Node(node) => self.node(node)?,
                Mount::Host(mount) => self.host(mount)?,
                Mount::User(mount) => self.user(mount)?,
            }
        }
        Ok(())
    }

    fn walk(&mut self, dest: &str, want: Want) -> Result<Found> {
        self.walker.walk(dest, want).map_err(|error| explain(dest, &error))
    }

    fn push(&mut self, dest: &str, op: Op, held: impl IntoIterator<Item = Rc<OwnedFd>>) {
        self.ops.push(op);
        self.dests.push(dest.to_owned());
        self.kept.places.extend(held);
    }

    /// Something that the child makes. Its place must be a real directory: tools of the host write there as if it were.
    fn kernel(&mut self, dest: &str, op: impl FnOnce(i32) -> Op) -> Result<()> {
        let found = self.walk(dest, Want::RealDir)?;
        self.walker.mount_kernel(&found.path);
        self.push(dest, op(found.at.as_raw_fd()), [found.at]);
        Ok(())
    }

    /// A detached mount at `dest`.
    fn attach(&mut self, dest: &str, want: Want, mount: OwnedFd) -> Result<Rc<OwnedFd>> {
        let found = self.walk(dest, want)?;
        let mount = Rc::new(mount);
        self.walker.mount(&found.path, mount.clone());
        let op = Op::Attach { mount: mount.as_raw_fd(), to: found.at.as_raw_fd() };
        self.push(dest, op, [found.at, mount.clone()]);
        Ok(mount)
    }

    /// A file of the scratch file system at `dest`.
    fn lend(&mut self, dest: &str, source: OwnedFd) -> Result<()> {
        let found = self.walk(dest, Want::StubFile)?;
        let source = Rc::new(source);
        self.walker.mount(&found.path, source.clone());
        let op = Op::File { source: source.as_raw_fd(), to: found.at.as_raw_fd() };
        self.push(dest, op, [found.at, source]);
        Ok(())
    }

    fn text(&mut self, dest: &str, name: &str, text: &str) -> Result<()> {
        let file = mnt::put_file(self.scratch.mount.as_fd(), name, text.as_bytes(), 0o644, (0, 0))
            .map_err(|error| setup(dest, &error))?;
        self.lend(dest, file)
    }

    fn dev(&mut self, dest: &str) -> Result<()> {
        let failed = |error: io::Error| setup("/dev", &error);
        let dev = mnt::tmpfs(64 << 20, 0o755, attr::NOSUID).map_err(failed)?;
        furnish_dev(dev.as_fd()).map_err(failed)?;
        let pts = mnt::Context::new("devpts").map_err(failed)?;
        pts.set("ptmxmode", "0666").and_then(|()| pts.set("mode", "0620")).map_err(failed)?;
        pts.flag("newinstance").map_err(failed)?;
        if self.style.tty_group {
            pts.set("gid", "5").map_err(failed)?;
        }
        let pts = pts.mount(attr::NOSUID | attr::NOEXEC).map_err(failed)?;
        let shm = mnt::tmpfs(SHM_SIZE, 0o1777, attr::NOSUID | attr::NODEV | attr::NOEXEC).map_err(failed)?;

        let dev = self.attach(dest, Want::RealDir, dev)?;
        for (name, major, minor) in usual_devices(self.style) {
            let path = format!("{dest}/{name}");
            if self.style.user_namespace {
                self.lend_device(&path, &name, major, minor)?;
            } else {
                make_device(dev.as_fd(), &name, major, minor).map_err(failed)?;
            }
        }
        let null = rustix::fs::openat(&dev, "null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        self.null = Some(match null {
            Ok(null) if !self.style.user_namespace => null,
            _ => host_device("null", 1, 3, OFlags::RDWR).map_err(failed)?,
        });
        self.attach("/dev/pts", Want::StubDir, pts)?;
        self.attach("/dev/shm", Want::StubDir, shm)?;
        self.kernel("/dev/mqueue", |to| Op::Queues { to })
    }

    /// Binds a device of the host, where none can be made. Its place is in memory of ours.
    fn lend_device(&mut self, dest: &str, name: &str, major: u32, minor: u32) -> Result<()> {
        let device = host_device(name, major, minor, OFlags::PATH).and_then(|place| mnt::bind(place.as_fd()));
        let device = device.map_err(|error| setup(dest, &error))?;
        self.attach(dest, Want::StubFile, device).map(drop)
    }

    /// A device of the machine. In a user namespace it is the machine's own node, with its owner and mode.
    fn node(&mut self, node: &DeviceNode) -> Result<()> {
        let place =
            if self.style.user_namespace { devices::lend(node)? } else { devices::make(node, self.user)? };
        self.attach(&node.path, Want::StubFile, place).map(drop)
    }

    /// A path of the machine that a device brings along.
    fn host(&mut self, mount: &HostMount) -> Result<()> {
        let (source, want) = devices::mount(mount)?;
        self.attach(&mount.dest, want, source).map(drop)
    }

    fn user(&mut self, mount: &ExecMount) -> Result<()> {
        let dest = mount.dest.as_str();
        let failed = |error: io::Error| setup(dest, &error);
        let nodev = if self.style.insecure { 0 } else { attr::NODEV };
        let attrs = nodev | if mount.readonly { attr::RDONLY } else { 0 };
        let scratch = self.scratch.mount.as_fd();
        let name = format!("lent-{}", self.ops.len());
        match &mount.source {
            MountSource::Layers(dirs) => {
                let tree = overlay::mount(dirs, attrs, self.style.user_namespace)?;
                self.kept.work.extend(tree.work);
                let at = select(tree.mount.as_fd(), &mount.selector)?;
                let want = want(at.as_fd()).map_err(failed)?;
                let chosen = if is_root(&mount.selector) {
                    tree.mount
                } else {
                    mnt::bind_inside(tree.mount, at.as_fd()).map_err(failed)?
                };
                self.attach(dest, want, chosen)?;
            }
            MountSource::Dir(path) => {
                let at = select(overlay::open_dir(path)?.as_fd(), &mount.selector)?;
                let want = want(at.as_fd()).map_err(failed)?;
                let bind = mnt::bind(at.as_fd()).map_err(failed)?;
                mnt::set_attributes(bind.as_fd(), attrs, false).map_err(failed)?;
                self.attach(dest, want, bind)?;
            }
            MountSource::Tmpfs { size } => {
                let tmpfs = mnt::tmpfs(*size, 0o1777, attrs | attr::NOSUID).map_err(failed)?;
                self.attach(dest, Want::StubDir, tmpfs)?;
            }
            MountSource::Secret { data, uid, gid, mode } => {
                let file =
                    mnt::put_file(scratch, &name, &data.0, mode & 0o7777, (*uid, *gid)).map_err(failed)?;
                self.lend(dest, file)?;
            }
            MountSource::SshAgent { socket, uid, gid, mode } => {
                let proxy = Proxy::start(scratch, &name, socket, *mode, (*uid, *gid))?;
                let place = mnt::place(scratch, &name).map_err(failed)?;
                self.kept.proxies.push(proxy);
                self.lend(dest, place)?;
            }
        }
        Ok(())
    }

    fn cwd(&mut self, path: &str) -> Result<Cwd> {
        let path = if path.is_empty() { "/" } else { path };
        if !path.starts_with('/') {
            let text = format!("the working directory {path:?} is not absolute");
            return Err(PortError::new(ErrorKind::Invalid, text));
        }
        match self.walker.walk(path, Want::KeptDir) {
            Ok(found) => Ok(Cwd::Open(found.at)),
            Err(WalkError::InKernel { .. }) => CString::new(path)
                .map(Cwd::Path)
                .map_err(|_| PortError::new(ErrorKind::Invalid, "the working directory contains a NUL byte")),
            Err(error) => Err(PortError::new(
                ErrorKind::Invalid,
                format!("cannot use the working directory {path}: {error}"),
            )),
        }
    }
}

fn explain(dest: &str, error: &WalkError) -> PortError {
    let kind = match error {
        WalkError::Io { error, .. } if error.raw_os_error() == Some(libc::ENOSPC) => ErrorKind::NoSpace,
        _ => ErrorKind::Invalid,
    };
    let out = PortError::new(kind, format!("cannot mount on {dest}: {error}"));
    match error {
        WalkError::Io { error, .. } if error.raw_os_error() == Some(libc::EROFS) => {
            out.help("the mount point does not exist and cannot be made on a read-only mount; make it in the image first")
        }
        _ => out,
    }
}

fn is_root(selector: &str) -> bool {
    selector.split('/').all(|part| matches!(part, "" | "."))
}

/// Opens what is selected in a tree, without leaving it.
fn select(tree: BorrowedFd<'_>, selector: &str) -> Result<OwnedFd> {
    mnt::open_inside(tree, if is_root(selector) { "" } else { selector }).map_err(|error| {
        let kind =
            if error.raw_os_error() == Some(libc::ENOENT) { ErrorKind::NotFound } else { ErrorKind::Invalid };
        let text = match error.raw_os_error() {
            Some(libc::ENOENT) => format!("{selector:?}: not found"),
            _ => format!("cannot mount {selector:?}: {}", mnt::plain(&error)),
        };
        PortError::new(kind, text)
    })
}

/// What the mount point of something must be.
pub(crate) fn want(at: BorrowedFd<'_>) -> io::Result<Want> {
    let dir = FileType::from_raw_mode(mnt::stat(at)?.st_mode) == FileType::Directory;
    Ok(if dir { Want::StubDir } else { Want::StubFile })
}

/// Directories and links in `/dev`.
fn furnish_dev(dev: BorrowedFd<'_>) -> io::Result<()> {
    for dir in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, dir, Mode::from_raw_mode(0o755))?;
        rustix::fs::chmodat(dev, dir, Mode::from_raw_mode(0o755), rustix::fs::AtFlags::empty())?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    Ok(())
}

/// Character devices in `/dev`: name, major, minor.
fn usual_devices(style: Style) -> Vec<(String, u32, u32)> {
    let usual =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    let mut out: Vec<_> = usual.map(|(name, major, minor)| (name.to_owned(), major, minor)).to_vec();
    if style.insecure {
        for (name, major, minor) in [("fuse", 10, 229), ("kvm", 10, 232), ("loop-control", 10, 237)] {
            if Path::new("/dev").join(name).exists() {
                out.push((name.to_owned(), major, minor));
            }
        }
    }
    out
}

fn make_device(dev: BorrowedFd<'_>, name: &str, major: u32, minor: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(
        dev,
        name,
        FileType::CharacterDevice,
        mode,
        rustix::fs::makedev(major, minor) as Dev,
    )?;
    Ok(rustix::fs::chmodat(dev, name, mode, rustix::fs::AtFlags::empty())?)
}

/// Opens a device of the host, after making sure that it is the one.
fn host_device(name: &str, major: u32, minor: u32, flags: OFlags) -> io::Result<OwnedFd> {
    let device =
        rustix::fs::openat(CWD, Path::new("/dev").join(name), flags | OFlags::CLOEXEC, Mode::empty())?;
    let stat = mnt::stat(device.as_fd())?;
    let right = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(major, minor);
    if right { Ok(device) } else { Err(io::Error::other(format!("/dev/{name} is not what it should be"))) }
}
