//! Contexts that are not the local directory: repositories behind git's own protocol, files on the web, and directories that
//! stand for a base image.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbuild::{BuildRequest, Context, DockerfileSource, NamedContext, NamedContextSource};
use rbuild_testkit::fixture::make_tree;
use rbuild_testkit::normalize::Times;
use rbuild_testkit::space::Space;

use crate::common::{Built, image_of, request, require_root};

/// Answers every connection in a thread of its own, for as long as the tests run.
fn serve(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the test can be set up");
    let address = listener.local_addr().expect("the test can be set up").to_string();
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

/// A git server for the repositories below `dir`.
fn git_server(dir: &Path) -> String {
    let dir = dir.to_owned();
    serve(move |stream| {
        let end = || Stdio::from(OwnedFd::from(stream.try_clone().expect("the test can be set up")));
        let mut base = std::ffi::OsString::from("--base-path=");
        base.push(&dir);
        let daemon = Command::new("git")
            .args(["daemon", "--inetd", "--export-all"])
            .arg(base)
            .arg(&dir)
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stdin(end())
            .stdout(end())
            .stderr(Stdio::null())
            .status();
        assert!(daemon.is_ok(), "git daemon (Debian: git): {daemon:?}");
    })
}

/// A web server for the files below `dir`.
fn web_server(dir: &Path) -> String {
    let dir = dir.to_owned();
    serve(move |mut stream| {
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("the test can be set up"));
        reader.read_line(&mut line).expect("the test can be set up");
        let mut header = String::new();
        while reader.read_line(&mut header).is_ok_and(|n| n > 2) {
            header.clear();
        }
        let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        let (status, body) = match fs::read(dir.join(path)) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", vec![]),
        };
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    })
}

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.allow=always"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_COMMITTER_DATE", "2024-01-02T03:04:05Z")
        .env("GIT_AUTHOR_DATE", "2024-01-02T03:04:05Z")
        .output()
        .expect("git (Debian: git)");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the test can be set up")
}

/// A repository with a work tree at `work` and what is served at `served/app.git`.
struct Repository {
    work: PathBuf,
    served: PathBuf,
}

impl Repository {
    fn new(space: &Space) -> Self {
        let (work, served) = (space.path("work"), space.path("served"));
        fs::create_dir_all(&served).expect("the test can be set up");
        make_tree(
            &work,
            "d src 755\nf src/a 600 a\nf src/run 755 run\nd other 755\nf other/x 644 x\nl link src/a\n",
        );
        fs::write(work.join("Dockerfile"), "FROM scratch\nCOPY src /src\n").expect("the test can be set up");
        fs::write(work.join("other/Dockerfile"), "FROM scratch\nCOPY x /x\n")
            .expect("the test can be set up");
        git(&work, &["init", "-q", "-b", "main"]);
        git(&work, &["add", "."]);
        git(&work, &["commit", "-q", "-m", "one"]);
        git(&work, &["tag", "-a", "v1", "-m", "first"]);
        git(&served, &["clone", "-q", "--bare", work.to_str().expect("the test can be set up"), "app.git"]);
        Self { work, served }
    }

    /// Commits everything and publishes it.
    fn publish(&self, branch: &str) {
        git(&self.work, &["checkout", "-q", "-B", branch]);
        git(&self.work, &["add", "."]);
        git(&self.work, &["commit", "-q", "-m", "more"]);
        let to = self.served.join("app.git");
        git(&self.work, &["push", "-q", "-f", to.to_str().expect("the test can be set up"), branch]);
    }
}

fn of_context(context: Context) -> BuildRequest {
    let mut request = BuildRequest::new("");
    request.context = context;
    request
}

/// The listing of what was built, or the error.
fn listing(space: &Space, request: BuildRequest) -> (Built, String) {
    let (built, image) = image_of(space, request);
    let text = match image {
        Some(image) => image.rootfs().listing(Times::Hidden),
        None => built.error(),
    };
    (built, text)
}

#[test]
fn repositories_are_contexts() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    let repository = Repository::new(&space);
    let url = format!("git://{}/app.git", git_server(&repository.served));
    let at = |rest: &str| of_context(Context::Git(format!("{url}{rest}")));

    let (built, tree) = listing(&space, at(""));
    assert!(tree.contains("src/a") && tree.contains("0644") && tree.contains("0755"), "{tree}");
    assert!(built.text().contains("COPY src /src: ran"), "{}", built.text());
    let (again, same) = listing(&space, at("#v1"));
    assert_eq!(same, tree);
    assert!(!again.text().contains(": ran"), "the commit is the same: {}", again.text());

    // Another commit without a change to what is copied.
    fs::write(repository.work.join("unrelated"), "x").unwrap();
    repository.publish("dev");
    let (other, same) = listing(&space, at("#dev"));
    assert_eq!(same, tree);
    assert!(!other.text().contains("COPY src /src: ran"), "equal content is a hit: {}", other.text());
    fs::write(repository.work.join("src/a"), "b").unwrap();
    repository.publish("dev");
    let (changed, _) = listing(&space, at("#dev"));
    assert!(changed.text().contains("COPY src /src: ran"), "{}", changed.text());

    let (_, sub) = listing(&space, at("#main:other"));
    assert!(sub.contains("/x f") && !sub.contains("src"), "{sub}");
    let mut other = at("");
    other.dockerfile = DockerfileSource::File("nope/Dockerfile".into());
    assert!(listing(&space, other).1.contains("RB2030"), "no such Dockerfile");
    for (rest, code) in [("#nope", "RB2040"), ("#main:nope", "RB2040"), ("?what=1", "RB2011")] {
        assert!(listing(&space, at(rest)).1.contains(code), "{rest}");
    }
    let gone = of_context(Context::Git(url.replace("app.git", "gone.git")));
    let message = listing(&space, gone).1;
    assert!(message.contains("gone.git"), "{message}");
}

#[test]
fn repositories_are_sources_of_add_and_named_contexts() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    let repository = Repository::new(&space);
    let library = space.path("library");
    make_tree(&library, "f lib 644 lib\n");
    git(&library, &["init", "-q", "-b", "main"]);
    git(&library, &["add", "."]);
    git(&library, &["commit", "-q", "-m", "lib"]);
    git(&repository.served, &["clone", "-q", "--bare", library.to_str().unwrap(), "library.git"]);
    let server = git_server(&repository.served);
    git(&repository.work, &["submodule", "--quiet", "add", &format!("git://{server}/library.git"), "lib"]);
    repository.publish("main");
    let url = format!("git://{server}/app.git");

    let text = format!(
        "FROM scratch\nADD {url}#v1 /old/\nADD --keep-git-dir=true {url}#main /new/\nCOPY --from=named lib /named/\n"
    );
    let build = || {
        let mut request = request(&space, &text);
        let value = NamedContextSource::Git(format!("{url}#main"));
        request.named_contexts.push(NamedContext { name: "named".to_owned(), platform: None, value });
        request
    };
    let (_, tree) = listing(&space, build());
    for there in ["old/src/run", "new/lib/lib", "new/.git/HEAD", "named/lib"] {
        assert!(tree.contains(there), "{there} in\n{tree}");
    }
    for gone in ["old/.git", "old/lib", "named/.git"] {
        assert!(!tree.contains(gone), "{gone} in\n{tree}");
    }
    let again = listing(&space, build()).0;
    assert!(!again.text().contains(": ran"), "{}", again.text());

    // Pinned to what it is not.
    let commit = git(&repository.work, &["rev-parse", "v1^{commit}"]);
    let pinned = |sum: &str| request(&space, &format!("FROM scratch\nADD --checksum={sum} {url}#v1 /x\n"));
    assert!(listing(&space, pinned(commit.trim())).1.contains("x/src/a"));
    assert!(listing(&space, pinned(&"1".repeat(40))).1.contains("RB1134"));
}

#[test]
fn the_time_of_a_commit_can_be_that_of_the_image() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    let repository = Repository::new(&space);
    let url = format!("git://{}/app.git", git_server(&repository.served));
    let mut request = of_context(Context::Git(url));
    request.build_args.push(("SOURCE_DATE_EPOCH".to_owned(), "context".to_owned()));
    let (built, image) = image_of(&space, request);
    let created = image.unwrap_or_else(|| panic!("{}", built.error())).config["created"].to_string();
    assert_eq!(created, "\"2024-01-02T03:04:05Z\"");
}

#[test]
fn what_is_on_the_web_is_a_context() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    let files = space.path("files");
    make_tree(&files, "f a 644 a\n");
    fs::write(files.join("Dockerfile"), "FROM scratch\nCOPY a /b\n").unwrap();
    fs::write(files.join("other"), "FROM scratch\nCOPY a /c\n").unwrap();
    let served = space.path("served");
    fs::create_dir_all(&served).unwrap();
    let tar =
        Command::new("tar").arg("-C").arg(&files).arg("-czf").arg(served.join("app.tgz")).arg(".").status();
    assert!(tar.unwrap().success());
    fs::write(served.join("just"), "FROM scratch\nLABEL a=b\n").unwrap();
    let server = web_server(&served);
    let at = |path: &str| of_context(Context::Http(format!("http://{server}/{path}")));

    assert!(listing(&space, at("app.tgz")).1.contains("/b f"));
    let again = listing(&space, at("app.tgz")).0;
    assert!(again.text().contains("COPY a /b: cached"), "{}", again.text());
    let mut other = at("app.tgz");
    other.dockerfile = DockerfileSource::File("other".into());
    assert!(listing(&space, other).1.contains("/c f"));
    let (built, image) = image_of(&space, at("just"));
    assert!(image.unwrap_or_else(|| panic!("{}", built.error())).layers.is_empty());
    assert!(listing(&space, at("gone")).1.contains("gone"));
}

#[test]
fn a_directory_can_stand_for_a_base_image() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), "f own 644 own\n");
    let dir = space.path("dir");
    make_tree(&dir, "d in 755\nf in/f 640 f\n");
    let of = |text: &str| {
        let mut request = request(&space, text);
        let value = NamedContextSource::Dir(dir.clone());
        request.named_contexts.push(NamedContext { name: "dir".to_owned(), platform: None, value });
        request
    };
    let plain = listing(&space, of("FROM dir\n")).1;
    assert!(plain.contains("in/f"), "{plain}");
    for more in ["COPY own /", "COPY --link own /"] {
        let tree = listing(&space, of(&format!("FROM dir\n{more}\n"))).1;
        assert!(tree.contains("in/f") && tree.contains("own"), "{more}: {tree}");
    }
    if !crate::common::require_sandbox() {
        return;
    }
    let busybox = fs::read("/bin/busybox").expect("busybox-static");
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(dir.join("bin/sh"), busybox).unwrap();
    fs::set_permissions(dir.join("bin/sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (built, tree) = listing(&space, of("FROM dir\nRUN echo made > /made\n"));
    assert!(tree.contains("in/f") && tree.contains("made"), "{tree}\n{}", built.log);
}
