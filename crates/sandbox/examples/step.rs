//! Runs a command in a sandbox, without an engine around it: for trying, for measuring, and for the tests that need a
//! process of their own.
//!
//! `step [--network none|sandbox|host] [--user USER] [--insecure] [--times N] ROOT COMMAND…` runs it with the directory
//! ROOT as read-only base; changes go to a directory beside it and are removed. `--times` runs it often and prints what
//! one run takes. `step probe` makes system calls that a sandbox should refuse and prints what came of them;
//! `step ask SOCKET` talks to a socket.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]
#![expect(unsafe_code, reason = "system calls that no safe interface would make")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rbuild_graph::{NetMode, ProxyEnv, SecurityMode};
use rbuild_ports::{
    CancelToken, DeviceEdits, ExecOutcome, ExecRequest, Executor, OverlayDirs, PortError, Progress, Stream,
};
use rbuild_sandbox::{Sandbox, SandboxOptions};

struct Options {
    network: NetMode,
    security: SecurityMode,
    user: String,
    times: Option<usize>,
    root: PathBuf,
    command: Vec<String>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match (args.first().map(String::as_str), args.get(1)) {
        (Some("probe"), _) => {
            probe();
            Ok(0)
        }
        (Some("ask"), Some(socket)) => ask(socket),
        _ => start(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(help) = error.downcast_ref::<PortError>().and_then(|error| error.help.as_deref()) {
                eprintln!("help: {help}");
            }
            ExitCode::from(125)
        }
    }
}

/// Says `step!` to a socket and prints the answer.
fn ask(socket: &str) -> Result<u8, Box<dyn Error>> {
    use std::io::Read;
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(b"step!")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(0)
}

fn start(args: Vec<String>) -> Result<u8, Box<dyn Error>> {
    eprintln!("{:?}", rbuild_sandbox::enter_user_namespace()?);
    let options = parse(args)?;
    let sandbox = Sandbox::new(SandboxOptions::recommended());
    match options.times {
        None => once(&sandbox, &options, 0).map(|(outcome, _)| match outcome {
            ExecOutcome::Exited(code) => code as u8,
            ExecOutcome::Signaled(signal) => 128 + signal as u8,
            ExecOutcome::OutOfMemory => 137,
        }),
        Some(times) => {
            let mut took = Vec::new();
            for n in 0..times {
                took.push(once(&sandbox, &options, n)?.1);
            }
            print_times(took);
            Ok(0)
        }
    }
}

fn parse(args: Vec<String>) -> Result<Options, Box<dyn Error>> {
    let (mut network, mut security, mut user, mut times) =
        (NetMode::None, SecurityMode::Sandbox, String::new(), None);
    let mut args = args.into_iter();
    let root = loop {
        let arg = args.next().ok_or("which root, and which command?")?;
        match arg.as_str() {
            "--network" => {
                network = match args.next().as_deref() {
                    Some("none") => NetMode::None,
                    Some("sandbox") => NetMode::Sandbox,
                    Some("host") => NetMode::Host,
                    other => return Err(format!("no network {other:?}").into()),
                }
            }
            "--user" => user = args.next().ok_or("which user?")?,
            "--insecure" => security = SecurityMode::Insecure,
            "--times" => times = Some(args.next().ok_or("how often?")?.parse()?),
            _ => break fs::canonicalize(arg)?,
        }
    };
    Ok(Options { network, security, user, times, root, command: args.collect() })
}

fn once(sandbox: &Sandbox, options: &Options, n: usize) -> Result<(ExecOutcome, Duration), Box<dyn Error>> {
    let base = options.root.parent().ok_or("the root needs a parent directory")?;
    let own = base.join(format!("step-{}-{n}", std::process::id()));
    for dir in ["upper", "work"] {
        fs::create_dir_all(own.join(dir))?;
    }
    let request = request(options, base, &own)?;
    let begun = Instant::now();
    let outcome = sandbox.run(&request, &Terminal, &CancelToken::new());
    let took = begun.elapsed();
    fs::remove_dir_all(&own)?;
    Ok((outcome?, took))
}

fn request(options: &Options, base: &Path, own: &Path) -> Result<ExecRequest, Box<dyn Error>> {
    let name = options.root.file_name().ok_or("the root needs a name")?.to_string_lossy().into_owned();
    Ok(ExecRequest {
        id: "step".to_owned(),
        args: options.command.clone(),
        env: Vec::new(),
        secret_env: Vec::new(),
        proxy_env: ProxyEnv::default(),
        cwd: "/".to_owned(),
        user: options.user.clone(),
        hostname: String::new(),
        extra_hosts: Vec::new(),
        network: options.network,
        security: options.security,
        ulimits: Vec::new(),
        cgroup_parent: String::new(),
        root: OverlayDirs {
            base: base.to_owned(),
            lower: vec![name],
            upper: Some(own.join("upper")),
            work: Some(own.join("work")),
        },
        root_readonly: false,
        mounts: Vec::new(),
        devices: DeviceEdits::default(),
    })
}

fn print_times(mut took: Vec<Duration>) {
    let first = took.first().copied().unwrap_or_default();
    took.sort();
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let (best, median, p90) = (ms(at(0)), ms(at(50)), ms(at(90)));
    println!("first {:.2} ms, best {best:.2} ms, median {median:.2} ms, p90 {p90:.2} ms", ms(first));
}

struct Terminal;

impl Progress for Terminal {
    fn log(&self, stream: Stream, data: &[u8]) {
        let _written = match stream {
            Stream::Stdout => std::io::stdout().write_all(data),
            Stream::Stderr => std::io::stderr().write_all(data),
        };
    }

    fn status(&self, _id: &str, _current: u64, _total: Option<u64>, _done: bool) {}

    fn warn(&self, message: &str) {
        eprintln!("warning: {message}");
    }
}

/// Makes a call and prints its name and what came of it.
macro_rules! try_call {
    ($nr:ident $(, $arg:expr)*) => {
        // SAFETY: of these calls none gets a pointer to anything but the text or the zeroes it wants; those that would
        // do harm are refused or fail for want of arguments.
        report(stringify!($nr).trim_start_matches("SYS_"), unsafe { libc::syscall(libc::$nr $(, $arg)*) })
    };
}

fn report(name: &str, result: libc::c_long) {
    let error = std::io::Error::last_os_error();
    let text = match (result, error.raw_os_error()) {
        (0.., _) => "ok",
        (_, Some(libc::EPERM)) => "EPERM",
        (_, Some(libc::ENOSYS)) => "ENOSYS",
        (_, Some(libc::EAFNOSUPPORT)) => "EAFNOSUPPORT",
        (_, Some(libc::EACCES)) => "EACCES",
        _ => "other",
    };
    println!("{name} {text}");
}

fn probe() {
    let zeroes = [0u64; 32];
    let data = zeroes.as_ptr();
    try_call!(SYS_mount, c"none".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, 0);
    try_call!(SYS_umount2, c"/proc".as_ptr(), 0);
    try_call!(SYS_setns, 0, 0);
    try_call!(SYS_unshare, libc::CLONE_NEWUSER);
    try_call!(SYS_pivot_root, c"/".as_ptr(), c"/".as_ptr());
    try_call!(SYS_keyctl, 0, 0);
    try_call!(SYS_add_key, c"user".as_ptr(), c"x".as_ptr(), data, 1, -3);
    try_call!(SYS_request_key, c"user".as_ptr(), c"x".as_ptr(), 0, 0);
    try_call!(SYS_bpf, 0, data, 64);
    try_call!(SYS_perf_event_open, data, 0, -1, -1, 0);
    try_call!(SYS_userfaultfd, 0);
    try_call!(SYS_io_uring_setup, 1, data);
    try_call!(SYS_open_by_handle_at, -1, data, 0);
    try_call!(SYS_kexec_load, 0, 0, 0, 0);
    try_call!(SYS_init_module, data, 1, data);
    try_call!(SYS_fsopen, c"tmpfs".as_ptr(), 0);
    try_call!(SYS_open_tree, -100, c"/".as_ptr(), 1);
    try_call!(SYS_mount_setattr, -100, c"/".as_ptr(), 0, data, 32);
    try_call!(SYS_clone3, data, 0);
    try_call!(SYS_reboot, 0, 0, 0, 0);
    try_call!(SYS_sethostname, c"x".as_ptr(), 1);
    try_call!(SYS_personality, 0x0040_0000);
    for (name, family) in
        [("socket-alg", libc::AF_ALG), ("socket-vsock", libc::AF_VSOCK), ("socket-can", libc::AF_CAN)]
    {
        // SAFETY: takes no pointers.
        report(name, libc::c_long::from(unsafe { libc::socket(family, libc::SOCK_SEQPACKET, 0) }));
    }
    // SAFETY: takes no pointers.
    report("socket-packet", libc::c_long::from(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) }));
    // SAFETY: takes no pointers.
    report("socket-raw", libc::c_long::from(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, 1) }));
    // SAFETY: takes no pointers.
    report("socket-inet", libc::c_long::from(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }));
    let mknod = |name: &std::ffi::CStr, device: libc::dev_t| {
        // SAFETY: the path ends with NUL.
        libc::c_long::from(unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, device) })
    };
    report("mknod", mknod(c"/probe-device", libc::makedev(1, 1)));
    try_call!(SYS_openat, -100, c"/probe-device".as_ptr(), libc::O_RDWR, 0);
    old_calls();
}

/// Calls by the interfaces of 32-bit programs.
#[cfg(target_arch = "x86_64")]
fn old_calls() {
    let i386 = |nr: u32, first: u32| {
        let mut result = i64::from(nr);
        // SAFETY: the calls made here take no pointer that they would read before they are refused.
        unsafe {
            std::arch::asm!("push rbx", "mov ebx, {first:e}", "int 0x80", "pop rbx", first = in(reg) first,
                inlateout("rax") result, in("rcx") 0, in("rdx") 0, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        i64::from(result as i32)
    };
    let show = |name: &str, result: i64| {
        let text = match -result as i32 {
            libc::EPERM => "EPERM",
            libc::ENOSYS => "ENOSYS",
            libc::EAFNOSUPPORT => "EAFNOSUPPORT",
            _ if result >= 0 => "ok",
            _ => "other",
        };
        println!("{name} {text}");
    };
    const SOCKETCALL: u32 = 102;
    show("i386-socketcall", i386(SOCKETCALL, 1));
    show("i386-socket-alg", i386(359, libc::AF_ALG as u32));
    show("i386-unshare", i386(310, libc::CLONE_NEWUSER as u32));
    show("i386-getpid", i386(20, 0));
    // SAFETY: takes no pointers.
    report("x32-getpid", unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) });
}

#[cfg(not(target_arch = "x86_64"))]
fn old_calls() {}
