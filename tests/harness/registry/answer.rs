//! What a registry answers: manifests, blobs, uploads, tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rbuild_digest::Digest;

use super::wire::{Body, Reply};
use super::{Access, Fault, Request, Shared, State, Token, base64};

pub(super) fn answer(shared: &Shared, request: &Request, body: Vec<u8>, fault: Option<&Fault>) -> Reply {
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
    } else if let Some((repository, _)) = part("/tags/list") {
        tags(&state, &repository)
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

fn tags(state: &State, repository: &str) -> Reply {
    let tags: Vec<String> = state
        .manifests
        .keys()
        .filter(|(at, name)| at == repository && !name.contains(':'))
        .map(|(_, tag)| format!("{tag:?}"))
        .collect();
    if tags.is_empty() {
        return Reply::error(404, "NAME_UNKNOWN");
    }
    Reply::new(200).body(format!(r#"{{"name":"{repository}","tags":[{}]}}"#, tags.join(",")))
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
