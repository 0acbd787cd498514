//! Downloads of blobs: pieces as they come, from a task into a blocking reader. A transfer that breaks goes on where
//! it broke; the reader sees one stream of exactly the announced size.

use std::io::{self, Read};
use std::sync::Arc;

use rbuild_oci::Descriptor;
use rbuild_ports::{CancelGuard, CancelToken, ErrorKind, PortError, Result};
use reqwest::{Method, Url};
use tokio::sync::{mpsc, oneshot};

use super::Repository;
use super::endpoint::Endpoint;
use super::failure::{Failure, Problem};
use super::runtime::until;
use super::transport::{Answer, Call, Transport};

/// Pieces on their way between the connection and the reader.
const PIECES: usize = 16;
/// After this much progress the attempts count from the beginning.
const PROGRESS: u64 = 1 << 20;

type Piece = Box<dyn AsRef<[u8]> + Send>;

/// The content of a blob. Errors are [`PortError`]s inside `io::Error`s: see [`into_port_error`].
pub struct BlobStream {
    pieces: mpsc::Receiver<Result<Piece>>,
    piece: Option<Piece>,
    at: usize,
    _guard: CancelGuard,
}

/// The error inside `error` when it came from a [`BlobStream`]; otherwise one about reading `what`.
#[must_use]
pub fn into_port_error(error: io::Error, what: &str) -> PortError {
    match error.downcast::<PortError>() {
        Ok(error) => error,
        Err(error) => PortError::io("read", what, error),
    }
}

impl BlobStream {
    pub(crate) fn open(
        transport: &Arc<Transport>,
        repository: &Repository,
        blob: &Descriptor,
        cancel: &CancelToken,
    ) -> Result<Self> {
        let mut download = Download {
            transport: transport.clone(),
            repository: repository.clone(),
            doing: format!("fetching {} of {repository}", blob.digest),
            blob: blob.clone(),
            done: 0,
            failures: 0,
            progress_at: 0,
        };
        let (download, answer) = transport.block(cancel, async move {
            let answer = download.first().await?;
            Ok((download, answer))
        })?;
        let (send, pieces) = mpsc::channel(PIECES);
        let (stop, stopped) = oneshot::channel();
        let guard = cancel.on_cancel(move || {
            let _ = stop.send(());
        });
        transport.tasks().handle()?.spawn(async move {
            let failed = send.clone();
            let outcome = tokio::select! {
                outcome = download.run(answer, send) => outcome,
                () = until(stopped) => Err(PortError::cancelled()),
            };
            if let Err(error) = outcome {
                let _ = failed.send(Err(error)).await;
            }
        });
        Ok(Self { pieces, piece: None, at: 0, _guard: guard })
    }
}

impl Read for BlobStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest =
                self.piece.as_deref().map_or(&[][..], AsRef::as_ref).get(self.at..).unwrap_or_default();
            if !rest.is_empty() {
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                self.at += n;
                return Ok(n);
            }
            self.piece = match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(piece)) => Some(piece),
            };
            self.at = 0;
        }
    }
}

struct Download {
    transport: Arc<Transport>,
    repository: Repository,
    blob: Descriptor,
    doing: String,
    done: u64,
    failures: u32,
    progress_at: u64,
}

impl Download {
    /// The answer to the first request: errors here are errors of opening.
    async fn first(&mut self) -> Result<Answer> {
        let (path, digest) = (&self.repository.path, &self.blob.digest);
        let make =
            |endpoint: &Endpoint| Call::new(Method::GET, endpoint.url(&format!("{path}/blobs/{digest}")));
        let attempts = self.transport.options().limits.attempts;
        let outcome = self.transport.pull(&self.repository.domain, path, &self.doing, attempts, make).await;
        let answer = match outcome {
            Err(failure) if failure.status() == Some(404) && !self.blob.urls.is_empty() => {
                self.foreign(failure).await
            }
            outcome => outcome,
        };
        let answer = answer.map_err(|failure| self.error(failure))?;
        self.check_length(&answer, self.blob.size)?;
        Ok(answer)
    }

    /// A layer that registries do not keep, from the addresses in its descriptor; never with credentials.
    async fn foreign(&self, mut failure: Failure) -> std::result::Result<Answer, Failure> {
        for text in &self.blob.urls {
            let Ok(url) = Url::parse(text) else { continue };
            if !matches!(url.scheme(), "http" | "https") {
                continue;
            }
            let endpoint = Endpoint::token_server(&url, &self.repository.domain);
            match self.transport.exchange(&endpoint, &Call::new(Method::GET, url), None, None).await {
                Ok(answer) if answer.response.status().is_success() => return Ok(answer),
                Ok(answer) => failure = answer.into_failure().await,
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn run(mut self, mut answer: Answer, send: mpsc::Sender<Result<Piece>>) -> Result<()> {
        let mut skip = 0;
        loop {
            let failure = match self.copy(&mut answer, skip, &send).await? {
                End::Complete | End::Unwanted => return Ok(()),
                End::Broken(failure) => failure,
            };
            drop(answer);
            (answer, skip) = self.resume(failure).await?;
        }
    }

    /// Passes pieces on until the body ends.
    async fn copy(
        &mut self,
        answer: &mut Answer,
        mut skip: u64,
        send: &mpsc::Sender<Result<Piece>>,
    ) -> Result<End> {
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.done == self.blob.size => return Ok(End::Complete),
                Ok(None) => {
                    let text = format!("it sent {} of {} bytes", self.done, self.blob.size);
                    return Ok(End::Broken(Failure::new(&self.repository.domain, Problem::HungUp(text))));
                }
                Err(_) if self.done == self.blob.size => return Ok(End::Complete),
                Err(failure) => return Ok(End::Broken(failure)),
            };
            let length = chunk.as_ref().len() as u64;
            if skip >= length {
                skip -= length;
                continue;
            }
            if self.done + (length - skip) > self.blob.size {
                return Err(self.wrong_size("more"));
            }
            self.done += length - skip;
            let piece: Piece = if skip == 0 {
                Box::new(chunk)
            } else {
                let start = usize::try_from(skip).unwrap_or(usize::MAX);
                Box::new(chunk.as_ref().get(start..).unwrap_or_default().to_vec())
            };
            skip = 0;
            if send.send(Ok(piece)).await.is_err() {
                return Ok(End::Unwanted);
            }
        }
    }

    /// Asks for the rest. Gives the answer, and how many bytes of it were passed on already.
    async fn resume(&mut self, mut failure: Failure) -> Result<(Answer, u64)> {
        if self.done >= self.progress_at + PROGRESS {
            self.failures = 0;
            self.progress_at = self.done;
        }
        loop {
            self.failures += 1;
            if !failure.retryable() || self.failures >= self.transport.options().limits.attempts {
                return Err(self.error(failure));
            }
            tokio::time::sleep(self.transport.wait(self.failures, failure.retry_after())).await;
            match self.ask_for_rest().await {
                Ok(answer) if answer.status() == 416 => {
                    failure = Failure::new(
                        &self.repository.domain,
                        Problem::HungUp("it has no such range".to_owned()),
                    );
                    // Ask for all of it next time.
                    match self.ask_for_all().await {
                        Ok(answer) => return Ok((answer, self.done)),
                        Err(error) => failure = if error.retryable() { error } else { failure },
                    }
                }
                Ok(answer) if answer.status() == 206 && range_start(&answer) == Some(self.done) => {
                    return Ok((answer, 0));
                }
                // It sends everything, or something else than it was asked for: start over, and skip what was read.
                Ok(answer) if answer.status() == 206 => {
                    drop(answer);
                    match self.ask_for_all().await {
                        Ok(answer) => return Ok((answer, self.done)),
                        Err(error) => failure = error,
                    }
                }
                Ok(answer) => return Ok((answer, self.done)),
                Err(error) => failure = error,
            }
        }
    }

    async fn ask_for_rest(&self) -> std::result::Result<Answer, Failure> {
        let range = format!("bytes={}-", self.done);
        self.ask(|call| call.header("range", range.clone()).accept(&[416])).await
    }

    async fn ask_for_all(&self) -> std::result::Result<Answer, Failure> {
        self.ask(|call| call).await
    }

    async fn ask(&self, change: impl Fn(Call) -> Call) -> std::result::Result<Answer, Failure> {
        let (path, digest) = (&self.repository.path, &self.blob.digest);
        let make = |endpoint: &Endpoint| {
            change(Call::new(Method::GET, endpoint.url(&format!("{path}/blobs/{digest}"))))
        };
        self.transport.pull(&self.repository.domain, path, &self.doing, 1, make).await
    }

    fn check_length(&self, answer: &Answer, expected: u64) -> Result<()> {
        match answer.response.content_length() {
            Some(length) if length > expected => Err(self.wrong_size("more")),
            // Fewer may be a proxy's mistake, and shows when the body ends.
            _ => Ok(()),
        }
    }

    fn wrong_size(&self, than: &str) -> PortError {
        let (host, size) = (&self.repository.domain, self.blob.size);
        let message = format!(
            "registry {host} sent {than} than the {size} bytes of {} of {}",
            self.blob.digest, self.repository
        );
        PortError::new(ErrorKind::Corrupt, message)
    }

    fn error(&self, failure: Failure) -> PortError {
        failure.into_error(&self.doing)
    }
}

enum End {
    Complete,
    /// Nobody reads any more.
    Unwanted,
    Broken(Failure),
}

/// Where the content of a partial answer begins.
fn range_start(answer: &Answer) -> Option<u64> {
    let range = answer.header("content-range")?.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}
