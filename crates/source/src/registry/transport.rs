//! Requests and answers: clients by host, redirects followed by hand so that credentials stay with their host, retries
//! with growing waits.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rbuild_ports::{CancelToken, Result};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, Url};

use super::auth::{Auth, Scope};
use super::endpoint::{Endpoint, endpoints, host_and_port, is_loopback, same_origin};
use super::failure::{Failure, Problem, server_message};
use super::options::{HostOptions, RegistryOptions};
use super::runtime::Tasks;
use super::tls::Tls;

const MAX_REDIRECTS: usize = 10;
const MAX_ERROR_BODY: usize = 64 << 10;

/// Everything that requests share.
pub(crate) struct Transport {
    options: RegistryOptions,
    tasks: Tasks,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
    endpoints: Mutex<HashMap<String, Arc<Vec<Endpoint>>>>,
    tls: Tls,
    pub(crate) auth: Auth,
    /// Upload addresses that a refused mount opened, by repository and digest.
    pub(crate) uploads: Mutex<HashMap<(String, String), Url>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum ClientKey {
    /// Plain HTTP: no certificates are loaded for it.
    Plain,
    /// HTTPS with the common trust.
    Tls,
    /// HTTPS with trust of its own.
    TlsFor(String),
}

/// A request that can be sent again.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    accept_status: &'static [u16],
}

impl Call {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: vec![], body: None, accept_status: &[] }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, bytes: Vec<u8>) -> Self {
        self.body = Some(bytes);
        self
    }

    /// Status codes besides 2xx that are an answer and no failure.
    pub(crate) fn accept(mut self, status: &'static [u16]) -> Self {
        self.accept_status = status;
        self
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Answer {
    pub(crate) response: reqwest::Response,
    host: String,
    stall: Duration,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next piece of the body.
    pub(crate) async fn chunk(
        &mut self,
    ) -> std::result::Result<Option<impl AsRef<[u8]> + Send + 'static>, Failure> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Failure::of(&self.host, &error, self.stall)),
            Err(_) => Err(Failure::new(&self.host, Problem::Timeout(self.stall))),
        }
    }

    /// The whole body, of at most `limit` bytes and within a few times the stall time.
    pub(crate) async fn bytes(&mut self, limit: u64) -> std::result::Result<Vec<u8>, Failure> {
        let too_large = |host: &str| Failure::new(host, Problem::TooLarge(limit));
        let length = self.response.content_length();
        if length.is_some_and(|length| length > limit) {
            return Err(too_large(&self.host));
        }
        let patience = self.stall.saturating_mul(5);
        let read = async {
            let mut out: Vec<u8> = Vec::new();
            while let Some(chunk) = self.chunk().await? {
                out.extend_from_slice(chunk.as_ref());
                if out.len() as u64 > limit {
                    return Err(too_large(&self.host));
                }
            }
            Ok(out)
        };
        match tokio::time::timeout(patience, read).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(&self.host, Problem::Timeout(patience))),
        }
    }

    /// What the server says about its refusal.
    pub(crate) async fn into_failure(mut self) -> Failure {
        let code = self.status();
        let retry_after =
            self.header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let mut body: Vec<u8> = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(chunk.as_ref());
            if body.len() >= MAX_ERROR_BODY {
                break;
            }
        }
        Failure::new(&self.host, Problem::Status { code, message: server_message(&body), retry_after })
    }
}

impl Transport {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self {
            tasks: Tasks::new(options.runtime.clone()),
            tls: Tls::new(options.trust.clone()),
            options,
            clients: Mutex::default(),
            endpoints: Mutex::default(),
            auth: Auth::default(),
            uploads: Mutex::default(),
        }
    }

    pub(crate) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    pub(crate) fn block<T: Send + 'static>(
        &self,
        cancel: &CancelToken,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.tasks.block(cancel, work)
    }

    /// Mirrors, then the registry. A mirror that cannot be understood is an error of the first request.
    pub(crate) fn endpoints(&self, domain: &str) -> std::result::Result<Arc<Vec<Endpoint>>, Failure> {
        let mut known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = known.get(domain) {
            return Ok(list.clone());
        }
        let host = self.options.hosts.get(domain).cloned().unwrap_or_default();
        let list = endpoints(domain, &host, &self.options.trust)
            .map_err(|text| Failure::new(domain, Problem::Protocol(text)))?;
        let list = Arc::new(list);
        known.insert(domain.to_owned(), list.clone());
        Ok(list)
    }

    /// The registry itself, for pushing.
    pub(crate) fn main_endpoint(&self, domain: &str) -> std::result::Result<Endpoint, Failure> {
        let list = self.endpoints(domain)?;
        list.last()
            .cloned()
            .ok_or_else(|| Failure::new(domain, Problem::Protocol("there is no endpoint".to_owned())))
    }

    /// A request for reading: mirrors first, and at most `attempts` at the registry itself.
    pub(crate) async fn pull(
        &self,
        domain: &str,
        repository: &str,
        doing: &str,
        attempts: u32,
        call: impl Fn(&Endpoint) -> Call,
    ) -> std::result::Result<Answer, Failure> {
        let scope = Scope::pull(repository);
        let endpoints = self.endpoints(domain).map_err(|failure| failure.while_doing(doing))?;
        let mut last = None;
        for (n, endpoint) in endpoints.iter().enumerate() {
            // A mirror gets one chance: behind it is the registry itself.
            let attempts = if n + 1 == endpoints.len() { attempts } else { 1 };
            match self.with_retries(endpoint, &scope, attempts, || call(endpoint)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = Some(failure.while_doing(doing)),
            }
        }
        Err(last
            .unwrap_or_else(|| Failure::new(domain, Problem::Protocol("there is no endpoint".to_owned()))))
    }

    /// Sends `make()` until it is answered, at most `attempts` times.
    pub(crate) async fn with_retries(
        &self,
        endpoint: &Endpoint,
        scope: &Scope,
        attempts: u32,
        make: impl Fn() -> Call,
    ) -> std::result::Result<Answer, Failure> {
        let mut attempt = 1;
        loop {
            let failure = match self.authorized(endpoint, scope, &make()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !failure.retryable() || attempt >= attempts.min(failure.most_attempts()) {
                return Err(failure);
            }
            tokio::time::sleep(self.wait(attempt, failure.retry_after())).await;
            attempt += 1;
        }
    }

    /// How long to wait after the `attempt`th attempt.
    pub(crate) fn wait(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let limits = &self.options.limits;
        let grown = limits.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        // Half of it by chance, so that many clients do not come back together.
        let chance = RandomState::new().hash_one(attempt) % 1000;
        let spread = grown.mul_f64(0.5 + chance as f64 / 2000.0);
        asked.unwrap_or(spread).min(limits.max_wait)
    }

    /// Sends `call`, answering a challenge for credentials.
    pub(crate) async fn authorized(
        &self,
        endpoint: &Endpoint,
        scope: &Scope,
        call: &Call,
    ) -> std::result::Result<Answer, Failure> {
        let mut used = None;
        for round in 0..3 {
            let authorization = self.auth.authorization(self, endpoint, scope).await?;
            if round > 0 && authorization.is_none() {
                break;
            }
            let answer = self.exchange(endpoint, call, authorization.clone(), None).await?;
            if answer.status() != 401 {
                let fine =
                    answer.response.status().is_success() || call.accept_status.contains(&answer.status());
                return if fine { Ok(answer) } else { Err(answer.into_failure().await) };
            }
            if !self.auth.challenged(endpoint, scope, answer.response.headers(), authorization.as_ref()).await
            {
                used = Some(answer);
                break;
            }
            used = Some(answer);
        }
        Err(self.auth.refused(self, endpoint, scope, used).await)
    }

    /// Sends `call` once and follows redirects; `authorization` is sent to no other origin.
    pub(crate) async fn exchange(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        mut authorization: Option<HeaderValue>,
        patience: Option<Duration>,
    ) -> std::result::Result<Answer, Failure> {
        let host = &endpoint.host;
        let stall = self.options.limits.stall_timeout;
        let nonsense = |text: String| Failure::new(host, Problem::Protocol(text));
        let mut url = call.url.clone();
        if !same_origin(&url, endpoint.base()) {
            authorization = None;
        }
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client(&url).await?.request(call.method.clone(), url.clone());
            request = request.headers(headers(&call.headers).map_err(nonsense)?);
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value.clone());
            }
            if let Some(body) = &call.body {
                request = request.body(body.clone());
            }
            let response = match tokio::time::timeout(patience.unwrap_or(stall), request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(Failure::of(host, &error, self.options.limits.connect_timeout)),
                Err(_) => return Err(Failure::new(host, Problem::Timeout(patience.unwrap_or(stall)))),
            };
            if !follows(&call.method, response.status().as_u16()) {
                return Ok(Answer { response, host: host.clone(), stall });
            }
            let next = redirect_target(&url, response.headers()).map_err(nonsense)?;
            if !same_origin(&url, &next) {
                authorization = None;
            }
            url = next;
        }
        Err(nonsense(format!("it redirected more than {MAX_REDIRECTS} times")))
    }

    /// The client for an address.
    pub(crate) async fn client(&self, url: &Url) -> std::result::Result<reqwest::Client, Failure> {
        let host = host_and_port(url);
        let key = if url.scheme() == "http" {
            ClientKey::Plain
        } else if self.tls.is_special(&host, self.host_options(&host)) {
            ClientKey::TlsFor(host.clone())
        } else {
            ClientKey::Tls
        };
        let cached = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(client) = cached {
            return Ok(client);
        }
        let config = match &key {
            ClientKey::Plain => self.tls.nothing(),
            ClientKey::Tls => self.tls.common().await,
            ClientKey::TlsFor(host) => self.tls.special(host, self.host_options(host)).await,
        };
        let config = config.map_err(|error| Failure::new(&host, Problem::Other(error)))?;
        let client = self.build_client(config).map_err(|error| {
            // The text of the error may quote a proxy with its password.
            let _ = error;
            Failure::new(&host, Problem::Protocol("the proxy settings are not usable".to_owned()))
        })?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.entry(key).or_insert(client).clone())
    }

    fn host_options(&self, host: &str) -> Option<&HostOptions> {
        let name = if host == "registry-1.docker.io" { "docker.io" } else { host };
        self.options.hosts.get(name)
    }

    fn build_client(&self, tls: rustls::ClientConfig) -> reqwest::Result<reqwest::Client> {
        let limits = &self.options.limits;
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .connect_timeout(limits.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(90))
            .user_agent(self.options.user_agent.clone())
            .tls_backend_preconfigured(tls);
        let proxy = &self.options.proxy;
        let direct = format!("localhost,127.0.0.0/8,::1,{}", proxy.no_proxy.as_deref().unwrap_or_default());
        let direct = || reqwest::NoProxy::from_string(&direct);
        if let Some(address) = proxy.http.as_deref().filter(|address| !address.is_empty()) {
            builder = builder.proxy(reqwest::Proxy::http(address)?.no_proxy(direct()));
        }
        if let Some(address) = proxy.https.as_deref().filter(|address| !address.is_empty()) {
            builder = builder.proxy(reqwest::Proxy::https(address)?.no_proxy(direct()));
        }
        builder.build()
    }
}

fn headers(list: &[(&'static str, String)]) -> std::result::Result<HeaderMap, String> {
    let mut out = HeaderMap::new();
    for (name, value) in list {
        let value =
            HeaderValue::from_str(value).map_err(|_| format!("the header {name} has an impossible value"))?;
        out.insert(HeaderName::from_static(name), value);
    }
    Ok(out)
}

fn follows(method: &Method, status: u16) -> bool {
    match status {
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        307 | 308 => true,
        _ => false,
    }
}

/// Where a redirect leads. Never from HTTPS to plain HTTP, and never with credentials in the address.
fn redirect_target(from: &Url, headers: &HeaderMap) -> std::result::Result<Url, String> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| "it redirects to nowhere".to_owned())?;
    let mut next =
        from.join(location).map_err(|_| "it redirects to something that is no address".to_owned())?;
    if !matches!(next.scheme(), "http" | "https") {
        return Err(format!("it redirects to a {} address", next.scheme()));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        if next.host_str() != from.host_str() {
            return Err(format!("it redirects from https to plain http at {}", host_and_port(&next)));
        }
        // A registry behind a proxy that ends TLS does not know that it is reached by HTTPS.
        let port = from.port();
        let changed = next.set_scheme("https").is_ok() && next.set_port(port).is_ok();
        if !changed {
            return Err("it redirects from https to plain http".to_owned());
        }
    }
    if from.scheme() == "http" && is_loopback_url(&next) && !is_loopback_url(from) {
        return Err("it redirects from another machine to this one".to_owned());
    }
    let _ = next.set_username("");
    let _ = next.set_password(None);
    Ok(next)
}

fn is_loopback_url(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

/// The address of an upload, under the same rules.
pub(crate) fn upload_location(from: &Url, headers: &HeaderMap) -> std::result::Result<Url, String> {
    redirect_target(from, headers)
}
