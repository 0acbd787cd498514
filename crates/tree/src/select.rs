//! What a content hash covers: BuildKit's rules for paths, wildcards, include and exclude patterns and symbolic
//! links inside a tree. Asks a `TreeSource` only for the directories it needs; reads no content.

use crate::hash::{Selection, Shape, Step};
use crate::{
    BadPattern, Glob, MatchInfo, PathError, PatternMatcher, RelPath, go_path, has_wildcard, split_wildcards,
};

/// What is in a directory: names and kinds.
pub type Children = Vec<(Vec<u8>, NodeKind)>;

/// A tree to select from.
pub trait TreeSource {
    /// Why it cannot be read.
    type Error;

    /// What is at `path`, not following a link there; `None` if nothing is, also where a directory above it is
    /// missing or is no directory. No component above is a link.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn lookup(&self, path: &RelPath) -> Result<Option<NodeKind>, Self::Error>;

    /// Names and kinds of all that is in the directory `dir`, in any order.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn children(&self, dir: &RelPath) -> Result<Children, Self::Error>;
}

/// As much of a kind as selection needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Anything else.
    File,
}

/// How to select.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SelectOptions {
    /// The path is a glob.
    pub wildcard: bool,
    /// Follow the link that the path itself is, or that a glob matched.
    pub follow_links: bool,
    /// Only what matches, relative to the path; empty is everything.
    pub include: Vec<String>,
    /// Not what matches, relative to the path.
    pub exclude: Vec<String>,
    /// Absolute paths (or globs) that must be among what was selected.
    pub required: Vec<String>,
}

/// Why nothing could be selected.
#[derive(Debug, thiserror::Error)]
pub enum SelectError<E> {
    /// The tree cannot be read.
    #[error("{0}")]
    Source(E),
    /// There is no such path.
    #[error("{0}: not found")]
    NotFound(String),
    /// Links go in circles, or through too many others.
    #[error("{0}: too many symbolic links")]
    TooManyLinks(String),
    /// A pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// A path cannot be one.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Selects what the content hash of `path` covers.
///
/// # Errors
/// If the path (or a required one, or the target of a followed link) is not there, links never end, a pattern is
/// malformed, or the tree cannot be read.
pub fn select<S: TreeSource>(
    source: &S,
    path: &str,
    options: &SelectOptions,
) -> Result<Selection, SelectError<S::Error>> {
    let SelectOptions { wildcard, follow_links, include, exclude, required } = options;
    if !wildcard && include.is_empty() && exclude.is_empty() && required.is_empty() {
        let mut steps = Vec::new();
        record(source, path.as_bytes(), *follow_links, Vec::new(), &mut steps)?;
        return Ok(Selection { shape: Shape::One, steps });
    }
    let matcher = |patterns: &[String]| {
        if patterns.is_empty() { Ok(None) } else { PatternMatcher::new(patterns).map(Some) }
    };
    let mut walk = Walk {
        source,
        pattern: key_path(path),
        ends_in_slash: path.ends_with('/'),
        glob: None,
        include: matcher(include)?,
        exclude: matcher(exclude)?,
        parents: Vec::new(),
        matched: Vec::new(),
        found: Vec::new(),
    };
    let prefix = walk.run(*wildcard)?;
    for wanted in required {
        walk.require(wanted)?;
    }
    let Walk { pattern, found, .. } = walk;
    let shape = match found.as_slice() {
        [one] if go_path::base(&pattern).as_bytes() == base(&one.name) => Shape::One,
        _ => Shape::List,
    };
    let mut steps = Vec::new();
    for entry in found {
        let Found { name, path, link, top } = entry;
        let key = entry_key(name.strip_prefix(prefix.as_bytes()).unwrap_or(&name));
        if link && top && *follow_links {
            record(source, &name, true, key, &mut steps)?;
        } else {
            steps.push(Step::Leaf { key, path });
        }
    }
    Ok(Selection { shape, steps })
}

/// `path.Join("/", path)`, with the root as the empty path.
fn key_path(path: &str) -> String {
    let joined = go_path::join(&["/", path]);
    if joined == "/" { String::new() } else { joined }
}

fn base(name: &[u8]) -> &[u8] {
    match name.rsplit(|c| *c == b'/').next() {
        None | Some(b"") => b".",
        Some(last) => last,
    }
}

/// Slashes as NUL; the start itself is one NUL.
fn entry_key(name: &[u8]) -> Vec<u8> {
    if name.is_empty() { vec![0] } else { name.iter().map(|c| if *c == b'/' { 0 } else { *c }).collect() }
}

/// The whole record of a path: a directory with all that is in it, or one entry.
fn record<S: TreeSource>(
    source: &S,
    path: &[u8],
    follow: bool,
    key: Vec<u8>,
    steps: &mut Vec<Step>,
) -> Result<(), SelectError<S::Error>> {
    match resolve(source, path, follow)? {
        (_, None) => Err(SelectError::NotFound(String::from_utf8_lossy(path).into_owned())),
        (path, Some(NodeKind::Dir)) => subtree(source, path, key, steps),
        (path, Some(_)) => {
            steps.push(Step::Leaf { key, path });
            Ok(())
        }
    }
}

fn subtree<S: TreeSource>(
    source: &S,
    top: RelPath,
    key: Vec<u8>,
    steps: &mut Vec<Step>,
) -> Result<(), SelectError<S::Error>> {
    let mut open = vec![(sorted(source, &top)?.into_iter(), top.clone())];
    steps.push(Step::Dir { key, path: top });
    while let Some((children, dir)) = open.last_mut() {
        let Some((name, kind)) = children.next() else {
            steps.push(Step::End);
            open.pop();
            continue;
        };
        let path = dir.child(&name)?;
        let key = [b"\0", name.as_slice()].concat();
        if kind == NodeKind::Dir {
            open.push((sorted(source, &path)?.into_iter(), path.clone()));
            steps.push(Step::Dir { key, path });
        } else {
            steps.push(Step::Leaf { key, path });
        }
    }
    Ok(())
}

fn sorted<S: TreeSource>(source: &S, dir: &RelPath) -> Result<Children, SelectError<S::Error>> {
    let mut children = source.children(dir).map_err(SelectError::Source)?;
    children.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(children)
}

/// Follows the links on the way to `path`, and the one that it is if `follow`. Links cannot leave the tree.
///
/// # Errors
/// If there are more than 255 links, the path has a NUL byte, or the tree cannot be read.
pub fn resolve<S: TreeSource>(
    source: &S,
    path: &[u8],
    follow: bool,
) -> Result<(RelPath, Option<NodeKind>), SelectError<S::Error>> {
    const MOST_LINKS: usize = 255;
    let mut current = RelPath::root();
    let mut kind = source.lookup(&current).map_err(SelectError::Source)?;
    let mut remaining: Vec<Vec<u8>> = RelPath::clean(path)?.components().rev().map(<[u8]>::to_vec).collect();
    let mut links = 0;
    while let Some(part) = remaining.pop() {
        let next = match part.as_slice() {
            b"" | b"." => current.clone(),
            b".." => current.parent().unwrap_or_default(),
            part => current.child(part)?,
        };
        kind = source.lookup(&next).map_err(SelectError::Source)?;
        match &kind {
            Some(NodeKind::Symlink(target)) if follow || !remaining.is_empty() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(SelectError::TooManyLinks(String::from_utf8_lossy(path).into_owned()));
                }
                if target.starts_with(b"/") {
                    current = RelPath::root();
                }
                remaining.extend(target.split(|c| *c == b'/').rev().map(<[u8]>::to_vec));
            }
            _ => current = next,
        }
    }
    Ok((current, kind))
}

/// One selected entry; `name` is as the caller would write it, `path` where it is.
struct Found {
    name: Vec<u8>,
    path: RelPath,
    link: bool,
    /// It is not in another selected entry.
    top: bool,
}

/// A directory on the way to where the walk is.
struct Parent {
    name: Vec<u8>,
    path: RelPath,
    included: bool,
    top: bool,
    include: MatchInfo,
    exclude: MatchInfo,
}

struct Walk<'a, S> {
    source: &'a S,
    /// The path or glob: absolute, empty for the root.
    pattern: String,
    ends_in_slash: bool,
    /// Set for globs.
    glob: Option<(Glob, Option<Vec<Glob>>)>,
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
    parents: Vec<Parent>,
    /// What the glob matched last; all below it belongs to it.
    matched: Vec<u8>,
    found: Vec<Found>,
}

/// What was decided of one entry.
struct Verdict {
    include: bool,
    include_info: MatchInfo,
    exclude_info: MatchInfo,
}

impl<S: TreeSource> Walk<'_, S> {
    /// Fills `found`; gives the part of the names that is not hashed.
    fn run(&mut self, wildcard: bool) -> Result<String, SelectError<S::Error>> {
        let (prefix, follow) = if wildcard {
            if !self.pattern.is_empty() {
                self.glob = Some((Glob::new(&self.pattern)?, by_component(&self.pattern)));
            }
            let (fixed, wild) = split_wildcards(&self.pattern);
            (if fixed == "/" { String::new() } else { fixed }, !wild.is_empty())
        } else {
            (self.pattern.clone(), false)
        };
        let (path, kind) = resolve(self.source, prefix.as_bytes(), follow)?;
        if let Some(kind) = kind {
            self.walk(prefix.clone().into_bytes(), path, kind)?;
        }
        Ok(prefix)
    }

    fn walk(&mut self, name: Vec<u8>, path: RelPath, kind: NodeKind) -> Result<(), SelectError<S::Error>> {
        let mut open = Vec::new();
        if self.visit(&name, &path, &kind) {
            open.push((sorted(self.source, &path)?.into_iter(), name, path));
        }
        while let Some((children, dir_name, dir)) = open.last_mut() {
            let Some((child, kind)) = children.next() else {
                open.pop();
                continue;
            };
            let path = dir.child(&child)?;
            let name = [dir_name.as_slice(), b"/", &child].concat();
            if self.visit(&name, &path, &kind) {
                open.push((sorted(self.source, &path)?.into_iter(), name, path));
            }
        }
        Ok(())
    }

    /// Takes the entry or not; whether it is a directory that is worth entering.
    fn visit(&mut self, name: &[u8], path: &RelPath, kind: &NodeKind) -> bool {
        let is_dir = *kind == NodeKind::Dir;
        while self.parents.last().is_some_and(|parent| !below(name, &parent.name)) {
            self.parents.pop();
        }
        if is_dir && self.ends_in_slash && name == self.pattern.as_bytes() {
            return true;
        }
        if let Some((glob, components)) = &self.glob
            && (self.matched.is_empty() || !below(name, &self.matched))
        {
            if !glob.matches(name) {
                return is_dir && components.as_ref().is_none_or(|components| may_lead_to(components, name));
            }
            self.matched = name.to_vec();
        }
        let start = if self.glob.is_some() { self.matched.as_slice() } else { self.pattern.as_bytes() };
        let candidate = candidate(name, start);
        let top = self.parents.is_empty();
        if !is_dir {
            if self.wanted(candidate) {
                self.take(name, path, kind, top);
            }
            return false;
        }
        let verdict = self.judge(candidate);
        let enter = self.worth_entering(candidate, &verdict);
        if verdict.include {
            self.take(name, path, kind, top);
        }
        self.parents.push(Parent {
            name: name.to_vec(),
            path: path.clone(),
            included: verdict.include,
            top,
            include: verdict.include_info,
            exclude: verdict.exclude_info,
        });
        enter
    }

    fn take(&mut self, name: &[u8], path: &RelPath, kind: &NodeKind, top: bool) {
        for parent in self.parents.iter_mut().filter(|parent| !parent.included) {
            parent.included = true;
            let (name, path) = (parent.name.clone(), parent.path.clone());
            self.found.push(Found { name, path, link: false, top: parent.top });
        }
        let link = matches!(kind, NodeKind::Symlink(_));
        self.found.push(Found { name: name.to_vec(), path: path.clone(), link, top });
    }

    fn judge(&self, candidate: &[u8]) -> Verdict {
        let unknown = MatchInfo::default();
        let parent = self.parents.last();
        let mut verdict =
            Verdict { include: true, include_info: MatchInfo::default(), exclude_info: MatchInfo::default() };
        if let Some(include) = &self.include {
            let (matched, info) =
                include.matches_in(candidate, parent.map_or(&unknown, |parent| &parent.include));
            verdict.include_info = info;
            verdict.include = matched;
            if !matched {
                return verdict;
            }
        }
        if let Some(exclude) = &self.exclude {
            let (matched, info) =
                exclude.matches_in(candidate, parent.map_or(&unknown, |parent| &parent.exclude));
            verdict.exclude_info = info;
            verdict.include = !matched;
        }
        verdict
    }

    /// As `judge` for what has no entries of its own.
    fn wanted(&self, candidate: &[u8]) -> bool {
        let unknown = MatchInfo::default();
        let (include, exclude) =
            self.parents.last().map_or((&unknown, &unknown), |parent| (&parent.include, &parent.exclude));
        self.include.as_ref().is_none_or(|patterns| patterns.matches_leaf(candidate, include))
            && !self.exclude.as_ref().is_some_and(|patterns| patterns.matches_leaf(candidate, exclude))
    }

    fn worth_entering(&self, candidate: &[u8], verdict: &Verdict) -> bool {
        if verdict.include {
            return true;
        }
        // The start itself may match a pattern such as `*`; entering it is always right.
        if candidate.is_empty() {
            return true;
        }
        if verdict.exclude_info != MatchInfo::default() {
            return self
                .exclude
                .as_ref()
                .is_some_and(|it| it.may_take_back_below(candidate, &verdict.exclude_info));
        }
        self.include.as_ref().is_none_or(|it| it.may_match_below(candidate))
    }

    fn require(&self, wanted: &str) -> Result<(), SelectError<S::Error>> {
        let full = key_path(wanted);
        let glob = if has_wildcard(&full) { Some(Glob::new(&full)?) } else { None };
        let there = self.found.iter().any(|found| match &glob {
            Some(glob) => glob.matches(&found.name),
            None => found.name == full.as_bytes() || below(&found.name, full.as_bytes()),
        });
        if there { Ok(()) } else { Err(SelectError::NotFound(full)) }
    }
}

/// Whether `name` is below `dir`; everything but the root itself is below the empty path.
fn below(name: &[u8], dir: &[u8]) -> bool {
    name.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

/// `name` relative to `start`, empty for the start itself.
fn candidate<'a>(name: &'a [u8], start: &[u8]) -> &'a [u8] {
    match name.strip_prefix(start) {
        Some(b"") => b"",
        Some(rest) => rest.strip_prefix(b"/").unwrap_or(name),
        None => name,
    }
}

/// The globs of the components, if the pattern can be taken apart: classes and escapes could match a slash.
fn by_component(pattern: &str) -> Option<Vec<Glob>> {
    if pattern.contains(['[', '\\']) {
        return None;
    }
    pattern.strip_prefix('/')?.split('/').map(|part| Glob::new(part).ok()).collect()
}

/// Whether something below the directory `name` may match.
fn may_lead_to(components: &[Glob], name: &[u8]) -> bool {
    let parts: Vec<&[u8]> = name.split(|c| *c == b'/').skip(1).collect();
    parts.len() < components.len() && parts.iter().zip(components).all(|(part, glob)| glob.matches(part))
}
