//! HTTP/1.1 over a unix socket, as much as an engine's API needs: one request a connection, bodies streamed in chunks,
//! answers bounded. Foreign bytes are parsed without trusting them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};

/// The longest head of an answer.
const MAX_HEAD: u64 = 64 << 10;
/// The longest answer.
const MAX_BODY: u64 = 16 << 20;
/// How long an engine may think over a question.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes a request's body.
pub(crate) type WriteBody<'a> = dyn FnMut(&mut dyn Write) -> Result<()> + 'a;

/// An engine's socket.
pub(crate) struct Socket<'a> {
    path: PathBuf,
    cancel: &'a CancelToken,
}

/// What an engine said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl<'a> Socket<'a> {
    pub(crate) fn new(path: &Path, cancel: &'a CancelToken) -> Self {
        Self { path: path.to_owned(), cancel }
    }

    /// A request without a body.
    pub(crate) fn call(&self, method: &str, target: &str) -> Result<Answer> {
        let stream = self.connect()?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| self.broken(&error))?;
        let _guard = self.guard(&stream)?;
        let request = head(method, target, "Content-Length: 0");
        (&stream).write_all(request.as_bytes()).map_err(|error| self.broken(&error))?;
        read_answer(&stream).map_err(|error| self.broken(&error))
    }

    /// A request whose body is a stream of tar.
    pub(crate) fn send(&self, target: &str, body: &mut WriteBody<'_>) -> Result<Answer> {
        let stream = self.connect()?;
        let _guard = self.guard(&stream)?;
        let headers = "Content-Type: application/x-tar\r\nTransfer-Encoding: chunked";
        (&stream).write_all(head("POST", target, headers).as_bytes()).map_err(|error| self.broken(&error))?;
        let mut chunks = io::BufWriter::with_capacity(128 * 1024, Chunks { out: &stream, broken: false });
        let written = body(&mut chunks).and_then(|()| {
            chunks
                .flush()
                .and_then(|()| (&stream).write_all(b"0\r\n\r\n"))
                .map_err(|error| self.broken(&error))
        });
        let broken = chunks.get_ref().broken;
        // What is still buffered goes nowhere: the request is over, well or not.
        drop(chunks.into_parts());
        if written.is_err() && !broken {
            // The body failed, not the connection: the engine must not take what it got for all.
            drop(stream.shutdown(Shutdown::Both));
            self.cancel.check()?;
        }
        match (written, broken) {
            // An engine that hangs up while it is sent something has said why.
            (Err(_), true) => {
                self.cancel.check()?;
                let answer = read_answer(&stream).map_err(|_| self.hung_up())?;
                if answer.status < 300 && !has_error(&answer.body) { Err(self.hung_up()) } else { Ok(answer) }
            }
            (Err(error), false) => Err(error),
            (Ok(()), _) => read_answer(&stream).map_err(|error| self.broken(&error)),
        }
    }

    fn connect(&self) -> Result<UnixStream> {
        self.cancel.check()?;
        UnixStream::connect(&self.path).map_err(|error| {
            let at = self.path.display();
            match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    let message = format!("the engine's socket {at} may not be opened by this user");
                    PortError::new(ErrorKind::Denied, message)
                        .help("add the user to its group (often `docker`)")
                }
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    PortError::new(ErrorKind::NotFound, format!("no engine listens at {at}"))
                        .help("start Docker, or write an archive with -o type=docker,dest=FILE")
                }
                _ => PortError::io("connect to", &self.path, error),
            }
        })
    }

    /// Wakes whoever waits for the engine when cancelled.
    fn guard(&self, stream: &UnixStream) -> Result<rbuild_ports::CancelGuard> {
        let stream = stream.try_clone().map_err(|error| self.broken(&error))?;
        Ok(self.cancel.on_cancel(move || drop(stream.shutdown(Shutdown::Both))))
    }

    fn hung_up(&self) -> PortError {
        PortError::new(ErrorKind::Network, format!("the engine at {} hung up", self.path.display()))
    }

    fn broken(&self, error: &io::Error) -> PortError {
        if self.cancel.is_cancelled() {
            return PortError::cancelled();
        }
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => PortError::new(
                ErrorKind::Network,
                format!("the engine at {} does not answer", self.path.display()),
            ),
            _ => PortError::new(
                ErrorKind::Network,
                format!("talking to the engine at {}: {error}", self.path.display()),
            ),
        }
    }
}

fn head(method: &str, target: &str, headers: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: engine\r\nUser-Agent: rbuild\r\nConnection: close\r\n{headers}\r\n\r\n"
    )
}

/// Whether the messages of an engine's stream tell of an error.
fn has_error(body: &[u8]) -> bool {
    stream_error(body).is_some()
}

/// The error in a stream of JSON messages (`{"errorDetail":{"message":…},"error":…}`).
pub(crate) fn stream_error(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    text.lines().find_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let detail = value.pointer("/errorDetail/message").or_else(|| value.get("error"));
        detail.and_then(serde_json::Value::as_str).map(str::to_owned)
    })
}

/// Writes chunks of the chunked encoding.
struct Chunks<'a> {
    out: &'a UnixStream,
    broken: bool,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut out = self.out;
        let result = write!(out, "{:x}\r\n", bytes.len())
            .and_then(|()| out.write_all(bytes))
            .and_then(|()| out.write_all(b"\r\n"));
        self.broken |= result.is_err();
        result.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer is no HTTP: {what}"))
}

/// Reads one answer.
fn read_answer(stream: impl Read) -> io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = (&mut reader).take(MAX_HEAD);
        let status = status_line(&read_line(&mut head)?)?;
        let (mut chunked, mut length) = (false, None);
        loop {
            let line = read_line(&mut head)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header without a colon"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse::<u64>().map_err(|_| malformed("a strange length"))?);
            }
        }
        if (100..200).contains(&status) {
            continue;
        }
        let mut body = vec![];
        if chunked {
            read_chunks(&mut reader, &mut body)?;
        } else {
            let length = length.unwrap_or(MAX_BODY);
            if length > MAX_BODY {
                return Err(malformed("it is too long"));
            }
            reader.take(length).read_to_end(&mut body)?;
        }
        return Ok(Answer { status, body });
    }
}

fn status_line(line: &str) -> io::Result<u16> {
    let rest = line.strip_prefix("HTTP/1.").ok_or_else(|| malformed("it has no status line"))?;
    let code = rest.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| malformed("it has no status"))
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = vec![];
    reader.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(malformed("it ends early"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| malformed("its head is no text"))
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(&mut reader.take(1024))?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_| malformed("a chunk without a size"))?;
        if size > MAX_BODY || body.len() as u64 + size > MAX_BODY {
            return Err(malformed("it is too long"));
        }
        if size == 0 {
            // Trailers, if any, end with the connection.
            return Ok(());
        }
        let before = body.len() as u64;
        reader.take(size).read_to_end(body)?;
        if body.len() as u64 - before != size || !read_line(&mut reader.take(2))?.is_empty() {
            return Err(malformed("a chunk ends early"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match read_answer(text.as_bytes()) {
            Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn answers() {
        for (text, want) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi, and more", "200 hi"),
            ("HTTP/1.1 404 Not Found\r\n\r\nnone", "404 none"),
            ("HTTP/1.0 200\n\nx", "200 x"),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", "201 "),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                "200 abc0123456789",
            ),
        ] {
            assert_eq!(show(text), want, "{text:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        for bad in [
            "",
            "SSH-2.0\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nnocolon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
            &long,
        ] {
            assert!(show(bad).starts_with("error: "), "{bad:?}");
        }
    }

    #[test]
    fn errors_in_streams() {
        let body = b"{\"stream\":\"Loading\"}\r\nnot json\n{\"errorDetail\":{\"message\":\"no space\"},\"error\":\"x\"}\n";
        assert_eq!(stream_error(body).as_deref(), Some("no space"));
        assert_eq!(stream_error(b"{\"error\":\"bad\"}").as_deref(), Some("bad"));
        assert_eq!(stream_error(b"{\"stream\":\"Loaded image: a\"}"), None);
    }
}
