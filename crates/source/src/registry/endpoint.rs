//! From a registry's name to the addresses that serve it.

use std::net::IpAddr;

use reqwest::Url;

use super::options::{HostOptions, TrustOptions};

/// One address that serves a registry.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Scheme, host and port.
    base: Url,
    /// Repositories lie below this path (mirrors); ends with a slash when not empty.
    prefix: String,
    /// The registry that a mirror stands for.
    mirror_of: Option<String>,
    /// The name credentials are kept under, and that people know: `docker.io`, `127.0.0.1:5000`.
    pub(crate) host: String,
    /// Hosts besides its own that may see its credentials as token servers.
    pub(crate) token_hosts: Vec<String>,
}

impl Endpoint {
    /// The token server of the registry `host`.
    pub(crate) fn token_server(url: &Url, host: &str) -> Self {
        Self {
            base: url.clone(),
            prefix: String::new(),
            mirror_of: None,
            host: format!("{host} (its token server {})", host_and_port(url)),
            token_hosts: vec![],
        }
    }

    /// Any web server.
    pub(crate) fn server(url: &Url) -> Self {
        Self { host: host_and_port(url), ..Self::token_server(url, "") }
    }

    /// `…/v2/<rest>`.
    pub(crate) fn url(&self, rest: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("/v2/{}{path}", self.prefix));
        url.set_query(query);
        if let Some(registry) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }
}

/// The addresses of the registry `domain`: its mirrors, then itself.
pub(crate) fn endpoints(
    domain: &str,
    host: &HostOptions,
    trust: &TrustOptions,
) -> Result<Vec<Endpoint>, String> {
    let mut out = Vec::new();
    for mirror in &host.mirrors {
        out.push(mirror_endpoint(domain, mirror)?);
    }
    let address = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let scheme = if is_plain_http(domain, host, trust) { "http" } else { "https" };
    let base = Url::parse(&format!("{scheme}://{address}"))
        .map_err(|error| format!("{domain:?} is no registry host: {error}"))?;
    out.push(Endpoint {
        base,
        prefix: String::new(),
        mirror_of: None,
        host: domain.to_owned(),
        token_hosts: host.token_hosts.clone(),
    });
    Ok(out)
}

fn mirror_endpoint(domain: &str, mirror: &str) -> Result<Endpoint, String> {
    let text = if mirror.contains("://") {
        mirror.to_owned()
    } else {
        let name = mirror.split('/').next().unwrap_or(mirror);
        format!("{}://{mirror}", if is_loopback(name) { "http" } else { "https" })
    };
    let url = Url::parse(&text)
        .map_err(|error| format!("the mirror {mirror:?} of {domain} is no address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.cannot_be_a_base() {
        return Err(format!("the mirror {mirror:?} of {domain} is no http or https address"));
    }
    let path = url.path().trim_matches('/');
    let path = path.strip_prefix("v2/").unwrap_or(if path == "v2" { "" } else { path });
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let mut base = url.clone();
    base.set_path("");
    base.set_query(None);
    // Credentials come from the credential source alone.
    let _ = base.set_username("");
    let _ = base.set_password(None);
    let host = host_and_port(&base);
    Ok(Endpoint { base, prefix, mirror_of: Some(domain.to_owned()), host, token_hosts: vec![] })
}

/// `host` or `host:port` of an address, the port only where it is not the scheme's own.
pub(crate) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether both have the same scheme, host and port.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

fn is_plain_http(domain: &str, host: &HostOptions, trust: &TrustOptions) -> bool {
    match host.plain_http {
        Some(plain) => plain,
        None => {
            is_loopback(domain)
                && !host.insecure_tls
                && host.ca_files.is_empty()
                && !trust.per_host.iter().any(|dir| dir.join(domain).is_dir())
        }
    }
}

/// Whether `host` (perhaps with a port) is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(domain: &str, host: &HostOptions) -> Vec<String> {
        let list = endpoints(domain, host, &TrustOptions::default()).unwrap();
        list.iter().map(|endpoint| endpoint.url("a/b/manifests/x?q=1").to_string()).collect()
    }

    #[test]
    fn names_become_addresses() {
        let none = HostOptions::default();
        for (domain, want) in [
            ("docker.io", "https://registry-1.docker.io/v2/a/b/manifests/x?q=1"),
            ("ghcr.io", "https://ghcr.io/v2/a/b/manifests/x?q=1"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/a/b/manifests/x?q=1"),
            ("localhost:5000", "http://localhost:5000/v2/a/b/manifests/x?q=1"),
            ("[::1]:5000", "http://[::1]:5000/v2/a/b/manifests/x?q=1"),
            ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2/a/b/manifests/x?q=1"),
        ] {
            assert_eq!(urls(domain, &none), [want]);
        }
        let secure = HostOptions { plain_http: Some(false), ..HostOptions::default() };
        assert!(urls("localhost:5000", &secure)[0].starts_with("https://"));
        let plain = HostOptions { plain_http: Some(true), ..HostOptions::default() };
        assert!(urls("registry.lan", &plain)[0].starts_with("http://"));
    }

    #[test]
    fn mirrors_come_first_and_say_for_whom() {
        let mirrors = ["https://u:p@mirror.example/hub/", "127.0.0.1:7000", "mirror.lan/v2/x"];
        let host = HostOptions { mirrors: mirrors.map(str::to_owned).into(), ..HostOptions::default() };
        assert_eq!(
            urls("docker.io", &host),
            [
                "https://mirror.example/v2/hub/a/b/manifests/x?q=1&ns=docker.io",
                "http://127.0.0.1:7000/v2/a/b/manifests/x?q=1&ns=docker.io",
                "https://mirror.lan/v2/x/a/b/manifests/x?q=1&ns=docker.io",
                "https://registry-1.docker.io/v2/a/b/manifests/x?q=1",
            ]
        );
        let bad = HostOptions { mirrors: vec!["ftp://x".to_owned()], ..HostOptions::default() };
        assert!(endpoints("docker.io", &bad, &TrustOptions::default()).is_err());
    }
}
