//! A directory with layers, requests on it, and a look at what is left afterwards.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rbuild_graph::{NetMode, ProxyEnv, SecurityMode};
use rbuild_ports::{
    CancelToken, DeviceEdits, ExecMount, ExecOutcome, ExecRequest, Executor, MountSource, OverlayDirs,
    PortError, Progress, Stream,
};
use rbuild_sandbox::{Sandbox, SandboxOptions};
use tempfile::TempDir;

/// Programs of busybox that tests use.
const PROGRAMS: &str = "sh cat chmod chown cp date dd echo env false find head hostname id kill ln ls mkdir mknod mkfifo \
    mount mv nc nproc ping pwd readlink rm rmdir sed sleep sort stat su tail test touch true umount wc wget yes";

/// One test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// A root of busybox, and a place for changes.
pub(crate) struct Space {
    pub(crate) sandbox: Sandbox,
    pub(crate) dir: TempDir,
    lower: Vec<String>,
    before: Traces,
    _alone: MutexGuard<'static, ()>,
}

/// What came of a step.
pub(crate) struct Ran {
    pub(crate) outcome: ExecOutcome,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) warnings: Vec<String>,
}

/// Whether steps can run here; says why not, and fails when they must.
pub(crate) fn possible() -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "needs root"
    } else if !Path::new("/bin/busybox").exists() {
        "needs /bin/busybox (package busybox-static)"
    } else {
        return true;
    };
    assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "this test must run here, but {why}");
    eprintln!("skipped: {why}");
    false
}

impl Space {
    /// `None` where steps cannot run.
    pub(crate) fn new() -> Option<Self> {
        if !possible() {
            return None;
        }
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("base");
        make_root(&root);
        let sandbox = Sandbox::new(SandboxOptions::recommended());
        Some(Self { sandbox, dir, lower: vec!["base".to_owned()], before: Traces::now(), _alone: alone })
    }

    /// The base layer.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    /// Where changes of the last request went.
    pub(crate) fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// One more layer on top.
    pub(crate) fn layer(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        self.lower.push(name.to_owned());
        path
    }

    /// A shell command on the layers, with a fresh place for changes.
    pub(crate) fn sh(&self, script: &str) -> ExecRequest {
        self.command(&["/bin/sh", "-c", script])
    }

    /// A command on the layers, with a fresh place for changes.
    pub(crate) fn command(&self, args: &[&str]) -> ExecRequest {
        let root = self.changes("");
        ExecRequest {
            id: "test".to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: Vec::new(),
            secret_env: Vec::new(),
            proxy_env: ProxyEnv::default(),
            cwd: "/".to_owned(),
            user: String::new(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            network: NetMode::None,
            security: SecurityMode::Sandbox,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            root,
            root_readonly: false,
            mounts: Vec::new(),
            devices: DeviceEdits::default(),
        }
    }

    /// The layers with a fresh `upper<suffix>`.
    pub(crate) fn changes(&self, suffix: &str) -> OverlayDirs {
        let [upper, work] = ["upper", "work"].map(|name| {
            let path = self.dir.path().join(format!("{name}{suffix}"));
            let _absent = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            path
        });
        OverlayDirs {
            base: self.dir.path().to_owned(),
            lower: self.lower.clone(),
            upper: Some(upper),
            work: Some(work),
        }
    }

    pub(crate) fn try_run(&self, request: &ExecRequest) -> Result<Ran, PortError> {
        let log = Log::default();
        let outcome = self.sandbox.run(request, &log, &CancelToken::new())?;
        Ok(log.ran(outcome))
    }

    pub(crate) fn run(&self, request: &ExecRequest) -> Ran {
        match self.try_run(request) {
            Ok(ran) => ran,
            Err(error) => panic!("{error} ({:?})", error.help),
        }
    }

    /// Runs a script that must succeed; returns what it printed.
    pub(crate) fn output(&self, script: &str) -> String {
        self.run(&self.sh(script)).success()
    }

    /// The error of a request that must not run.
    pub(crate) fn refused(&self, request: &ExecRequest) -> PortError {
        match self.try_run(request) {
            Ok(ran) => panic!("it ran: {:?} {}{}", ran.outcome, ran.stdout, ran.stderr),
            Err(error) => error,
        }
    }

    /// Every path that changed, sorted.
    pub(crate) fn changed(&self) -> Vec<String> {
        let upper = self.upper();
        let mut out: Vec<String> = paths(&upper)
            .iter()
            .map(|path| path.strip_prefix(&upper).unwrap().display().to_string())
            .collect();
        out.sort();
        out
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.sandbox = Sandbox::new(SandboxOptions::recommended());
        if std::thread::panicking() {
            return;
        }
        for _ in 0..100 {
            if Traces::now() == self.before {
                return;
            }
            // Devices of networks go in the background.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(Traces::now(), self.before, "something is left");
    }
}

impl Ran {
    /// Standard output of a step that must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.outcome, ExecOutcome::Exited(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Collects what a step says.
#[derive(Default)]
pub(crate) struct Log {
    out: Mutex<[Vec<u8>; 2]>,
    warnings: Mutex<Vec<String>>,
}

impl Log {
    pub(crate) fn ran(&self, outcome: ExecOutcome) -> Ran {
        let out = self.out.lock().unwrap();
        let text = |n: usize| String::from_utf8_lossy(&out[n]).into_owned();
        Ran { outcome, stdout: text(0), stderr: text(1), warnings: self.warnings.lock().unwrap().clone() }
    }

    /// Whether standard output has this by now.
    pub(crate) fn has(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.out.lock().unwrap()[0]).contains(text)
    }
}

impl Progress for Log {
    fn log(&self, stream: Stream, data: &[u8]) {
        self.out.lock().unwrap()[usize::from(stream == Stream::Stderr)].extend_from_slice(data);
    }

    fn status(&self, _id: &str, _current: u64, _total: Option<u64>, _done: bool) {}

    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
}

/// What a step could leave behind.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Traces {
    mounts: Vec<String>,
    children: BTreeSet<String>,
    devices: BTreeSet<String>,
    descriptors: usize,
}

impl Traces {
    pub(crate) fn now() -> Self {
        let own = std::process::id().to_string();
        let children = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
            .filter(|stat| {
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split(' ').nth(2) == Some(&own))
            })
            .collect();
        // Ours are mounted from descriptors; other mounts of this machine come and go.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        Self {
            mounts: mounts
                .lines()
                .filter(|line| line.contains("/proc/self/fd/"))
                .map(str::to_owned)
                .collect(),
            children,
            devices: devices(std::process::id()),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

/// Network devices that steps of this process have.
pub(crate) fn devices(process: u32) -> BTreeSet<String> {
    let prefix = format!("rb{process:x}.");
    let text = fs::read_to_string("/proc/net/dev").unwrap();
    let names = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

fn make_root(root: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for program in PROGRAMS.split_whitespace() {
        symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nwheel:x:10:root,app\nstaff:x:50:app\napp:x:1000:\n")
        .unwrap();
}

/// Everything below a directory, not following links.
pub(crate) fn paths(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            out.push(entry.path());
        }
    }
    out
}

/// Every path with everything about it that a layer would show.
pub(crate) fn listing(dir: &Path) -> String {
    let mut out = String::new();
    let mut all = paths(dir);
    all.sort();
    for path in [dir.to_owned()].into_iter().chain(all) {
        let meta = fs::symlink_metadata(&path).unwrap();
        let (sec, nsec) = (meta.mtime(), meta.mtime_nsec());
        writeln!(out, "{} {:o} {}:{} {sec}.{nsec}", path.display(), meta.mode(), meta.uid(), meta.gid())
            .unwrap();
    }
    out
}

/// Makes programs of the host work in a step, with the example as `/probe/step`.
pub(crate) fn lend_programs(request: &mut ExecRequest) {
    request.mounts.push(mount("/probe", true, MountSource::Dir(example().parent().unwrap().to_owned())));
    for dir in ["/lib", "/lib64", "/usr/lib", "/usr/lib64"] {
        if Path::new(dir).is_dir() {
            request.mounts.push(mount(dir, true, MountSource::Dir(dir.into())));
        }
    }
}

pub(crate) fn mount(dest: &str, readonly: bool, source: MountSource) -> ExecMount {
    ExecMount { dest: dest.to_owned(), readonly, selector: String::new(), source }
}

/// The example program, which `cargo test` builds beside the tests.
pub(crate) fn example() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let path = own.parent().unwrap().parent().unwrap().join("examples/step");
        assert!(
            path.exists(),
            "{} is missing; build it with: cargo build -p rbuild-sandbox --examples",
            path.display()
        );
        path
    })
}
