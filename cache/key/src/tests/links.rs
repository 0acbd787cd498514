//! Four builds that BuildKit did: every link of its key store is made again, and no other.

use rbuild_graph::{
    CacheSharing, Chown, CopyAction, FileAction, FileKind, FileOp, MergeOp, MkdirAction, MountKind, NetMode,
    NodeId, Op, UserRef,
};

use super::build::{Build, PATH, Tree, cache, copy, mkdir, mkfile, mount, recorded, shell};

fn check(build: &Build, text: &str) {
    let (want, got) = (recorded(text), build.links());
    let missing: Vec<&String> = want.iter().filter(|link| !got.contains(link)).collect();
    let surplus: Vec<&String> = got.iter().filter(|link| !want.contains(link)).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing {missing:#?}\nsurplus {surplus:#?}");
    assert_eq!(want.len(), got.len());
}

#[test]
fn linear() {
    let mut build = Build::default();
    let context = Tree::context()
        .file("hello.txt", "hello\n")
        .dir("data")
        .file("data/a", "a\n")
        .link("data/link", "a")
        .dir("data/sub")
        .file("data/sub/b", "b\n");
    let base = build.base();
    let context = build.context(context);
    let workdir = build.file(Some(base), FileKind::Mkdir(mkdir("/app", 0o755)));
    let action = |input, output, src| FileAction {
        input: Some(input),
        secondary_input: Some(1),
        output,
        kind: FileKind::Copy(copy(src, "/app/")),
    };
    let actions = vec![action(0, None, "/hello.txt"), action(2, Some(0), "/data")];
    let copied = build.add(Op::File(FileOp { actions, epoch: None }), &[workdir, context]);
    build.run(copied, |spec| {
        spec.args = shell(r#"echo "$APP $VERSION" > /app/out && cat hello.txt >> /app/out"#);
        spec.cwd = "/app".to_owned();
        spec.env = [PATH, "VERSION=1", "APP=demo", "MODE=a & b <c>"].map(str::to_owned).into();
    });
    check(&build, include_str!("../../test_data/exports/linear/links.txt"));
}

#[test]
fn copies() {
    let mut build = Build::default();
    let context = Tree::context()
        .file(".dockerignore", include_bytes!("../../test_data/exports/copy/dockerignore"))
        .file("Dockerfile", include_bytes!("../../test_data/exports/copy/Dockerfile"))
        .file("arch.tar", include_bytes!("../../test_data/exports/copy/arch.tar"))
        .file("one.txt", "1\n")
        .file("two.txt", "2\n")
        .dir("tree")
        .file("tree/a.o", "o\n")
        .dir("tree/deep")
        .file("tree/deep/x", "x\n")
        .link("tree/link", "deep/x")
        .dir("tree/skip")
        .file("tree/skip/s", "s\n");
    let base = build.base();
    let context = build.context(context);
    let add = |build: &mut Build, on: NodeId, action: CopyAction| build.copy(Some(on), context, action);
    let id = |id| Some(UserRef::Id(id));
    let nobody = || Some(UserRef::Name { name: "nobody".to_owned(), input: Some(0) });

    let at = add(&mut build, base, copy("/*.txt", "/t/"));
    let exclude = vec!["*.o".to_owned(), "skip".to_owned()];
    let at = add(&mut build, at, CopyAction { exclude, ..copy("/tree", "/tree/") });
    let include = vec!["deep/x".to_owned()];
    let required_paths = vec!["/tree/deep/x".to_owned()];
    let at = add(&mut build, at, CopyAction { include, required_paths, ..copy("/tree", "/p/") });
    let owner = Some(Chown { user: nobody(), group: nobody() });
    let at = add(&mut build, at, CopyAction { owner, ..copy("/one.txt", "/owned") });
    let at = two_sources(&mut build, at, context, |src| CopyAction {
        owner: Some(Chown { user: id(12), group: id(34) }),
        mode_str: "u+x,g-w".to_owned(),
        ..copy(src, "/owned2/")
    });
    let at = add(&mut build, at, CopyAction { attempt_unpack: true, ..copy("/arch.tar", "/arch/") });
    let at = heredocs(&mut build, at, &[("A", "body \n"), ("B", "other\n")]);
    let at = add(&mut build, at, copy("/tree/link", "/followed"));
    let at = add(&mut build, at, copy("/", "/all"));
    build.run(at, |spec| spec.args = shell("find / -xdev -newer /etc/passwd | wc -l"));
    check(&build, include_str!("../../test_data/exports/copy/links.txt"));
}

fn two_sources(build: &mut Build, on: NodeId, from: NodeId, copy: impl Fn(&str) -> CopyAction) -> NodeId {
    let action = |input, output, src| FileAction {
        input: Some(input),
        secondary_input: Some(1),
        output,
        kind: FileKind::Copy(copy(src)),
    };
    let actions = vec![action(0, None, "/one.txt"), action(2, Some(0), "/two.txt")];
    build.add(Op::File(FileOp { actions, epoch: None }), &[on, from])
}

/// Each heredoc is a file of its own operation, copied from there.
fn heredocs(build: &mut Build, on: NodeId, bodies: &[(&str, &str)]) -> NodeId {
    let mut inputs = vec![on];
    for (name, body) in bodies {
        let made = build.file(None, mkfile(&format!("/{name}"), body));
        build.tree(made, Tree::snapshot().file(name, body));
        inputs.push(made);
    }
    let last = bodies.len() as u32 - 1;
    let actions = bodies.iter().zip(0u32..).map(|((name, _), i)| FileAction {
        input: Some(if i == 0 { 0 } else { inputs.len() as u32 + i - 1 }),
        secondary_input: Some(i + 1),
        output: (i == last).then_some(0),
        kind: FileKind::Copy(CopyAction {
            src: format!("/{name}"),
            dest: "/here/".to_owned(),
            create_dest_path: true,
            ..CopyAction::default()
        }),
    });
    let op = Op::File(FileOp { actions: actions.collect(), epoch: None });
    build.add(op, &inputs)
}

#[test]
fn stages() {
    let mut build = Build::default();
    let context = Tree::context()
        .file("LICENSE", "free\n")
        .dir("src")
        .file("src/1.txt", "one\n")
        .file("src/2.txt", "two\n");
    let base = build.base();
    let context = build.context(context);
    let deps = build.run(base, |spec| {
        spec.args = shell("echo deps-$FLAVOR > /deps");
        spec.env.push("FLAVOR=plain".to_owned());
    });
    let built = build.copy(Some(deps), context, CopyAction { mode: Some(0o755), ..copy("/src", "/src") });
    let built = build.run(built, |spec| {
        spec.args = shell("cat /src/* > /out && date > /cache/stamp && echo done");
        spec.env = ["FLAVOR=plain", PATH].map(str::to_owned).into();
        spec.mounts.push(mount("/cache", None, cache("//cache", CacheSharing::Shared), |_| {}));
    });
    build.tree(built, Tree::snapshot().file("out", "one\ntwo\n"));
    let lint = build.copy(Some(base), context, copy("/src", "/src"));
    let lint = build.run(lint, |spec| spec.args = shell("test -d /src && echo ok > /lint"));
    build.tree(lint, Tree::snapshot().file("lint", "ok\n"));
    let out = build.copy(None, built, copy("/out", "/out"));
    let out = build.copy(Some(out), lint, copy("/lint", "/lint"));
    let license = build.copy(None, context, copy("/LICENSE", "/LICENSE"));
    build.add(Op::Merge(MergeOp { inputs: vec![0, 1] }), &[out, license]);
    check(&build, include_str!("../../test_data/exports/stages/links.txt"));
}

#[test]
fn mounts() {
    let mut build = Build::default();
    let base = build.base();
    let context = build.context(Tree::context().dir("in").file("in/a", "in\n"));
    let tool = build.run(base, |spec| spec.args = shell("mkdir /t && echo tool > /t/x"));
    build.tree(tool, Tree::snapshot().dir("t").file("t/x", "tool\n"));
    let at = build.run_with(&[base, context], |spec| {
        spec.args = shell("cat /in/a > /o1");
        spec.mounts.push(mount("/in", Some(1), MountKind::Bind, |mount| {
            mount.selector = "/in".to_owned();
            mount.readonly = true;
        }));
    });
    let at = build.run_with(&[at, tool], |spec| {
        spec.args = shell("cat /tool/x > /o2 && touch /tool/y");
        spec.mounts.push(mount("/tool", Some(1), MountKind::Bind, |mount| mount.selector = "/t".to_owned()));
    });
    let at = build.run(at, |spec| {
        spec.args = shell("echo t > /tmp2/a && cp /tmp2/a /o3");
        let secret = MountKind::Secret { id: "tok".to_owned(), uid: 0, gid: 0, mode: 0o400, optional: true };
        spec.mounts.push(mount("/tmp2", None, MountKind::Tmpfs { size: 1_048_576 }, |_| {}));
        spec.mounts.push(mount("/run/secrets/tok", None, secret, |_| {}));
    });
    let owner = Chown { user: Some(UserRef::Id(1000)), group: Some(UserRef::Id(0)) };
    let made =
        FileKind::Mkdir(MkdirAction { owner: Some(owner), make_parents: false, ..mkdir("/cache", 0o700) });
    let made = build.file(None, made);
    build.tree(made, Tree::snapshot().dir_as("cache", 0o700, 1000));
    let at = build.run_with(&[at, made], |spec| {
        spec.args = shell("ls -ld /c /d > /o4");
        spec.mounts.push(mount("/c", None, cache("/shared", CacheSharing::Locked), |_| {}));
        let own = |mount: &mut rbuild_graph::Mount| mount.selector = "/cache".to_owned();
        spec.mounts.push(mount("/d", Some(1), cache("//d", CacheSharing::Shared), own));
    });
    let at = build.run(at, |spec| {
        spec.args = shell("ip link > /o5 || true");
        spec.network = NetMode::None;
    });
    build.run(at, |spec| spec.args = shell("set -e\necho here > /o6\n"));
    check(&build, include_str!("../../test_data/exports/mounts/links.txt"));
}
