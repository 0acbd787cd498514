//! Requests in, text out.

use rbuild_graph::{NetMode, SecurityMode, Ulimit};
use rbuild_ports::{DeviceEdits, MountSource, OverlayDirs};

use super::*;

fn request(args: &[&str], env: &[&str]) -> ExecRequest {
    ExecRequest {
        id: "a".to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: env.iter().map(|&var| var.to_owned()).collect(),
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
        root: OverlayDirs::default(),
        root_readonly: false,
        mounts: Vec::new(),
        devices: DeviceEdits::default(),
    }
}

fn show(request: &ExecRequest) -> String {
    match command(request, "/home/me") {
        Ok(Command { candidates, args, env }) => {
            let join = |list: &[CString]| {
                list.iter().map(|text| text.to_str().unwrap_or("?")).collect::<Vec<_>>().join(" ")
            };
            format!("{} | {} | {}", join(&candidates), join(&args), join(&env))
        }
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn commands_and_environment() {
    let check = |args: &[&str], env: &[&str], expected: &str| {
        assert_eq!(show(&request(args, env)), expected, "{args:?} {env:?}");
    };
    check(&["/bin/sh", "-c", "x"], &["PATH=/p", "HOME=/h"], "/bin/sh | /bin/sh -c x | PATH=/p HOME=/h");
    check(&["x"], &["PATH=/a:/b::rel:."], "/a/x /b/x | x | PATH=/a:/b::rel:. HOME=/home/me");
    check(&["./x"], &["PATH=/a", "HOME="], "./x | ./x | PATH=/a HOME=/home/me");
    check(&["x"], &["PATH=/a", "A=1", "B=2", "A=3"], "/a/x | x | PATH=/a A=3 B=2 HOME=/home/me");
    check(&["/x"], &[], &format!("/x | /x | PATH={DEFAULT_PATH} HOME=/home/me"));
    check(&[], &[], "error: there is no command to run");
    check(&[""], &[], "error: there is no command to run");
    check(&["/x"], &["PATH=/a", "USER", "=A", "B=", "C=="], "/x | /x | PATH=/a B= C== HOME=/home/me");
    check(&["/x", "a\0b"], &[], "error: an argument contains a NUL byte");
    check(&["/x"], &["A=\0"], "error: the environment contains a NUL byte");
}

#[test]
fn proxies_and_secrets() {
    let mut some = request(&["/x"], &["PATH=/p", "HOME=/", "http_proxy=mine"]);
    some.proxy_env.http_proxy = "theirs".to_owned();
    some.secret_env.push(("TOKEN".to_owned(), SecretBytes(b"s3cret".to_vec())));
    assert_eq!(show(&some), "/x | /x | PATH=/p HOME=/ http_proxy=mine TOKEN=s3cret HTTP_PROXY=theirs");
    some.secret_env.push(("A=B".to_owned(), SecretBytes(b"s3cret".to_vec())));
    let error = show(&some);
    assert_eq!(error, "error: \"A=B\" is no name for an environment variable");
}

#[test]
fn mounts_come_in_order_and_only_below_the_root() {
    let mut some = request(&["/x"], &[]);
    let tmpfs = |dest: &str| ExecMount {
        dest: dest.to_owned(),
        readonly: false,
        selector: String::new(),
        source: MountSource::Tmpfs { size: 0 },
    };
    some.mounts = vec![tmpfs("/a"), tmpfs("/a/b")];
    let dests: Vec<String> = mounts(&some).unwrap().iter().map(|mount| mount.dest().to_owned()).collect();
    assert_eq!(dests.join(" "), "/proc /sys /dev /etc/hosts /etc/resolv.conf /a /a/b");
    for bad in ["", "a", "/", "/..", "/./", "//", "/a\0b"] {
        some.mounts = vec![tmpfs(bad)];
        assert!(mounts(&some).is_err(), "{bad:?}");
    }
}

#[test]
fn names_and_limits() {
    let mut some = request(&["/x"], &[]);
    assert_eq!(hostname(&some).unwrap(), "buildkitsandbox");
    some.hostname = "h".repeat(65);
    assert!(hostname(&some).is_err());
    let limit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
    some.ulimits = vec![limit("nofile", 10, 20), limit("CORE", -1, -1)];
    let got: Vec<_> = limits(&some).unwrap().iter().map(|(r, l)| (*r, l.rlim_cur, l.rlim_max)).collect();
    assert_eq!(got, [(libc::RLIMIT_NOFILE, 10, 20), (libc::RLIMIT_CORE, u64::MAX, u64::MAX)]);
    for bad in [limit("files", 1, 1), limit("nofile", 3, 2), limit("nofile", -1, 5)] {
        some.ulimits = vec![bad];
        assert!(limits(&some).is_err());
    }
}
