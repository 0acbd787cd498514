//! What a tag points to, and the documents behind it.

use std::sync::Arc;

use rbuild_diag::nearest;
use rbuild_digest::Digest;
use rbuild_oci::Reference;
use rbuild_ports::{ErrorKind, PortError, Result};
use reqwest::Method;
use serde::Deserialize;

use super::endpoint::Endpoint;
use super::failure::{self, Failure};
use super::transport::{Answer, Call, Transport};
use super::{MAX_MANIFEST, RawDocument, Resolved};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

impl Transport {
    pub(super) async fn resolve(self: &Arc<Self>, reference: &Reference) -> Result<Resolved> {
        let doing = format!("resolving {reference}");
        let attempts = self.options().limits.attempts;
        let outcome = self
            .pull(&reference.domain, &reference.path, &doing, attempts, |endpoint| {
                manifest_call(Method::HEAD, endpoint, reference)
            })
            .await;
        let response = self.explained(reference, outcome).await?;
        let media_type = response.header("content-type").unwrap_or_default().to_owned();
        let size = response.header("content-length").and_then(|n| n.parse().ok());
        let announced = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        match (announced, reference.digest) {
            (Some(found), Some(wanted)) if found != wanted => {
                Err(failure::wrong_digest(&reference.domain, &reference.to_string(), found))
            }
            (Some(digest), _) => Ok(Resolved { digest, media_type, size }),
            // An old or a simple registry: only the content tells.
            (None, _) => {
                let document = self.manifest(reference).await?;
                let size = Some(document.bytes.len() as u64);
                Ok(Resolved { digest: document.digest, media_type: document.media_type, size })
            }
        }
    }

    pub(super) async fn manifest(self: &Arc<Self>, reference: &Reference) -> Result<RawDocument> {
        let doing = format!("resolving {reference}");
        let attempts = self.options().limits.attempts;
        let mut last = None;
        let mut exchanged = 0;
        for attempt in 1..=attempts {
            let outcome = self
                .pull(&reference.domain, &reference.path, &doing, attempts, |endpoint| {
                    manifest_call(Method::GET, endpoint, reference)
                })
                .await;
            let mut response = self.explained(reference, outcome).await?;
            let media_type = response.header("content-type").unwrap_or_default().to_owned();
            let announced = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
            let bytes = match response.bytes(MAX_MANIFEST).await {
                Ok(bytes) => bytes,
                Err(failure) if failure.retryable() => {
                    last = Some(failure.into_error(&doing));
                    if attempt < attempts {
                        tokio::time::sleep(self.wait(attempt, None)).await;
                    }
                    continue;
                }
                Err(failure) => return Err(failure.into_error(&doing)),
            };
            let digest = Digest::of(&bytes);
            if reference.digest.or(announced).is_none_or(|wanted| wanted == digest) {
                return Ok(RawDocument { digest, media_type, bytes });
            }
            last = Some(failure::wrong_digest(&reference.domain, &reference.to_string(), digest));
            // It is asked for once more: caches in between send old documents under a new digest.
            exchanged += 1;
            if exchanged == 2 {
                break;
            }
        }
        Err(last.unwrap_or_else(|| PortError::new(ErrorKind::Internal, "no attempt was made")))
    }

    /// The answer, or what is wrong in words of images; a tag that is almost right is named.
    async fn explained(
        &self,
        reference: &Reference,
        outcome: std::result::Result<Answer, Failure>,
    ) -> Result<Answer> {
        let failure = match outcome {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        let no_such_image = failure.status() == Some(404);
        let error = failure.for_manifest(reference);
        match &reference.tag {
            Some(tag) if no_such_image && reference.digest.is_none() => {
                match self.similar_tag(reference, tag).await {
                    Some(similar) => Err(error.help(format!("did you mean the tag {similar:?}?"))),
                    None => Err(error),
                }
            }
            _ => Err(error),
        }
    }

    /// Asks for the repository's tags, once; any failure is no answer.
    async fn similar_tag(&self, reference: &Reference, tag: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let make = |endpoint: &Endpoint| {
            Call::new(Method::GET, endpoint.url(&format!("{}/tags/list?n=1000", reference.path)))
        };
        let mut answer = self.pull(&reference.domain, &reference.path, "", 1, make).await.ok()?;
        let bytes = answer.bytes(MAX_MANIFEST).await.ok()?;
        let tags = serde_json::from_slice::<Tags>(&bytes).ok()?.tags?;
        nearest(tag, tags.iter().map(String::as_str)).map(str::to_owned)
    }
}

fn manifest_call(method: Method, endpoint: &Endpoint, reference: &Reference) -> Call {
    let target = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => "latest".to_owned(),
    };
    Call::new(method, endpoint.url(&format!("{}/manifests/{target}", reference.path)))
        .header("accept", ACCEPT)
}
