//! The digests of operations as BuildKit computes them, written down a second time, independent of the crate that
//! computes cache keys: every digest in the link lists that BuildKit wrote must come out of our graphs.

use std::collections::BTreeSet;

use rbuild_digest::Digest;
use rbuild_graph::{
    CacheSharing, Chown, ExecSpec, FileAction, FileKind, FileOp, Graph, Mount, MountKind, NetMode, Node, Op,
    UserRef,
};

use super::{inputs, read, run, test_data};
use crate::Outcome;

/// A JSON object in the order of its fields, with Go's escapes.
#[derive(Default)]
struct Json(Vec<String>);

impl Json {
    fn raw(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.0.push(format!("\"{name}\":{value}"));
        self
    }
    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        if value.is_empty() { self } else { self.raw(name, string(value)) }
    }
    fn number(&mut self, name: &str, value: i64) -> &mut Self {
        if value == 0 { self } else { self.raw(name, value) }
    }
    fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        if value { self.raw(name, true) } else { self }
    }
    fn list(&mut self, name: &str, values: &[String]) -> &mut Self {
        if values.is_empty() {
            return self;
        }
        let all: Vec<String> = values.iter().map(|value| string(value)).collect();
        self.raw(name, format!("[{}]", all.join(",")))
    }
    fn end(&self) -> String {
        format!("{{{}}}", self.0.join(","))
    }
}

fn string(text: &str) -> String {
    let json = serde_json::to_string(text).unwrap();
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn index(i: Option<u32>) -> i64 {
    i.map_or(-1, i64::from)
}

fn owner(owner: Option<&Chown>) -> Option<String> {
    let one = |by: &UserRef| match by {
        UserRef::Id(0) => "{\"User\":{}}".to_owned(),
        UserRef::Id(id) => format!("{{\"User\":{{\"byId\":{id}}}}}"),
        UserRef::Name { name, input } => {
            let mut json = Json::default();
            json.text("name", name).number("input", index(*input));
            format!("{{\"User\":{{\"byName\":{}}}}}", json.end())
        }
    };
    let owner = owner?;
    let mut json = Json::default();
    for (name, by) in [("user", &owner.user), ("group", &owner.group)] {
        if let Some(by) = by {
            json.raw(name, one(by));
        }
    }
    Some(json.end())
}

fn action(action: &FileAction, inputs: usize) -> String {
    let mut json = Json::default();
    let with_owner = |json: &mut Json, by: Option<&Chown>| {
        if let Some(owner) = owner(by) {
            json.raw("owner", owner);
        }
    };
    match &action.kind {
        FileKind::Copy(copy) => {
            let from_input = action.secondary_input.is_some_and(|i| (i as usize) < inputs);
            json.text("src", if from_input { crate::paths::base(&copy.src) } else { &copy.src });
            json.text("dest", &copy.dest);
            with_owner(&mut json, copy.owner.as_ref());
            let kept = if copy.mode_str.is_empty() { -1 } else { 0 };
            json.number("mode", copy.mode.map_or(kept, i64::from))
                .flag("followSymlink", copy.follow_symlink)
                .flag("dirCopyContents", copy.dir_copy_contents)
                .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack)
                .flag("createDestPath", copy.create_dest_path)
                .flag("allowWildcard", copy.allow_wildcard)
                .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
                .number("timestamp", copy.timestamp.unwrap_or(-1))
                .list("include_patterns", &copy.include)
                .list("exclude_patterns", &copy.exclude)
                .text("modeStr", &copy.mode_str)
                .list("required_paths", &copy.required_paths);
        }
        FileKind::Mkfile(file) => {
            json.text("path", &file.path).number("mode", i64::from(file.mode));
            if !file.data.is_empty() {
                json.raw("data", format!("\"{}\"", base64(&file.data)));
            }
            with_owner(&mut json, file.owner.as_ref());
            json.number("timestamp", file.timestamp.unwrap_or(-1));
        }
        FileKind::Mkdir(dir) => {
            json.text("path", &dir.path)
                .number("mode", i64::from(dir.mode))
                .flag("makeParents", dir.make_parents);
            with_owner(&mut json, dir.owner.as_ref());
            json.number("timestamp", dir.timestamp.unwrap_or(-1));
        }
        FileKind::Rm(_) | FileKind::Symlink(_) => panic!("lowering makes none"),
    }
    json.end()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn file(op: &FileOp, inputs: usize) -> String {
    let actions: Vec<String> =
        op.actions.iter().map(|it| format!("\"{}\"", base64(action(it, inputs).as_bytes()))).collect();
    let mut json = Json::default();
    json.text("Type", "buildkit.file.v0").raw("Actions", format!("[{}]", actions.join(",")));
    let count = op.actions.len();
    let default = op.actions.iter().enumerate().all(|(i, it)| {
        let input = if i == 0 { 0 } else { (count + i - 1) as i64 };
        let output = if i + 1 == count { 0 } else { -1 };
        index(it.input) == input && matches!(index(it.secondary_input), -1 | 1) && index(it.output) == output
    });
    if !default {
        let triples: Vec<String> = op
            .actions
            .iter()
            .map(|it| format!("[{},{},{}]", index(it.input), index(it.secondary_input), index(it.output)))
            .collect();
        json.raw("indexes", format!("[{}]", triples.join(",")));
    }
    json.end()
}

fn mount(mount: &Mount) -> String {
    let mut json = Json::default();
    // LLB leaves the output of secrets and agents at 0.
    let secret = matches!(mount.kind, MountKind::Secret { .. } | MountKind::Ssh { .. });
    let output = if secret { 0 } else { index(mount.output) };
    json.number("input", index(mount.input)).text("dest", &mount.dest).number("output", output);
    json.flag("readonly", mount.readonly);
    match &mount.kind {
        MountKind::Bind => {}
        MountKind::Cache { id, sharing } => {
            json.raw("mountType", 3);
            let stays = id.split_once('/').is_some_and(|(_, path)| path == mount.dest) || *id == mount.dest;
            let mut options = Json::default();
            if stays && *sharing == CacheSharing::Shared {
                options.text("ID", id);
            }
            json.raw("cacheOpt", options.end());
        }
        MountKind::Tmpfs { size } => {
            json.raw("mountType", 4).raw("TmpfsOpt", Json::default().number("size", *size).end());
        }
        MountKind::Secret { id, uid, gid, mode, optional }
        | MountKind::Ssh { id, uid, gid, mode, optional } => {
            let mut options = Json::default();
            options.text("ID", id).number("uid", i64::from(*uid)).number("gid", i64::from(*gid));
            options.number("mode", i64::from(*mode)).flag("optional", *optional);
            let secret = matches!(mount.kind, MountKind::Secret { .. });
            let (kind, name) = if secret { (1, "secretOpt") } else { (2, "SSHOpt") };
            json.raw("mountType", kind).raw(name, options.end());
        }
    }
    json.end()
}

fn exec(spec: &ExecSpec, node: &Node) -> String {
    let mut meta = Json::default();
    meta.list("args", &spec.args).list("env", &spec.env).text("cwd", &spec.cwd).text("user", &spec.user);
    meta.flag("removeMountStubsRecursive", spec.remove_mount_stubs_recursive);
    let mut json = Json::default();
    json.raw("meta", meta.end());
    if spec.mounts.len() > 1 {
        let all: Vec<String> = spec.mounts.iter().map(mount).collect();
        json.raw("mounts", format!("[{}]", all.join(",")));
    }
    let network = match spec.network {
        NetMode::Sandbox => 0,
        NetMode::Host => 1,
        NetMode::None => 2,
    };
    json.number("network", network);
    let mut out = Json::default();
    out.text("Type", "buildkit.exec.v0").raw("Exec", json.end());
    out.text("OS", &node.platform.os).text("Arch", &node.platform.architecture);
    out.end()
}

fn digests(graph: &Graph) -> BTreeSet<String> {
    let one = |node: &Node| match &node.op {
        Op::Source(_) | Op::Diff(_) => None,
        Op::Exec(op) => Some(exec(&op.spec, node)),
        Op::File(op) => Some(file(op, node.inputs.len())),
        Op::Merge(op) => {
            let inputs = op.inputs.iter().map(|i| Json::default().number("input", i64::from(*i)).end());
            let inputs: Vec<String> = inputs.collect();
            let merge = Json::default().raw("inputs", format!("[{}]", inputs.join(","))).end();
            Some(Json::default().text("Type", "buildkit.merge.v0").raw("Merge", merge).end())
        }
    };
    graph.nodes().filter_map(|(_, node)| one(node)).map(|json| Digest::of(json).to_string()).collect()
}

/// The digests in the links that BuildKit wrote, August 2026. Operations without inputs have no link.
#[test]
fn digests_equal_those_that_buildkit_wrote() {
    for name in ["copy", "linear", "mounts", "stages"] {
        let folder = test_data().join(format!("buildkit-{name}"));
        let mut facts = inputs::facts(&read(&folder.join("facts.txt")));
        let (_, outcome) = run(&read(&folder.join("Dockerfile")), &inputs::options(""), &mut facts).unwrap();
        let Outcome::Done(lowered) = outcome else { panic!("{name} is not lowered") };
        let ours = digests(&lowered.graph);
        let want: BTreeSet<String> = read(&folder.join("digests.txt")).lines().map(str::to_owned).collect();
        assert!(!want.is_empty());
        let missing: Vec<&String> = want.difference(&ours).collect();
        assert!(missing.is_empty(), "{name}: {missing:#?}\n{}", crate::dump(&lowered));
    }
}
