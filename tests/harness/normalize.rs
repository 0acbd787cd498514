//! A root file system as text, one line an entry, out of the layers of an image: path, type, mode, owner, size and
//! content, link, extended attributes, time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use rbuild_digest::Digest;

/// Longer contents are shown as a digest.
const MAX_SHOWN: usize = 48;

/// Times this near are the time of the build.
const NOW: i64 = 86_400;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `d f l c b p`
    pub kind: char,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds.
    pub mtime: i64,
    /// What is in a file, shortened.
    pub content: String,
    /// Where a link leads.
    pub link: String,
    /// Names and values.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Names of one file have the same number.
    pub inode: usize,
}

/// How times are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Times {
    /// Not at all.
    Hidden,
    /// Those of the build as `@now`, others in seconds.
    Shown,
}

/// A root file system; the root itself is "".
#[derive(Clone, Debug, Default)]
pub struct Rootfs {
    nodes: BTreeMap<String, Node>,
    inodes: usize,
}

impl Rootfs {
    /// Layers from the bottom up, as plain tars.
    ///
    /// # Panics
    /// When one is no tar.
    #[must_use]
    pub fn from_layers<'a>(layers: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut out = Self::default();
        for layer in layers {
            out.apply(layer);
        }
        out
    }

    /// The entries of one layer as they are, whiteouts too: path, type, mode, owner, content.
    ///
    /// # Panics
    /// When it is no tar.
    #[must_use]
    pub fn entries(layer: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(layer);
        let entries = archive.entries().expect("a tar");
        let line = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.expect("a tar entry");
            let path = String::from_utf8_lossy(&entry.path_bytes()).trim_matches('/').to_owned();
            let kind = entry.header().entry_type();
            let node = read(&mut entry, kind, 0);
            let line =
                format!("{path} {} {:04o} {}:{} {}", node.kind, node.mode, node.uid, node.gid, node.content);
            line.trim_end().to_owned()
        };
        entries.map(line).collect()
    }

    /// An entry.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.trim_matches('/'))
    }

    /// Absolute paths of all entries.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.nodes.keys().map(|path| format!("/{path}")).collect()
    }

    /// Without the entries for which `keep` says no.
    #[must_use]
    pub fn filter(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.nodes.retain(|path, _| keep(&format!("/{path}")));
        self
    }

    /// Without what is the same in `base`, times aside.
    #[must_use]
    pub fn without(mut self, base: &Self) -> Self {
        self.nodes.retain(|path, node| {
            let Some(old) = base.nodes.get(path) else { return true };
            let same = Node { mtime: node.mtime, inode: node.inode, ..old.clone() };
            same != *node
        });
        self
    }

    /// Puts a layer on top.
    ///
    /// # Panics
    /// When it is no tar.
    pub fn apply(&mut self, layer: &[u8]) {
        let lower: BTreeSet<String> = self.nodes.keys().cloned().collect();
        let mut upper = BTreeMap::new();
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("a tar entry");
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = path.trim_start_matches("./").trim_matches('/').to_owned();
            let path = if path == "." { String::new() } else { path };
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == ".wh..wh..opq" {
                let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
                self.nodes.retain(|known, _| !(known.starts_with(&prefix) && lower.contains(known)));
                continue;
            }
            if let Some(gone) = name.strip_prefix(".wh.") {
                let gone = if parent.is_empty() { gone.to_owned() } else { format!("{parent}/{gone}") };
                self.remove(&gone);
                continue;
            }
            self.inodes += 1;
            let node = match entry.header().entry_type() {
                tar::EntryType::Link => {
                    let target = entry.link_name_bytes().expect("a hard link has a target").into_owned();
                    let target = String::from_utf8_lossy(&target);
                    let target = target.trim_start_matches("./").trim_matches('/').to_owned();
                    let found = upper.get(&target).or_else(|| self.nodes.get(&target)).cloned();
                    found.unwrap_or_else(|| panic!("{path} is a hard link to {target}, which is not there"))
                }
                kind => read(&mut entry, kind, self.inodes),
            };
            upper.insert(path, node);
        }
        for (path, node) in upper {
            if node.kind != 'd' {
                self.remove(&path);
            } else if self.nodes.get(&path).is_some_and(|known| known.kind != 'd') {
                self.nodes.remove(&path);
            }
            self.nodes.insert(path, node);
        }
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|known, _| known != path && !known.starts_with(&below));
    }

    /// One line an entry, sorted by path, without the root itself.
    #[must_use]
    pub fn listing(&self, times: Times) -> String {
        let mut first: BTreeMap<usize, &str> = BTreeMap::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut out = String::new();
        for (path, node) in self.nodes.iter().filter(|(path, _)| !path.is_empty()) {
            let _ = write!(out, "/{path} {} {:04o} {}:{}", node.kind, node.mode, node.uid, node.gid);
            if !node.content.is_empty() {
                let _ = write!(out, " {}", node.content);
            }
            if !node.link.is_empty() {
                let _ = write!(out, " -> {}", node.link);
            }
            for (name, value) in &node.xattrs {
                let _ = write!(out, " {name}={}", value.escape_ascii());
            }
            match first.get(&node.inode) {
                Some(other) => {
                    let _ = write!(out, " = /{other}");
                }
                None => {
                    first.insert(node.inode, path);
                }
            }
            match times {
                Times::Hidden => {}
                Times::Shown if (now - node.mtime).abs() < NOW => out.push_str(" @now"),
                Times::Shown => {
                    let _ = write!(out, " @{}", node.mtime);
                }
            }
            out.push('\n');
        }
        out
    }
}

fn read<R: Read>(entry: &mut tar::Entry<'_, R>, kind: tar::EntryType, inode: usize) -> Node {
    let mut xattrs = BTreeMap::new();
    let mut exact_time = None;
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            let key = extension.key().unwrap_or_default().to_owned();
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
            } else if key == "mtime" {
                let text = extension.value().unwrap_or_default();
                exact_time = text.split('.').next().and_then(|seconds| seconds.parse().ok());
            }
        }
    }
    let header = entry.header().clone();
    let letter = match kind {
        tar::EntryType::Directory => 'd',
        tar::EntryType::Symlink => 'l',
        tar::EntryType::Char => 'c',
        tar::EntryType::Block => 'b',
        tar::EntryType::Fifo => 'p',
        _ => 'f',
    };
    let link = match entry.link_name_bytes() {
        Some(target) if letter == 'l' => String::from_utf8_lossy(&target).into_owned(),
        _ => String::new(),
    };
    let content = match letter {
        'f' => {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("the content of a tar entry");
            show(&bytes)
        }
        'c' | 'b' => {
            let number = |value: std::io::Result<Option<u32>>| value.ok().flatten().unwrap_or_default();
            format!("{},{}", number(header.device_major()), number(header.device_minor()))
        }
        _ => String::new(),
    };
    Node {
        kind: letter,
        mode: header.mode().expect("a mode") & 0o7777,
        uid: header.uid().expect("an owner"),
        gid: header.gid().expect("a group"),
        mtime: exact_time.unwrap_or_else(|| {
            i64::try_from(header.mtime().expect("a time")).expect("a time that seconds can say")
        }),
        content,
        link,
        xattrs,
        inode,
    }
}

/// A content as people like to read it.
fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= MAX_SHOWN => format!("{text:?}"),
        _ => format!("{} {}", bytes.len(), &Digest::of(bytes).to_string()[..19]),
    }
}
