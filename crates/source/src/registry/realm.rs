//! Which token servers may see a registry's credentials. Names say little about who owns a host; where in doubt, the
//! answer is no, and the user can allow it.

use reqwest::Url;

use super::endpoint::{Endpoint, host_and_port, is_loopback};

/// The token server's address, and whether it may see the credentials.
pub(super) fn check_realm(endpoint: &Endpoint, realm: &str) -> Result<(Url, bool), String> {
    let url = Url::parse(realm).map_err(|_| "it names a token server that is no address".to_owned())?;
    let Some(host) = url.host_str() else { return Err("it names a token server without a host".to_owned()) };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the address of its token server has credentials in it".to_owned());
    }
    let own = endpoint.base().host_str().unwrap_or_default();
    let allowed =
        endpoint.token_hosts.iter().any(|allowed| *allowed == host || *allowed == host_and_port(&url));
    match url.scheme() {
        "https" => {}
        // On the wire everybody reads along, so only as near as the registry itself.
        "http"
            if endpoint.is_plain() && (host == own || allowed || (is_loopback(host) && is_loopback(own))) =>
        {
            return Ok((url.clone(), true));
        }
        "http" => return Err(format!("it names a token server without TLS ({host})")),
        other => return Err(format!("it names a token server with a {other} address")),
    }
    let allowed =
        endpoint.token_hosts.iter().any(|allowed| *allowed == host || *allowed == host_and_port(&url));
    let trusted = allowed || host == own || same_site(host, own) || known_pair(own, host);
    Ok((url, trusted))
}

/// Registries whose token servers are known to be elsewhere.
fn known_pair(registry: &str, realm: &str) -> bool {
    match realm {
        "api.scaleway.com" => registry.ends_with(".scw.cloud"),
        "sso.redhat.com" => registry.ends_with(".redhat.io"),
        _ => false,
    }
}

/// Whether two host names belong to one owner, as far as names tell.
fn same_site(a: &str, b: &str) -> bool {
    // Below these names everybody can have a host.
    const SHARED: [&str; 18] = [
        "azurecr.io",
        "amazonaws.com",
        "pkg.dev",
        "jfrog.io",
        "scw.cloud",
        "run.app",
        "appspot.com",
        "herokuapp.com",
        "github.io",
        "gitlab.io",
        "fly.dev",
        "pages.dev",
        "workers.dev",
        "vercel.app",
        "netlify.app",
        "nip.io",
        "sslip.io",
        "cloudfront.net",
    ];
    let is_address = |host: &str| host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    if is_address(a) || is_address(b) {
        return false;
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
    let shared = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x.eq_ignore_ascii_case(y)).count();
    let suffix = a[a.len() - shared..].join(".").to_lowercase();
    if SHARED.iter().any(|name| suffix == *name) {
        return false;
    }
    // `example.co.uk`: a short second name under a country's is the country's.
    let country = a.len() >= 2 && a[a.len() - 1].len() == 2 && a[a.len() - 2].len() <= 3;
    shared >= if country { 3 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::endpoints;
    use super::super::options::{HostOptions, TrustOptions};
    use super::*;

    #[test]
    fn credentials_go_to_few() {
        let endpoint = |domain: &str, token_hosts: &[&str]| {
            let token_hosts = token_hosts.iter().map(|&host| host.to_owned()).collect();
            let host = HostOptions { token_hosts, ..HostOptions::default() };
            endpoints(domain, &host, &TrustOptions::default()).unwrap().remove(0)
        };
        let check = |domain: &str, realm: &str| {
            check_realm(&endpoint(domain, &[]), realm).map(|(_, trusted)| trusted)
        };
        for (domain, realm) in [
            ("docker.io", "https://auth.docker.io/token"),
            ("ghcr.io", "https://ghcr.io/token"),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("my.azurecr.io", "https://my.azurecr.io/oauth2/token"),
            ("rg.fr-par.scw.cloud", "https://api.scaleway.com/registry/token"),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/token"),
            ("reg.example.co.uk", "https://auth.example.co.uk/t"),
        ] {
            assert_eq!(check(domain, realm), Ok(true), "{domain} {realm}");
        }
        for (domain, realm) in [
            ("docker.io", "https://auth.docker.io.evil.com/token"),
            ("docker.io", "https://10.0.0.1/token"),
            ("good.azurecr.io", "https://evil.azurecr.io/oauth2/token"),
            ("reg.example.co.uk", "https://evil.co.uk/t"),
        ] {
            assert_eq!(check(domain, realm), Ok(false), "{domain} {realm}");
        }
        for realm in
            ["http://auth.docker.io/token", "https://u:p@auth.docker.io/", "file:///etc/passwd", "x", ""]
        {
            assert!(check("docker.io", realm).is_err(), "{realm}");
        }
        assert!(check("127.0.0.1:5000", "http://evil.com/token").is_err());
        let allowed = endpoint("docker.io", &["login.example.org"]);
        assert_eq!(
            check_realm(&allowed, "https://login.example.org/t").map(|(_, trusted)| trusted),
            Ok(true)
        );
    }
}
