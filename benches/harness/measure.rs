//! Running commands and measuring them: wall time from start to exit, peak memory as the kernel counted it. Knows no
//! engine. Output goes to a file, so that nobody waits for a reader.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{BenchError, Doing as _, Result, tail};
use crate::stop;

/// A command line.
#[derive(Clone, Debug)]
pub(crate) struct Invocation {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, OsString)>,
}

impl Invocation {
    pub(crate) fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), args: Vec::new(), envs: Vec::new() }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = self.program.display().to_string();
        for arg in &self.args {
            out.push(' ');
            out.push_str(&arg.to_string_lossy());
        }
        out
    }
}

/// What a command, or several one after the other, did.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// From the first one's start to the last one's exit.
    pub(crate) seconds: f64,
    /// Largest resident set of any one process among the commands and their descendants, if it can be known.
    pub(crate) peak_kib: Option<u64>,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
    /// All they printed.
    pub(crate) log: String,
}

/// Runs commands in a fixed environment.
pub(crate) struct Runner {
    scratch: PathBuf,
    timeout: Duration,
    time: Option<PathBuf>,
}

impl Runner {
    /// Commands see `scratch` as their home and keep their temporary files there.
    pub(crate) fn new(scratch: &Path, timeout: Duration) -> Result<Self> {
        for folder in ["home", "tmp", "logs"] {
            let path = scratch.join(folder);
            fs::create_dir_all(&path).doing("create", &path)?;
        }
        Ok(Self { scratch: scratch.to_owned(), timeout, time: gnu_time() })
    }

    /// Whether peaks of memory can be known.
    pub(crate) fn knows_memory(&self) -> bool {
        self.time.is_some()
    }

    /// Runs the commands one after the other, up to the first that fails.
    pub(crate) fn timed(&self, invocations: &[Invocation]) -> Result<Outcome> {
        let log_path = self.scratch.join("logs/current.log");
        let peak_path = self.scratch.join("logs/peak");
        let mut out = Outcome { seconds: 0.0, peak_kib: None, failure: None, log: String::new() };
        for invocation in invocations {
            let mut command = self.command(invocation, &log_path, Some(&peak_path))?;
            let start = Instant::now();
            let child = command.spawn().doing("start", &invocation.program)?;
            let failure = self.wait(child)?;
            out.seconds += start.elapsed().as_secs_f64();
            out.log.push_str(&read_lossy(&log_path)?);
            out.peak_kib = out.peak_kib.max(self.time.as_ref().and_then(|_| read_peak(&peak_path)));
            if failure.is_some() {
                out.failure = failure;
                break;
            }
        }
        Ok(out)
    }

    /// Runs a command that must succeed and gives what it printed.
    pub(crate) fn run(&self, invocation: &Invocation) -> Result<String> {
        let log_path = self.scratch.join("logs/tool.log");
        let mut command = self.command(invocation, &log_path, None)?;
        let child = command.spawn().doing("start", &invocation.program)?;
        let failure = self.wait(child)?;
        let log = read_lossy(&log_path)?;
        match failure {
            None => Ok(log),
            Some(status) => {
                Err(BenchError::Tool { command: invocation.text(), status, tail: tail(&log, 12) })
            }
        }
    }

    /// Starts a daemon; it ends when the value is dropped.
    pub(crate) fn daemon(&self, invocation: &Invocation, log_name: &str) -> Result<Daemon> {
        let log = self.scratch.join("logs").join(log_name);
        let mut command = self.command(invocation, &log, None)?;
        let child = command.spawn().doing("start", &invocation.program)?;
        Ok(Daemon { child, log })
    }

    fn command(&self, invocation: &Invocation, log: &Path, peak: Option<&Path>) -> Result<Command> {
        use std::os::unix::process::CommandExt as _;
        let out = File::create(log).doing("create", log)?;
        let err = out.try_clone().doing("open", log)?;
        let mut command = match (&self.time, peak) {
            (Some(time), Some(peak)) => {
                let mut command = Command::new(time);
                command.args(["-q", "-f", "%M", "-o"]).arg(peak).arg(&invocation.program);
                command
            }
            _ => Command::new(&invocation.program),
        };
        command
            .args(&invocation.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.scratch.join("home"))
            .env("TMPDIR", self.scratch.join("tmp"))
            .env("LANG", "C.UTF-8")
            .envs(invocation.envs.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.scratch)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        for name in ["XDG_RUNTIME_DIR", "http_proxy", "https_proxy", "no_proxy"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Ok(command)
    }

    /// Waits for the end; `None` is success. What takes too long is ended.
    fn wait(&self, mut child: Child) -> Result<Option<String>> {
        let group = child.id();
        stop::enter(group);
        let (done, alarm) = channel::<()>();
        let timeout = self.timeout;
        let watchdog = std::thread::spawn(move || {
            let late = alarm.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
            if late {
                stop::kill_group(i32::try_from(group).unwrap_or(0), Signal::KILL);
            }
            late
        });
        let status = child.wait();
        drop(done);
        stop::leave();
        let late = watchdog.join().unwrap_or(false);
        if stop::stopped() {
            return Err(BenchError::Interrupted);
        }
        let status =
            status.map_err(|source| BenchError::Io { doing: "cannot wait for a command".into(), source })?;
        Ok(match (status.success(), late) {
            (true, _) => None,
            (false, true) => Some(format!("took longer than {} s", timeout.as_secs())),
            (false, false) => Some(status.to_string()),
        })
    }
}

/// A process that runs beside the samples.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log, if it is not running any more.
    pub(crate) fn check(&mut self, name: &str) -> Result<()> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(BenchError::Tool {
                command: name.to_owned(),
                status: status.to_string(),
                tail: tail(&read_lossy(&self.log)?, 12),
            }),
            _ => Ok(()),
        }
    }

    /// Waits until `ready` says so.
    pub(crate) fn wait_until(
        &mut self,
        name: &str,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        while !ready() {
            self.check(name)?;
            if stop::stopped() {
                return Err(BenchError::Interrupted);
            }
            if Instant::now() > end {
                return Err(BenchError::Other(format!("{name} was not ready after {} s", limit.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).unwrap_or(0);
        for signal in [Signal::TERM, Signal::KILL] {
            if let Some(pid) = rustix::process::Pid::from_raw(group) {
                let _gone = rustix::process::kill_process(pid, signal);
            }
            for _ in 0..200 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Finds a program in `PATH`.
pub(crate) fn find_all(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .filter(|path| path.is_file())
        .collect()
}

/// The first of them.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    find_all(name).into_iter().next()
}

/// GNU time: a parent so small that its own size does not count, which asks the kernel for its child's peak.
fn gnu_time() -> Option<PathBuf> {
    find_all("time").into_iter().find(|path| {
        let output = Command::new(path).arg("--version").output();
        output.is_ok_and(|out| [out.stdout, out.stderr].concat().windows(3).any(|word| word == b"GNU"))
    })
}

fn read_peak(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.lines().last()?.trim().parse().ok()
}

fn read_lossy(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path).doing("read", path)?).into_owned())
}

/// Forgets the peak of a running process, so that the next look tells what came after. Needs the right to.
pub(crate) fn reset_peak(pid: u32) -> bool {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok()
}

/// The peak of a running process's resident set in KiB.
pub(crate) fn daemon_peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(dir: &Path) -> Runner {
        Runner::new(dir, Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn a_command_is_timed_and_its_output_kept() {
        let dir = tempfile::tempdir().unwrap();
        let sh = |script: &str| Invocation::new(Path::new("/bin/sh")).args(["-c", script]);
        let outcome = runner(dir.path()).timed(&[sh("echo one; sleep 0.1"), sh("echo two >&2")]).unwrap();
        assert_eq!((outcome.log.as_str(), outcome.failure), ("one\ntwo\n", None));
        assert!((0.1..10.0).contains(&outcome.seconds), "{}", outcome.seconds);
        if gnu_time().is_some() {
            assert!(
                outcome.peak_kib.is_some_and(|kib| (100..100_000).contains(&kib)),
                "{:?}",
                outcome.peak_kib
            );
        }
    }

    #[test]
    fn the_first_failure_ends_the_sample() {
        let dir = tempfile::tempdir().unwrap();
        let sh = |script: &str| Invocation::new(Path::new("/bin/sh")).args(["-c", script]);
        let outcome = runner(dir.path()).timed(&[sh("exit 3"), sh("echo never")]).unwrap();
        assert!(outcome.failure.is_some_and(|text| text.contains('3')));
        assert_eq!(outcome.log, "");
        let error = runner(dir.path()).run(&sh("echo why; exit 1")).unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
    }

    #[test]
    fn what_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let runner = Runner::new(dir.path(), Duration::from_millis(200)).unwrap();
        let outcome = runner.timed(&[Invocation::new(Path::new("/bin/sleep")).arg("30")]).unwrap();
        assert!(outcome.failure.is_some_and(|text| text.contains("longer")));
        assert!(outcome.seconds < 10.0);
    }

    #[test]
    fn the_peak_of_a_process_can_be_read() {
        assert!(daemon_peak(std::process::id()).is_some_and(|kib| kib > 100));
        assert_eq!(daemon_peak(u32::MAX), None);
    }
}
