//! HTTP/1.1 as far as a registry needs it, and the faults on the wire.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;

use rbuild_digest::Digest;

use super::answer::answer;
use super::{Fault, Request, Shared};

const MAX_LINE: u64 = 64 << 10;

/// An answer before it is sent.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Body,
}

pub(super) enum Body {
    Bytes(Vec<u8>),
    /// A stored object from a position on.
    Stored(Arc<Vec<u8>>, usize),
}

impl Body {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Stored(bytes, start) => bytes.get(*start..).unwrap_or_default(),
        }
    }
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: vec![], body: Body::Bytes(vec![]) }
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Bytes(body.into());
        self
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        let message = code.to_lowercase().replace('_', " ");
        Self::new(status)
            .header("Content-Type", "application/json")
            .body(format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
    }
}

pub(super) fn serve(stream: TcpStream, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::with_capacity(256 << 10, reading);
    let mut writer = stream;
    // Clients that try TLS first would wait for an answer to their greeting.
    if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
        let _ = writer.shutdown(Shutdown::Both);
        return;
    }
    loop {
        let Ok(Some((mut request, body))) = read_request(&mut reader) else { return };
        request.body_bytes = body.len();
        if body.len() <= 4096 {
            request.body.clone_from(&body);
        }
        let fault = shared.lock().take_fault(&request);
        let reply = match &fault {
            Some(Fault::Close) => None,
            Some(Fault::Stall(time)) => {
                thread::sleep(*time);
                None
            }
            Some(Fault::Status(status, headers, body)) => {
                let mut reply = Reply::new(*status).body(body.clone());
                reply.headers.clone_from(headers);
                Some(reply)
            }
            Some(Fault::Redirect(to)) => Some(Reply::new(307).header("Location", to)),
            fault => Some(answer(shared, &request, body, fault.as_ref())),
        };
        request.status = reply.as_ref().map_or(0, |reply| reply.status);
        let is_head = request.method == "HEAD";
        shared.lock().log.push(request);
        let Some(reply) = reply else {
            let _ = writer.shutdown(Shutdown::Both);
            return;
        };
        match send(&mut writer, reply, fault.as_ref(), is_head) {
            Ok(true) => {}
            _ => {
                let _ = writer.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}

/// Sends an answer. Whether the connection stays open.
fn send(writer: &mut TcpStream, mut reply: Reply, fault: Option<&Fault>, is_head: bool) -> io::Result<bool> {
    if matches!(fault, Some(Fault::FlipBit)) {
        let mut bytes = reply.body.bytes().to_vec();
        if let Some(first) = bytes.first_mut() {
            *first ^= 1;
        }
        reply.body = Body::Bytes(bytes);
    }
    let digest_header = |(name, _): &(String, String)| name == "Docker-Content-Digest";
    match fault {
        Some(Fault::NoDigestHeader) => reply.headers.retain(|header| !digest_header(header)),
        Some(Fault::WrongDigestHeader) => {
            for header in reply.headers.iter_mut().filter(|header| digest_header(header)) {
                header.1 = Digest::of("something else").to_string();
            }
        }
        _ => {}
    }
    let body = reply.body.bytes();
    let length = match fault {
        Some(Fault::ContentLength(length)) => *length,
        _ => body.len(),
    };
    let mut head = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        // The length of what a HEAD does not send.
        if name == "Content-Length" {
            head = head.replace(&format!("Content-Length: {length}\r\n"), "");
        }
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    if is_head {
        writer.write_all(head.as_bytes())?;
        return Ok(true);
    }
    if body.len() < 16 << 10 && fault.is_none() {
        // One packet.
        writer.write_all(&[head.as_bytes(), body].concat())?;
        return Ok(true);
    }
    writer.write_all(head.as_bytes())?;
    match fault {
        Some(Fault::Truncate(n)) => {
            writer.write_all(body.get(..*n).unwrap_or(body))?;
            Ok(false)
        }
        Some(Fault::Slow(n, pause)) => {
            for piece in body.chunks(*n) {
                writer.write_all(piece)?;
                thread::sleep(*pause);
            }
            Ok(true)
        }
        fault => {
            writer.write_all(body)?;
            Ok(!matches!(fault, Some(Fault::ContentLength(_))))
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<(Request, Vec<u8>)>> {
    let Some(line) = read_line(reader)? else { return Ok(None) };
    let mut parts = line.split(' ');
    let method = parts.next().unwrap_or_default().to_owned();
    let target = parts.next().unwrap_or_default();
    // As a proxy is asked: with the host.
    let absolute = target.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    let target = absolute.unwrap_or(target);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request =
        Request { method, path: path.to_owned(), query: query.to_owned(), ..Request::default() };
    while let Some(line) = read_line(reader)?.filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            request.headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    let body = if request.header("transfer-encoding") == "chunked" {
        read_chunked(reader)?
    } else {
        let length = request.header("content-length").parse().unwrap_or(0);
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Ok(None);
        }
        body
    };
    Ok(Some((request, body)))
}

fn read_chunked(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader)?.unwrap_or_default();
        let length = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        reader.take(length).read_to_end(&mut body)?;
        read_line(reader)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()))
}
