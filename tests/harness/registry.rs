//! A registry in this process, on loopback, for tests: pull and push as the distribution specification says, basic and token
//! authentication, faults on demand, and a log of every request with its headers, so that a test can say what was
//! sent to whom. Std only; one thread a connection.

mod answer;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rbuild_digest::Digest;

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

type StoredManifest = (String, Arc<Vec<u8>>);

#[derive(Default)]
struct State {
    access: Option<Access>,
    blobs: BTreeMap<Digest, Arc<Vec<u8>>>,
    /// Which repository has which blob.
    links: BTreeSet<(String, Digest)>,
    /// By repository and tag or digest: media type and bytes.
    manifests: BTreeMap<(String, String), StoredManifest>,
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
                thread::spawn(move || wire::serve(stream, &shared));
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
