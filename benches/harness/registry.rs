//! A loopback registry (Debian's `docker-registry`) on a free port, filled over plain HTTP. It ends with its value.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::base::BaseImage;
use crate::error::{BenchError, Doing as _, Result};
use crate::measure::{Daemon, Invocation, Runner, find};

/// A registry that runs.
pub(crate) struct Registry {
    port: u16,
    _daemon: Daemon,
}

impl Registry {
    /// Starts it with its storage in `dir`.
    pub(crate) fn start(dir: &Path, runner: &Runner) -> Result<Self> {
        let Some(program) = find("docker-registry").or_else(|| find("registry")) else {
            return Err(BenchError::Other("no registry is installed (Debian: docker-registry)".into()));
        };
        fs::create_dir_all(dir).doing("create", dir)?;
        let port = free_port()
            .map_err(|source| BenchError::Io { doing: "cannot find a free port".into(), source })?;
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.join("data").display()
        );
        fs::write(&config, text).doing("write", &config)?;
        let mut daemon =
            runner.daemon(&Invocation::new(&program).arg("serve").arg(&config), "registry.log")?;
        daemon.wait_until("the registry", Duration::from_secs(30), || {
            request(port, "GET", "/v2/", &[], &mut io::empty(), 0).is_ok_and(|answer| answer.status == 200)
        })?;
        Ok(Self { port, _daemon: daemon })
    }

    /// The reference of an image that was pushed.
    pub(crate) fn reference(&self, image: &BaseImage) -> String {
        format!("127.0.0.1:{}/{}:latest", self.port, image.repository)
    }

    /// Uploads blobs and manifest.
    pub(crate) fn push(&self, image: &BaseImage) -> Result<()> {
        let fail = |what: &str, answer: &Answer| {
            Err(BenchError::Other(format!(
                "the registry answered {} to {what} of {}",
                answer.status, image.repository
            )))
        };
        let io = |source| BenchError::Io { doing: format!("cannot push {}", image.repository), source };
        for blob in image.blobs()? {
            let start = format!("/v2/{}/blobs/uploads/", image.repository);
            let answer = request(self.port, "POST", &start, &[], &mut io::empty(), 0).map_err(io)?;
            let Some(location) = answer.location.as_deref().filter(|_| answer.status == 202) else {
                return fail("an upload", &answer);
            };
            let joint = if location.contains('?') { '&' } else { '?' };
            let target = format!("{}{joint}digest={}", path_of(location), blob.digest);
            let mut file = File::open(&blob.path).doing("open", &blob.path)?;
            let length = file.metadata().doing("look at", &blob.path)?.len();
            let kind = [("Content-Type", "application/octet-stream")];
            let answer = request(self.port, "PUT", &target, &kind, &mut file, length).map_err(io)?;
            if answer.status != 201 {
                return fail("a blob", &answer);
            }
        }
        let manifest = image.manifest()?;
        let target = format!("/v2/{}/manifests/latest", image.repository);
        let kind = [("Content-Type", image.media_type())];
        let answer =
            request(self.port, "PUT", &target, &kind, &mut manifest.as_slice(), manifest.len() as u64)
                .map_err(io)?;
        if answer.status == 201 { Ok(()) } else { fail("the manifest", &answer) }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

struct Answer {
    status: u16,
    location: Option<String>,
}

/// One request on a connection of its own. The answer's body is not read: nobody needs one.
fn request(
    port: u16,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &mut dyn Read,
    length: u64,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: {length}\r\n"
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    io::copy(&mut body.take(length), &mut stream)?;
    stream.flush()?;
    let mut bytes = Vec::new();
    stream.take(1 << 20).read_to_end(&mut bytes)?;
    parse_answer(&bytes).ok_or_else(|| io::Error::other("the registry's answer is no HTTP"))
}

fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let location = lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
    });
    Some(Answer { status, location })
}

/// The path and query of a location, absolute or not.
fn path_of(location: &str) -> &str {
    match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => location,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = parse_answer(
            b"HTTP/1.1 202 Accepted\r\nlocation: http://h:1/v2/x?_state=a\r\nX: y\r\n\r\nLocation: no",
        )
        .unwrap();
        assert_eq!((answer.status, answer.location.as_deref()), (202, Some("http://h:1/v2/x?_state=a")));
        assert_eq!(parse_answer(b"HTTP/1.1 200 OK\r\n\r\nLocation: no").unwrap().location, None);
        assert!(parse_answer(b"SSH-2.0").is_none());
    }

    #[test]
    fn locations_may_be_absolute() {
        assert_eq!(path_of("http://127.0.0.1:5000/v2/a?b=c"), "/v2/a?b=c");
        assert_eq!(path_of("/v2/a"), "/v2/a");
        assert_eq!(path_of("http://host"), "/");
    }
}
