//! Single digests: those checked against real stores and images, and derived ones that must not change.

use rbuild_digest::Digest;
use rbuild_graph::{
    CacheSharing, CdiDevice, ContentCache, CopyAction, DiffOp, ExecHints, ExecOp, ExecSpec, FileAction,
    FileKind, FileOp, GitSource, HostIp, HttpSource, LocalSource, MergeOp, MountKind, NetMode, NodeId, Op,
    ProxyEnv, RmAction, SecretEnv, SecurityMode, SourceOp, SymlinkAction, Ulimit,
};

use super::build::{cache, copy, digest, exec, image, mkdir, mkfile, mount, node, shell};
use crate::{Facts, HttpFacts, KeyError, OpDigest, cache_map, combine_content, content_key, record_key};

const N0: NodeId = NodeId(0);
const N1: NodeId = NodeId(1);

fn op_digest(op: Op, inputs: &[NodeId]) -> String {
    cache_map(&node(op, inputs), &Facts::default()).unwrap().digest.to_string()
}

fn run(change: impl FnOnce(&mut ExecSpec)) -> Op {
    let mut spec = exec();
    change(&mut spec);
    Op::Exec(Box::new(ExecOp { spec, hints: ExecHints::default() }))
}

/// Actions with their indexes; absent ones are -1.
fn file(actions: impl IntoIterator<Item = ([i64; 3], FileKind)>) -> Op {
    let index = |i: i64| u32::try_from(i).ok();
    let actions = actions.into_iter().map(|([input, secondary, output], kind)| FileAction {
        input: index(input),
        secondary_input: index(secondary),
        output: index(output),
        kind,
    });
    Op::File(FileOp { actions: actions.collect(), epoch: None })
}

fn copies(src: &str, dest: &str) -> FileKind {
    FileKind::Copy(copy(src, dest))
}

/// The named digests of test_data/vectors.txt.
fn vector(name: &str) -> String {
    include_str!("../../test_data/vectors.txt")
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .find(|(_, known)| *known == name)
        .unwrap_or_else(|| panic!("no vector {name:?}"))
        .0
        .to_owned()
}

#[test]
fn images() {
    let index = digest("sha256:f9a104fddb33220ec80fc45a4e606c74aadf1ef7a3832eb0b05be9e90cd61f5f");
    let layer = digest("sha256:65014c70e84b6817fac42bb201ec5c1ea460a8da246cac0e481f5c9a9491eac0");
    let map = cache_map(&node(image(index, &[layer]), &[]), &Facts::default()).unwrap();
    assert_eq!(map.digest.record_key(0).unwrap().to_string(), vector("image manifest record"));
    assert_eq!(record_key(&map.extra_roots[0], 0).to_string(), vector("image chain record"));
    assert!(map.deps.is_empty());
    // One layer is its own chain; its digest and record were seen too.
    let chain = digest("sha256:7eaa7e5de62b70adb0d0c875f6a90ddd20b18fe9f215c3a9172f1011fffb7cc4");
    let map = cache_map(&node(image(index, &[chain]), &[]), &Facts::default()).unwrap();
    assert_eq!(map.extra_roots[0].to_string(), vector("source chain key"));
    assert_eq!(record_key(&map.extra_roots[0], 0).to_string(), vector("source chain record"));
    let two = cache_map(&node(image(index, &[layer, chain]), &[]), &Facts::default()).unwrap();
    let joined = Digest::of(format!("{layer} {chain}"));
    assert_eq!(two.extra_roots, [Digest::of(format!("buildkit.source.v0:{joined}"))]);
    let none = cache_map(&node(image(index, &[]), &[]), &Facts::default()).unwrap();
    assert!(none.extra_roots.is_empty());
    let mut other = node(image(index, &[layer]), &[]);
    other.platform.variant = "v2".to_owned();
    let other = cache_map(&other, &Facts::default()).unwrap();
    assert_ne!(other.digest, map.digest);
}

#[test]
fn commands() {
    let check = |name: &str, op: Op| assert_eq!(op_digest(op, &[N0]), vector(name), "{name}");
    check("RUN echo hi", run(|spec| spec.args = shell("echo hi")));
    let with_cache = |dest: &str, id: &str, sharing| {
        let kind = cache(id, sharing);
        let dest = dest.to_owned();
        run(move |spec| {
            spec.args = shell("true");
            spec.mounts.push(mount(&dest, None, kind, |_| {}));
        })
    };
    check("RUN --mount=type=cache,target=/c true", with_cache("/c", "//c", CacheSharing::Shared));
    let locked = "RUN --mount=type=cache,target=/c,sharing=locked true";
    check(locked, with_cache("/c", "//c", CacheSharing::Locked));
    check(locked, with_cache("/c", "/custom", CacheSharing::Private));
    let namespaced = op_digest(with_cache("/c", "ns//c", CacheSharing::Shared), &[N0]);
    assert!(namespaced != vector(locked) && namespaced != vector("RUN --mount=type=cache,target=/c true"));
    check("RUN with everything", run(everything));
    let device = |name: &str, optional| CdiDevice { name: name.to_owned(), optional };
    check(
        "RUN --device=vendor.com/gpu=all,required --device=vendor.com/net true",
        run(|spec| {
            spec.args = shell("true");
            spec.cdi_devices = vec![device("vendor.com/gpu=all", false), device("vendor.com/net", true)];
        }),
    );
}

fn everything(spec: &mut ExecSpec) {
    spec.args = shell("x <&> \u{1}");
    spec.user = "u".to_owned();
    spec.hostname = "h".to_owned();
    spec.extra_hosts = vec![HostIp { host: "a".to_owned(), ip: "1.2.3.4".to_owned() }];
    spec.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 1, hard: 0 }];
    spec.cgroup_parent = "g".to_owned();
    spec.valid_exit_codes = vec![0, 3];
    spec.network = NetMode::Host;
    spec.security = SecurityMode::Insecure;
    spec.secret_env = vec![SecretEnv { id: "i".to_owned(), name: "N".to_owned(), optional: true }];
    let ssh = MountKind::Ssh { id: String::new(), uid: 0, gid: 0, mode: 0o600, optional: true };
    let secret = MountKind::Secret { id: "s".to_owned(), uid: 1, gid: 2, mode: 0o400, optional: false };
    spec.mounts.push(mount("/t", None, MountKind::Tmpfs { size: 0 }, |_| {}));
    spec.mounts.push(mount("/run/secrets/s", None, secret, |_| {}));
    spec.mounts.push(mount("/run/buildkit/ssh_agent.0", None, ssh, |_| {}));
}

#[test]
fn what_is_not_in_the_key_of_a_command() {
    let plain = op_digest(run(everything), &[N0]);
    let mut spec = exec();
    everything(&mut spec);
    spec.extra_hosts[0].ip = "5.6.7.8".to_owned();
    spec.mounts[0].selector = "/elsewhere".to_owned();
    let proxy_env = ProxyEnv { http_proxy: "http://proxy".to_owned(), ..ProxyEnv::default() };
    let op = Op::Exec(Box::new(ExecOp { spec, hints: ExecHints { proxy_env } }));
    assert_eq!(op_digest(op, &[N0]), plain);
}

#[test]
fn mounts_and_contents() {
    let dep = |change: fn(&mut rbuild_graph::Mount)| {
        let op = run(|spec| spec.mounts.push(mount("/x", Some(1), MountKind::Bind, change)));
        cache_map(&node(op, &[N0, N1]), &Facts::default()).map(|map| map.deps)
    };
    let root = vector("selector /");
    let deps = dep(|_| {}).unwrap();
    assert_eq!(deps[0].selector.unwrap().to_string(), root);
    assert_eq!(deps[0].content, None, "the root file system is known by definition alone");
    assert_eq!(deps[1].selector.unwrap().to_string(), root);
    assert_eq!(deps[1].content.as_ref().unwrap().selectors[0].path, "/");
    assert!(!deps[1].content.as_ref().unwrap().selectors[0].options.follow_links);
    let part = dep(|mount| mount.selector = "a/../b/".to_owned()).unwrap();
    assert_eq!(part[1].selector, Some(Digest::of("/b")));
    assert!(part[1].content.as_ref().unwrap().selectors[0].options.follow_links);
    let written = dep(|mount| (mount.selector, mount.output) = ("/b".to_owned(), Some(1))).unwrap();
    assert_eq!(written[1].content, None);
    let off = dep(|mount| mount.content_cache = ContentCache::Off).unwrap();
    assert_eq!(off[1].content, None);
    let forced = dep(|mount| {
        (mount.selector, mount.output, mount.content_cache) = ("/b".to_owned(), Some(1), ContentCache::On);
    });
    assert_eq!(forced, Err(KeyError::ContentCache { dest: "/x".to_owned() }));
    // Several mounts of one input: their selectors in order, and once each in what is hashed.
    let op = run(|spec| {
        for (dest, selector) in [("/1", "/b/c"), ("/2", "/b"), ("/3", "/a"), ("/4", "/b")] {
            let set = |mount: &mut rbuild_graph::Mount| mount.selector = selector.to_owned();
            spec.mounts.push(mount(dest, Some(1), MountKind::Bind, set));
        }
    });
    let deps = cache_map(&node(op, &[N0, N1]), &Facts::default()).unwrap().deps;
    assert_eq!(deps[1].selector, Some(Digest::of("/b/c\0/b\0/a\0/b")));
    let paths: Vec<&str> =
        deps[1].content.as_ref().unwrap().selectors.iter().map(|selector| selector.path.as_str()).collect();
    assert_eq!(paths, ["/a", "/b"]);
    let op = run(|spec| spec.mounts.push(mount("/x", Some(7), MountKind::Bind, |_| {})));
    let error = cache_map(&node(op, &[N0]), &Facts::default()).unwrap_err();
    assert_eq!(error, KeyError::NoSuchInput { input: 7, inputs: 1 });
}

#[test]
fn files() {
    let check =
        |name: &str, op: Op, inputs: &[NodeId]| assert_eq!(op_digest(op, inputs), vector(name), "{name}");
    let link = file([([-1, 0, 0], copies("/buildx", "/usr/bin/buildx"))]);
    check("COPY --link cachemap", link.clone(), &[N0]);
    let map = cache_map(&node(link, &[N0]), &Facts::default()).unwrap();
    assert_eq!(map.digest.record_key(0).unwrap().to_string(), vector("COPY --link link"));
    assert_eq!(map.deps[0].selector.unwrap().to_string(), vector("selector /buildx"));
    check("COPY hello.txt /in/", file([([0, 1, 0], copies("/hello.txt", "/in/"))]), &[N0, N1]);
    let npm = copies("/npm/package", "/usr/local/lib/node_modules/npm");
    check("COPY npm/package", file([([0, 1, 0], npm)]), &[N0, N1]);
    check(
        "FROM scratch, COPY executor",
        file([([-1, 0, 0], copies("/executor", "/kaniko/executor"))]),
        &[N0],
    );
    check("WORKDIR /go", file([([0, -1, 0], FileKind::Mkdir(mkdir("/go", 0o755)))]), &[N0]);
    check("WORKDIR /app", file([([0, -1, 0], FileKind::Mkdir(mkdir("/app", 0o755)))]), &[N0]);
    check("COPY a /b", file([([0, 1, 0], copies("/a", "/b"))]), &[N0, N1]);
    let two = file([([0, 1, -1], copies("/a", "/d/")), ([2, 1, 0], copies("/b", "/d/"))]);
    check("COPY a b /d/", two.clone(), &[N0, N1]);
    let map = cache_map(&node(two, &[N0, N1]), &Facts::default()).unwrap();
    assert_eq!(map.deps[1].selector.unwrap().to_string(), vector("selector of a b"));
    assert_eq!(map.deps[0], crate::Dep::default());
    check("COPY <<EOF, its file", file([([-1, -1, 0], mkfile("/EOF", "hello\n"))]), &[]);
    let rm = RmAction { path: "/x".to_owned(), allow_not_found: true, allow_wildcard: false };
    check("rm", file([([0, -1, 0], FileKind::Rm(rm))]), &[N0]);
    let symlink =
        SymlinkAction { oldpath: "a".to_owned(), newpath: "/b".to_owned(), owner: None, timestamp: Some(5) };
    check("symlink", file([([0, -1, 0], FileKind::Symlink(symlink))]), &[N0]);
    // From an action's output the whole path stays; from an input only its base name.
    let inner = file([([-1, -1, -1], mkfile("/d/f", "")), ([-1, 0, 0], copies("/d/f", "/g"))]);
    assert_ne!(op_digest(inner, &[]), op_digest(file([([-1, 0, 0], copies("/d/f", "/g"))]), &[N0]));
}

#[test]
fn contents_of_copies() {
    let spec = |sources: &[CopyAction]| {
        let count = sources.len();
        let actions = sources.iter().enumerate().map(|(i, source)| {
            let input = if i == 0 { 0 } else { 1 + i as i64 };
            let output = if i + 1 == count { 0 } else { -1 };
            ([input, 1, output], FileKind::Copy(source.clone()))
        });
        let map = cache_map(&node(file(actions), &[N0, N1]), &Facts::default()).unwrap();
        let selectors = map.deps[1].content.clone().unwrap().selectors;
        let text = |s: &crate::ContentSelector| {
            format!("{} {}{}", s.path, s.options.wildcard, s.options.follow_links)
        };
        selectors.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(spec(&[copy("/b/", "/x")]), ["/b falsetrue"]);
    assert_eq!(
        spec(&[copy("/b/c", "/x"), copy("/b", "/x"), copy("/a", "/x")]),
        ["/a falsetrue", "/b falsetrue"]
    );
    assert_eq!(spec(&[copy("/b/*", "/x"), copy("/b", "/x")]), ["/b falsetrue", "/b/* truetrue"]);
    assert_eq!(spec(&[copy("/a\\*", "/x")]), ["/a\\* falsetrue"]);
    let still = CopyAction { follow_symlink: false, ..copy("/a", "/x") };
    assert_eq!(spec(&[copy("/a", "/x"), still]), ["/a falsefalse", "/a falsetrue"]);
}

#[test]
fn merge_and_diff() {
    let merge = Op::Merge(MergeOp { inputs: vec![0, 1] });
    assert_eq!(op_digest(merge, &[N0, N1]), vector("merge of 2"));
    let diff = |lower, upper| Op::Diff(DiffOp { lower, upper });
    assert_eq!(op_digest(diff(Some(0), Some(1)), &[N0, N1]), vector("diff 0..1"));
    let map = cache_map(&node(diff(None, Some(0)), &[N0]), &Facts::default()).unwrap();
    assert_eq!(map.preimage.text, r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{"input":-1},"upper":{}}}"#);
    assert_eq!(map.deps, [crate::Dep::default()]);
}

#[test]
fn git() {
    let source = |keep_git_dir, reference: &str, subdir: &str, skip_submodules| {
        Op::Source(SourceOp::Git(GitSource {
            url: "https://example.org/x.git".to_owned(),
            reference: reference.to_owned(),
            subdir: subdir.to_owned(),
            commit: "a".repeat(40),
            keep_git_dir,
            skip_submodules,
        }))
    };
    assert_eq!(op_digest(source(false, "main", "", false), &[]), vector("git 40-hex"));
    assert_eq!(op_digest(source(true, "refs/heads/main", "", false), &[]), vector("git keep dir main"));
    let map = cache_map(&node(source(true, "", "sub", true), &[]), &Facts::default()).unwrap();
    assert_eq!(map.preimage.text, format!("buildkit.source.v0:{}.git:sub(skip-submodules)", "a".repeat(40)));
}

#[test]
fn http() {
    let content = Digest::of("x");
    let source = |checksum| {
        Op::Source(SourceOp::Http(HttpSource {
            url: "https://example.org/f".to_owned(),
            filename: "f".to_owned(),
            checksum,
            mode: 0,
            uid: 0,
            gid: 0,
        }))
    };
    let missing = cache_map(&node(source(None), &[]), &Facts::default()).unwrap_err();
    assert!(missing.to_string().contains("https://example.org/f"));
    let http = Some(HttpFacts { content, last_modified: Some("Mon, 02 Jan 2006 15:04:05 GMT".to_owned()) });
    let facts = Facts { http, ..Facts::default() };
    let key = |json: &str| OpDigest::Fixed(Digest::of(format!("buildkit.source.v0:{}", Digest::of(json))));
    let pinned = cache_map(&node(source(Some(content)), &[]), &facts).unwrap();
    let json = format!(r#"{{"Filename":"f","Perm":0,"UID":0,"GID":0,"Checksum":"{content}"}}"#);
    assert_eq!(pinned.digest, key(&json));
    let found = cache_map(&node(source(None), &[]), &facts).unwrap();
    let json = json.replace('}', r#","LastModTime":"Mon, 02 Jan 2006 15:04:05 GMT"}"#);
    assert_eq!(found.digest, key(&json));
}

#[test]
fn local_directories_are_new_in_every_session() {
    let op = Op::Source(SourceOp::Local(LocalSource {
        name: "context".to_owned(),
        include: Vec::new(),
        exclude: vec!["a".to_owned()],
        follow_paths: Vec::new(),
    }));
    let map = |session: &str| {
        let facts = Facts { session: session.to_owned(), http: None };
        cache_map(&node(op.clone(), &[]), &facts).unwrap()
    };
    let (one, two) = (map("1"), map("2"));
    assert_ne!(one.digest, two.digest);
    assert_eq!(one.digest.record_key(0), None);
    assert!(one.digest.to_string().starts_with("random:"));
    let json = r#"{"SessionID":"1","IncludePatterns":null,"ExcludePatterns":["a"],"FollowPaths":null}"#;
    let text = format!("buildkit.source.v0:session:context:{}", Digest::of(json));
    assert_eq!(one.digest, OpDigest::Random(Digest::of(&text)));
}

#[test]
fn contents() {
    let x = Digest::of("x");
    assert_eq!(content_key(&[x]).to_string(), vector("slow key of content x"));
    assert_eq!(combine_content(&[x, x]), Digest::of(format!("{x}\0{x}")));
    // A file `hello\n` of a real store: contents hash, combined, as a key.
    let file = "namemode420uid0gid0size6typeflag0linknameunamegnamedevmajor0devminor0hello\n";
    assert!(content_key(&[Digest::of(file)]).to_string().starts_with("sha256:c24a47b576469b52"));
}
