//! Relative paths inside a tree. A `RelPath` never starts with `/`, has no empty, `.` or `..` component and no
//! NUL, so code that holds one need not ask again. Bytes, not text: names on Linux need not be UTF-8. Lexical
//! only; knows nothing of symbolic links or of the file system.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A clean relative path; empty is the root of the tree.
///
/// Ordered as a walk visits a tree: a directory, then what is in it, then its next sibling by name.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RelPath(Vec<u8>);

/// Why a name is no path inside a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It goes up.
    #[error("path {0:?} has a \"..\" component and could leave the tree")]
    Parent(String),
    /// It has a NUL byte.
    #[error("path {0:?} contains a NUL byte")]
    Nul(String),
    /// It is empty where a name is needed.
    #[error("empty path")]
    Empty,
    /// It is not one component.
    #[error("{0:?} is not a single file name")]
    NotAName(String),
}

impl RelPath {
    /// The root of the tree.
    #[must_use]
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// A path from a foreign name such as `./a/b/`, `/a` or `a//b`: leading, double and trailing slashes and `.`
    /// components go away. `/`, `.` and `./` are the root.
    ///
    /// # Errors
    /// If the name is empty, has a `..` component or a NUL byte.
    pub fn parse(name: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(PathError::Empty);
        }
        if name.contains(&0) {
            return Err(PathError::Nul(lossy(name)));
        }
        if is_clean(name) {
            return Ok(Self(name.to_vec()));
        }
        let mut out = Vec::with_capacity(name.len());
        for component in name.split(|c| *c == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(PathError::Parent(lossy(name))),
                component => push(&mut out, component),
            }
        }
        Ok(Self(out))
    }

    /// A path as `path.Join("/", name)` of Go cleans it: `..` is resolved lexically and cannot leave the root.
    /// Empty is the root.
    ///
    /// # Errors
    /// If the name has a NUL byte.
    pub fn clean(name: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let name = name.as_ref();
        if name.contains(&0) {
            return Err(PathError::Nul(lossy(name)));
        }
        let mut out = Vec::with_capacity(name.len());
        for component in name.split(|c| *c == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    let end = out.iter().rposition(|c| *c == b'/').unwrap_or(0);
                    out.truncate(end);
                }
                component => push(&mut out, component),
            }
        }
        Ok(Self(out))
    }

    /// This path and then `other`.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        if other.0.is_empty() {
            return self.clone();
        }
        let mut out = Vec::with_capacity(self.0.len() + 1 + other.0.len());
        out.extend_from_slice(&self.0);
        push(&mut out, &other.0);
        Self(out)
    }

    /// The entry `name` of this directory.
    ///
    /// # Errors
    /// If `name` is empty, `.`, `..`, or has a slash or a NUL byte.
    pub fn child(&self, name: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let name = name.as_ref();
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|c| matches!(c, 0 | b'/')) {
            return Err(PathError::NotAName(lossy(name)));
        }
        let mut out = Vec::with_capacity(self.0.len() + 1 + name.len());
        out.extend_from_slice(&self.0);
        push(&mut out, name);
        Ok(Self(out))
    }

    /// The components from the top down; none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|c| *c == b'/').filter(|component| !component.is_empty())
    }

    /// How many components.
    #[must_use]
    pub fn depth(&self) -> usize {
        if self.0.is_empty() { 0 } else { self.0.iter().filter(|c| **c == b'/').count() + 1 }
    }

    /// The directory it is in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().rposition(|c| *c == b'/').unwrap_or(0);
        Some(Self(self.0.get(..end).unwrap_or_default().to_vec()))
    }

    /// The directories above it, from its parent up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// The last component; `None` for the root.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// Whether it is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is `other` or below it.
    #[must_use]
    pub fn starts_with(&self, other: &Self) -> bool {
        self.strip_prefix(other).is_some()
    }

    /// The rest below `base`: the root if both are equal, `None` if this path is elsewhere.
    #[must_use]
    pub fn strip_prefix(&self, base: &Self) -> Option<Self> {
        if base.0.is_empty() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(base.0.as_slice())?;
        match rest.split_first() {
            None => Some(Self::root()),
            Some((b'/', rest)) => Some(Self(rest.to_vec())),
            Some(_) => None,
        }
    }

    /// The bytes, without a leading slash; empty for the root.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For calls that take an operating system's path relative to a directory; `.` for the root.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        if self.0.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0)) }
    }

    /// With a leading slash, as bytes.
    #[must_use]
    pub fn absolute(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() + 1);
        out.push(b'/');
        out.extend_from_slice(&self.0);
        out
    }
}

fn push(out: &mut Vec<u8>, component: &[u8]) {
    if !out.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(component);
}

fn is_clean(name: &[u8]) -> bool {
    name.split(|c| *c == b'/').all(|component| !matches!(component, b"" | b"." | b".."))
}

fn lossy(name: &[u8]) -> String {
    const MOST: usize = 200;
    String::from_utf8_lossy(name.get(..MOST).unwrap_or(name)).into_owned()
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        let common = self.0.iter().zip(&other.0).position(|(a, b)| a != b);
        match common {
            None => self.0.len().cmp(&other.0.len()),
            Some(i) => {
                let rank = |bytes: &[u8]| bytes.get(i).map_or(0, |c| if *c == b'/' { 0 } else { *c });
                rank(&self.0).cmp(&rank(&other.0))
            }
        }
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl AsRef<[u8]> for RelPath {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// `/a/b`, lossy; `/` for the root.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/")?;
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

impl std::str::FromStr for RelPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    #[test]
    fn foreign_names_are_cleaned() {
        for (name, want) in [
            ("a", "/a"),
            ("./a/b/", "/a/b"),
            ("/a", "/a"),
            ("//a//b", "/a/b"),
            ("a/./b", "/a/b"),
            (".", "/"),
            ("./", "/"),
            ("/", "/"),
            ("...", "/..."),
            ("a/..b", "/a/..b"),
        ] {
            assert_eq!(RelPath::parse(name).unwrap().to_string(), want, "{name}");
        }
        assert_eq!(RelPath::parse(b"\xff\n/-rf ").unwrap().as_bytes(), b"\xff\n/-rf ");
    }

    #[test]
    fn escapes_are_refused() {
        for name in ["..", "../x", "a/../../x", "a/..", "/..", "./../x"] {
            assert!(matches!(RelPath::parse(name), Err(PathError::Parent(_))), "{name}");
        }
        assert_eq!(RelPath::parse(""), Err(PathError::Empty));
        assert!(matches!(RelPath::parse("a\0b"), Err(PathError::Nul(_))));
        for name in ["", ".", "..", "a/b", "a\0"] {
            assert!(RelPath::root().child(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn clean_resolves_dot_dot_inside_the_root() {
        for (name, want) in
            [("", "/"), ("../x", "/x"), ("a/../b", "/b"), ("a/b/../..", "/"), ("a/b/../c/", "/a/c")]
        {
            assert_eq!(RelPath::clean(name).unwrap().to_string(), want, "{name}");
        }
    }

    #[test]
    fn parts() {
        let p = path("a/b/c");
        assert_eq!(p.parent(), Some(path("a/b")));
        assert_eq!(path("a").parent(), Some(RelPath::root()));
        assert_eq!(RelPath::root().parent(), None);
        assert_eq!(p.file_name(), Some(&b"c"[..]));
        assert_eq!(RelPath::root().file_name(), None);
        assert_eq!(p.components().count(), 3);
        assert_eq!((p.depth(), RelPath::root().depth()), (3, 0));
        assert_eq!(p.ancestors().map(|a| a.to_string()).collect::<Vec<_>>(), ["/a/b", "/a", "/"]);
        assert_eq!(RelPath::root().components().count(), 0);
        assert_eq!(RelPath::root().join(&p), p);
        assert_eq!(p.join(&path("d")), path("a/b/c/d"));
        assert_eq!(p.join(&RelPath::root()), p);
        assert_eq!(p.strip_prefix(&path("a")), Some(path("b/c")));
        assert_eq!(p.strip_prefix(&p), Some(RelPath::root()));
        assert_eq!(p.strip_prefix(&path("a/bb")), None);
        assert_eq!(path("a/bc").strip_prefix(&path("a/b")), None);
    }

    #[test]
    fn order_is_a_walk() {
        let mut paths: Vec<RelPath> =
            ["a-b", "a/z", "a", "b", "a/b/c", "a/b", "a.b", "a/b-"].map(path).into();
        paths.push(RelPath::root());
        paths.sort();
        let text: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["/", "/a", "/a/b", "/a/b/c", "/a/b-", "/a/z", "/a-b", "/a.b", "/b"]);
    }
}
