//! Graph nodes by hand, as BuildKit's Dockerfile frontend makes them, and small trees for their contents.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rbuild_digest::Digest;
use rbuild_graph::{
    CacheSharing, ContentCache, CopyAction, Edge, ExecHints, ExecOp, ExecSpec, FileAction, FileKind, FileOp,
    Graph, ImageSource, LocalSource, MkdirAction, MkfileAction, Mount, MountKind, NetMode, Node, NodeId,
    NodeMeta, Op, SecurityMode, SourceOp,
};
use rbuild_oci::Platform;
use rbuild_tree::{
    Children, Entry, Kind, NodeKind, RelPath, TreeSource, context_root_digest, entry_hasher, select,
};

use crate::{CacheMap, ContentSpec, Facts, cache_map, content_key, record_key};

pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn digest(text: &str) -> Digest {
    text.parse().unwrap()
}

/// A build: its graph, and the trees of the nodes whose content counts.
#[derive(Default)]
pub(super) struct Build {
    pub(super) graph: Graph,
    trees: BTreeMap<NodeId, Tree>,
}

impl Build {
    pub(super) fn add(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        self.graph.add(node(op, inputs)).unwrap()
    }

    pub(super) fn tree(&mut self, node: NodeId, tree: Tree) {
        self.trees.insert(node, tree);
    }

    /// The base image of the recorded builds.
    pub(super) fn base(&mut self) -> NodeId {
        let manifest = digest("sha256:6e4624191e403dfc0a3f1be00af93a8040f7135727611b29bc1c467185c63253");
        let layer = digest("sha256:1e74c38dcc6f389520563b49f813b8415b6760c816360108429719c5b7b617b8");
        self.add(image(manifest, &[layer]), &[])
    }

    pub(super) fn context(&mut self, tree: Tree) -> NodeId {
        let source = LocalSource {
            name: "context".to_owned(),
            include: Vec::new(),
            exclude: Vec::new(),
            follow_paths: Vec::new(),
        };
        let id = self.add(Op::Source(SourceOp::Local(source)), &[]);
        self.tree(id, tree);
        id
    }

    pub(super) fn run(&mut self, on: NodeId, change: impl FnOnce(&mut ExecSpec)) -> NodeId {
        self.run_with(&[on], change)
    }

    pub(super) fn run_with(&mut self, inputs: &[NodeId], change: impl FnOnce(&mut ExecSpec)) -> NodeId {
        let mut spec = exec();
        change(&mut spec);
        self.add(Op::Exec(Box::new(ExecOp { spec, hints: ExecHints::default() })), inputs)
    }

    /// A copy onto `on` (or an empty directory).
    pub(super) fn copy(&mut self, on: Option<NodeId>, from: NodeId, action: CopyAction) -> NodeId {
        let (input, secondary, inputs) = match on {
            Some(on) => (Some(0), 1, vec![on, from]),
            None => (None, 0, vec![from]),
        };
        let kind = FileKind::Copy(action);
        let action = FileAction { input, secondary_input: Some(secondary), output: Some(0), kind };
        self.add(Op::File(FileOp { actions: vec![action], epoch: None }), &inputs)
    }

    /// One action that copies nothing.
    pub(super) fn file(&mut self, on: Option<NodeId>, kind: FileKind) -> NodeId {
        let action = FileAction { input: on.map(|_| 0), secondary_input: None, output: Some(0), kind };
        self.add(Op::File(FileOp { actions: vec![action], epoch: None }), on.as_slice())
    }

    pub(super) fn map(&self, id: NodeId) -> CacheMap {
        cache_map(self.graph.node(id), &Facts::default()).unwrap()
    }

    /// All links as BuildKit's store has them, with the names that are random there replaced by the digest of the
    /// operation they stand for.
    pub(super) fn links(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (id, node) in self.graph.nodes() {
            let map = self.map(id);
            for (i, (edge, dep)) in node.inputs.iter().zip(&map.deps).enumerate() {
                let link = |selector: Option<Digest>| {
                    let input = if i == 0 { String::new() } else { format!("\"Input\":{i},") };
                    let selector = selector.map_or_else(String::new, |it| format!(",\"Selector\":\"{it}\""));
                    format!("{{{input}\"Digest\":\"{}\"{selector}}}", map.digest)
                };
                for source in self.keys(*edge) {
                    out.push(format!("{source} -- {}", link(dep.selector)));
                }
                if let Some(content) = &dep.content {
                    let tree = self
                        .trees
                        .get(&edge.node)
                        .unwrap_or_else(|| panic!("no tree for input {i} of {node:?}"));
                    let key = content_key(&tree.content(content)).to_string();
                    out.push(format!("{} -- {}", &key[..30], link(None)));
                }
            }
        }
        out.sort();
        out
    }

    fn keys(&self, edge: Edge) -> Vec<String> {
        let map = self.map(edge.node);
        if !self.graph.node(edge.node).inputs.is_empty() {
            return vec![format!("<{}>", map.digest)];
        }
        match map.digest.record_key(edge.output) {
            None => vec!["random".to_owned()],
            Some(key) => std::iter::once(key)
                .chain(map.extra_roots.iter().map(|root| record_key(root, edge.output)))
                .map(|key| key.to_string()[..30].to_owned())
                .collect(),
        }
    }
}

/// The links of a `links.txt` in the same form.
pub(super) fn recorded(text: &str) -> Vec<String> {
    let parse = |line: &str| {
        let (source, rest) = line.split_once(" -- ").unwrap();
        let (link, target) = rest.rsplit_once(" -> ").unwrap();
        (source.to_owned(), link.to_owned(), target.to_owned())
    };
    let links: Vec<(String, String, String)> = text.lines().map(parse).collect();
    let digest_of = |link: &str| link.split_once("\"Digest\":\"").unwrap().1[..71].to_owned();
    let names: BTreeMap<&str, String> =
        links.iter().map(|(_, link, to)| (to.as_str(), digest_of(link))).collect();
    let mut out: Vec<String> = links
        .iter()
        .map(|(from, link, _)| match names.get(from.as_str()) {
            Some(digest) => format!("<{digest}> -- {link}"),
            None if from.starts_with("random:") => format!("random -- {link}"),
            None => format!("{from} -- {link}"),
        })
        .collect();
    out.sort();
    out
}

pub(super) fn node(op: Op, inputs: &[NodeId]) -> Node {
    let inputs = inputs.iter().map(|id| Edge { node: *id, output: 0 }).collect();
    Node { op, inputs, platform: Platform::new("linux", "amd64"), meta: NodeMeta::default() }
}

pub(super) fn image(index: Digest, diff_ids: &[Digest]) -> Op {
    Op::Source(SourceOp::Image(ImageSource {
        reference: "busybox".parse().unwrap(),
        digest: index,
        manifest: index,
        diff_ids: diff_ids.to_vec(),
    }))
}

/// A command as the Dockerfile frontend makes it: nothing to run yet.
pub(super) fn exec() -> ExecSpec {
    ExecSpec {
        args: Vec::new(),
        env: vec![PATH.to_owned()],
        cwd: "/".to_owned(),
        user: String::new(),
        extra_hosts: Vec::new(),
        hostname: String::new(),
        ulimits: Vec::new(),
        cgroup_parent: String::new(),
        remove_mount_stubs_recursive: true,
        valid_exit_codes: Vec::new(),
        mounts: vec![mount("/", Some(0), MountKind::Bind, |mount| mount.output = Some(0))],
        network: NetMode::Sandbox,
        security: SecurityMode::Sandbox,
        secret_env: Vec::new(),
        cdi_devices: Vec::new(),
    }
}

pub(super) fn shell(command: &str) -> Vec<String> {
    ["/bin/sh", "-c", command].map(str::to_owned).into()
}

pub(super) fn mount(
    dest: &str,
    input: Option<u32>,
    kind: MountKind,
    change: impl FnOnce(&mut Mount),
) -> Mount {
    let mut mount = Mount {
        input,
        selector: String::new(),
        dest: dest.to_owned(),
        output: None,
        readonly: false,
        kind,
        content_cache: ContentCache::Default,
    };
    change(&mut mount);
    mount
}

pub(super) fn cache(id: &str, sharing: CacheSharing) -> MountKind {
    MountKind::Cache { id: id.to_owned(), sharing }
}

/// A copy as COPY makes it.
pub(super) fn copy(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.to_owned(),
        dest: dest.to_owned(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

pub(super) fn mkdir(path: &str, mode: u32) -> MkdirAction {
    MkdirAction { path: path.to_owned(), mode, make_parents: true, owner: None, timestamp: None }
}

pub(super) fn mkfile(path: &str, data: &str) -> FileKind {
    FileKind::Mkfile(MkfileAction {
        path: path.to_owned(),
        mode: 0o644,
        data: data.into(),
        owner: None,
        timestamp: None,
    })
}

/// A tree of kinds and finished digests.
pub(super) struct Tree(BTreeMap<RelPath, (NodeKind, Digest)>);

impl Tree {
    /// A context: its root has no header of its own.
    pub(super) fn context() -> Self {
        Self(BTreeMap::from([(RelPath::root(), (NodeKind::Dir, context_root_digest()))]))
    }

    /// What a step made.
    pub(super) fn snapshot() -> Self {
        let header = entry_hasher(&Entry::new(RelPath::root(), Kind::Dir, 0o755)).finish();
        Self(BTreeMap::from([(RelPath::root(), (NodeKind::Dir, header))]))
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.dir_as(path, 0o755, 0)
    }

    pub(super) fn dir_as(self, path: &str, mode: u32, uid: u32) -> Self {
        let mut entry = Entry::new(RelPath::parse(path).unwrap(), Kind::Dir, mode);
        entry.uid = uid;
        self.entry(&entry, b"")
    }

    pub(super) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        let kind = Kind::File { size: content.len() as u64 };
        self.entry(&Entry::new(RelPath::parse(path).unwrap(), kind, 0o644), content)
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        let kind = Kind::Symlink { target: target.into() };
        self.entry(&Entry::new(RelPath::parse(path).unwrap(), kind, 0o777), b"")
    }

    fn entry(mut self, entry: &Entry, content: &[u8]) -> Self {
        let mut hasher = entry_hasher(entry);
        hasher.update(content);
        let kind = match &entry.kind {
            Kind::Dir => NodeKind::Dir,
            Kind::Symlink { target } => NodeKind::Symlink(target.clone()),
            _ => NodeKind::File,
        };
        self.0.insert(entry.path.clone(), (kind, hasher.finish()));
        self
    }

    pub(super) fn content(&self, spec: &ContentSpec) -> Vec<Digest> {
        spec.selectors
            .iter()
            .map(|selector| {
                let selection = select(self, &selector.path, &selector.options).unwrap();
                selection.digest(|path| Ok::<_, Infallible>(self.0[path].1)).unwrap()
            })
            .collect()
    }
}

impl TreeSource for Tree {
    type Error = Infallible;

    fn lookup(&self, path: &RelPath) -> Result<Option<NodeKind>, Infallible> {
        Ok(self.0.get(path).map(|(kind, _)| kind.clone()))
    }

    fn children(&self, dir: &RelPath) -> Result<Children, Infallible> {
        let inside = self.0.iter().filter(|(path, _)| path.parent().as_ref() == Some(dir));
        Ok(inside.map(|(path, (kind, _))| (path.file_name().unwrap().to_vec(), kind.clone())).collect())
    }
}
