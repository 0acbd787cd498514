//! Files from the web, through the `Sources` port, against a scripted server.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_graph::HttpSource;
use rbuild_ports::{CancelToken, ErrorKind, Result, SilentProgress, Sources, View};
use rbuild_source::{HostSources, Limits, Registry, RegistryOptions, SourceOptions};
use rbuild_tree::{Entry, Kind, RelPath, entry_hasher};

/// Gives one scripted answer a connection, the last one again and again; keeps the requests.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn serve(answers: &[&str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let (log, answers) =
        (requests.clone(), answers.iter().map(|&answer| answer.to_owned()).collect::<Vec<_>>());
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            let mut head = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
            log.lock().unwrap().push(head.to_lowercase());
            let answer = answers.get(n).or(answers.last()).unwrap();
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    Server { address, requests }
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn sources(state: Option<&Path>) -> HostSources {
    let mut registry = RegistryOptions::anonymous();
    registry.limits = Limits {
        attempts: 3,
        backoff: Duration::from_millis(1),
        stall_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let mut options = SourceOptions::new(state.map(Path::to_owned), Registry::new(registry));
    options.max_download = 1000;
    HostSources::new(options)
}

fn source(url: &str) -> HttpSource {
    HttpSource { url: url.to_owned(), filename: String::new(), checksum: None, mode: 0, uid: 0, gid: 0 }
}

fn fetch(sources: &HostSources, source: &HttpSource) -> Result<(Arc<dyn View>, Digest)> {
    sources.http(source, &SilentProgress, &CancelToken::new())
}

fn read(view: &dyn View, name: &str) -> String {
    let mut text = String::new();
    view.open(&RelPath::parse(name).unwrap()).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_file_becomes_a_tree_of_one() {
    let server = serve(&[&ok("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "hello")]);
    let mut source = source(&format!("http://{}/dir/file%20name.txt?q=1", server.address));
    let (view, digest) = fetch(&sources(None), &source).unwrap();
    assert_eq!(digest, Digest::of("hello"));
    assert_eq!(view.children(&RelPath::root()).unwrap(), [b"file name.txt"]);
    let path = RelPath::parse("file name.txt").unwrap();
    let entry = view.lookup(&path).unwrap().unwrap();
    assert_eq!(
        (entry.kind.clone(), entry.mode, entry.mtime.secs),
        (Kind::File { size: 5 }, 0o600, 784_111_777)
    );
    let mut hasher = entry_hasher(&Entry::new(path.clone(), Kind::File { size: 5 }, 0o600));
    hasher.update(b"hello");
    assert_eq!(view.entry_digest(&path).unwrap(), hasher.finish());
    assert_eq!(
        (read(&*view, "file name.txt"), read(&*view, "file name.txt")),
        ("hello".to_owned(), "hello".to_owned())
    );
    assert!(view.lookup(&RelPath::parse("other").unwrap()).unwrap().is_none());
    (source.filename, source.mode, source.uid) = ("named".to_owned(), 0o755, 7);
    let (view, _) = fetch(&sources(None), &source).unwrap();
    let entry = view.lookup(&RelPath::parse("named").unwrap()).unwrap().unwrap();
    assert_eq!((entry.mode, entry.uid), (0o755, 7));
    source.filename = "../x".to_owned();
    assert_eq!(fetch(&sources(None), &source).err().unwrap().kind, ErrorKind::Invalid);
}

#[test]
fn unchanged_files_are_not_sent_again() {
    let unchanged = "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n";
    let server =
        serve(&[&ok("ETag: \"v1\"\r\n", "one"), unchanged, &ok("ETag: \"v2\"\r\n", "two"), unchanged]);
    let state = tempfile::tempdir().unwrap();
    let source = source(&format!("http://{}/f", server.address));
    for (want, condition) in [("one", ""), ("one", "\"v1\""), ("two", "\"v1\""), ("two", "\"v2\"")] {
        let (view, digest) = fetch(&sources(Some(state.path())), &source).unwrap();
        assert_eq!((read(&*view, "f"), digest), (want.to_owned(), Digest::of(want)));
        let request = server.requests.lock().unwrap().last().unwrap().clone();
        let sent = request
            .lines()
            .find_map(|line| line.strip_prefix("if-none-match: "))
            .unwrap_or_default()
            .to_owned();
        assert_eq!(sent, condition);
    }
    // Damaged on disk: it is asked for without condition.
    for entry in std::fs::read_dir(state.path().join("http/data")).unwrap().flatten() {
        std::fs::write(entry.path(), "damaged").unwrap();
    }
    assert!(fetch(&sources(Some(state.path())), &source).is_err(), "the server says that nothing changed");
    assert!(!server.requests.lock().unwrap().last().unwrap().contains("if-none-match"));
}

#[test]
fn checksums_win() {
    let server = serve(&[&ok("ETag: \"same\"\r\n", "wrong"), &ok("ETag: \"same\"\r\n", "right")]);
    let state = tempfile::tempdir().unwrap();
    let mut source = source(&format!("http://{}/f", server.address));
    source.checksum = Some(Digest::of("right"));
    let error = fetch(&sources(Some(state.path())), &source).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.to_string().contains("not the expected"), "{error}");
    let (view, _) = fetch(&sources(Some(state.path())), &source).unwrap();
    assert_eq!(read(&*view, "f"), "right");
    let asked = server.requests.lock().unwrap().len();
    fetch(&sources(Some(state.path())), &source).unwrap();
    assert_eq!(server.requests.lock().unwrap().len(), asked, "what is pinned and here is not asked for");
}

#[test]
fn faults_are_retried_and_end() {
    let short = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 50\r\n\r\nshort";
    let busy = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let server = serve(&[short, busy, &ok("", "whole")]);
    let (view, _) = fetch(&sources(None), &source(&format!("http://{}/f", server.address))).unwrap();
    assert_eq!(read(&*view, "f"), "whole");
    for (answer, kind, requests) in [
        (short, ErrorKind::Network, 3),
        (busy, ErrorKind::Network, 3),
        ("HTTP/1.1 404 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", ErrorKind::NotFound, 1),
        (&ok("", &"x".repeat(1001)), ErrorKind::Invalid, 1),
    ] {
        let server = serve(&[answer]);
        let error =
            fetch(&sources(None), &source(&format!("http://{}/f?secret=1", server.address))).err().unwrap();
        assert_eq!(error.kind, kind, "{error}");
        assert_eq!(server.requests.lock().unwrap().len(), requests);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn passwords_stay_with_their_host() {
    let other = serve(&[&ok("", "there")]);
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: http://{}/x\r\n\r\n",
        other.address
    );
    let server = serve(&[&redirect]);
    let url = format!("http://user:p%40ss@{}/f", server.address);
    let (view, _) = fetch(&sources(None), &source(&url)).unwrap();
    assert_eq!(read(&*view, "f"), "there");
    assert!(server.requests.lock().unwrap()[0].contains("authorization: basic dxnlcjpwqhnz"));
    assert!(!other.requests.lock().unwrap()[0].contains("authorization"));
    let failing = serve(&["HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"]);
    let error =
        fetch(&sources(None), &source(&format!("http://user:hunter2@{}/f", failing.address))).err().unwrap();
    assert!(!format!("{error:?}").contains("hunter2"));
    assert_eq!(
        error.to_string(),
        format!("server {0} denied access while downloading http://{0}/f", failing.address)
    );
}
