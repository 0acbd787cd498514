//! Differences between keys as people read them, and that the fields tell of everything that is hashed.

use rbuild_graph::{
    CacheSharing, Chown, CopyAction, ExecHints, ExecOp, ExecSpec, FileAction, FileKind, FileOp, NodeId, Op,
    UserRef,
};

use super::build::{PATH, cache, copy, exec, image, mkfile, mount, node, shell};
use crate::{CacheMap, Facts, cache_map, explain};

fn map(op: Op, inputs: u32) -> CacheMap {
    let inputs: Vec<NodeId> = (0..inputs).map(NodeId).collect();
    cache_map(&node(op, &inputs), &Facts::default()).unwrap()
}

fn run(change: impl FnOnce(&mut ExecSpec)) -> CacheMap {
    let mut spec = exec();
    spec.args = shell("make");
    change(&mut spec);
    map(Op::Exec(Box::new(ExecOp { spec, hints: ExecHints::default() })), 1)
}

fn file(kind: FileKind) -> CacheMap {
    let action = FileAction { input: Some(0), secondary_input: Some(1), output: Some(0), kind };
    map(Op::File(FileOp { actions: vec![action], epoch: None }), 2)
}

fn text(old: &CacheMap, new: &CacheMap) -> String {
    let value = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let line = |d: crate::Difference| format!("{}: {} → {}", d.path, value(d.old), value(d.new));
    explain(&old.preimage, &new.preimage).into_iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn commands() {
    let old = run(|spec| spec.env = [PATH, "A=1", "B=2"].map(str::to_owned).into());
    assert_eq!(text(&old, &old), "");
    let new = run(|spec| {
        spec.env = [PATH, "B=3", "C=4"].map(str::to_owned).into();
        spec.args = shell("make all");
        spec.mounts.push(mount("/c", None, cache("//c", CacheSharing::Shared), |_| {}));
    });
    let want = "args[2]: make → make all\nenv.B: 2 → 3\nenv.C: - → 4\nmount / dest: - → /\nmount /c input: - → -1\n\
                mount /c dest: - → /c\nmount /c output: - → -1\nmount /c mountType: - → cache\nmount /c ID: - → //c\n\
                env.A: 1 → -";
    assert_eq!(text(&old, &new), want);
    let moved = run(|spec| spec.env = ["A=1", PATH, "B=2"].map(str::to_owned).into());
    assert_eq!(text(&old, &moved), "order: env.PATH env.A → env.A env.PATH");
}

#[test]
fn copies() {
    let old = file(FileKind::Copy(copy("/src/a", "/x")));
    let owner = Some(Chown { user: Some(UserRef::Id(0)), group: None });
    let new = file(FileKind::Copy(CopyAction { owner, mode: Some(0o755), ..copy("/other/a", "/x") }));
    let want = "owner.user.byId: - → 0\nmode: -1 → 493\ninput 1 path: /src/a → /other/a";
    assert_eq!(text(&old, &new), want);
    let heredoc = |body: &str| file(mkfile("/f", body));
    assert!(text(&heredoc("a"), &heredoc("bc")).starts_with("data: 1 bytes sha256:ca978112"));
}

#[test]
fn images() {
    let digest = |text: &str| rbuild_digest::Digest::of(text);
    let (old, new) = (map(image(digest("1"), &[]), 0), map(image(digest("2"), &[]), 0));
    assert_eq!(text(&old, &new), format!("Digest: {} → {}", digest("1"), digest("2")));
}

#[test]
fn equal_digests_mean_no_difference_and_the_other_way_round() {
    let mut maps: Vec<CacheMap> = Vec::new();
    let changes: [fn(&mut ExecSpec); 9] = [
        |_| {},
        |spec| spec.user = "u".to_owned(),
        |spec| spec.cwd = "/w".to_owned(),
        |spec| spec.hostname = "h".to_owned(),
        |spec| spec.network = rbuild_graph::NetMode::Host,
        |spec| spec.security = rbuild_graph::SecurityMode::Insecure,
        |spec| spec.valid_exit_codes = vec![1],
        |spec| spec.remove_mount_stubs_recursive = false,
        |spec| spec.mounts[0].readonly = true,
    ];
    maps.extend(changes.map(run));
    for (i, a) in maps.iter().enumerate() {
        assert_eq!(a.digest.to_string(), a.preimage.digest().to_string());
        for (j, b) in maps.iter().enumerate() {
            assert_eq!(a.digest == b.digest, i == j);
            assert_eq!(text(a, b).is_empty(), i == j, "{i} {j}");
        }
    }
}
