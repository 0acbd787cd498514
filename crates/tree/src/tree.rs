//! A whole file tree in memory, with contents and hard links: the model that layers are defined by. Small trees
//! only (tests, fixtures, what an exporter makes up); real trees live in snapshots, and must behave like this one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use rbuild_digest::Digest;

use crate::{Entry, Kind, RelPath, Time, Xattrs, dump_entry};

/// A file tree. Two are equal if they hold the same entries, contents and hard links.
#[derive(Clone, Debug)]
pub struct Tree {
    names: BTreeMap<RelPath, usize>,
    /// By number; names share one if they are hard links. Unused ones stay.
    inodes: Vec<Inode>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Inode {
    /// Never a hard link.
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Xattrs,
    content: Arc<[u8]>,
}

/// Why an entry cannot be put into a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The content has another size than the entry.
    #[error("{path} has {got} bytes instead of {expected}")]
    Size {
        /// Where.
        path: RelPath,
        /// The entry's size.
        expected: u64,
        /// The content's.
        got: u64,
    },
    /// A hard link to nothing, or to a directory.
    #[error("{path} is a hard link to {target}, which is {what}")]
    Target {
        /// The link.
        path: RelPath,
        /// Its target.
        target: RelPath,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The root would be something else than a directory.
    #[error("the root of a tree must be a directory")]
    Root,
    /// Something above it is no directory.
    #[error("{path} cannot be made: {parent} is no directory")]
    Parent {
        /// Where.
        path: RelPath,
        /// What is in the way.
        parent: RelPath,
    },
    /// Links above it go in circles.
    #[error("{0} has too many symbolic links on its way")]
    TooManyLinks(RelPath),
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A root directory: 0755, root-owned, of 1970.
    #[must_use]
    pub fn new() -> Self {
        Self { names: BTreeMap::from([(RelPath::root(), 0)]), inodes: vec![Inode::directory()] }
    }

    /// Puts an entry as unpacking a layer does: links above it are followed inside the tree, missing directories
    /// are made, a directory takes over the place of a directory with its entries, anything else replaces what is
    /// there. A hard link has its target's metadata, whatever the entry says.
    ///
    /// # Errors
    /// If the content does not fit, a hard link's target does not, or the way there is no directory.
    pub fn put(&mut self, entry: &Entry, content: impl Into<Arc<[u8]>>) -> Result<(), TreeError> {
        let content = content.into();
        if entry.content_size() != content.len() as u64 {
            let (expected, got) = (entry.content_size(), content.len() as u64);
            return Err(TreeError::Size { path: entry.path.clone(), expected, got });
        }
        let Entry { path, kind, mode, uid, gid, mtime, xattrs } = entry.clone();
        let Some(name) = path.file_name() else {
            if kind != Kind::Dir {
                return Err(TreeError::Root);
            }
            let root = Inode { kind, mode, uid, gid, mtime, xattrs, content };
            return self.place(RelPath::root(), root);
        };
        let parent = self.make_parent(&path)?;
        let place = parent.child(name).unwrap_or_else(|_| path.clone());
        if let Kind::Hardlink { target } = &kind {
            let inode = self.link_target(&path, target)?;
            if self.names.get(&place) != Some(&inode) {
                self.remove(&place);
                self.names.insert(place, inode);
            }
            return Ok(());
        }
        self.place(place, Inode { kind, mode, uid, gid, mtime, xattrs, content })
    }

    fn place(&mut self, path: RelPath, inode: Inode) -> Result<(), TreeError> {
        let stays = inode.kind == Kind::Dir && self.kind(&path) == Some(&Kind::Dir);
        if !stays {
            self.remove(&path);
        }
        self.names.insert(path, self.inodes.len());
        self.inodes.push(inode);
        Ok(())
    }

    fn link_target(&self, path: &RelPath, target: &RelPath) -> Result<usize, TreeError> {
        let wrong = |what| TreeError::Target { path: path.clone(), target: target.clone(), what };
        let name = target.file_name().ok_or_else(|| wrong("the root"))?;
        let (parent, missing) = match self.resolve_dir(path, &target.parent().unwrap_or_default()) {
            Err(TreeError::TooManyLinks(path)) => return Err(TreeError::TooManyLinks(path)),
            Err(_) => return Err(wrong("not there")),
            Ok(found) => found,
        };
        if !missing.is_empty() {
            return Err(wrong("not there"));
        }
        let place = parent.child(name).map_err(|_| wrong("not there"))?;
        match (self.names.get(&place), self.kind(&place)) {
            (Some(_), Some(Kind::Dir)) => Err(wrong("a directory")),
            (Some(inode), _) => Ok(*inode),
            (None, _) => Err(wrong("not there")),
        }
    }

    /// Removes `path` and all below it; nothing there is no error. Of the root, only what is below.
    pub fn remove(&mut self, path: &RelPath) {
        self.clear(path);
        if !path.is_root() {
            self.names.remove(path);
        }
    }

    /// Removes all below `dir`.
    pub fn clear(&mut self, dir: &RelPath) {
        let gone: Vec<RelPath> = self
            .names
            .range(dir.clone()..)
            .skip(usize::from(self.names.contains_key(dir)))
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(dir))
            .cloned()
            .collect();
        for path in &gone {
            self.names.remove(path);
        }
    }

    /// All entries as a walk meets them, with their contents. Of several names of a file, the first is the file.
    #[must_use]
    pub fn entries(&self) -> Vec<(Entry, Arc<[u8]>)> {
        let mut first: BTreeMap<usize, &RelPath> = BTreeMap::new();
        self.names
            .iter()
            .filter_map(|(path, number)| {
                let inode = self.inodes.get(*number)?;
                let earlier = *first.entry(*number).or_insert(path);
                let (kind, content) = if earlier == path {
                    (inode.kind.clone(), Arc::clone(&inode.content))
                } else {
                    (Kind::Hardlink { target: earlier.clone() }, Arc::from([]))
                };
                Some((inode.entry(path.clone(), kind), content))
            })
            .collect()
    }

    /// What is at `path`; `None` if nothing is.
    #[must_use]
    pub fn kind(&self, path: &RelPath) -> Option<&Kind> {
        self.inodes.get(*self.names.get(path)?).map(|inode| &inode.kind)
    }

    /// One line an entry, files with the start of their digest.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for (entry, content) in self.entries() {
            out.push_str(&dump_entry(&entry));
            if entry.content_size() > 0 {
                let _ = write!(out, " {}", Digest::of(&content).short());
            }
            out.push('\n');
        }
        out
    }

    /// The names that share the file at `path`, itself included; none if nothing is there.
    pub(crate) fn names_of(&self, path: &RelPath) -> Vec<&RelPath> {
        let Some(number) = self.names.get(path) else { return Vec::new() };
        self.names.iter().filter(|(_, other)| *other == number).map(|(name, _)| name).collect()
    }

    /// Whether what is at `path` is the same there, apart from its other names.
    pub(crate) fn same_at(&self, other: &Self, path: &RelPath) -> bool {
        let inode = |tree: &Self| tree.names.get(path).and_then(|number| tree.inodes.get(*number)).cloned();
        inode(self) == inode(other)
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.names.keys()
    }

    /// Follows the links in `dir`, which is needed for `path`; gives where it ends, and the names that are missing
    /// there, the next one last.
    fn resolve_dir(&self, path: &RelPath, dir: &RelPath) -> Result<(RelPath, Vec<Vec<u8>>), TreeError> {
        const MOST_LINKS: usize = 255;
        let mut current = RelPath::root();
        let mut remaining: Vec<Vec<u8>> = dir.components().rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = remaining.pop() {
            let in_the_way =
                |parent: &RelPath| TreeError::Parent { path: path.clone(), parent: parent.clone() };
            let next = match part.as_slice() {
                b"" | b"." => continue,
                b".." => current.parent().unwrap_or_default(),
                name => current.child(name).map_err(|_| in_the_way(&current))?,
            };
            match self.kind(&next) {
                Some(Kind::Dir) => current = next,
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(TreeError::TooManyLinks(path.clone()));
                    }
                    if target.starts_with(b"/") {
                        current = RelPath::root();
                    }
                    remaining.extend(target.split(|c| *c == b'/').rev().map(<[u8]>::to_vec));
                }
                None if !remaining.iter().any(|part| part == b"..") => {
                    remaining.push(part);
                    break;
                }
                Some(_) | None => return Err(in_the_way(&next)),
            }
        }
        Ok((current, remaining))
    }

    /// The directory that `path` is to be put into.
    fn make_parent(&mut self, path: &RelPath) -> Result<RelPath, TreeError> {
        let (mut dir, mut missing) = self.resolve_dir(path, &path.parent().unwrap_or_default())?;
        while let Some(name) = missing.pop() {
            let Ok(next) = dir.child(name) else { continue };
            self.names.insert(next.clone(), self.inodes.len());
            self.inodes.push(Inode::directory());
            dir = next;
        }
        Ok(dir)
    }
}

impl Inode {
    fn directory() -> Self {
        Self {
            kind: Kind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Xattrs::new(),
            content: Arc::from([]),
        }
    }

    fn entry(&self, path: RelPath, kind: Kind) -> Entry {
        let Self { kind: _, mode, uid, gid, mtime, xattrs, content: _ } = self;
        Entry { path, kind, mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs: xattrs.clone() }
    }
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.entries() == other.entries()
    }
}

impl Eq for Tree {}
