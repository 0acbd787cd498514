//! RUN-05: networks of steps.

use std::fs;
use std::net::TcpListener;

use rbuild_graph::{NetMode, SecurityMode};

use crate::space::Space;

fn own_namespace() -> String {
    fs::read_link("/proc/self/ns/net").unwrap().display().to_string()
}

#[test]
fn modes() {
    let Some(space) = Space::new() else { return };
    let run = |mode: NetMode| {
        let mut request =
            space.sh("readlink /proc/self/ns/net; grep -c : /proc/net/dev; cat /sys/class/net/lo/operstate");
        request.network = mode;
        let ran = space.run(&request);
        let text = ran.stdout.clone();
        (text.lines().next().unwrap_or_default().to_owned(), text, ran.warnings)
    };
    assert_eq!(run(NetMode::Host).0, own_namespace());
    let (none, text, _) = run(NetMode::None);
    assert_ne!(none, own_namespace());
    assert!(text.contains("\n1\n"), "only loopback:\n{text}");
    let (sandbox, text, warnings) = run(NetMode::Sandbox);
    assert!(sandbox != own_namespace() && sandbox != none);
    // Either there is a way out, or the user is told.
    assert!(text.contains("\n2\n") || !warnings.is_empty(), "{text} {warnings:?}");
    assert_eq!(run(NetMode::Sandbox).0, sandbox, "the network of the last step is used again");
}

#[test]
fn services_of_the_host_on_loopback_and_link_local_addresses_are_unreachable() {
    let Some(space) = Space::new() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for mode in [NetMode::None, NetMode::Sandbox] {
        let mut request = space.sh(&format!(
            "nc -w 2 127.0.0.1 {port} </dev/null 2>&1 && echo REACHED; nc -w 2 169.254.169.254 80 </dev/null 2>&1 && echo REACHED; true"
        ));
        request.network = mode;
        let begun = std::time::Instant::now();
        let text = space.run(&request).success();
        assert!(!text.contains("REACHED"), "{mode:?}: {text}");
        assert!(
            text.contains("refused") && text.contains("No route to host"),
            "{mode:?}: not refused at once: {text}"
        );
        assert!(begun.elapsed().as_secs() < 2);
    }
    // Who comes is sent away, which ends `nc`.
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let mut request = space.sh(&format!("nc -w 2 127.0.0.1 {port} </dev/null && echo REACHED"));
    request.network = NetMode::Host;
    assert_eq!(space.run(&request).success(), "REACHED\n");
    server.join().unwrap();
}

#[test]
fn a_step_may_not_change_its_network_unless_insecure_and_then_nobody_gets_it() {
    let Some(space) = Space::new() else { return };
    let namespace = |security: SecurityMode| {
        let mut request =
            space.sh("cd /proc/sys/net/ipv4; echo 2345 3456 > ip_local_port_range && echo changed; cat ip_local_port_range");
        request.network = NetMode::None;
        request.security = security;
        space.run(&request).stdout
    };
    let first = namespace(SecurityMode::Sandbox);
    assert!(!first.contains("changed"), "{first}");
    let insecure = namespace(SecurityMode::Insecure);
    assert!(insecure.contains("changed") && insecure.contains("2345"), "{insecure}");
    assert_eq!(namespace(SecurityMode::Sandbox), first, "the changed network was given away");
}

#[test]
fn ping_works_without_raw_sockets() {
    let Some(space) = Space::new() else { return };
    let text = space.output("cat /proc/sys/net/ipv4/ping_group_range");
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
}
