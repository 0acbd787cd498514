//! What can go wrong between here and a registry, and what to say about it. Texts from a server are shortened and
//! stripped of control characters; addresses with passwords or tokens are never quoted.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_oci::Reference;
use rbuild_ports::{ErrorKind, PortError};
use serde::Deserialize;

use super::endpoint::is_loopback;

/// A request that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// As people know it.
    pub(crate) host: String,
    pub(crate) problem: Problem,
    doing: Option<String>,
}

/// Why.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Nobody listens.
    Refused,
    /// The name has no address.
    Unresolvable(String),
    /// No connection.
    Unreachable(String),
    /// The certificate, or TLS itself.
    Tls(String),
    /// Too long without an answer or a byte.
    Timeout(Duration),
    /// The connection broke.
    HungUp(String),
    /// An answer that says no.
    Status { code: u16, message: String, retry_after: Option<Duration> },
    /// Credentials were refused, or there are none.
    Unauthorized { message: String, had_credentials: bool, withheld_from: Option<String> },
    /// An answer that makes no sense.
    Protocol(String),
    /// More than is read.
    TooLarge(u64),
    /// Somebody else's error, complete.
    Other(PortError),
}

impl Failure {
    pub(crate) fn new(host: &str, problem: Problem) -> Self {
        Self { host: host.to_owned(), problem, doing: None }
    }

    pub(crate) fn while_doing(mut self, doing: &str) -> Self {
        self.doing = Some(doing.to_owned());
        self
    }

    /// An error of the HTTP library.
    pub(crate) fn of(host: &str, error: &reqwest::Error, connect_timeout: Duration) -> Self {
        Self::new(host, classify(error, connect_timeout))
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match &self.problem {
            Problem::Status { code, .. } => Some(*code),
            Problem::Unauthorized { .. } => Some(401),
            _ => None,
        }
    }

    /// Whether another attempt may help.
    pub(crate) fn retryable(&self) -> bool {
        match &self.problem {
            Problem::Refused | Problem::Unresolvable(_) | Problem::Unreachable(_) => true,
            Problem::Timeout(_) | Problem::HungUp(_) => true,
            Problem::Status { code, .. } => matches!(code, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Problem::Tls(_) | Problem::Unauthorized { .. } | Problem::Protocol(_) => false,
            Problem::TooLarge(_) | Problem::Other(_) => false,
        }
    }

    /// At most this many attempts: who refuses twice will refuse.
    pub(crate) fn most_attempts(&self) -> u32 {
        match self.problem {
            Problem::Refused | Problem::Unresolvable(_) => 3,
            _ => u32::MAX,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match &self.problem {
            Problem::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// For a manifest: says what "not found" means.
    pub(crate) fn for_manifest(self, reference: &Reference) -> PortError {
        let doing = format!("resolving {reference}");
        if self.status() == Some(404) {
            let said = self.said();
            let message = format!("{reference}: not found: registry {} has no such image{said}", self.host);
            return PortError::new(ErrorKind::NotFound, message).help(not_found_help(reference));
        }
        let doing = self.doing.clone().unwrap_or(doing);
        self.into_error(&doing)
    }

    fn said(&self) -> String {
        match &self.problem {
            Problem::Status { message, .. } | Problem::Unauthorized { message, .. }
                if !message.is_empty() =>
            {
                format!(" ({message})")
            }
            _ => String::new(),
        }
    }

    /// For people.
    pub(crate) fn into_error(self, doing: &str) -> PortError {
        self.of_a("registry", doing)
    }

    /// The same, of a `role` (`registry`, `server`).
    pub(crate) fn of_a(self, role: &str, doing: &str) -> PortError {
        let said = self.said();
        let host = &self.host;
        let doing = self.doing.as_deref().unwrap_or(doing);
        let (kind, what, help) = match self.problem {
            Problem::Refused => {
                (ErrorKind::Network, "refused the connection".to_owned(), Some(unreachable_help(host)))
            }
            Problem::Unresolvable(text) => {
                (ErrorKind::Network, format!("has no address: {text}"), Some(unreachable_help(host)))
            }
            Problem::Unreachable(text) => {
                (ErrorKind::Network, format!("could not be reached: {text}"), Some(unreachable_help(host)))
            }
            Problem::Tls(text) => {
                (ErrorKind::Network, format!("could not be trusted: {text}"), Some(tls_help(host)))
            }
            Problem::Timeout(time) => (
                ErrorKind::Network,
                format!("did not answer within {} s", time.as_secs_f32()),
                Some(trouble_help(host)),
            ),
            Problem::HungUp(text) => {
                let help = if is_loopback(host) {
                    // Registries there are taken for plain HTTP.
                    format!("if {host} speaks TLS, put its authority into /etc/docker/certs.d/{host}/ca.crt")
                } else {
                    trouble_help(host)
                };
                (ErrorKind::Network, format!("broke the connection: {text}"), Some(help))
            }
            Problem::Unauthorized { had_credentials, withheld_from, .. } => {
                let what = if had_credentials { "refused the credentials" } else { "wants credentials" };
                (
                    ErrorKind::Auth,
                    format!("{what}{said}"),
                    Some(auth_help(host, had_credentials, withheld_from)),
                )
            }
            Problem::Status { code, .. } => {
                let (kind, what, help) = status_words(code, host);
                (kind, format!("{what}{said}"), help)
            }
            Problem::Protocol(text) => (
                ErrorKind::Network,
                format!("gave an answer that makes no sense: {text}"),
                Some(nonsense_help(host)),
            ),
            Problem::TooLarge(limit) => {
                (ErrorKind::Invalid, format!("sent a document of more than {limit} bytes"), None)
            }
            Problem::Other(error) => {
                let help = error.help.clone();
                let out = PortError::new(error.kind, format!("{} while {doing}", error.message));
                return match help {
                    Some(help) => out.help(help),
                    None => out,
                };
            }
        };
        let error = PortError::new(kind, format!("{role} {host} {what} while {doing}"));
        let help = match (role, kind) {
            ("registry", _) => help,
            // Registries have remedies of their own; a file on some server has few.
            (_, ErrorKind::NotFound) => Some("check the address".to_owned()),
            (_, ErrorKind::Network) => Some(format!(
                "check that {host} is spelled right and running, and that the network or proxy leads there"
            )),
            _ => None,
        };
        match help {
            Some(help) => error.help(help),
            None => error,
        }
    }
}

/// A document that is not what its digest says.
pub(crate) fn wrong_digest(host: &str, what: &str, found: Digest) -> PortError {
    PortError::new(ErrorKind::Corrupt, format!("registry {host} sent {found} as {what}")).help(
        "the registry, or a proxy before it, serves damaged or exchanged content; nothing of it was used",
    )
}

fn status_words(code: u16, host: &str) -> (ErrorKind, String, Option<String>) {
    match code {
        404 => (ErrorKind::NotFound, "has no such thing".to_owned(), None),
        403 => (
            ErrorKind::Denied,
            "denied access".to_owned(),
            Some(format!("these credentials may not do this; log in with others: `docker login {host}`")),
        ),
        429 => (
            ErrorKind::Network,
            "says there were too many requests".to_owned(),
            Some(format!("wait, or log in for a higher limit: `docker login {host}`")),
        ),
        413 => (
            ErrorKind::Invalid,
            "says the upload is too large".to_owned(),
            Some("a proxy before the registry limits the size of requests".to_owned()),
        ),
        500..=599 => (ErrorKind::Network, format!("failed with status {code}"), Some(trouble_help(host))),
        code => (ErrorKind::Network, format!("answered with status {code}"), Some(nonsense_help(host))),
    }
}

fn unreachable_help(host: &str) -> String {
    format!(
        "check that {host} is spelled right and running, and that the network or proxy leads there; \
         to use something else in place of the image: --build-context NAME=docker-image://… or oci-layout://…"
    )
}

fn trouble_help(host: &str) -> String {
    format!(
        "{host}, or a proxy before it, is in trouble: try again later; \
         to use something else in place of the image: --build-context NAME=docker-image://… or oci-layout://…"
    )
}

fn nonsense_help(host: &str) -> String {
    format!("check that {host} is a registry, and what a proxy before it makes of its answers")
}

fn tls_help(host: &str) -> String {
    format!(
        "put the certificate of its authority into /etc/docker/certs.d/{host}/ca.crt, \
         or, for a registry without TLS, set RBUILD_PLAIN_HTTP={host}"
    )
}

fn auth_help(host: &str, had_credentials: bool, withheld_from: Option<String>) -> String {
    if let Some(realm) = withheld_from {
        return format!(
            "{host} names {realm} as its token server; your credentials were not sent there, \
             since it is another host: allow it as a token host of {host} if it is right"
        );
    }
    let login = if host == "docker.io" { "docker login".to_owned() } else { format!("docker login {host}") };
    if had_credentials {
        format!("log in again: `{login}`")
    } else {
        format!(
            "log in with `{login}`; some registries also say so when the image does not exist, so check its name"
        )
    }
}

fn not_found_help(reference: &Reference) -> String {
    match (&reference.digest, &reference.tag) {
        (Some(_), _) => "check the repository and the digest; it may have been deleted".to_owned(),
        (None, tag) => format!(
            "check the spelling of the repository and of the tag {:?}; \
             to use something else in its place: --build-context NAME=docker-image://…",
            tag.as_deref().unwrap_or("latest")
        ),
    }
}

fn classify(error: &reqwest::Error, connect_timeout: Duration) -> Problem {
    let mut source = error.source();
    let mut deepest = String::new();
    while let Some(cause) = source {
        if let Some(tls) = tls_error(cause) {
            return Problem::Tls(clean(&tls.to_string()));
        }
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => return Problem::Refused,
            Some(io::ErrorKind::TimedOut) if error.is_connect() => return Problem::Timeout(connect_timeout),
            _ => {}
        }
        let text = cause.to_string();
        if text.contains("dns error") || text.contains("failed to lookup address") {
            return Problem::Unresolvable("its name is unknown to the name servers".to_owned());
        }
        if !text.is_empty() {
            deepest = text;
        }
        source = cause.source();
    }
    let deepest = clean(&deepest);
    if error.is_timeout() {
        Problem::Timeout(connect_timeout)
    } else if error.is_connect() {
        Problem::Unreachable(deepest)
    } else if error.is_builder() {
        Problem::Protocol(deepest)
    } else {
        Problem::HungUp(if deepest.is_empty() { "no more is known".to_owned() } else { deepest })
    }
}

/// The TLS error in `error`, which may be packed into system errors, one in the other.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = error;
    loop {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        error = error.downcast_ref::<io::Error>()?.get_ref()?;
    }
}

/// The message of an error document (`{"errors":[{"code","message"}]}`), or the start of a plain text.
pub(crate) fn server_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
        #[serde(default)]
        details: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Errors>(body) else {
        let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body));
        return if text.trim_start().starts_with('<') { String::new() } else { clean(&text) };
    };
    let first = document.errors.first().map(|one| match (one.message.as_str(), one.code.as_str()) {
        ("", code) => code.to_lowercase(),
        (message, _) => message.to_owned(),
    });
    clean(&first.unwrap_or(if document.details.is_empty() { document.message } else { document.details }))
}

/// One short line without control characters.
pub(crate) fn clean(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_host_object_and_cause() {
        let failure = Failure::new("127.0.0.1:5001", Problem::Refused);
        let error = failure.into_error("resolving 127.0.0.1:5001/x:latest");
        assert_eq!(
            error.to_string(),
            "registry 127.0.0.1:5001 refused the connection while resolving 127.0.0.1:5001/x:latest"
        );
        assert!(error.help.unwrap().contains("--build-context"));
    }

    #[test]
    fn server_texts_are_tamed() {
        for (body, want) in [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#, "manifest unknown"),
            (r#"{"errors":[{"code":"DENIED"}]}"#, "denied"),
            ("<html>x</html>", ""),
            ("no\u{1b}[31m\nway", "no [31m way"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("", ""),
        ] {
            assert_eq!(server_message(body.as_bytes()), want);
        }
        assert_eq!(server_message(&[b'x'; 5000]).len(), 200);
    }
}
