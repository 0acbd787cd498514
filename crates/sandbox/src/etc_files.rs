//! The text of `/etc/hosts` and `/etc/resolv.conf` for a step. Pure: the host's files are inputs.

use std::net::IpAddr;

use rbuild_graph::HostIp;

/// The host name of steps that ask for none.
pub(crate) const HOSTNAME: &str = "buildkitsandbox";
/// Asked when the host has no name server that a step could reach.
const PUBLIC: &[&str] = &["8.8.8.8", "8.8.4.4"];

/// `/etc/hosts`.
pub(crate) fn hosts(hostname: &str, extra: &[HostIp]) -> String {
    let mut out = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for HostIp { host, ip } in extra {
        out.push_str(&format!("{ip}\t{host}\n"));
    }
    out
}

/// What a step can reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// The host's loopback device too: its name servers work as they are.
    Host,
    /// Everything but the host's loopback device.
    Outside,
    /// Everything but the host's loopback device, and a forwarder at this address that asks the host's servers.
    Forwarder(IpAddr),
}

/// `/etc/resolv.conf`, and whether the host's servers had to be replaced by public ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ResolvConf {
    pub(crate) text: String,
    pub(crate) public: bool,
}

/// Makes a step's `/etc/resolv.conf` from the host's (empty when it has none).
pub(crate) fn resolv_conf(host: &str, wanted: &[IpAddr], reach: Reach) -> ResolvConf {
    if reach == Reach::Host && wanted.is_empty() && !servers(host).is_empty() {
        return ResolvConf { text: host.to_owned(), public: false };
    }
    let (mut public, mut list) = (false, wanted.iter().map(IpAddr::to_string).collect::<Vec<_>>());
    if list.is_empty() {
        list = match reach {
            Reach::Forwarder(address) if needs_forwarder(host) => vec![address.to_string()],
            _ => servers(host).into_iter().filter(|server| !is_loopback(server)).collect(),
        };
    }
    if list.is_empty() {
        public = true;
        list = PUBLIC.iter().map(|&server| server.to_owned()).collect();
    }
    let mut text = String::new();
    for line in host.lines().filter(|line| matches!(keyword(line), "search" | "domain" | "options")) {
        text.push_str(line);
        text.push('\n');
    }
    for server in list {
        text.push_str(&format!("nameserver {server}\n"));
    }
    ResolvConf { text, public }
}

/// Whether a step would need a forwarder to ask the host's servers.
pub(crate) fn needs_forwarder(host: &str) -> bool {
    servers(host).iter().any(|server| is_loopback(server))
}

/// Whether the host asks only systemd's stub, whose own servers are in another file.
pub(crate) fn only_systemd_stub(host: &str) -> bool {
    let servers = servers(host);
    !servers.is_empty() && servers.iter().all(|server| server == "127.0.0.53")
}

fn keyword(line: &str) -> &str {
    line.split_ascii_whitespace().next().unwrap_or_default()
}

fn servers(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| keyword(line) == "nameserver")
        .filter_map(|line| line.split_ascii_whitespace().nth(1))
        .map(str::to_owned)
        .collect()
}

/// Also of a scoped address, which means nothing in another network.
fn is_loopback(server: &str) -> bool {
    match server.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file() {
        let extra = [HostIp { host: "db".to_owned(), ip: "10.0.0.1".to_owned() }];
        assert_eq!(
            hosts(HOSTNAME, &extra),
            "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n"
        );
    }

    #[test]
    fn resolv_conf_cases() {
        const OUT: Reach = Reach::Outside;
        let forward = Reach::Forwarder(IpAddr::from([198, 18, 0, 53]));
        let own = [IpAddr::from([9, 9, 9, 9])];
        let cases: &[(&str, &[IpAddr], Reach, &str, bool)] = &[
            ("nameserver 10.0.0.2\n", &[], OUT, "nameserver 10.0.0.2\n", false),
            (
                "search a b\n# x\nnameserver 127.0.0.1\nnameserver 10.0.0.2\noptions ndots:2\n",
                &[],
                OUT,
                "search a b\noptions ndots:2\nnameserver 10.0.0.2\n",
                false,
            ),
            ("nameserver 127.0.0.1\n", &[], OUT, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", true),
            ("nameserver fe80::1%eth0\n", &[], OUT, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", true),
            ("", &[], OUT, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", true),
            ("nameserver 127.0.0.1\n", &[], forward, "nameserver 198.18.0.53\n", false),
            ("nameserver 10.0.0.2\n", &[], forward, "nameserver 10.0.0.2\n", false),
            ("nameserver 10.0.0.2\n", &own, forward, "nameserver 9.9.9.9\n", false),
            ("# c\nnameserver 127.0.0.1\n", &[], Reach::Host, "# c\nnameserver 127.0.0.1\n", false),
            ("", &[], Reach::Host, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", true),
        ];
        for (host, wanted, reach, text, public) in cases {
            let expected = ResolvConf { text: (*text).to_owned(), public: *public };
            assert_eq!(resolv_conf(host, wanted, *reach), expected, "{host:?} {reach:?}");
        }
    }

    #[test]
    fn systemd() {
        assert!(only_systemd_stub("nameserver 127.0.0.53\noptions edns0\n"));
        assert!(!only_systemd_stub("nameserver 127.0.0.53\nnameserver 1.1.1.1\n"));
        assert!(!only_systemd_stub(""));
        assert!(needs_forwarder("nameserver ::1\n") && !needs_forwarder("nameserver 10.0.0.2\n"));
    }
}
