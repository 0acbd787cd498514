//! Random layers: against the kernel's overlay, against a tree of full copies, and against themselves after a tar.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rbuild_ports::{ErrorKind, Snapshot, Snapshots, View};
use rbuild_tree::{Kind, RelPath};

use super::kernel;
use crate::testing::*;

/// One random line of a layer.
fn any_line() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let kind = prop::sample::select(vec!["f", "f", "d", "d", "l", "h", "w", "o", "p", "c"]);
    let target = prop::sample::select(vec!["a", "../b", "/c/a", "b/c", "/", "a/b/c", "loop"]);
    let mode = prop::sample::select(vec!["644", "755", "4711", "1777", "0", "2755"]);
    (kind, path, target, mode, 0..3u32, 0..9i64).prop_map(|(kind, path, target, mode, id, time)| match kind {
        "l" => format!("l {path} {id}:{id} @{time} ->{target}"),
        "h" => format!("h {path} ->{}", target.trim_start_matches(['/', '.'])),
        "w" | "o" => format!("{kind} {path}"),
        // Numbers above 0: a device 0:0 is a whiteout.
        "c" => format!("c {path} {mode} #1,{id}"),
        "f" => format!("f {path} {mode} {id}:{id} @{time} =content-{id}"),
        other => format!("{other} {path} {mode} {id}:{id} @{time}"),
    })
}

fn any_layer() -> impl Strategy<Value = String> {
    prop::collection::vec(any_line(), 0..14).prop_map(|lines| lines.join("\n"))
}

/// Hard links to the root are refused before they are written.
fn writable(lines: &str) -> String {
    lines.lines().filter(|line| !line.ends_with("->")).collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers(layers in prop::collection::vec(any_layer(), 1..4)) {
        if root() {
            check_layers(&layers);
        }
    }
}

/// What a tree of full copies would hold after layers were applied to it one entry after the other. It refuses
/// entries whose meaning depends on the order of a layer's entries.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<RelPath, String>,
    touched: BTreeSet<RelPath>,
}

impl Model {
    fn layer(&mut self, lines: &str) -> String {
        self.touched.clear();
        let mut lines: Vec<(RelPath, &str)> = lines
            .lines()
            .map(|line| (RelPath::parse(line.split(' ').nth(1).unwrap()).unwrap(), line))
            .collect();
        lines.sort();
        lines.dedup_by(|a, b| a.0 == b.0);
        let taken = lines.iter().filter(|(path, line)| self.apply(path, line).is_some());
        taken.map(|(_, line)| *line).collect::<Vec<_>>().join("\n")
    }

    fn kind(&self, path: &RelPath) -> Option<Kind> {
        let node = self.nodes.get(path)?;
        Some(match node.split_once(" -> ") {
            Some((_, target)) => Kind::Symlink { target: target.into() },
            None if node.starts_with('d') => Kind::Dir,
            None => Kind::File { size: 0 },
        })
    }

    /// The real place of `path`, its directories made; `None` if the entry is refused.
    fn place(&mut self, path: &RelPath) -> Option<RelPath> {
        let (real, links) = self.follow(path)?;
        // A link of this layer behind one of a lower layer: two names for one place again.
        if links.len() > 1 {
            return None;
        }
        let above: Vec<RelPath> = real.ancestors().filter(|dir| !dir.is_root()).collect();
        if self.touched.contains(&real)
            || above.iter().any(|dir| self.kind(dir).is_some_and(|kind| kind != Kind::Dir))
        {
            return None;
        }
        // What was followed must stay.
        self.touched.extend(links);
        Some(real)
    }

    fn apply(&mut self, path: &RelPath, line: &str) -> Option<()> {
        let real = self.place(path)?;
        let kind = line.split(' ').next()?;
        if kind == "l" && real != *path {
            // Nor does any tar make links under two names of a directory.
            return None;
        }
        let deep = self.touched.iter().any(|touched| touched.starts_with(&real));
        if deep && !(matches!(kind, "d" | "o") && self.kind(&real) == Some(Kind::Dir)) {
            return None;
        }
        let fields: Vec<&str> = line.split(' ').collect();
        let node = match kind {
            "w" => None,
            "o" => {
                // The directory itself must be one, or nothing.
                let dir = crate::resolve::resolve(path.as_bytes(), true, &|path| Ok(self.kind(path))).ok()?;
                if dir != real || self.kind(&real).is_some_and(|kind| kind != Kind::Dir) || deep {
                    return None;
                }
                let old = self.nodes.get(&real).cloned();
                Some(old.unwrap_or_else(|| "d 755 0:0 0".to_owned()))
            }
            "h" => {
                let target = RelPath::parse(fields.last()?.strip_prefix("->")?).ok()?;
                if target.starts_with(path) {
                    return None;
                }
                let (target, links) = self.follow(&target)?;
                self.touched.extend(links);
                if target == real || target.starts_with(&real) {
                    return None;
                }
                let node = self.nodes.get(&target).filter(|node| !node.starts_with('d'))?.clone();
                self.touched.insert(target);
                // A second name of a link that is used as a directory right away is beyond any tar in use.
                if node.starts_with('l') {
                    return None;
                }
                Some(node)
            }
            "l" => Some(format!(
                "l 777 {} {} -> {}",
                fields[2],
                fields[3].strip_prefix('@')?,
                fields[4].strip_prefix("->")?
            )),
            "c" => Some(format!("c {} 0:0 0", fields[2])),
            "p" => Some(format!("p {} {} {}", fields[2], fields[3], fields[4].strip_prefix('@')?)),
            "f" => {
                Some(format!("f {} {} {} {}", fields[2], fields[3], fields[4].strip_prefix('@')?, fields[5]))
            }
            _ => Some(format!("d {} {} {}", fields[2], fields[3], fields[4].strip_prefix('@')?)),
        };
        for dir in real.ancestors().filter(|dir| !dir.is_root()) {
            self.nodes.entry(dir.clone()).or_insert_with(|| "d 755 0:0 0".to_owned());
            self.touched.insert(dir);
        }
        let keep = kind == "d" && self.kind(&real) == Some(Kind::Dir);
        self.nodes.retain(|path, _| keep || !path.starts_with(&real));
        self.touched.insert(real.clone());
        if let Some(node) = node {
            self.nodes.insert(real, node);
        }
        Some(())
    }

    /// Where `path` leads, and the links on the way.
    fn follow(&self, path: &RelPath) -> Option<(RelPath, Vec<RelPath>)> {
        let links = std::cell::RefCell::new(Vec::new());
        let lookup = |path: &RelPath| {
            let kind = if path.is_root() { Some(Kind::Dir) } else { self.kind(path) };
            if matches!(kind, Some(Kind::Symlink { .. })) {
                links.borrow_mut().push(path.clone());
            }
            Ok(kind)
        };
        let real = crate::resolve::resolve(path.as_bytes(), false, &lookup).ok()?;
        Some((real, links.into_inner()))
    }

    fn listing(&self) -> String {
        self.nodes.iter().map(|(path, node)| format!("{path} {node}\n")).collect()
    }
}

/// A view in the model's words.
fn model_listing(view: &dyn View) -> String {
    let mut lines = Vec::new();
    let mut open = vec![RelPath::root()];
    while let Some(path) = open.pop() {
        let entry = view.lookup(&path).unwrap().unwrap();
        let (mode, uid, gid, time) = (entry.mode, entry.uid, entry.gid, entry.mtime.secs);
        let meta = format!("{mode:o} {uid}:{gid} {time}");
        let node = match &entry.kind {
            Kind::File { .. } => {
                format!("f {meta} ={}", std::io::read_to_string(view.open(&path).unwrap()).unwrap())
            }
            Kind::Symlink { target } => format!("l {meta} -> {}", String::from_utf8_lossy(target)),
            Kind::Dir => format!("d {meta}"),
            Kind::Fifo => format!("p {meta}"),
            _ => format!("c {meta}"),
        };
        if !path.is_root() {
            lines.push((path.clone(), format!("{path} {node}\n")));
        }
        if entry.is_dir() {
            open.extend(view.children(&path).unwrap().iter().map(|name| path.child(name).unwrap()));
        }
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_are_what_full_copies_would_be(layers in prop::collection::vec(any_layer(), 1..5)) {
        if root() {
            let test = store();
            let (mut model, mut snapshot) = (Model::default(), Snapshot::default());
            for (index, lines) in layers.iter().enumerate() {
                let lines = model.layer(&writable(lines));
                let layer = test.unpack(&format!("m{index}"), &snapshot, &lines);
                let layer = layer.unwrap_or_else(|e| panic!("{e}\n{lines}"));
                snapshot = snapshot.with(layer.layer);
                assert_eq!(model_listing(test.view(&snapshot).as_ref()), model.listing(), "{lines}");
            }
        }
    }
}

/// Layers that unpack show the same as the kernel, and are the same again after a tar of them was unpacked.
fn check_layers(layers: &[String]) {
    let test = store();
    let mut snapshot = Snapshot::default();
    for (index, lines) in layers.iter().enumerate() {
        match test.unpack(&format!("r{index}"), &snapshot, &writable(lines)) {
            Ok(layer) => {
                assert!(test.store.matches(&layer).unwrap());
                let again = test.unpack_tar(&format!("s{index}"), &snapshot, &test.tar(&layer.layer));
                let again = again.unwrap_or_else(|e| panic!("{e}\n{lines}"));
                assert_eq!((again.entries, again.bytes), (layer.entries, layer.bytes), "{lines}");
                // The root has no entry in a tar.
                let dump = |id| test.dump_layer(id).lines().skip(1).collect::<Vec<_>>().join("\n");
                assert_eq!(dump(&again.layer), dump(&layer.layer), "{lines}");
                snapshot = snapshot.with(layer.layer);
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Invalid, "{error}\n{lines}");
                assert!(!test.store.present(&format!("r{index}").parse().unwrap()));
            }
        }
    }
    test.assert_clean();
    if !snapshot.layers.is_empty() {
        assert_eq!(listing(test.view(&snapshot).as_ref()), kernel(&test, &snapshot), "{layers:#?}");
    }
}
