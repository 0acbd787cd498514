//! Runs the git program: without the user's and the system's configuration, without questions, hooks and other protocols than
//! those of addresses, and never for ever.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use rbuild_ports::{CancelToken, ErrorKind, PortError, Progress, Result, Stream};

/// A git that says nothing for so long is stuck.
const SILENCE: Duration = Duration::from_secs(180);
/// No listing of references is longer.
const MAX_OUTPUT: usize = 256 << 20;
/// What is kept of its complaints.
const MAX_COMPLAINT: usize = 16 << 10;

/// Variables that would lead git elsewhere.
const UNSET: [&str; 20] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CEILING_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_TEMPLATE_DIR",
    "GIT_SSH",
    "GIT_SSH_VARIANT",
    "GIT_ASKPASS",
    "SSH_ASKPASS",
    "GIT_EDITOR",
    "GIT_EXTERNAL_DIFF",
    "GIT_TRACE",
    "SSH_AUTH_SOCK",
];

/// Settings that hold for every call. Nothing of a fetched repository may run, and files have the bytes that were committed.
const SETTINGS: [(&str, &str); 11] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("core.fsync", "none"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("advice.detachedHead", "false"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "120"),
];

/// How to reach a server.
#[derive(Clone, Default)]
pub(super) struct Access {
    /// An `Authorization` header's value for addresses that begin with the prefix.
    pub(super) header: Option<(String, String)>,
    /// The socket of an ssh agent.
    pub(super) agent: Option<std::path::PathBuf>,
}

/// What git did.
pub(super) struct Done {
    status: ExitStatus,
    /// Its standard output.
    pub(super) output: String,
    complaint: String,
}

impl Done {
    pub(super) fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// What it said was wrong, in one line.
    pub(super) fn complaint(&self) -> String {
        let lines: Vec<&str> = self
            .complaint
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|line| {
                line.starts_with("fatal:") || line.starts_with("error:") || line.starts_with("remote:")
            })
            .collect();
        let said = if lines.is_empty() { self.complaint.trim().to_owned() } else { lines.join("; ") };
        said.replace('\n', "; ")
    }
}

/// Runs git in `dir`.
///
/// # Errors
/// If there is no git, it hangs, or the build is cancelled. That it fails is in the result.
pub(super) fn git(
    dir: &Path,
    args: &[&str],
    access: &Access,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Done> {
    cancel.check()?;
    let mut child = command(dir, args, access).spawn().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            PortError::new(ErrorKind::Unsupported, "there is no git program, which git sources need")
                .help("install git")
        } else {
            PortError::io("run", "git", error)
        }
    })?;
    let group = rustix::process::Pid::from_child(&child);
    let _guard = cancel.on_cancel(move || {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    });
    let read = read_all(&mut child, progress);
    if read.is_err() {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let status = child.wait().map_err(|error| PortError::io("wait for", "git", error))?;
    cancel.check()?;
    let (output, complaint) = read?;
    Ok(Done { status, output, complaint })
}

fn command(dir: &Path, args: &[&str], access: &Access) -> Command {
    let mut command = Command::new("git");
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    for name in UNSET {
        command.env_remove(name);
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ALLOW_PROTOCOL", "git:http:https:ssh")
        .env("GIT_LFS_SKIP_SMUDGE", "1")
        .env("LC_ALL", "C")
        .env(
            "GIT_SSH_COMMAND",
            "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=30 -o ServerAliveInterval=30",
        );
    if let Some(agent) = &access.agent {
        command.env("SSH_AUTH_SOCK", agent);
    }
    // By the environment, which other users cannot read, as they can arguments.
    let header = access
        .header
        .as_ref()
        .map(|(prefix, value)| (format!("http.{prefix}.extraheader"), format!("Authorization: {value}")));
    let fixed = SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let settings: Vec<(String, String)> = fixed.chain(header).collect();
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (i, (key, value)) in settings.into_iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{i}"), key).env(format!("GIT_CONFIG_VALUE_{i}"), value);
    }
    command
}

/// A piece of what git says; `true` is standard error.
type Piece = (bool, Vec<u8>);

fn read_all(child: &mut Child, progress: &dyn Progress) -> Result<(String, String)> {
    let (send, receive) = mpsc::channel::<Piece>();
    let out = child.stdout.take();
    let err = child.stderr.take();
    // They end when git and all that it started have closed their ends, which killing the group brings about.
    if let Some(out) = out {
        forward(out, false, send.clone());
    }
    if let Some(err) = err {
        forward(err, true, send);
    }
    collect(&receive, progress)
}

fn forward(mut from: impl Read + Send + 'static, error: bool, to: mpsc::Sender<Piece>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(n) = from.read(&mut buffer) {
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            if to.send((error, bytes.to_vec())).is_err() {
                break;
            }
        }
    });
}

fn collect(receive: &Receiver<Piece>, progress: &dyn Progress) -> Result<(String, String)> {
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    loop {
        match receive.recv_timeout(SILENCE) {
            Ok((true, bytes)) => {
                progress.log(Stream::Stderr, &bytes);
                complaint.extend_from_slice(&bytes);
                if complaint.len() > 2 * MAX_COMPLAINT {
                    complaint.drain(..complaint.len() - MAX_COMPLAINT);
                }
            }
            Ok((false, bytes)) => {
                output.extend_from_slice(&bytes);
                if output.len() > MAX_OUTPUT {
                    return Err(PortError::new(ErrorKind::Invalid, "git printed far too much"));
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return Err(PortError::new(
                    ErrorKind::Network,
                    format!("the git server has been silent for {} seconds", SILENCE.as_secs()),
                ));
            }
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((text(output), text(complaint)))
}
