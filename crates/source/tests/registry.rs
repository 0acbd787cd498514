//! The registry client against the scripted registry: what it asks, whom it tells what, and how it takes faults.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use rbuild_source::{
    Credential, CredentialSource, HostOptions, Limits, Registry, RegistryOptions, Repository, into_port_error,
};
use rbuild_testkit::registry::{Access, Fault, TestRegistry};

/// Credentials by host, and whether anybody asked.
struct Known(BTreeMap<String, Credential>);

impl CredentialSource for Known {
    fn credential(&self, host: &str, _repository: &str) -> Result<Option<Credential>> {
        Ok(self.0.get(host).cloned())
    }
}

fn basic(name: &str, password: &str) -> Credential {
    Credential::Basic { username: name.to_owned(), password: password.to_owned() }
}

fn options() -> RegistryOptions {
    let mut options = RegistryOptions::anonymous();
    options.limits = Limits {
        attempts: 4,
        backoff: Duration::from_millis(2),
        max_wait: Duration::from_millis(50),
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(400),
    };
    options
}

fn client() -> Registry {
    Registry::new(options())
}

fn client_for(server: &TestRegistry, credential: Credential) -> Registry {
    let mut options = options();
    options.credentials = Arc::new(Known(BTreeMap::from([(server.host(), credential)])));
    Registry::new(options)
}

fn reference(server: &TestRegistry, rest: &str) -> Reference {
    format!("{}/{rest}", server.host()).parse().unwrap()
}

fn repository(server: &TestRegistry, path: &str) -> Repository {
    Repository { domain: server.host(), path: path.to_owned() }
}

fn descriptor(digest: Digest, size: usize) -> Descriptor {
    Descriptor::new("application/octet-stream", digest, size as u64)
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 31 + n / 251) as u8).collect()
}

fn go() -> CancelToken {
    CancelToken::new()
}

fn read_blob(client: &Registry, server: &TestRegistry, digest: Digest, size: usize) -> Result<Vec<u8>> {
    let mut stream = client.fetch_blob(&repository(server, "a/b"), &descriptor(digest, size), &go())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| into_port_error(error, "blob"))?;
    Ok(bytes)
}

#[test]
fn resolves_with_one_head_and_reads_what_it_names() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[pattern(100)]);
    let client = client();
    let resolved = client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    assert_eq!(resolved.digest, image.manifest);
    assert_eq!(resolved.size, Some(image.manifest_bytes.len() as u64));
    assert_eq!(server.lines(), ["HEAD /v2/a/b/manifests/v1"]);
    let document = client.fetch_manifest(&reference(&server, "a/b:v1"), &go()).unwrap();
    assert_eq!((document.digest, document.bytes), (image.manifest, image.manifest_bytes));
    let layer = read_blob(&client, &server, image.layers[0], 100).unwrap();
    assert_eq!(layer, pattern(100));
    assert!(server.requests().iter().all(|request| request.header("authorization").is_empty()));
}

#[test]
fn a_registry_that_names_no_digest_is_read() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[]);
    server.fail("HEAD", "manifests", 1, Fault::NoDigestHeader);
    server.fail("GET", "manifests", 1, Fault::NoDigestHeader);
    let resolved = client().resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    assert_eq!(resolved.digest, image.manifest);
}

#[test]
fn errors_name_host_image_and_cause() {
    let server = TestRegistry::start();
    let host = server.host();
    let client = client();
    let error = client.resolve(&reference(&server, "no/such:tag"), &go()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("{host}/no/such:tag: not found: registry {host} has no such image")
    );
    assert!(error.help.unwrap().contains("the tag \"tag\""));
    let error = client.fetch_manifest(&reference(&server, "no/such:tag"), &go()).unwrap_err();
    assert!(error.to_string().ends_with("has no such image (manifest unknown)"), "{error}");
    drop(server);
    let error = client.resolve(&format!("{host}/x").parse().unwrap(), &go()).unwrap_err();
    let want = format!("registry {host} refused the connection while resolving {host}/x:latest");
    assert_eq!((error.kind, error.to_string()), (ErrorKind::Network, want));
    assert!(error.help.unwrap().contains("--build-context"));
}

#[test]
fn a_tag_that_is_almost_right_is_named() {
    let server = TestRegistry::start();
    server.put_image("a/b", "3.20-alpine", "amd64", &[]);
    let error = client().fetch_manifest(&reference(&server, "a/b:3.20-alpin"), &go()).unwrap_err();
    assert_eq!(error.help.unwrap(), "did you mean the tag \"3.20-alpine\"?");
    let error = client().resolve(&reference(&server, "a/b:something-else"), &go()).unwrap_err();
    assert!(error.help.unwrap().contains("check the spelling"));
}

#[test]
fn proxies_are_used_but_not_for_this_machine() {
    let proxy = TestRegistry::start();
    let image = proxy.put_image("a/b", "v1", "amd64", &[]);
    let mut options = options();
    options.proxy.http = Some(format!("http://user:hunter2@{}", proxy.host()));
    options.proxy.no_proxy = Some("direct.test".to_owned());
    for host in ["registry.test", "direct.test"] {
        options
            .hosts
            .insert(host.to_owned(), HostOptions { plain_http: Some(true), ..HostOptions::default() });
    }
    options.limits.attempts = 1;
    let client = Registry::new(options.clone());
    let resolved = client.resolve(&"registry.test/a/b:v1".parse().unwrap(), &go()).unwrap();
    assert_eq!(resolved.digest, image.manifest);
    assert_eq!(proxy.requests()[0].header("host"), "registry.test");
    assert!(proxy.requests()[0].header("proxy-authorization").starts_with("Basic "));
    proxy.clear_log();
    let error = client.resolve(&"direct.test/a/b:v1".parse().unwrap(), &go()).unwrap_err();
    assert!(error.to_string().contains("direct.test has no address"), "{error}");
    let server = TestRegistry::start();
    server.put_image("a/b", "v1", "amd64", &[]);
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    assert!(proxy.requests().is_empty());
    options.proxy.http = Some("http://user:hunter2@[broken".to_owned());
    let error = Registry::new(options).resolve(&reference(&server, "a/b:v1"), &go()).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn statuses_are_retried_or_not() {
    for (status, times, works) in
        [(503, 3, true), (503, 4, false), (429, 3, true), (500, 1, true), (403, 1, false)]
    {
        let server = TestRegistry::start();
        let image = server.put_image("a/b", "v1", "amd64", &[]);
        server.fail("HEAD", "manifests", times, Fault::Status(status, vec![], String::new()));
        let outcome = client().resolve(&reference(&server, "a/b:v1"), &go());
        assert_eq!(
            outcome.as_ref().ok().map(|resolved| resolved.digest),
            works.then_some(image.manifest),
            "{status}"
        );
        let asked = server.requests().len();
        assert_eq!(asked, if works { times + 1 } else { times }, "{status}");
        if let Err(error) = outcome {
            assert_eq!(error.kind, if status == 403 { ErrorKind::Denied } else { ErrorKind::Network });
        }
    }
}

#[test]
fn documents_that_break_off_are_asked_for_again() {
    for (times, works) in [(3, true), (4, false)] {
        let server = TestRegistry::start();
        let image = server.put_image("a/b", "v1", "amd64", &[]);
        server.fail("GET", "manifests", times, Fault::Truncate(10));
        let outcome = client().fetch_manifest(&reference(&server, "a/b:v1"), &go());
        assert_eq!(outcome.as_ref().ok().map(|document| document.digest), works.then_some(image.manifest));
        assert_eq!(server.requests().len(), 4);
        if let Err(error) = outcome {
            assert!(error.message.contains("broke the connection"), "{error}");
        }
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let status = |code| Fault::Status(code, vec![], String::new());
    for fault in [403, 404, 418, 429, 500, 503]
        .map(status)
        .into_iter()
        .chain([Fault::Close, Fault::Redirect("x:y".into())])
    {
        let server = TestRegistry::start();
        server.put_image("a/b", "v1", "amd64", &[]);
        server.fail("HEAD", "manifests", 9, fault.clone());
        let error = client().resolve(&reference(&server, "a/b:v1"), &go()).unwrap_err();
        assert!(error.help.as_ref().is_some_and(|help| !help.is_empty()), "{fault:?}: {error}");
        assert!(error.message.contains(&server.host()), "{fault:?}: {error}");
    }
}

#[test]
fn waits_as_long_as_the_server_asks_within_reason() {
    let server = TestRegistry::start();
    server.put_image("a/b", "v1", "amd64", &[]);
    let header = vec![("Retry-After".to_owned(), "3600".to_owned())];
    server.fail("HEAD", "manifests", 1, Fault::Status(429, header, String::new()));
    let start = Instant::now();
    client().resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(50) && start.elapsed() < Duration::from_secs(5));
    server.fail(
        "GET",
        "manifests",
        99,
        Fault::Status(429, vec![], r#"{"errors":[{"message":"slow\u001b down"}]}"#.to_owned()),
    );
    let error = client().fetch_manifest(&reference(&server, "a/b:v1"), &go()).unwrap_err();
    assert!(error.to_string().contains("too many requests (slow  down)"), "{error}");
    assert!(error.help.unwrap().contains("log in"));
}

#[test]
fn basic_credentials() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[]);
    server.set_access(Access::Basic("me".to_owned(), "secret".to_owned()));
    let client = client_for(&server, basic("me", "secret"));
    assert_eq!(client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap().digest, image.manifest);
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    let statuses: Vec<u16> = server.requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [401, 200, 200]);
    for (credential, words) in
        [(Some(basic("me", "wrong")), "refused the credentials"), (None, "wants credentials")]
    {
        server.clear_log();
        let client = credential.map_or_else(self::client, |credential| client_for(&server, credential));
        let error = client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Auth);
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.help.unwrap().contains("docker login"));
        assert!(server.requests().len() <= 2);
    }
}

#[test]
fn tokens_are_fetched_kept_and_renewed() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[pattern(10)]);
    let user = Some(("me".to_owned(), "secret".to_owned()));
    server.set_access(Access::Token { user, identity: None, lifetime: Duration::from_secs(300) });
    let client = client_for(&server, basic("me", "secret"));
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    read_blob(&client, &server, image.layers[0], 10).unwrap();
    let lines = server.lines();
    assert_eq!(lines.iter().filter(|line| line.ends_with("/token")).count(), 1, "{lines:?}");
    let asked = server.requests().into_iter().find(|request| request.path == "/token").unwrap();
    assert_eq!(asked.query, "service=test&scope=repository%3Aa%2Fb%3Apull");
    // The password goes to the token server alone.
    for request in server.requests() {
        let basic = request.header("authorization").starts_with("Basic");
        assert_eq!(basic, request.path == "/token", "{}", request.line());
    }
    server.revoke_tokens();
    server.clear_log();
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    assert_eq!(server.lines().iter().filter(|line| line.ends_with("/token")).count(), 1);
}

#[test]
fn anonymous_tokens_and_identity_tokens() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[]);
    server.set_access(Access::Token { user: None, identity: None, lifetime: Duration::from_secs(300) });
    assert_eq!(client().resolve(&reference(&server, "a/b:v1"), &go()).unwrap().digest, image.manifest);
    let user = Some(("x".to_owned(), "y".to_owned()));
    let identity = Some("refresh-me".to_owned());
    server.set_access(Access::Token { user, identity, lifetime: Duration::from_secs(300) });
    server.revoke_tokens();
    server.clear_log();
    let client = client_for(&server, Credential::IdentityToken("refresh-me".to_owned()));
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    let asked = server.requests().into_iter().find(|request| request.path == "/token").unwrap();
    assert_eq!(asked.method, "POST");
    assert!(String::from_utf8(asked.body).unwrap().contains("grant_type=refresh_token&service=test"));
    let error =
        client_for(&server, basic("x", "wrong")).resolve(&reference(&server, "a/b:v1"), &go()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Auth);
}

#[test]
fn parallel_requests_share_one_token() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[pattern(10)]);
    server.set_access(Access::Token { user: None, identity: None, lifetime: Duration::from_secs(300) });
    let client = client();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| read_blob(&client, &server, image.layers[0], 10).unwrap());
        }
    });
    assert_eq!(server.lines().iter().filter(|line| line.ends_with("/token")).count(), 1);
}

#[test]
fn credentials_stay_with_their_host() {
    let server = TestRegistry::start();
    let elsewhere = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[pattern(1000)]);
    elsewhere.put_blob("a/b", pattern(1000));
    let user = Some(("me".to_owned(), "secret".to_owned()));
    server.set_access(Access::Token { user, identity: None, lifetime: Duration::from_secs(300) });
    let client = client_for(&server, basic("me", "secret"));
    client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap();
    let there = format!("http://user:pw@{}/v2/a/b/blobs/{}", elsewhere.host(), image.layers[0]);
    server.fail("GET", "blobs", 1, Fault::Redirect(there));
    assert_eq!(read_blob(&client, &server, image.layers[0], 1000).unwrap(), pattern(1000));
    let asked = elsewhere.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), "");
    assert!(asked[0].headers.keys().all(|name| !name.contains("cookie")), "{:?}", asked[0].headers);
}

#[test]
fn redirects_end_and_lead_to_the_web_only() {
    for to in ["/v2/a/b/blobs/again", "file:///etc/passwd", "http://[", "http:///x y:z"] {
        let server = TestRegistry::start();
        let layer = server.put_blob("a/b", pattern(10));
        server.fail("GET", "blobs", 99, Fault::Redirect(to.to_owned()));
        let error = read_blob(&client(), &server, layer, 10).unwrap_err();
        assert!(error.to_string().contains("makes no sense: it redirect"), "{to}: {error}");
        assert!(server.requests().len() <= 11);
    }
}

#[test]
fn passwords_go_to_no_foreign_token_server() {
    let server = TestRegistry::start();
    for (realm, words) in [
        ("http://169.254.1.1:9/token", Some("without TLS")),
        ("http://user:pw@127.0.0.1:9/token", Some("credentials in it")),
        ("file:///token", Some("without a host")),
        ("nonsense", Some("no address")),
    ] {
        server.set_access(Access::Realm(realm.to_owned()));
        server.clear_log();
        let mut options = options();
        options.limits.attempts = 1;
        options.limits.connect_timeout = Duration::from_millis(100);
        options.credentials = Arc::new(Known(BTreeMap::from([(server.host(), basic("me", "secret"))])));
        let error = Registry::new(options).resolve(&reference(&server, "a/b:v1"), &go()).unwrap_err();
        let shown = format!("{error} {:?} {error:?}", error.help);
        assert!(!shown.contains("secret"), "{shown}");
        if let Some(words) = words {
            assert!(shown.contains(words), "{shown}");
        }
        assert!(server.requests().iter().all(|request| request.header("authorization").is_empty()));
    }
    // A token server on another port of this machine is a foreign one only over a network.
    let tokens = TestRegistry::start();
    tokens.set_access(Access::Token { user: None, identity: None, lifetime: Duration::from_secs(9) });
    server.set_access(Access::Realm(format!("http://{}/token", tokens.host())));
    let error =
        client_for(&server, basic("me", "secret")).resolve(&reference(&server, "a/b:v1"), &go()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Auth);
    assert!(!tokens.requests().is_empty());
}

#[test]
fn broken_transfers_go_on_where_they_broke() {
    let content = pattern(3000);
    for at in (0..3000).step_by(97) {
        let server = TestRegistry::start();
        let digest = server.put_blob("a/b", content.clone());
        server.fail("GET", "blobs", 1, Fault::Truncate(at));
        assert_eq!(read_blob(&client(), &server, digest, 3000).unwrap(), content, "{at}");
        let requests = server.requests();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[1].header("range"), format!("bytes={at}-"));
    }
}

#[test]
fn strange_answers_to_ranges_are_seen_through() {
    let content = pattern(3000);
    for fault in [
        Fault::IgnoreRange,
        Fault::WrongRange,
        Fault::Status(416, vec![], String::new()),
        Fault::Close,
        Fault::Stall(Duration::from_secs(2)),
        Fault::Status(503, vec![], String::new()),
    ] {
        let server = TestRegistry::start();
        let digest = server.put_blob("a/b", content.clone());
        server.fail("GET", "blobs", 1, Fault::Truncate(1500));
        server.fail("GET", "blobs", 1, fault.clone());
        assert_eq!(read_blob(&client(), &server, digest, 3000).unwrap(), content, "{fault:?}");
    }
}

#[test]
fn hopeless_transfers_end() {
    for fault in [Fault::Truncate(100), Fault::Close, Fault::Stall(Duration::from_secs(1))] {
        let server = TestRegistry::start();
        let digest = server.put_blob("a/b", pattern(3000));
        server.fail("GET", "blobs", 1, Fault::Truncate(100));
        server.fail("GET", "blobs", 99, fault.clone());
        let error = read_blob(&client(), &server, digest, 3000).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Network, "{fault:?}");
        assert!(error.to_string().contains(&format!("fetching {digest}")), "{error}");
        assert!(server.requests().len() <= 6);
    }
}

#[test]
fn sizes_and_digests_are_held() {
    let server = TestRegistry::start();
    let digest = server.put_blob("a/b", pattern(3000));
    let error = read_blob(&client(), &server, digest, 2999).unwrap_err();
    assert_eq!(
        (error.kind, error.to_string().contains("more than the 2999 bytes")),
        (ErrorKind::Corrupt, true)
    );
    assert_eq!(read_blob(&client(), &server, digest, 3001).unwrap_err().kind, ErrorKind::Network);
    let small = descriptor(digest, 3000);
    let read = |client: &Registry| client.fetch_small_blob(&repository(&server, "a/b"), &small, 4096, &go());
    assert_eq!(read(&client()).unwrap(), pattern(3000));
    server.fail("GET", "blobs", 1, Fault::FlipBit);
    assert_eq!(read(&client()).unwrap_err().kind, ErrorKind::Corrupt);
    let limit = client().fetch_small_blob(&repository(&server, "a/b"), &small, 100, &go()).unwrap_err();
    assert_eq!(limit.kind, ErrorKind::Invalid);
}

#[test]
fn exchanged_manifests_are_refused() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[]);
    let pinned = reference(&server, &format!("a/b@{}", image.manifest));
    // Once may be a cache in between; twice is refused.
    server.fail("GET", "manifests", 1, Fault::FlipBit);
    assert_eq!(client().fetch_manifest(&pinned, &go()).unwrap().digest, image.manifest);
    server.fail("GET", "manifests", 2, Fault::FlipBit);
    assert_eq!(client().fetch_manifest(&pinned, &go()).unwrap_err().kind, ErrorKind::Corrupt);
    server.fail("GET", "manifests", 2, Fault::WrongDigestHeader);
    let tagged = client().fetch_manifest(&reference(&server, "a/b:v1"), &go()).unwrap_err();
    assert_eq!(tagged.kind, ErrorKind::Corrupt);
    server.fail("HEAD", "manifests", 1, Fault::WrongDigestHeader);
    assert_eq!(client().resolve(&pinned, &go()).unwrap_err().kind, ErrorKind::Corrupt);
    server.put_manifest(
        "a/b",
        "big",
        "application/vnd.oci.image.manifest.v1+json",
        vec![b' '; (4 << 20) + 1],
    );
    let big = client().fetch_manifest(&reference(&server, "a/b:big"), &go()).unwrap_err();
    assert!(big.to_string().contains("more than 4194304 bytes"), "{big}");
}

#[test]
fn slow_is_not_stalled() {
    let server = TestRegistry::start();
    let digest = server.put_blob("a/b", pattern(40));
    server.fail("GET", "blobs", 1, Fault::Slow(4, Duration::from_millis(60)));
    assert_eq!(read_blob(&client(), &server, digest, 40).unwrap(), pattern(40));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn cancelling_ends_at_once() {
    let server = TestRegistry::start();
    let digest = server.put_blob("a/b", pattern(1 << 20));
    server.fail("GET", "blobs", 1, Fault::Slow(1000, Duration::from_millis(20)));
    let mut options = options();
    options.limits.stall_timeout = Duration::from_secs(60);
    let client = Registry::new(options);
    let cancel = CancelToken::new();
    let stop = cancel.clone();
    let start = Instant::now();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        stop.cancel();
    });
    let mut stream =
        client.fetch_blob(&repository(&server, "a/b"), &descriptor(digest, 1 << 20), &cancel).unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(into_port_error(error, "").kind, ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(client.resolve(&reference(&server, "a/b:x"), &cancel).unwrap_err().kind, ErrorKind::Cancelled);
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let (server, mirror) = (TestRegistry::start(), TestRegistry::start());
    let image = server.put_image("a/b", "v1", "amd64", &[]);
    let mut options = options();
    let host =
        HostOptions { mirrors: vec![format!("http://{}/hub", mirror.host())], ..HostOptions::default() };
    options.hosts.insert(server.host(), host);
    let client = Registry::new(options);
    assert_eq!(client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap().digest, image.manifest);
    assert_eq!(mirror.lines(), ["HEAD /v2/hub/a/b/manifests/v1"]);
    assert_eq!(mirror.requests()[0].query, format!("ns={}", server.host().replace(':', "%3A")));
    let other = mirror.put_image("hub/a/b", "v1", "arm64", &[]);
    assert_eq!(client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap().digest, other.manifest);
    let layer = mirror.put_blob("hub/a/b", pattern(3000));
    mirror.fail("GET", "blobs", 1, Fault::Truncate(10));
    let mut stream = client.fetch_blob(&repository(&server, "a/b"), &descriptor(layer, 3000), &go()).unwrap();
    let mut content = Vec::new();
    stream.read_to_end(&mut content).unwrap();
    assert_eq!(content, pattern(3000), "a broken transfer goes on at the mirror");
    mirror.fail("HEAD", "", 9, Fault::Status(503, vec![], String::new()));
    assert_eq!(client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap().digest, image.manifest);
}

#[test]
fn pushes_what_is_missing() {
    let server = TestRegistry::start();
    let client = client();
    let (to, content) = (repository(&server, "to/here"), pattern(600_000));
    let digest = Digest::of(&content);
    assert_eq!(client.blob_exists(&to, &digest, &go()).unwrap(), None);
    let mut opened = 0;
    let mut open = || -> Result<Box<dyn Read>> {
        opened += 1;
        Ok(Box::new(content.as_slice()))
    };
    client.push_blob(&to, &digest, content.len() as u64, &mut open, &go()).unwrap();
    assert_eq!(opened, 1);
    assert_eq!(server.blob(&digest).unwrap().as_slice(), content);
    assert_eq!(client.blob_exists(&to, &digest, &go()).unwrap(), Some(600_000));
    let manifest = br#"{"schemaVersion":2}"#;
    let tag = reference(&server, "to/here:v1");
    let stored =
        client.put_manifest(&tag, "application/vnd.oci.image.manifest.v1+json", manifest, &go()).unwrap();
    assert_eq!(stored, Digest::of(manifest));
    assert_eq!(server.manifest("to/here", "v1").unwrap().as_slice(), manifest);
    let put = server.requests().into_iter().find(|request| request.method == "PUT").unwrap();
    assert_eq!((put.header("content-length"), put.header("transfer-encoding")), ("600000", ""));
}

#[test]
fn blobs_are_taken_over_or_pushed_on_the_open_upload() {
    let server = TestRegistry::start();
    let content = pattern(1000);
    let digest = server.put_blob("from/there", content.clone());
    let client = client();
    let (to, from) = (repository(&server, "to/here"), repository(&server, "from/there"));
    assert!(client.mount_blob(&to, &digest, &from, &go()).unwrap());
    assert!(server.has_blob("to/here", &digest));
    assert!(!client.mount_blob(&to, &digest, &to, &go()).unwrap());
    server.refuse_mounts();
    let other = repository(&server, "to/other");
    assert!(!client.mount_blob(&other, &digest, &from, &go()).unwrap());
    server.clear_log();
    let mut open = || -> Result<Box<dyn Read>> { Ok(Box::new(content.as_slice())) };
    client.push_blob(&other, &digest, 1000, &mut open, &go()).unwrap();
    assert_eq!(server.requests().len(), 1, "the upload that the refused mount opened is used");
    server.fail("POST", "mount", 1, Fault::Status(405, vec![], String::new()));
    assert!(!client.mount_blob(&to, &digest, &from, &go()).unwrap());
}

#[test]
fn pushes_survive_faults() {
    let content = pattern(400_000);
    let digest = Digest::of(&content);
    for (method, fault) in [
        ("POST", Fault::Status(503, vec![], String::new())),
        ("PUT", Fault::Close),
        ("PUT", Fault::Status(500, vec![], String::new())),
        ("PUT", Fault::Status(404, vec![], String::new())),
        ("POST", Fault::Close),
    ] {
        let server = TestRegistry::start();
        server.fail(method, "uploads", 2, fault.clone());
        let mut open = || -> Result<Box<dyn Read>> { Ok(Box::new(content.as_slice())) };
        client().push_blob(&repository(&server, "a/b"), &digest, 400_000, &mut open, &go()).unwrap();
        assert!(server.has_blob("a/b", &digest), "{method} {fault:?}");
    }
}

#[test]
fn pushing_gets_a_new_token_in_the_middle() {
    let server = TestRegistry::start();
    let user = Some(("me".to_owned(), "secret".to_owned()));
    server.set_access(Access::Token { user, identity: None, lifetime: Duration::from_secs(300) });
    let client = client_for(&server, basic("me", "secret"));
    let content = pattern(100_000);
    let digest = Digest::of(&content);
    let mut first = true;
    let mut open = || -> Result<Box<dyn Read>> {
        if std::mem::take(&mut first) {
            // Between opening the upload and sending the blob is after this.
            server.fail("PUT", "uploads", 1, Fault::Status(401, vec![], String::new()));
        }
        Ok(Box::new(content.as_slice()))
    };
    client.push_blob(&repository(&server, "a/b"), &digest, 100_000, &mut open, &go()).unwrap();
    assert!(server.has_blob("a/b", &digest));
    let scope = server.requests().into_iter().find(|request| request.path == "/token").unwrap().query;
    assert!(scope.contains("pull%2Cpush"), "{scope}");
}

#[test]
fn sources_that_lie_push_nothing() {
    let server = TestRegistry::start();
    let client = client();
    let to = repository(&server, "a/b");
    let content = pattern(1000);
    let mut short = || -> Result<Box<dyn Read>> { Ok(Box::new(&content[..999])) };
    let error = client.push_blob(&to, &Digest::of(&content), 1000, &mut short, &go()).unwrap_err();
    assert!(error.to_string().contains("ended 1 bytes before its 1000"), "{error}");
    let mut other = || -> Result<Box<dyn Read>> { Ok(Box::new(content.as_slice())) };
    let error = client.push_blob(&to, &Digest::of("other"), 1000, &mut other, &go()).unwrap_err();
    assert!(error.to_string().contains("digest invalid"), "{error}");
    let mut broken =
        || -> Result<Box<dyn Read>> { Err(PortError::new(ErrorKind::NotFound, "layer is gone")) };
    let error = client.push_blob(&to, &Digest::of(&content), 1000, &mut broken, &go()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(server.blob(&Digest::of(&content)).is_none());
}

#[test]
fn uploads_that_lead_elsewhere_get_no_credentials() {
    let (server, elsewhere) = (TestRegistry::start(), TestRegistry::start());
    server.set_access(Access::Basic("me".to_owned(), "secret".to_owned()));
    let client = client_for(&server, basic("me", "secret"));
    let _ = client.blob_exists(&repository(&server, "a/b"), &Digest::of("x"), &go());
    let location = format!("http://{}/v2/a/b/blobs/uploads/x", elsewhere.host());
    server.fail(
        "POST",
        "uploads",
        9,
        Fault::Status(202, vec![("Location".to_owned(), location)], String::new()),
    );
    let mut open = || -> Result<Box<dyn Read>> { Ok(Box::new(&b"x"[..])) };
    let _ = client.push_blob(&repository(&server, "a/b"), &Digest::of("x"), 1, &mut open, &go());
    assert!(!elsewhere.requests().is_empty());
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_empty()));
}

#[test]
fn a_lent_runtime_is_used() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "v1", "amd64", &[pattern(100)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut options = options();
    options.runtime = Some(runtime.handle().clone());
    let client = Registry::new(options);
    assert_eq!(client.resolve(&reference(&server, "a/b:v1"), &go()).unwrap().digest, image.manifest);
    assert_eq!(read_blob(&client, &server, image.layers[0], 100).unwrap(), pattern(100));
}
