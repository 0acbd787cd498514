//! Layers as one tree: a detached overlay mount of any number of directories. Nothing outside sees it, and it
//! vanishes with its last descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rbuild_ports::{ErrorKind, OverlayDirs, PortError, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::mnt::{self, Context};
use crate::sys::attr;

/// As many as the kernel stacks.
const MAX_LAYERS: usize = 500;

/// What the directories amount to.
#[derive(PartialEq, Eq, Debug)]
enum Stack<'a> {
    /// Nothing at all.
    Empty,
    /// Only the upper directory.
    Upper(&'a Path),
    /// Only one lower directory.
    Single(&'a str),
    /// From the top down.
    Overlay(Vec<&'a str>),
}

/// A mount of layers.
pub(crate) struct Tree {
    /// The detached mount.
    pub(crate) mount: OwnedFd,
    /// Where its changes go; `None` is read-only.
    pub(crate) upper: Option<OwnedFd>,
    /// To be kept as long as the mount.
    pub(crate) work: Option<Work>,
    /// Whether anything lies below `upper`.
    pub(crate) merged: bool,
}

/// A work directory in use. The kernel marks it, so that after a crash nobody takes its upper directory for complete;
/// dropping this says that there was none.
pub(crate) struct Work(OwnedFd);

impl Drop for Work {
    fn drop(&mut self) {
        // Absent when nothing was mounted.
        let _unmarked = rustix::fs::unlinkat(&self.0, "work/incompat/volatile/dirty", AtFlags::empty());
        let _unmarked = rustix::fs::unlinkat(&self.0, "work/incompat/volatile", AtFlags::REMOVEDIR);
    }
}

/// Mounts `dirs`, with `attrs` besides what the directories ask for.
pub(crate) fn mount(dirs: &OverlayDirs, attrs: u64, user_namespace: bool) -> Result<Tree> {
    let upper = match &dirs.upper {
        Some(path) => Some(open_dir(path)?),
        None => None,
    };
    let stack = stack(dirs)?;
    let work = match (&stack, &upper) {
        (Stack::Overlay(_), Some(_)) => Some(Work(open_dir(work_dir(dirs)?)?)),
        _ => None,
    };
    let merged = matches!(stack, Stack::Overlay(_) | Stack::Single(_));
    let attrs = if upper.is_some() { attrs } else { attrs | attr::RDONLY };
    let failed = |error: io::Error| explain(dirs, &error);
    let mount = match stack {
        Stack::Empty => mnt::tmpfs(4096, 0o755, attrs).map_err(failed)?,
        Stack::Upper(_) | Stack::Single(_) => {
            let place = match (&stack, &upper) {
                (Stack::Single(name), _) => open_dir(&dirs.base.join(name))?,
                (_, Some(upper)) => upper.try_clone().map_err(failed)?,
                (_, None) => {
                    return Err(PortError::new(ErrorKind::Internal, "an upper directory is missing"));
                }
            };
            let mount = mnt::bind(place.as_fd()).map_err(failed)?;
            mnt::set_attributes(mount.as_fd(), attrs, false).map_err(failed)?;
            mount
        }
        Stack::Overlay(lower) => {
            let options = options(upper.is_some(), user_namespace);
            match overlay(dirs, &lower, upper.as_ref().map(AsFd::as_fd), &options, attrs)? {
                Some(mount) => mount,
                None => classic(dirs, &lower, &options, attrs)?,
            }
        }
    };
    Ok(Tree { mount, upper, work, merged })
}

/// What to stack. A layer that occurs twice counts where it is highest: what it says below is said again above.
fn stack(dirs: &OverlayDirs) -> Result<Stack<'_>> {
    let mut lower: Vec<&str> = Vec::with_capacity(dirs.lower.len());
    for name in dirs.lower.iter().rev() {
        if !lower.contains(&name.as_str()) {
            lower.push(name);
        }
    }
    if lower.len() > MAX_LAYERS {
        let text = format!("{} layers are too many: the kernel stacks at most {MAX_LAYERS}", lower.len());
        return Err(PortError::new(ErrorKind::Unsupported, text)
            .help("join RUN instructions, or copy the result of one stage into another"));
    }
    Ok(match (lower.as_slice(), &dirs.upper) {
        ([], None) => Stack::Empty,
        ([], Some(upper)) => Stack::Upper(upper),
        ([single], None) => Stack::Single(single),
        _ => Stack::Overlay(lower),
    })
}

/// Keys and values; an empty value is a flag. Everything that would make a layer depend on others than its own
/// content is off. Syncing is the business of whoever commits the upper directory.
fn options(writable: bool, user_namespace: bool) -> Vec<(&'static str, &'static str)> {
    let mut out = vec![("redirect_dir", "nofollow"), ("metacopy", "off")];
    if writable {
        out.push(("index", "off"));
        out.push(("volatile", ""));
    }
    if user_namespace {
        out.push(("userxattr", ""));
    }
    out
}

/// Mounts by descriptor, so that neither the number of layers nor any character in a path matters. `None` when this
/// kernel is too old for it.
fn overlay(
    dirs: &OverlayDirs,
    lower: &[&str],
    upper: Option<BorrowedFd<'_>>,
    options: &[(&str, &str)],
    attrs: u64,
) -> Result<Option<OwnedFd>> {
    let failed = |error: io::Error| explain(dirs, &error);
    let base = open_dir(&dirs.base)?;
    let context = Context::new("overlay").map_err(failed)?;
    for (n, name) in lower.iter().enumerate() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layer = rustix::fs::openat(&base, *name, flags, Mode::empty())
            .map_err(|error| PortError::io("open", dirs.base.join(name), error))?;
        match context.set("lowerdir+", &by_fd(layer.as_fd())) {
            Err(error) if n == 0 && error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            result => result.map_err(|error| failed(context.explain(error)))?,
        }
    }
    if let Some(upper) = upper {
        let work = open_dir(work_dir(dirs)?)?;
        for (key, dir) in [("upperdir", upper), ("workdir", work.as_fd())] {
            context.set(key, &by_fd(dir)).map_err(|error| failed(context.explain(error)))?;
        }
    }
    for (key, value) in options {
        let result = if value.is_empty() { context.flag(key) } else { context.set(key, value) };
        result.map_err(|error| failed(context.explain(error)))?;
    }
    context.mount(attrs).map(Some).map_err(failed)
}

/// Mounts by names relative to the base directory, for kernels before 6.8.
fn classic(dirs: &OverlayDirs, lower: &[&str], options: &[(&str, &str)], attrs: u64) -> Result<OwnedFd> {
    let text = classic_options(dirs, lower, options)?;
    let nul = |_| PortError::new(ErrorKind::Invalid, "a store path contains a NUL byte");
    let base = CString::new(dirs.base.as_os_str().as_encoded_bytes()).map_err(nul)?;
    let text = CString::new(text).map_err(nul)?;
    mnt::classic_overlay(&base, &text, attrs).map_err(|error| explain(dirs, &error))
}

fn classic_options(dirs: &OverlayDirs, lower: &[&str], options: &[(&str, &str)]) -> Result<Vec<u8>> {
    let escape = |out: &mut Vec<u8>, path: &[u8]| {
        for byte in path {
            if matches!(byte, b'\\' | b',' | b':') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
    };
    let mut out = b"lowerdir=".to_vec();
    for (n, name) in lower.iter().enumerate() {
        if n > 0 {
            out.push(b':');
        }
        escape(&mut out, name.as_bytes());
    }
    if let Some(upper) = &dirs.upper {
        for (key, path) in [(",upperdir=", upper.as_path()), (",workdir=", work_dir(dirs)?)] {
            out.extend_from_slice(key.as_bytes());
            escape(&mut out, path.as_os_str().as_encoded_bytes());
        }
    }
    for (key, value) in options {
        out.push(b',');
        out.extend_from_slice(key.as_bytes());
        if !value.is_empty() {
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
        }
    }
    if out.len() >= 4095 {
        let text = format!("{} layers are too many for this kernel", lower.len());
        return Err(PortError::new(ErrorKind::Unsupported, text)
            .help("Linux 6.8 and later stack up to 500; here, use fewer instructions or a store with a shorter path"));
    }
    Ok(out)
}

fn work_dir(dirs: &OverlayDirs) -> Result<&Path> {
    dirs.work
        .as_deref()
        .ok_or_else(|| PortError::new(ErrorKind::Internal, "an upper directory without a work directory"))
}

/// A path that leads to an open directory: short, without special characters, and shown as such in the step's
/// mount table instead of the store's path.
fn by_fd(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// Opens a directory of the store as a place.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| PortError::io("open", path, error))
}

fn explain(dirs: &OverlayDirs, error: &io::Error) -> PortError {
    let text = format!("cannot mount the layers in {}: {}", dirs.base.display(), mnt::plain(error));
    let help = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "rbuild needs to mount file systems: run it as root with all capabilities (`docker run --privileged`), or as an \
             ordinary user on a kernel of at least 5.11 that allows user namespaces"
        }
        Some(libc::ENODEV) => "this kernel has no overlay file system: load it with `modprobe overlay`",
        Some(libc::ENOSYS) => "rbuild needs Linux 5.12 or later, and to be allowed to use its mount calls",
        _ => {
            "the store must be on a file system that overlayfs can write to (ext4, xfs, btrfs, tmpfs), not on overlayfs itself or NFS"
        }
    };
    PortError::new(ErrorKind::Unsupported, text).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn dirs(lower: &[&str], upper: bool) -> OverlayDirs {
        OverlayDirs {
            base: PathBuf::from("/store"),
            lower: lower.iter().map(|&name| name.to_owned()).collect(),
            upper: upper.then(|| PathBuf::from("/store/a,b/u")),
            work: upper.then(|| PathBuf::from("/store/a:b/w")),
        }
    }

    #[test]
    fn stacks() {
        let check = |lower: &[&str], upper: bool, expected: Stack<'_>| {
            assert_eq!(stack(&dirs(lower, upper)).unwrap(), expected, "{lower:?} {upper}");
        };
        check(&[], false, Stack::Empty);
        check(&[], true, Stack::Upper(Path::new("/store/a,b/u")));
        check(&["a"], false, Stack::Single("a"));
        check(&["a"], true, Stack::Overlay(vec!["a"]));
        check(&["a", "b"], false, Stack::Overlay(vec!["b", "a"]));
        check(&["a", "b", "a"], false, Stack::Overlay(vec!["a", "b"]));
        check(&["a", "a"], false, Stack::Single("a"));
        let many: Vec<String> = (0..501).map(|n| n.to_string()).collect();
        let many = OverlayDirs { lower: many, ..dirs(&[], true) };
        assert!(stack(&many).unwrap_err().message.contains("501 layers are too many"));
    }

    /// What is done on kernels that know only the old ways, here on the new one.
    #[test]
    fn ways_for_older_kernels() {
        use std::fs;
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "mounting needs root here");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..150).map(|n| format!("layer{n}")).collect();
        for name in &names {
            fs::create_dir_all(temp.path().join(name).join("sub")).unwrap();
            fs::write(temp.path().join(name).join("sub").join(name), name).unwrap();
        }
        let [upper, work] = ["up,per", "wo:rk"].map(|name| temp.path().join(name));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let dirs = OverlayDirs {
            base: temp.path().into(),
            lower: names,
            upper: Some(upper.clone()),
            work: Some(work),
        };
        let Stack::Overlay(lower) = stack(&dirs).unwrap() else { panic!("no overlay") };
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = classic(&dirs, &lower, &options(true, false), attr::NODEV).unwrap();
        let sub = mnt::open_inside(mount.as_fd(), "sub").unwrap();
        drop(mnt::put_file(sub.as_fd(), "made", b"x", 0o600, (0, 0)).unwrap());
        let part = mnt::bind_attached(mount, sub.as_fd()).unwrap();
        let read = |name: &str| fs::read_to_string(format!("{}/{name}", by_fd(part.as_fd()))).unwrap();
        assert_eq!(
            (read("layer0"), read("layer149"), read("made")),
            ("layer0".into(), "layer149".into(), "x".into())
        );
        assert_eq!(fs::read_to_string(upper.join("sub/made")).unwrap(), "x");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }

    #[test]
    fn classic_option_strings() {
        let some = dirs(&["a", "b"], true);
        let text = classic_options(&some, &["b", "a"], &options(true, true)).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "lowerdir=b:a,upperdir=/store/a\\,b/u,workdir=/store/a\\:b/w,redirect_dir=nofollow,metacopy=off,\
             index=off,volatile,userxattr"
        );
        let many: Vec<String> = (0..300).map(|n| format!("layer{n:013}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(classic_options(&some, &many, &[]).is_err());
        assert!(classic_options(&some, many.get(..200).unwrap(), &options(true, false)).is_ok());
    }
}
