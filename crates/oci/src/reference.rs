//! Image references, normalised as Docker does: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;
use std::str::FromStr;

use rbuild_digest::Digest;

/// A reference to an image in a registry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Reference {
    /// Registry host, with port where given: `docker.io`, `127.0.0.1:5000`.
    pub domain: String,
    /// Repository path: `library/busybox`.
    pub path: String,
    /// Tag.
    pub tag: Option<String>,
    /// Digest.
    pub digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {reason}")]
pub struct ParseReferenceError {
    /// What was given (shortened).
    pub text: String,
    /// Why not.
    pub reason: &'static str,
}

impl Reference {
    /// `domain/path`, without tag and digest, domain always written.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// As people write it: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut out = match (self.domain.as_str(), self.path.strip_prefix("library/")) {
            ("docker.io", Some(short)) if !short.contains('/') => short.to_owned(),
            ("docker.io", _) => self.path.clone(),
            _ => self.name(),
        };
        self.push_suffix(&mut out);
        out
    }

    /// The same, with tag `latest` when it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same with `digest`.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    fn push_suffix(&self, out: &mut String) {
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| ParseReferenceError { text: text.chars().take(200).collect(), reason };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(fail("64 hexadecimal digits name an image id, not a repository"));
        }
        let (rest, digest) =
            match text.split_once('@') {
                Some((rest, digest)) => (
                    rest,
                    Some(digest.parse().map_err(|_| {
                        fail("its digest is not sha256: and 64 lower-case hexadecimal digits")
                    })?),
                ),
                None => (text, None),
            };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(fail("its tag may have only letters, digits, '_', '.' and '-', at most 128 of them"));
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains('.')
                    || first.contains(':')
                    || first == "localhost"
                    || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (first, path)
            }
            _ => ("docker.io", name),
        };
        let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
        if !valid_domain(domain) {
            return Err(fail("its registry host is not valid"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail("the repository name must be lower-case"));
        }
        if path.len() > 255 || !path.split('/').all(valid_component) {
            return Err(fail(
                "its repository name may have only lower-case letters, digits and separators ('.', '_', '-', '/') between them",
            ));
        }
        let path = if domain == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        Ok(Self { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = self.name();
        self.push_suffix(&mut out);
        f.write_str(&out)
    }
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(word) && tag.len() <= 128 && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    if let Some(port) = port
        && (port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()))
    {
        return false;
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    }
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label)
}

fn valid_component(component: &str) -> bool {
    // Runs of letters and digits, joined by '.', '_', '__' or any number of '-'.
    let alnum = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, want) in [
            ("busybox", "docker.io/library/busybox"),
            ("user/app:1.0", "docker.io/user/app:1.0"),
            ("localhost/app", "localhost/app"),
            ("127.0.0.1:5000/library/busybox:latest", "127.0.0.1:5000/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox"),
            ("reg.example.com/a/b-c/d__e:v1_x", "reg.example.com/a/b-c/d__e:v1_x"),
            (&format!("a:b@sha256:{hex}"), &format!("docker.io/library/a:b@sha256:{hex}")),
            ("[::1]:5000/x", "[::1]:5000/x"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), want, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
        assert_eq!("docker.io/library/busybox:1".parse::<Reference>().unwrap().familiar(), "busybox:1");
    }

    #[test]
    fn refuses_the_rest() {
        for bad in [
            "",
            "Busybox",
            "a//b",
            "a/../b",
            "-a",
            "a_",
            "a:",
            "a:-x",
            "a@sha256:00",
            "a..b",
            "a b",
            "x/y:z/w:",
            ":5000/x",
            &"a".repeat(300),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
