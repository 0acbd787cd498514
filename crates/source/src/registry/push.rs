//! Uploads: is it there already, can it be taken from another repository, else the whole blob in one request; then
//! the manifest. The blob's bytes are read on the calling thread and sent by a task.

use std::io::Read;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::stream;
use rbuild_digest::Digest;
use rbuild_oci::Reference;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use reqwest::{Body, Method, Url};
use tokio::sync::mpsc;

use super::Repository;
use super::auth::Scope;
use super::endpoint::{Endpoint, same_origin};
use super::failure::{Failure, Problem, server_message};
use super::transport::{Answer, Call, Transport, upload_location};

/// Bytes read and sent at once.
const PIECE: usize = 256 << 10;
/// Pieces on their way.
const PIECES: usize = 8;
/// A registry may need a while to take a large blob in after its last byte.
const COMMIT_PATIENCE: Duration = Duration::from_secs(600);

type Outcome<T> = std::result::Result<T, Failure>;

/// The size of a blob, or `None` when the repository has none.
pub(crate) async fn exists(
    transport: &Transport,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<u64>> {
    let doing = format!("looking for {digest} in {repository}");
    let ask = async {
        let endpoint = transport.main_endpoint(&repository.domain)?;
        let make = || {
            let url = endpoint.url(&format!("{}/blobs/{digest}", repository.path));
            Call::new(Method::HEAD, url).accept(&[404])
        };
        let attempts = transport.options().limits.attempts;
        let answer =
            transport.with_retries(&endpoint, &Scope::push(&repository.path), attempts, make).await?;
        Ok(if answer.status() == 404 {
            None
        } else {
            Some(answer.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0))
        })
    };
    ask.await.map_err(|failure: Failure| failure.into_error(&doing))
}

/// Whether the registry took the blob over from `from`.
pub(crate) async fn mount(
    transport: &Transport,
    repository: &Repository,
    digest: &Digest,
    from: &str,
) -> Result<bool> {
    let doing = format!("taking {digest} over from {} to {repository}", from);
    let ask = async {
        let endpoint = transport.main_endpoint(&repository.domain)?;
        let scope = Scope::mount(&repository.path, from);
        let make = || {
            let mut url = endpoint.url(&format!("{}/blobs/uploads/", repository.path));
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
            Call::new(Method::POST, url).header("content-length", "0").accept(&[400, 403, 404, 405])
        };
        let attempts = transport.options().limits.attempts;
        let answer = transport.with_retries(&endpoint, &scope, attempts, make).await?;
        if answer.status() == 202
            && let Ok(url) = location(&endpoint, &answer)
        {
            // Not taken over, but an upload is open: the push goes on there.
            let key = upload_key(repository, digest);
            transport.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(key, url);
        }
        Ok::<_, Failure>(answer.status() == 201)
    };
    match ask.await {
        Ok(mounted) => Ok(mounted),
        // No rights on the other repository: push it.
        Err(failure) if matches!(failure.problem, Problem::Unauthorized { .. }) => Ok(false),
        Err(failure) => Err(failure.into_error(&doing)),
    }
}

/// Uploads a blob, from the start again when the connection breaks.
pub(crate) fn push<'a>(
    transport: &Arc<Transport>,
    repository: &Repository,
    digest: &Digest,
    size: u64,
    open: &mut dyn FnMut() -> Result<Box<dyn Read + 'a>>,
    cancel: &CancelToken,
) -> Result<()> {
    let doing = format!("pushing {digest} to {repository}");
    let limits = &transport.options().limits;
    let mut attempt = 1;
    loop {
        let mut reader = open()?;
        let failure = match push_once(transport, repository, digest, size, &mut *reader, cancel)? {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        // 401: the token ran out meanwhile. 404 and 416: the upload was forgotten.
        let again = failure.retryable() || matches!(failure.status(), Some(401 | 404 | 416));
        if !again || attempt >= limits.attempts.min(failure.most_attempts()) {
            return Err(failure.into_error(&doing));
        }
        let wait = transport.wait(attempt, failure.retry_after());
        transport.block(cancel, async move {
            tokio::time::sleep(wait).await;
            Ok(())
        })?;
        attempt += 1;
    }
}

fn push_once(
    transport: &Arc<Transport>,
    repository: &Repository,
    digest: &Digest,
    size: u64,
    reader: &mut dyn Read,
    cancel: &CancelToken,
) -> Result<Outcome<()>> {
    let upload = {
        let (transport, repository, digest) = (transport.clone(), repository.clone(), *digest);
        move || async move { Ok(open_upload(&transport, &repository, &digest).await) }
    };
    let (endpoint, mut url, authorization) = match transport.block(cancel, upload())? {
        Ok(upload) => upload,
        Err(failure) => return Ok(Err(failure)),
    };
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    let (send, receive) = mpsc::channel::<std::io::Result<Vec<u8>>>(PIECES);
    let (give, take) = std::sync::mpsc::sync_channel(1);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let guard = cancel.on_cancel(move || {
        let _ = stop.send(());
    });
    let work = {
        let (transport, scope) = (transport.clone(), Scope::push(&repository.path));
        async move { put(&transport, &endpoint, &scope, url, authorization, size, receive).await }
    };
    transport.tasks().handle()?.spawn(async move {
        let outcome = tokio::select! {
            outcome = work => Some(outcome),
            () = super::runtime::until(stopped) => None,
        };
        let _ = give.send(outcome);
    });
    let read = feed(reader, size, &send);
    drop(send);
    let outcome = take.recv().ok().flatten();
    drop(guard);
    cancel.check()?;
    read.map_err(|error| error.context(format!("cannot push {digest} to {repository}")))?;
    Ok(outcome.unwrap_or_else(|| {
        Err(Failure::new(&repository.domain, Problem::HungUp("the upload was interrupted".to_owned())))
    }))
}

/// Sends what the reader gives, which must be `size` bytes.
fn feed(reader: &mut dyn Read, size: u64, send: &mpsc::Sender<std::io::Result<Vec<u8>>>) -> Result<()> {
    let mut left = size;
    while left > 0 {
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        let mut filled = 0;
        while filled < piece.len() {
            match reader.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = send.blocking_send(Err(std::io::Error::other("the source broke")));
                    return Err(super::into_port_error(error, "the blob"));
                }
            }
        }
        if filled == 0 {
            let _ = send.blocking_send(Err(std::io::Error::other("the source is short")));
            let message = format!("it ended {left} bytes before its {size}");
            return Err(PortError::new(ErrorKind::Corrupt, message));
        }
        piece.truncate(filled);
        left -= filled as u64;
        if send.blocking_send(Ok(piece)).is_err() {
            // The request ended early: its answer says why.
            return Ok(());
        }
    }
    Ok(())
}

/// Opens an upload; gives its address and the authorization that opened it.
async fn open_upload(
    transport: &Transport,
    repository: &Repository,
    digest: &Digest,
) -> Outcome<(Endpoint, Url, Option<HeaderValue>)> {
    let endpoint = transport.main_endpoint(&repository.domain)?;
    let scope = Scope::push(&repository.path);
    let key = upload_key(repository, digest);
    let open = transport.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    let url = match open {
        Some(url) => url,
        None => {
            let url = endpoint.url(&format!("{}/blobs/uploads/", repository.path));
            let make = || Call::new(Method::POST, url.clone()).header("content-length", "0");
            let attempts = transport.options().limits.attempts;
            let answer = transport.with_retries(&endpoint, &scope, attempts, make).await?;
            location(&endpoint, &answer)?
        }
    };
    let authorization = transport.auth.authorization(transport, &endpoint, &scope).await?;
    let authorization = authorization.filter(|_| same_origin(&url, endpoint.base()));
    Ok((endpoint, url, authorization))
}

async fn put(
    transport: &Transport,
    endpoint: &Endpoint,
    scope: &Scope,
    url: Url,
    authorization: Option<HeaderValue>,
    size: u64,
    receive: mpsc::Receiver<std::io::Result<Vec<u8>>>,
) -> Outcome<()> {
    let pieces =
        stream::unfold(
            receive,
            |mut receive| async move { receive.recv().await.map(|piece| (piece, receive)) },
        );
    let mut request = transport
        .client(&url)
        .await?
        .put(url)
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, size)
        .body(Body::wrap_stream(pieces));
    if let Some(value) = &authorization {
        request = request.header(AUTHORIZATION, value.clone());
    }
    // The reader sets the pace, so there is no limit on the whole.
    let patience = COMMIT_PATIENCE.saturating_add(Duration::from_secs(size >> 16));
    let response = match tokio::time::timeout(patience, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            return Err(Failure::of(&endpoint.host, &error, transport.options().limits.connect_timeout));
        }
        Err(_) => return Err(Failure::new(&endpoint.host, Problem::Timeout(patience))),
    };
    let code = response.status().as_u16();
    if response.status().is_success() {
        return Ok(());
    }
    if code == 401 {
        transport.auth.challenged(endpoint, scope, response.headers(), authorization.as_ref()).await;
    }
    let retry_after = None;
    let message = match tokio::time::timeout(Duration::from_secs(5), response.bytes()).await {
        Ok(Ok(body)) => server_message(body.get(..body.len().min(4096)).unwrap_or_default()),
        _ => String::new(),
    };
    Err(Failure::new(&endpoint.host, Problem::Status { code, message, retry_after }))
}

/// Stores a manifest or index.
pub(crate) async fn put_manifest(
    transport: &Transport,
    reference: &Reference,
    media_type: &str,
    bytes: Vec<u8>,
) -> Result<Digest> {
    let digest = Digest::of(&bytes);
    let target = reference.tag.clone().unwrap_or_else(|| digest.to_string());
    let doing = format!("pushing the manifest of {reference}");
    let send = async {
        let endpoint = transport.main_endpoint(&reference.domain)?;
        let make = || {
            let url = endpoint.url(&format!("{}/manifests/{target}", reference.path));
            Call::new(Method::PUT, url).header("content-type", media_type).body(bytes.clone())
        };
        let attempts = transport.options().limits.attempts;
        transport.with_retries(&endpoint, &Scope::push(&reference.path), attempts, make).await
    };
    let answer = send.await.map_err(|failure| {
        let refused = failure.status() == Some(400);
        let mut error = failure.into_error(&doing);
        if refused {
            error.kind = ErrorKind::Invalid;
        }
        error
    })?;
    let stored = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
    match stored {
        Some(stored) if stored != digest => Err(super::failure::wrong_digest(
            &reference.domain,
            &format!("the pushed manifest of {reference}"),
            stored,
        )),
        _ => Ok(digest),
    }
}

fn location(endpoint: &Endpoint, answer: &Answer) -> Outcome<Url> {
    upload_location(answer.response.url(), answer.response.headers())
        .map_err(|text| Failure::new(&endpoint.host, Problem::Protocol(text)))
}

fn upload_key(repository: &Repository, digest: &Digest) -> (String, String) {
    (repository.to_string(), digest.to_string())
}
