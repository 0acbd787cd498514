//! What a request amounts to, as plain data: environment, places to look for the command, limits, mounts in order.
//! Pure.

use std::ffi::CString;

use rbuild_graph::ProxyEnv;
use rbuild_ports::{
    DeviceNode, ErrorKind, ExecMount, ExecRequest, HostMount, PortError, Result, SecretBytes,
};

use crate::descriptors::started_with;
use crate::etc_files::HOSTNAME;

/// Where commands are looked for when nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command, ready for `execve`.
#[derive(Debug)]
pub(crate) struct Command {
    /// Where it may be.
    pub(crate) candidates: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

/// A mount, in the order they are made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mount<'a> {
    Proc,
    Sys,
    Dev,
    Hosts,
    ResolvConf,
    Node(&'a DeviceNode),
    Host(&'a HostMount),
    User(&'a ExecMount),
}

impl Mount<'_> {
    /// Where it goes.
    pub(crate) fn dest(&self) -> &str {
        match self {
            Mount::Proc => "/proc",
            Mount::Sys => "/sys",
            Mount::Dev => "/dev",
            Mount::Hosts => "/etc/hosts",
            Mount::ResolvConf => "/etc/resolv.conf",
            Mount::Node(node) => &node.path,
            Mount::Host(mount) => &mount.dest,
            Mount::User(mount) => &mount.dest,
        }
    }
}

/// All mounts of a step. What the user asks for comes last, so that it may replace what the sandbox brings.
pub(crate) fn mounts(request: &ExecRequest) -> Result<Vec<Mount<'_>>> {
    let mut out = vec![Mount::Proc, Mount::Sys, Mount::Dev, Mount::Hosts, Mount::ResolvConf];
    for mount in &request.mounts {
        check_dest(&mount.dest)?;
        no_nul(&mount.selector)?;
        out.push(Mount::User(mount));
    }
    for node in &request.devices.nodes {
        check_dest(&node.path)?;
        out.push(Mount::Node(node));
    }
    let mut mounts: Vec<&HostMount> = request.devices.mounts.iter().collect();
    mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
    for mount in mounts {
        check_dest(&mount.dest)?;
        out.push(Mount::Host(mount));
    }
    Ok(out)
}

fn check_dest(dest: &str) -> Result<()> {
    if !dest.starts_with('/') || dest.split('/').all(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(format!("cannot mount on {dest:?}: it must be an absolute path below /")));
    }
    no_nul(dest)
}

/// The command with its environment. `home` is the user's.
pub(crate) fn command(request: &ExecRequest, home: &str) -> Result<Command> {
    let Some(name) = request.args.first().filter(|name| !name.is_empty()) else {
        return Err(
            invalid("there is no command to run").help("name a program: RUN [\"program\", \"argument\"]")
        );
    };
    let env = environment(request, home)?;
    let path = env.iter().find_map(|(name, value)| (name == "PATH").then_some(value.0.as_slice()));
    let candidates = candidates(name, path.unwrap_or_default());
    let strings = |list: Vec<Vec<u8>>, what: &str| {
        let nul = |_| invalid(format!("{what} contains a NUL byte"));
        list.into_iter().map(|text| CString::new(text).map_err(nul)).collect::<Result<Vec<_>>>()
    };
    let env = env.into_iter().map(|(name, value)| [name.as_bytes(), b"=", &value.0].concat()).collect();
    Ok(Command {
        candidates: strings(candidates, "the command")?,
        args: strings(request.args.iter().map(|arg| arg.clone().into_bytes()).collect(), "an argument")?,
        env: strings(env, "the environment")?,
    })
}

/// Names and values in the order of their first assignment; of several the last one counts.
fn environment(request: &ExecRequest, home: &str) -> Result<Vec<(String, SecretBytes)>> {
    let mut out: Vec<(String, SecretBytes)> = Vec::with_capacity(request.env.len() + 8);
    let mut set = |name: &str, value: &[u8]| match out.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = SecretBytes(value.to_vec()),
        None => out.push((name.to_owned(), SecretBytes(value.to_vec()))),
    };
    for variable in request.env.iter().chain(&request.devices.env) {
        // Some images have entries that are no assignments. They mean nothing; never the host's value.
        if let Some((name, value)) = variable.split_once('=')
            && !name.is_empty()
        {
            set(name, value.as_bytes());
        }
    }
    for (name, value) in &request.secret_env {
        if name.is_empty() || name.contains('=') {
            return Err(invalid(format!("{name:?} is no name for an environment variable")));
        }
        set(name, &value.0);
    }
    let mut default = |name: &str, value: &str| {
        if !value.is_empty()
            && !out.iter().any(|(known, value)| known == name && !(name == "HOME" && value.0.is_empty()))
        {
            out.retain(|(known, _)| known != name);
            out.push((name.to_owned(), SecretBytes(value.as_bytes().to_vec())));
        }
    };
    let ProxyEnv { http_proxy, https_proxy, ftp_proxy, no_proxy, all_proxy } = &request.proxy_env;
    for (name, value) in [
        ("HTTP_PROXY", http_proxy),
        ("HTTPS_PROXY", https_proxy),
        ("FTP_PROXY", ftp_proxy),
        ("NO_PROXY", no_proxy),
        ("ALL_PROXY", all_proxy),
    ] {
        default(name, value);
        default(&name.to_ascii_lowercase(), value);
    }
    default("PATH", DEFAULT_PATH);
    default("HOME", home);
    Ok(out)
}

/// As a shell looks for it, but never in the current directory.
fn candidates(name: &str, path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains('/') {
        return vec![name.as_bytes().to_vec()];
    }
    let dirs = path.split(|b| *b == b':').filter(|dir| dir.first() == Some(&b'/'));
    dirs.map(|dir| [dir, b"/", name.as_bytes()].concat()).collect()
}

/// The host name.
pub(crate) fn hostname(request: &ExecRequest) -> Result<&str> {
    let name = if request.hostname.is_empty() { HOSTNAME } else { &request.hostname };
    no_nul(name)?;
    if name.len() > 64 {
        return Err(invalid(format!("the host name {name:?} is longer than 64 bytes")));
    }
    Ok(name)
}

/// Resource limits: number, and what to set it to.
pub(crate) fn limits(request: &ExecRequest) -> Result<Vec<(u32, libc::rlimit64)>> {
    const NAMES: [(&str, u32); 15] = [
        ("as", libc::RLIMIT_AS),
        ("core", libc::RLIMIT_CORE),
        ("cpu", libc::RLIMIT_CPU),
        ("data", libc::RLIMIT_DATA),
        ("fsize", libc::RLIMIT_FSIZE),
        ("locks", libc::RLIMIT_LOCKS),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("msgqueue", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("nofile", libc::RLIMIT_NOFILE),
        ("nproc", libc::RLIMIT_NPROC),
        ("rss", libc::RLIMIT_RSS),
        ("rtprio", libc::RLIMIT_RTPRIO),
        ("sigpending", libc::RLIMIT_SIGPENDING),
        ("stack", libc::RLIMIT_STACK),
    ];
    let value = |value: i64| u64::try_from(value).unwrap_or(libc::RLIM64_INFINITY);
    let mut out = Vec::new();
    for limit in &request.ulimits {
        let name = limit.name.to_ascii_lowercase();
        let Some((_, resource)) = NAMES.iter().find(|(known, _)| *known == name) else {
            return Err(invalid(format!("there is no resource limit {:?}", limit.name)));
        };
        let (soft, hard) = (value(limit.soft), value(limit.hard));
        if soft > hard {
            return Err(invalid(format!("the soft limit of {name} is above the hard one")));
        }
        out.push((*resource, libc::rlimit64 { rlim_cur: soft, rlim_max: hard }));
    }
    if let Some((soft, hard)) = started_with()
        && out.iter().all(|(resource, _)| *resource != libc::RLIMIT_NOFILE)
    {
        out.push((libc::RLIMIT_NOFILE, libc::rlimit64 { rlim_cur: soft, rlim_max: hard }));
    }
    Ok(out)
}

fn no_nul(text: &str) -> Result<()> {
    if text.contains('\0') { Err(invalid(format!("{text:?} contains a NUL byte"))) } else { Ok(()) }
}

fn invalid(message: impl Into<String>) -> PortError {
    PortError::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests;
