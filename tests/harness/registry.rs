//! A registry in this process, on loopback, for tests: pull and push as the distribution specification says, basic and token
//! authentication, faults on demand, and a log of every request with its headers, so that a test can say what was
//! sent to whom. Std only; one thread a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rbuild_digest::Digest;

const MAX_LINE: u64 = 64 << 10;

/// A running registry. It ends when dropped.
pub struct TestRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// Who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody may do everything.
    Open,
    /// Name and password with every request.
    Basic(String, String),
    /// Tokens from `/token` of this registry.
    Token {
        /// Name and password that the token server wants; `None` gives a token to everybody.
        user: Option<(String, String)>,
        /// A refresh token that it takes instead.
        identity: Option<String>,
        /// How long a token is good.
        lifetime: Duration,
    },
    /// A challenge with this realm, and no way in.
    Realm(String),
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with these headers and body.
    Status(u16, Vec<(String, String)>, String),
    /// The connection is closed without an answer.
    Close,
    /// The body ends after so many bytes, and the connection with it.
    Truncate(usize),
    /// Nothing is said for so long; then the connection is closed.
    Stall(Duration),
    /// So many bytes of the body at once, with a pause between them.
    Slow(usize, Duration),
    /// The first bit of the body is wrong.
    FlipBit,
    /// `Docker-Content-Digest` is of something else.
    WrongDigestHeader,
    /// There is no `Docker-Content-Digest`.
    NoDigestHeader,
    /// All of it, although a range was asked for.
    IgnoreRange,
    /// Another range than was asked for.
    WrongRange,
    /// To this address.
    Redirect(String),
    /// `Content-Length` says so many bytes.
    ContentLength(usize),
}

/// One request as received.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Without query.
    pub path: String,
    /// Without question mark.
    pub query: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How long the body was.
    pub body_bytes: usize,
    /// The body, where it was short.
    pub body: Vec<u8>,
    /// The answer's status; 0 when there was none.
    pub status: u16,
}

impl Request {
    /// A header, or empty.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `GET /v2/…`
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// A small image that was put into the registry.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// Of the manifest.
    pub manifest: Digest,
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// Of the config.
    pub config: Digest,
    /// Of the layers, from the bottom up.
    pub layers: Vec<Digest>,
}

struct Rule {
    method: String,
    path_part: String,
    times: usize,
    fault: Fault,
}

struct Token {
    value: String,
    until: Instant,
}

#[derive(Default)]
struct State {
    access: Option<Access>,
    blobs: BTreeMap<Digest, Arc<Vec<u8>>>,
    /// Which repository has which blob.
    links: BTreeSet<(String, Digest)>,
    /// By repository and tag or digest: media type and bytes.
    manifests: BTreeMap<(String, String), (String, Arc<Vec<u8>>)>,
    uploads: BTreeMap<String, Vec<u8>>,
    rules: Vec<Rule>,
    log: Vec<Request>,
    tokens: Vec<Token>,
    counter: u64,
    no_mounts: bool,
    connections: Vec<TcpStream>,
    closed: bool,
}

struct Shared {
    host: String,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TestRegistry {
    /// An empty registry that is open to everybody, on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared { host: address.to_string(), state: Mutex::default() });
        let for_thread = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if for_thread.lock().closed {
                    return;
                }
                if let Ok(copy) = stream.try_clone() {
                    for_thread.lock().connections.push(copy);
                }
                let shared = for_thread.clone();
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// `127.0.0.1:port`, as references name it.
    #[must_use]
    pub fn host(&self) -> String {
        self.shared.host.clone()
    }

    /// Who may do what from now on.
    pub fn set_access(&self, access: Access) {
        self.shared.lock().access = Some(access);
    }

    /// Makes every token that was given out invalid.
    pub fn revoke_tokens(&self) {
        self.shared.lock().tokens.clear();
    }

    /// Refuses to take blobs over from other repositories.
    pub fn refuse_mounts(&self) {
        self.shared.lock().no_mounts = true;
    }

    /// Answers the next `times` requests of `method` whose path and query contain `path_part` with `fault`. Rules
    /// apply in the order they were made.
    pub fn fail(&self, method: &str, path_part: &str, times: usize, fault: Fault) {
        let (method, path_part) = (method.to_owned(), path_part.to_owned());
        self.shared.lock().rules.push(Rule { method, path_part, times, fault });
    }

    /// Stores a blob in a repository.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let mut state = self.shared.lock();
        state.blobs.insert(digest, Arc::new(bytes));
        state.links.insert((repository.to_owned(), digest));
        digest
    }

    /// Stores a manifest under a tag and under its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: impl Into<Vec<u8>>,
    ) -> Digest {
        let bytes = Arc::new(bytes.into());
        let digest = Digest::of(bytes.as_slice());
        let mut state = self.shared.lock();
        for name in [tag.to_owned(), digest.to_string()] {
            state.manifests.insert((repository.to_owned(), name), (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    /// Stores an image of these layers (plain tars) for `linux/<architecture>`.
    pub fn put_image(
        &self,
        repository: &str,
        tag: &str,
        architecture: &str,
        layers: &[Vec<u8>],
    ) -> TestImage {
        let layers: Vec<(Digest, usize)> =
            layers.iter().map(|layer| (self.put_blob(repository, layer.clone()), layer.len())).collect();
        let diff_ids: Vec<String> =
            layers.iter().map(|(digest, _)| format!("{:?}", digest.to_string())).collect();
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let config_size = config.len();
        let config = self.put_blob(repository, config);
        let layer = |(digest, size): &(Digest, usize)| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#
            )
        };
        let layer_list: Vec<String> = layers.iter().map(layer).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{}]}}"#,
            layer_list.join(",")
        );
        let manifest_bytes = manifest.into_bytes();
        let manifest = self.put_manifest(repository, tag, media_type, manifest_bytes.clone());
        TestImage {
            manifest,
            manifest_bytes,
            config,
            layers: layers.into_iter().map(|(digest, _)| digest).collect(),
        }
    }

    /// Stores an index over images: platform label (`linux/arm64`, empty for none) and image.
    pub fn put_index(&self, repository: &str, tag: &str, images: &[(&str, &TestImage)]) -> Digest {
        let entry = |(platform, image): &(&str, &TestImage)| {
            let platform = match platform.split_once('/') {
                Some((os, architecture)) => {
                    format!(r#","platform":{{"architecture":"{architecture}","os":"{os}"}}"#)
                }
                None => String::new(),
            };
            let (digest, size) = (image.manifest, image.manifest_bytes.len());
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}{platform}}}"#
            )
        };
        let entries: Vec<String> = images.iter().map(entry).collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{}]}}"#,
            entries.join(",")
        );
        self.put_manifest(repository, tag, media_type, index)
    }

    /// A stored blob.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<Arc<Vec<u8>>> {
        self.shared.lock().blobs.get(digest).cloned()
    }

    /// Whether a repository has a blob.
    #[must_use]
    pub fn has_blob(&self, repository: &str, digest: &Digest) -> bool {
        self.shared.lock().links.contains(&(repository.to_owned(), *digest))
    }

    /// A stored manifest by tag or digest.
    #[must_use]
    pub fn manifest(&self, repository: &str, name: &str) -> Option<Arc<Vec<u8>>> {
        self.shared
            .lock()
            .manifests
            .get(&(repository.to_owned(), name.to_owned()))
            .map(|(_, bytes)| bytes.clone())
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().log.clone()
    }

    /// Lines of all requests so far, for comparing.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.shared.lock().log.clear();
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.connections)
        };
        for connection in connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the listener, which then sees that it is closed.
        let _ = TcpStream::connect(self.address);
    }
}

/// An answer before it is sent.
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

enum Body {
    Bytes(Vec<u8>),
    /// A stored object from a position on.
    Stored(Arc<Vec<u8>>, usize),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Stored(bytes, start) => bytes.get(*start..).unwrap_or_default(),
        }
    }
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, headers: vec![], body: Body::Bytes(vec![]) }
    }

    fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Bytes(body.into());
        self
    }

    fn error(status: u16, code: &str) -> Self {
        let message = code.to_lowercase().replace('_', " ");
        Self::new(status)
            .header("Content-Type", "application/json")
            .body(format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::with_capacity(256 << 10, reading);
    let mut writer = stream;
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

impl State {
    fn take_fault(&mut self, request: &Request) -> Option<Fault> {
        let target = format!("{}?{}", request.path, request.query);
        let fits = |rule: &&mut Rule| {
            rule.times > 0 && rule.method == request.method && target.contains(&rule.path_part)
        };
        let rule = self.rules.iter_mut().find(fits)?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

fn answer(shared: &Shared, request: &Request, body: Vec<u8>, fault: Option<&Fault>) -> Reply {
    if request.path == "/token" {
        return token(shared, request, &body);
    }
    if let Some(reply) = challenge(shared, request) {
        return reply;
    }
    if request.path == "/v2/" || request.path == "/v2" {
        return Reply::new(200);
    }
    let Some(rest) = request.path.strip_prefix("/v2/") else { return Reply::error(404, "NOT_FOUND") };
    let part = |middle: &str| {
        rest.split_once(middle).map(|(repository, name)| (repository.to_owned(), name.to_owned()))
    };
    let mut state = shared.lock();
    if let Some((repository, name)) = part("/manifests/") {
        manifest(&mut state, request, body, &repository, &name)
    } else if let Some((repository, upload)) = part("/blobs/uploads/") {
        self::upload(&mut state, request, body, &repository, &upload)
    } else if let Some((repository, digest)) = part("/blobs/") {
        blob(&state, request, &repository, &digest, fault)
    } else {
        Reply::error(404, "NOT_FOUND")
    }
}

/// The refusal, unless the request may go on.
fn challenge(shared: &Shared, request: &Request) -> Option<Reply> {
    let mut state = shared.lock();
    let given = request.header("authorization");
    let header = match state.access.clone().unwrap_or(Access::Open) {
        Access::Open => return None,
        Access::Basic(name, password) => {
            if given == format!("Basic {}", base64(format!("{name}:{password}").as_bytes())) {
                return None;
            }
            "Basic realm=\"test\"".to_owned()
        }
        Access::Token { .. } => {
            state.tokens.retain(|token| token.until > Instant::now());
            if state.tokens.iter().any(|token| given == format!("Bearer {}", token.value)) {
                return None;
            }
            let repository =
                request.path.trim_start_matches("/v2/").split("/blobs/").next().unwrap_or_default();
            let repository = repository.split("/manifests/").next().unwrap_or_default();
            format!(
                "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:{repository}:pull\"",
                shared.host
            )
        }
        Access::Realm(realm) => format!("Bearer realm=\"{realm}\",service=\"test\""),
    };
    Some(Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", header))
}

fn token(shared: &Shared, request: &Request, body: &[u8]) -> Reply {
    let mut state = shared.lock();
    let Some(Access::Token { user, identity, lifetime }) = state.access.clone() else {
        return Reply::error(404, "NOT_FOUND");
    };
    let allowed = if request.method == "POST" {
        let form = String::from_utf8_lossy(body).into_owned();
        identity
            .is_some_and(|identity| form.split('&').any(|field| field == format!("refresh_token={identity}")))
    } else {
        user.is_none_or(|(name, password)| {
            request.header("authorization")
                == format!("Basic {}", base64(format!("{name}:{password}").as_bytes()))
        })
    };
    if !allowed {
        return Reply::error(401, "UNAUTHORIZED");
    }
    let value = format!("token-{}", state.next());
    state.tokens.push(Token { value: value.clone(), until: Instant::now() + lifetime });
    let seconds = lifetime.as_secs_f64();
    Reply::new(200)
        .header("Content-Type", "application/json")
        .body(format!(r#"{{"token":"{value}","access_token":"{value}","expires_in":{seconds}}}"#))
}

fn manifest(state: &mut State, request: &Request, body: Vec<u8>, repository: &str, name: &str) -> Reply {
    if request.method == "PUT" {
        let digest = Digest::of(&body);
        let media_type = request.header("content-type").to_owned();
        let bytes = Arc::new(body);
        for name in [name.to_owned(), digest.to_string()] {
            state.manifests.insert((repository.to_owned(), name), (media_type.clone(), bytes.clone()));
        }
        return Reply::new(201).header("Docker-Content-Digest", digest).header("Location", &request.path);
    }
    let Some((media_type, bytes)) = state.manifests.get(&(repository.to_owned(), name.to_owned())) else {
        return Reply::error(404, "MANIFEST_UNKNOWN");
    };
    let mut reply = Reply::new(200)
        .header("Content-Type", media_type)
        .header("Docker-Content-Digest", Digest::of(bytes.as_slice()));
    reply.body = Body::Stored(bytes.clone(), 0);
    reply
}

fn blob(state: &State, request: &Request, repository: &str, digest: &str, fault: Option<&Fault>) -> Reply {
    let found = digest.parse::<Digest>().ok();
    let found = found.filter(|digest| state.links.contains(&(repository.to_owned(), *digest)));
    let Some((digest, bytes)) = found.and_then(|digest| Some((digest, state.blobs.get(&digest)?.clone())))
    else {
        return Reply::error(404, "BLOB_UNKNOWN");
    };
    let range = request
        .header("range")
        .strip_prefix("bytes=")
        .and_then(|range| range.split('-').next()?.parse().ok());
    let range: Option<usize> = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let total = bytes.len();
    let mut reply = match range {
        None => Reply::new(200),
        Some(start) if start >= total => return Reply::error(416, "RANGE_INVALID"),
        Some(start) => {
            let start = if matches!(fault, Some(Fault::WrongRange)) { start / 2 } else { start };
            Reply::new(206).header("Content-Range", format!("bytes {start}-{}/{total}", total - 1))
        }
    };
    reply = reply.header("Content-Type", "application/octet-stream").header("Docker-Content-Digest", digest);
    let start =
        range.map_or(0, |start| if matches!(fault, Some(Fault::WrongRange)) { start / 2 } else { start });
    reply.body = Body::Stored(bytes, start);
    reply
}

fn upload(state: &mut State, request: &Request, body: Vec<u8>, repository: &str, id: &str) -> Reply {
    let query: BTreeMap<String, String> = request
        .query
        .split('&')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_owned(), percent_decode(value)))
        .collect();
    let digest = |name: &str| query.get(name).and_then(|digest| digest.parse::<Digest>().ok());
    match request.method.as_str() {
        "POST" => {
            let from = query.get("from").cloned().unwrap_or_default();
            if let Some(digest) = digest("mount")
                && !state.no_mounts
                && state.links.contains(&(from, digest))
            {
                state.links.insert((repository.to_owned(), digest));
                return Reply::new(201).header("Docker-Content-Digest", digest);
            }
            let id = format!("upload-{}", state.next());
            state.uploads.insert(id.clone(), vec![]);
            Reply::new(202).header("Location", format!("/v2/{repository}/blobs/uploads/{id}?state=x"))
        }
        "PATCH" | "PUT" => {
            let Some(mut bytes) = state.uploads.remove(id) else {
                return Reply::error(404, "BLOB_UPLOAD_UNKNOWN");
            };
            bytes.extend(body);
            if request.method == "PATCH" {
                let end = bytes.len().saturating_sub(1);
                state.uploads.insert(id.to_owned(), bytes);
                let location = format!("/v2/{repository}/blobs/uploads/{id}");
                return Reply::new(202).header("Location", location).header("Range", format!("0-{end}"));
            }
            let found = Digest::of(&bytes);
            if digest("digest") != Some(found) {
                return Reply::error(400, "DIGEST_INVALID");
            }
            state.blobs.insert(found, Arc::new(bytes));
            state.links.insert((repository.to_owned(), found));
            Reply::new(201).header("Docker-Content-Digest", found)
        }
        "DELETE" => Reply::new(if state.uploads.remove(id).is_some() { 204 } else { 404 }),
        _ => Reply::error(405, "UNSUPPORTED"),
    }
}

fn percent_decode(text: &str) -> String {
    text.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/")
}

/// Standard base64 with padding.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for n in 0..4 {
            let at = (bits >> (18 - 6 * n) & 63) as usize;
            out.push(if n <= group.len() { char::from(ALPHABET[at]) } else { '=' });
        }
    }
    out
}
