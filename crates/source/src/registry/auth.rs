//! Who may see credentials, and tokens in their place. A registry answers 401 with a challenge; the challenge is
//! remembered, so later requests bring their token along. Credentials go to the registry itself and to token servers
//! of the same site (or that the user allowed). Over plain HTTP they go to this machine, and to a registry that the
//! options name as plain; never to any other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::challenge::parse_challenges;
use super::endpoint::{Endpoint, host_and_port};
use super::failure::{Failure, Problem};
use super::options::{Credential, TokenRequest};
use super::realm::check_realm;
use super::transport::{Answer, Call, Transport};

const MAX_TOKEN_DOCUMENT: u64 = 1 << 20;

/// What a request is for, in the words of token servers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Scope {
    repository: String,
    push: bool,
    mount_from: Option<String>,
}

impl Scope {
    pub(crate) fn pull(repository: &str) -> Self {
        Self { repository: repository.to_owned(), push: false, mount_from: None }
    }

    pub(crate) fn push(repository: &str) -> Self {
        Self { push: true, ..Self::pull(repository) }
    }

    pub(crate) fn mount(repository: &str, from: &str) -> Self {
        Self { mount_from: Some(from.to_owned()), ..Self::push(repository) }
    }

    fn texts(&self) -> Vec<String> {
        let actions = if self.push { "pull,push" } else { "pull" };
        let mut out = vec![format!("repository:{}:{actions}", self.repository)];
        out.extend(self.mount_from.iter().map(|from| format!("repository:{from}:pull")));
        out
    }
}

/// How a registry wants to be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Scheme {
    Basic,
    Bearer { realm: String, service: String },
}

struct Token {
    header: HeaderValue,
    until: Instant,
}

type Slot = Arc<AsyncMutex<Option<Token>>>;
type Found = Arc<OnceCell<Option<Credential>>>;

/// Challenges, tokens and credentials seen so far.
#[derive(Default)]
pub(crate) struct Auth {
    schemes: Mutex<HashMap<String, Scheme>>,
    tokens: Mutex<HashMap<(String, Scope), Slot>>,
    credentials: Mutex<HashMap<(String, String), Found>>,
    /// Token servers that were not told the credentials, by registry host.
    withheld: Mutex<HashMap<String, String>>,
}

impl Auth {
    /// The `Authorization` for a request, once the endpoint is known to want one.
    pub(crate) async fn authorization(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scope: &Scope,
    ) -> Result<Option<HeaderValue>, Failure> {
        let scheme = lock(&self.schemes).get(endpoint.base().as_str()).cloned();
        match scheme {
            None => Ok(None),
            Some(Scheme::Basic) => {
                let credential = self.credential(transport, endpoint, scope).await?;
                Ok(match credential {
                    Some(Credential::Basic { username, password }) => basic(&username, &password),
                    Some(Credential::Bearer(token)) => bearer(&token),
                    _ => None,
                })
            }
            Some(Scheme::Bearer { realm, service }) => {
                let slot = self.slot(endpoint, scope);
                let mut token = slot.lock().await;
                if let Some(token) = token.as_ref().filter(|token| token.until > Instant::now()) {
                    return Ok(Some(token.header.clone()));
                }
                let fresh = self.fetch_token(transport, endpoint, scope, &realm, &service).await?;
                let header = fresh.header.clone();
                *token = Some(fresh);
                Ok(Some(header))
            }
        }
    }

    /// Learns from a 401. Whether asking again may help.
    pub(crate) async fn challenged(
        &self,
        endpoint: &Endpoint,
        scope: &Scope,
        headers: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> bool {
        let challenges: Vec<_> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(parse_challenges)
            .collect();
        let bearer = challenges
            .iter()
            .find(|challenge| challenge.scheme == "bearer" && challenge.get("realm").is_some());
        let scheme = match bearer {
            Some(challenge) => Scheme::Bearer {
                realm: challenge.get("realm").unwrap_or_default().to_owned(),
                service: challenge.get("service").unwrap_or_default().to_owned(),
            },
            None if challenges.iter().any(|challenge| challenge.scheme == "basic") => Scheme::Basic,
            None => return false,
        };
        let known = lock(&self.schemes).insert(endpoint.base().as_str().to_owned(), scheme.clone());
        let Some(used) = used else { return true };
        if scheme == Scheme::Basic {
            return known != Some(Scheme::Basic);
        }
        // The token was refused: it expired, or the registry restarted. Another one is fetched, unless somebody
        // already did.
        let slot = self.slot(endpoint, scope);
        let mut token = slot.lock().await;
        if token.as_ref().is_some_and(|token| token.header == *used) {
            *token = None;
        }
        true
    }

    /// The failure for a request that stays refused.
    pub(crate) async fn refused(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scope: &Scope,
        answer: Option<Answer>,
    ) -> Failure {
        let message = match answer {
            Some(answer) => match answer.into_failure().await.problem {
                Problem::Status { message, .. } => message,
                _ => String::new(),
            },
            None => String::new(),
        };
        let had_credentials = match self.credential(transport, endpoint, scope).await {
            Ok(credential) => credential.is_some(),
            Err(failure) => return failure,
        };
        let withheld_from = lock(&self.withheld).get(&endpoint.host).cloned();
        Failure::new(&endpoint.host, Problem::Unauthorized { message, had_credentials, withheld_from })
    }

    fn slot(&self, endpoint: &Endpoint, scope: &Scope) -> Slot {
        let key = (endpoint.base().as_str().to_owned(), scope.clone());
        lock(&self.tokens).entry(key).or_default().clone()
    }

    /// The user's credentials, asked for once a repository.
    async fn credential(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scope: &Scope,
    ) -> Result<Option<Credential>, Failure> {
        let key = (endpoint.host.clone(), scope.repository.clone());
        let cell = lock(&self.credentials).entry(key.clone()).or_default().clone();
        let source = transport.options().credentials.clone();
        let look_up = || async move {
            let (host, repository) = key;
            tokio::task::spawn_blocking(move || source.credential(&host, &repository))
                .await
                .map_err(|_| Problem::Protocol("the credential helper was interrupted".to_owned()))?
                .map_err(Problem::Other)
        };
        cell.get_or_try_init(look_up).await.cloned().map_err(|problem| Failure::new(&endpoint.host, problem))
    }

    async fn fetch_token(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scope: &Scope,
        realm: &str,
        service: &str,
    ) -> Result<Token, Failure> {
        let fail = |problem| Failure::new(&endpoint.host, problem);
        let (url, trusted) = check_realm(endpoint, realm).map_err(|text| fail(Problem::Protocol(text)))?;
        let scopes = scope.texts();
        if let Some(token) = delegated_token(transport, endpoint, realm, service, &scopes).await? {
            let header = bearer(&token).ok_or_else(|| {
                fail(Problem::Protocol("the access token has impossible characters".to_owned()))
            })?;
            return Ok(Token { header, until: Instant::now() + Duration::from_secs(60) });
        }
        let mut credential = self.credential(transport, endpoint, scope).await?;
        if let Some(Credential::Bearer(token)) = &credential
            && let Some(header) = bearer(token)
        {
            return Ok(Token { header, until: Instant::now() + Duration::from_secs(3600) });
        }
        if credential.is_some() && !trusted {
            lock(&self.withheld).insert(endpoint.host.clone(), host_and_port(&url));
            credential = None;
        }
        let server = Endpoint::token_server(&url, &endpoint.host);
        let (call, authorization) = token_call(&url, service, &scopes, credential.as_ref());
        let mut answer = self.ask_token_server(transport, &server, &call, authorization.clone()).await;
        // Older token servers know no POST.
        if let Err(failure) = &answer
            && matches!(failure.status(), Some(404 | 405 | 501))
            && call.method == Method::POST
        {
            let (call, authorization) = token_call(&url, service, &scopes, None);
            answer = self.ask_token_server(transport, &server, &call, authorization).await;
        }
        let bytes = match answer {
            Ok(mut answer) => answer.bytes(MAX_TOKEN_DOCUMENT).await?,
            Err(failure) if matches!(failure.status(), Some(400 | 401 | 403)) => {
                let message = match failure.problem {
                    Problem::Status { message, .. } => message,
                    _ => String::new(),
                };
                let withheld_from = lock(&self.withheld).get(&endpoint.host).cloned();
                let had_credentials = credential.is_some();
                return Err(fail(Problem::Unauthorized { message, had_credentials, withheld_from }));
            }
            Err(failure) => return Err(failure),
        };
        parse_token(&bytes).map_err(|text| fail(Problem::Protocol(text)))
    }

    async fn ask_token_server(
        &self,
        transport: &Transport,
        server: &Endpoint,
        call: &Call,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let mut attempt = 1;
        loop {
            let outcome = match transport.exchange(server, call, authorization.clone(), None).await {
                Ok(answer) if answer.response.status().is_success() => return Ok(answer),
                Ok(answer) => answer.into_failure().await,
                Err(failure) => failure,
            };
            if !outcome.retryable()
                || attempt >= transport.options().limits.attempts.min(outcome.most_attempts())
            {
                return Err(outcome);
            }
            tokio::time::sleep(transport.wait(attempt, outcome.retry_after())).await;
            attempt += 1;
        }
    }
}

/// Somebody else may fetch tokens: a client whose session holds the credentials.
async fn delegated_token(
    transport: &Transport,
    endpoint: &Endpoint,
    realm: &str,
    service: &str,
    scopes: &[String],
) -> Result<Option<String>, Failure> {
    let source = transport.options().credentials.clone();
    let request = TokenRequest {
        host: endpoint.host.clone(),
        realm: realm.to_owned(),
        service: service.to_owned(),
        scopes: scopes.to_vec(),
    };
    let fail = |problem| Failure::new(&endpoint.host, problem);
    tokio::task::spawn_blocking(move || source.token(&request))
        .await
        .map_err(|_| fail(Problem::Protocol("fetching the access token was interrupted".to_owned())))?
        .map_err(|error| fail(Problem::Other(error)))
}

fn token_call(
    realm: &Url,
    service: &str,
    scopes: &[String],
    credential: Option<&Credential>,
) -> (Call, Option<HeaderValue>) {
    let mut url = realm.clone();
    if let Some(Credential::IdentityToken(token)) = credential {
        let mut form = Url::parse("form:").unwrap_or_else(|_| url.clone());
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service)
            .append_pair("client_id", "rbuild")
            .append_pair("scope", &scopes.join(" "))
            .append_pair("refresh_token", token);
        let body = form.query().unwrap_or_default().as_bytes().to_vec();
        let call = Call::new(Method::POST, url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        return (call, None);
    }
    {
        let mut query = url.query_pairs_mut();
        if !service.is_empty() {
            query.append_pair("service", service);
        }
        for scope in scopes {
            query.append_pair("scope", scope);
        }
    }
    let authorization = match credential {
        Some(Credential::Basic { username, password }) => basic(username, password),
        _ => None,
    };
    (Call::new(Method::GET, url), authorization)
}

fn parse_token(bytes: &[u8]) -> Result<Token, String> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<f64>,
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|_| "its token server sent no token document".to_owned())?;
    let token = document.token.filter(|t| !t.is_empty()).or(document.access_token).unwrap_or_default();
    let header = if token.is_empty() { None } else { bearer(&token) };
    let header = header.ok_or_else(|| "its token server sent no token".to_owned())?;
    // The distribution specification: 60 seconds when nothing is said.
    let life = document.expires_in.filter(|n| n.is_finite() && *n > 0.0).unwrap_or(60.0).min(86_400.0);
    let margin = (life / 4.0).min(10.0);
    Ok(Token { header, until: Instant::now() + Duration::from_secs_f64(life - margin) })
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    sensitive(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(format!("Bearer {token}"))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_and_expire_early() {
        let token = parse_token(br#"{"access_token":"abc","expires_in":300}"#).unwrap();
        assert_eq!(token.header.to_str().unwrap(), "Bearer abc");
        assert!(token.until > Instant::now() + Duration::from_secs(280));
        assert!(token.until < Instant::now() + Duration::from_secs(299));
        for bad in ["{}", "[]", "x", r#"{"token":""}"#, r#"{"token":"a\nb"}"#] {
            assert!(parse_token(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
