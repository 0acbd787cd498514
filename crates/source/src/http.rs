//! Files from the web (`ADD https://…`). What was downloaded is kept with the server's entity tag, so that the next
//! build asks whether it changed; a file pinned by checksum is not even asked for. Addresses are quoted without
//! credentials and queries.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_digest::{Digest, Hasher};
use rbuild_graph::HttpSource;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Progress, Result, View};
use rbuild_store::replace_file;
use rbuild_tree::{Entry, Kind, RelPath, Time};
use reqwest::header::HeaderValue;
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::file_view::{FileView, copy_into};
use crate::http_date::parse_http_date;
use crate::registry::{Answer, Call, Endpoint, Failure, Problem, Registry, Transport, until};

/// Downloads beyond this are dropped, the oldest first.
const MAX_KEPT: u64 = 4 << 30;
const PIECES: usize = 16;

/// Downloads.
pub(crate) struct Downloads {
    registry: Registry,
    dir: Option<PathBuf>,
    max_size: u64,
}

/// What is known of a download.
#[derive(Serialize, Deserialize, Clone, Default)]
struct Known {
    etag: String,
    last_modified: String,
    digest: String,
    disposition: String,
}

/// A complete file and what the server said of it.
struct Fetched {
    file: File,
    size: u64,
    digest: Digest,
    known: Known,
}

type Piece = Box<dyn AsRef<[u8]> + Send>;

/// How a download begins.
enum Start {
    /// What is kept is still right.
    Unchanged,
    Body {
        answer: Box<Answer>,
        total: Option<u64>,
        known: Known,
    },
}

impl Downloads {
    pub(crate) fn new(registry: Registry, state: Option<&Path>, max_size: u64) -> Self {
        Self { registry, dir: state.map(|state| state.join("http")), max_size }
    }

    pub(crate) fn fetch(
        &self,
        source: &HttpSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<(Arc<dyn View>, Digest)> {
        let url = parse_url(&source.url)?;
        let kept = self.kept(&url);
        let fetched = match self.pinned(source, kept.as_ref().map(|(known, _)| known)) {
            Some(fetched) => fetched,
            None => self.download(&url, source, kept, progress, cancel)?,
        };
        let name = file_name(&source.filename, &fetched.known.disposition, &url);
        let name = RelPath::root().child(name.as_bytes()).map_err(|error| {
            PortError::new(ErrorKind::Invalid, format!("{} cannot be stored: {error}", shown(&url)))
        })?;
        let mode = if source.mode == 0 { 0o600 } else { source.mode & 0o7777 };
        let mut entry = Entry::new(name, Kind::File { size: fetched.size }, mode);
        (entry.uid, entry.gid) = (source.uid, source.gid);
        entry.mtime = Time::from_secs(parse_http_date(&fetched.known.last_modified).unwrap_or(0));
        let digest = fetched.digest;
        Ok((Arc::new(FileView::new(entry, fetched.file)), digest))
    }

    /// The file of a pinned checksum, when it is here.
    fn pinned(&self, source: &HttpSource, known: Option<&Known>) -> Option<Fetched> {
        let digest = source.checksum?;
        let (file, size) = self.open_kept(&digest)?;
        let known = known.filter(|known| known.digest == digest.to_string()).cloned().unwrap_or_default();
        Some(Fetched { file, size, digest, known })
    }

    fn download(
        &self,
        url: &Url,
        source: &HttpSource,
        kept: Option<(Known, Digest)>,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Fetched> {
        let kept = kept.and_then(|(known, digest)| Some((known, digest, self.open_kept(&digest)?)));
        let etag = kept.as_ref().map(|(known, _, _)| known.etag.clone()).filter(|etag| !etag.is_empty());
        let limits = &self.registry.transport().options().limits;
        let doing = format!("downloading {}", shown(url));
        let mut attempt = 1;
        loop {
            let failure = match self.try_download(url, etag.clone(), progress, cancel)? {
                Ok(Some(fetched)) => {
                    self.verify(&fetched, source, url)?;
                    self.keep(url, &fetched);
                    return Ok(fetched);
                }
                Ok(None) => match kept {
                    Some((known, digest, (file, size))) => {
                        let fetched = Fetched { file, size, digest, known };
                        self.verify(&fetched, source, url)?;
                        return Ok(fetched);
                    }
                    None => {
                        Failure::new(&host(url), Problem::Protocol("it says that nothing changed".to_owned()))
                    }
                },
                Err(failure) => failure,
            };
            if !failure.retryable() || attempt >= limits.attempts.min(failure.most_attempts()) {
                return Err(failure.of_a("server", &doing));
            }
            let wait = self.registry.transport().wait(attempt, failure.retry_after());
            self.registry.transport().block(cancel, async move {
                tokio::time::sleep(wait).await;
                Ok(())
            })?;
            attempt += 1;
        }
    }

    /// One attempt; `None` when what is kept is still right.
    fn try_download(
        &self,
        url: &Url,
        etag: Option<String>,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<std::result::Result<Option<Fetched>, Failure>> {
        let transport = self.registry.transport().clone();
        let begin = {
            let (transport, url) = (transport.clone(), url.clone());
            async move { Ok(begin(&transport, &url, etag).await) }
        };
        let (answer, total, known) = match transport.block(cancel, begin)? {
            Ok(Start::Unchanged) => return Ok(Ok(None)),
            Ok(Start::Body { answer, total, known }) => (answer, total, known),
            Err(failure) => return Ok(Err(failure)),
        };
        if let Some(total) = total.filter(|total| *total > self.max_size) {
            return Err(self.too_large(url, total));
        }
        let (send, mut pieces) = mpsc::channel::<std::result::Result<Piece, Failure>>(PIECES);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let guard = cancel.on_cancel(move || {
            let _ = stop.send(());
        });
        transport.tasks().handle()?.spawn(async move {
            tokio::select! {
                () = pump(answer, send) => {}
                () = until(stopped) => {}
            }
        });
        let mut file = self.new_file(url)?;
        let mut hasher = Hasher::new();
        let mut size = 0;
        let id = shown(url);
        while let Some(piece) = pieces.blocking_recv() {
            cancel.check()?;
            let piece = match piece {
                Ok(piece) => piece,
                Err(failure) => return Ok(Err(failure)),
            };
            let bytes: &[u8] = (*piece).as_ref();
            size += bytes.len() as u64;
            if size > self.max_size {
                return Err(self.too_large(url, size));
            }
            hasher.update(bytes);
            file.write_all(bytes).map_err(|error| PortError::io("write", "a downloaded file", error))?;
            progress.status(&id, size, total, false);
        }
        drop(guard);
        cancel.check()?;
        if total.is_some_and(|total| total != size) {
            let text = format!("it sent {size} of {} bytes", total.unwrap_or(0));
            return Ok(Err(Failure::new(&host(url), Problem::HungUp(text))));
        }
        progress.status(&id, size, Some(size), true);
        let digest = hasher.finish();
        Ok(Ok(Some(Fetched { file, size, digest, known: Known { digest: digest.to_string(), ..known } })))
    }

    fn verify(&self, fetched: &Fetched, source: &HttpSource, url: &Url) -> Result<()> {
        match source.checksum {
            Some(wanted) if wanted != fetched.digest => {
                let message = format!("{} is {} and not the expected {wanted}", shown(url), fetched.digest);
                Err(PortError::new(ErrorKind::Corrupt, message)
                    .help("the file changed, or the checksum is of another version"))
            }
            _ => Ok(()),
        }
    }

    fn too_large(&self, url: &Url, size: u64) -> PortError {
        let message = format!("{} has {size} bytes, more than the {} allowed", shown(url), self.max_size);
        PortError::new(ErrorKind::Invalid, message)
    }

    /// What is known of the address, and the digest of the file kept for it.
    fn kept(&self, url: &Url) -> Option<(Known, Digest)> {
        let bytes = std::fs::read(self.known_file(url)?).ok()?;
        let known: Known = serde_json::from_slice(&bytes).ok()?;
        let digest = known.digest.parse().ok()?;
        Some((known, digest))
    }

    /// A kept file that is what its name says.
    fn open_kept(&self, digest: &Digest) -> Option<(File, u64)> {
        let path = self.dir.as_ref()?.join("data").join(digest.hex());
        let mut file = File::open(&path).ok()?;
        let (found, size) = hash_file(&mut file).ok()?;
        if found != *digest {
            let _ = std::fs::remove_file(&path);
            return None;
        }
        Some((file, size))
    }

    /// A file without a name, so that nothing of it is left when this ends.
    fn new_file(&self, url: &Url) -> Result<File> {
        use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
        let error = |error: rustix::io::Errno| PortError::io("store the download of", shown(url), error);
        if let Some(dir) = &self.dir {
            let data = dir.join("data");
            std::fs::create_dir_all(&data).map_err(|error| PortError::io("create", &data, error))?;
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            match open(&data, flags, Mode::from_raw_mode(0o600)) {
                Ok(fd) => return Ok(File::from(fd)),
                // Some file systems cannot.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {}
                Err(problem) => return Err(error(problem)),
            }
        }
        memfd_create("rbuild-download", MemfdFlags::CLOEXEC).map(File::from).map_err(error)
    }

    /// Keeps a download for later builds. Failing to is no error.
    fn keep(&self, url: &Url, fetched: &Fetched) {
        let (Some(dir), Some(known_file)) = (&self.dir, self.known_file(url)) else { return };
        let path = dir.join("data").join(fetched.digest.hex());
        if fetched.size > MAX_KEPT {
            return;
        }
        let from = PathBuf::from(format!("/proc/self/fd/{}", fetched.file.as_raw_fd()));
        if !path.exists() {
            use rustix::fs::{AtFlags, CWD, linkat};
            if linkat(CWD, &from, CWD, &path, AtFlags::SYMLINK_FOLLOW).is_err() {
                // A file in memory, or a system that does not let us give a name to a file.
                let new = path.with_extension("new");
                if std::fs::copy(&from, &new).and_then(|_| std::fs::rename(&new, &path)).is_err() {
                    let _ = std::fs::remove_file(&new);
                    return;
                }
            }
        }
        if let Ok(bytes) = serde_json::to_vec(&fetched.known) {
            let _ = replace_file(&known_file, &bytes);
        }
        drop_oldest(&dir.join("data"));
    }

    fn known_file(&self, url: &Url) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(Digest::of(url.as_str()).hex()))
    }
}

/// Sends the request; redirects are followed, credentials of the address stay with its host.
async fn begin(
    transport: &Transport,
    url: &Url,
    etag: Option<String>,
) -> std::result::Result<Start, Failure> {
    let mut plain = url.clone();
    let _ = plain.set_username("");
    let _ = plain.set_password(None);
    plain.set_fragment(None);
    let endpoint = Endpoint::server(&plain);
    let authorization =
        (!url.username().is_empty() || url.password().is_some()).then(|| basic(url)).flatten();
    let mut call = Call::new(Method::GET, plain);
    if let Some(etag) = etag {
        call = call.header("if-none-match", etag);
    }
    let answer = transport.exchange(&endpoint, &call, authorization, None).await?;
    if answer.status() == 304 {
        return Ok(Start::Unchanged);
    }
    if !answer.response.status().is_success() {
        return Err(answer.into_failure().await);
    }
    let header = |name| answer.header(name).unwrap_or_default().to_owned();
    let known = Known {
        etag: header("etag"),
        last_modified: header("last-modified"),
        digest: String::new(),
        disposition: header("content-disposition"),
    };
    let total = answer.response.content_length();
    Ok(Start::Body { answer: Box::new(answer), total, known })
}

async fn pump(mut answer: Box<Answer>, send: mpsc::Sender<std::result::Result<Piece, Failure>>) {
    loop {
        // A reader that went away (cancelled, too large) ends the transfer.
        let chunk = tokio::select! {
            chunk = answer.chunk() => chunk,
            () = send.closed() => return,
        };
        let piece: std::result::Result<Piece, Failure> = match chunk {
            Ok(None) => return,
            Ok(Some(chunk)) => Ok(Box::new(chunk)),
            Err(failure) => Err(failure),
        };
        let last = piece.is_err();
        if send.send(piece).await.is_err() || last {
            return;
        }
    }
}

fn basic(url: &Url) -> Option<HeaderValue> {
    let decode = |text: &str| percent_decode(text);
    let pair = [decode(url.username()), b":".to_vec(), decode(url.password().unwrap_or_default())].concat();
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn percent_decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        if byte == b'%'
            && let (Some(high), Some(low)) = (digit(ahead.next()), digit(ahead.next()))
        {
            out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
            bytes = ahead;
        } else {
            out.push(byte);
        }
    }
    out
}

fn parse_url(text: &str) -> Result<Url> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
    url.ok_or_else(|| PortError::new(ErrorKind::Invalid, "this is no http or https address".to_owned()))
}

/// The address for people: without credentials, query and fragment.
fn shown(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// The name the file gets: as asked, as the server says, or as the address ends.
fn file_name(asked: &str, disposition: &str, url: &Url) -> String {
    let base = |name: &str| name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    let usable = |name: &String| {
        !matches!(name.as_str(), "" | "." | "..") && !name.contains('\0') && name.len() <= 255
    };
    let said = disposition.split(';').filter_map(|part| part.trim().strip_prefix("filename="));
    let said = said.map(|name| base(name.trim_matches('"'))).find(usable);
    let last = base(&String::from_utf8_lossy(&percent_decode(url.path().trim_end_matches('/'))));
    if !asked.is_empty() {
        return asked.to_owned();
    }
    said.or(Some(last).filter(usable)).unwrap_or_else(|| "download".to_owned())
}

fn hash_file(file: &mut File) -> std::io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new();
    let size = copy_into(file, &mut hasher)?;
    Ok((hasher.finish(), size))
}

/// Keeps the directory below its limit.
fn drop_oldest(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in files {
        if total <= MAX_KEPT {
            return;
        }
        let _ = std::fs::remove_file(path);
        total -= size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_names() {
        for (asked, disposition, url, want) in [
            ("x", "", "http://h/a/b.tar", "x"),
            ("", "", "http://h/a/b.tar?q=1", "b.tar"),
            ("", "", "http://h/a%20b/", "a b"),
            ("", "attachment; filename=\"../../etc/passwd\"", "http://h/x", "passwd"),
            ("", "attachment; filename=\"..\"", "http://h/x", "x"),
            ("", "", "http://h/%2e%2e%2f%2e%2e%2fx", "x"),
            ("", "", "http://h/", "download"),
        ] {
            assert_eq!(file_name(asked, disposition, &Url::parse(url).unwrap()), want, "{url}");
        }
    }

    #[test]
    fn addresses_are_shown_without_secrets() {
        let url = parse_url("https://user:pass@h:8080/a?token=t#f").unwrap();
        assert_eq!(shown(&url), "https://h:8080/a");
        for bad in ["file:///etc/passwd", "x", "", "ftp://h/x"] {
            assert!(parse_url(bad).is_err());
        }
        assert_eq!(percent_decode("a%40b%zz%"), b"a@b%zz%");
    }
}
