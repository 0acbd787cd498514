//! Ignore patterns as moby's patternmatcher understands them: Go globs plus `**`, `!` to take back, the last match
//! wins, and a pattern that matches a directory matches everything in it. Also BuildKit's include and exclude
//! patterns. What a walk learned of a directory is passed down, so that whole directories can be left out.

use crate::glob::{BadPattern, Glob};
use crate::go_path;
use crate::pattern_regex::Program;

/// A list of patterns, compiled.
#[derive(Clone, Debug)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
}

/// Which patterns matched a directory: what its entries need to know of it. The default knows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchInfo {
    matched: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// Its position in the list that was given.
    index: usize,
    /// `!`: takes back.
    negated: bool,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    /// The whole path.
    Exact(String),
    /// How the path starts: `dir/**`.
    Prefix(String),
    /// How the path ends: `**/name`, `**.ext`.
    Suffix(String),
    Program(Program),
}

impl PatternMatcher {
    /// Compiles `patterns`; empty ones are left out.
    ///
    /// # Errors
    /// If one is malformed.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, BadPattern> {
        let mut out = Vec::with_capacity(patterns.len());
        for (index, pattern) in patterns.iter().enumerate() {
            let pattern = pattern.as_ref().trim();
            if !pattern.is_empty() {
                out.push(Pattern::new(index, pattern)?);
            }
        }
        Ok(Self { patterns: out })
    }

    /// Whether there are no patterns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path` (slashes, no leading one) or a directory above it matches and is not taken back. The root
    /// never matches.
    #[must_use]
    pub fn matches(&self, path: impl AsRef<[u8]>) -> bool {
        self.which(path).is_some()
    }

    /// As `matches`: the position, in the list given, of the last pattern that made `path` match.
    #[must_use]
    pub fn which(&self, path: impl AsRef<[u8]>) -> Option<usize> {
        let path = path.as_ref();
        if matches!(path, b"" | b".") {
            return None;
        }
        self.last(|pattern| pattern.matches_or_parent(path))
    }

    /// As `which` for a path that is clean in Go's sense but need not lie in the tree: `.` and `..` are names, and
    /// above an absolute path is the empty one. So moby's matcher judges paths that nobody prepared for it.
    #[must_use]
    pub fn which_of_any(&self, path: &str) -> Option<usize> {
        self.last(|pattern| {
            pattern.matches_or_parent(path.as_bytes())
                || path.starts_with('/') && pattern.matcher.matches(b"")
                || path.rfind('/') == Some(0) && pattern.matcher.matches(b"/")
        })
    }

    /// The position of the last pattern that `hits`, unless what it matched is taken back.
    fn last(&self, hits: impl Fn(&Pattern) -> bool) -> Option<usize> {
        let mut matched = None;
        for pattern in &self.patterns {
            if pattern.negated == matched.is_some() && hits(pattern) {
                matched = if pattern.negated { None } else { Some(pattern.index) };
            }
        }
        matched
    }

    /// As `matches`, given what is known of the directory that `path` is in; gives what its own entries need. With
    /// a default `MatchInfo`, the directories above are asked too.
    #[must_use]
    pub fn matches_in(&self, path: impl AsRef<[u8]>, parent: &MatchInfo) -> (bool, MatchInfo) {
        let mut info = vec![false; self.patterns.len()];
        let matched =
            self.decide(path.as_ref(), parent, |i| info.get_mut(i).into_iter().for_each(|seen| *seen = true));
        (matched, MatchInfo { matched: info })
    }

    /// As `matches_in` for what has no entries of its own.
    #[must_use]
    pub fn matches_leaf(&self, path: impl AsRef<[u8]>, parent: &MatchInfo) -> bool {
        self.decide(path.as_ref(), parent, |_| {})
    }

    fn decide(&self, path: &[u8], parent: &MatchInfo, mut seen: impl FnMut(usize)) -> bool {
        let mut matched = false;
        for (i, pattern) in self.patterns.iter().enumerate() {
            if !parent.matched.get(i).copied().unwrap_or(false) {
                if pattern.negated != matched {
                    continue;
                }
                let hit = if parent.matched.is_empty() {
                    pattern.matches_or_parent(path)
                } else {
                    pattern.matcher.matches(path)
                };
                if !hit {
                    continue;
                }
            }
            seen(i);
            matched = !pattern.negated;
        }
        matched
    }

    /// Whether something below the directory `dir`, which matched with `info`, may be taken back by a later `!`
    /// pattern. If not, a walk that leaves out what matches need not enter it.
    #[must_use]
    pub fn may_take_back_below(&self, dir: impl AsRef<[u8]>, info: &MatchInfo) -> bool {
        let decided =
            self.patterns.iter().zip(&info.matched).rposition(|(pattern, seen)| *seen && !pattern.negated);
        let later = decided.map_or(0, |i| i + 1);
        let dir = dir.as_ref();
        self.patterns.iter().skip(later).any(|pattern| pattern.negated && pattern.may_match_below(dir))
    }

    /// Whether something below the directory `dir` may match. If not, and `dir` does not match, a walk that takes
    /// only what matches need not enter it.
    #[must_use]
    pub fn may_match_below(&self, dir: impl AsRef<[u8]>) -> bool {
        let dir = dir.as_ref();
        self.patterns.iter().any(|pattern| !pattern.negated && pattern.may_match_below(dir))
    }
}

impl Pattern {
    fn new(index: usize, text: &str) -> Result<Self, BadPattern> {
        let cleaned = go_path::clean(text);
        let (negated, pattern) = match cleaned.strip_prefix('!') {
            Some("") => {
                let reason = "\"!\" needs a pattern behind it";
                return Err(BadPattern { pattern: text.to_owned(), reason });
            }
            Some(rest) => (true, rest),
            None => (false, cleaned.as_str()),
        };
        Glob::new(pattern)?;
        let matcher =
            Matcher::new(pattern).map_err(|reason| BadPattern { pattern: text.to_owned(), reason })?;
        Ok(Self { index, negated, matcher })
    }

    fn matches_or_parent(&self, path: &[u8]) -> bool {
        self.matcher.matches(path) || parents(path).any(|parent| self.matcher.matches(parent))
    }

    /// Whether it can match `dir`, a directory above it, or anything below it. May say yes where it cannot.
    fn may_match_below(&self, dir: &[u8]) -> bool {
        if dir.is_empty() || self.matches_or_parent(dir) {
            return true;
        }
        match &self.matcher {
            Matcher::Exact(text) => is_below(text.as_bytes(), dir),
            Matcher::Prefix(text) => is_below(text.as_bytes(), dir) || starts_with_dir(dir, text.as_bytes()),
            Matcher::Suffix(_) => true,
            Matcher::Program(program) => program.may_match_below(dir),
        }
    }
}

/// Whether `dir/` starts with `prefix`.
fn starts_with_dir(dir: &[u8], prefix: &[u8]) -> bool {
    dir.starts_with(prefix) || prefix.strip_suffix(b"/") == Some(dir)
}

/// Whether `path` is below `dir`.
pub(crate) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

/// The directories above `path`, the topmost first.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(i, c)| **c == b'/' && *i > 0).filter_map(|(i, _)| path.get(..i))
}

impl Matcher {
    /// Which kind of pattern it is follows moby, whose order of decisions shows in odd patterns.
    fn new(pattern: &str) -> Result<Self, &'static str> {
        let mut kind = Kind::Exact;
        let mut regex = String::new();
        let mut chars = pattern.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    if chars.peek().is_some() {
                        regex.push_str("(.*/)?");
                        kind = Kind::Program;
                    } else if kind == Kind::Exact {
                        kind = Kind::Prefix;
                    } else {
                        regex.push_str(".*");
                        kind = Kind::Program;
                    }
                    if first {
                        kind = Kind::Suffix;
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    kind = Kind::Program;
                }
                '?' => {
                    regex.push_str("[^/]");
                    kind = Kind::Program;
                }
                '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => regex.extend(['\\', c]),
                '\\' => {
                    regex.push('\\');
                    if let Some(c) = chars.next() {
                        regex.push(c);
                        kind = Kind::Program;
                    }
                }
                '[' | ']' => {
                    regex.push(c);
                    kind = Kind::Program;
                }
                c => regex.push(c),
            }
            first = false;
        }
        Ok(match kind {
            Kind::Exact => Self::Exact(pattern.to_owned()),
            Kind::Prefix => Self::Prefix(pattern.strip_suffix("**").unwrap_or(pattern).to_owned()),
            Kind::Suffix => Self::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned()),
            Kind::Program => Self::Program(Program::new(&regex)?),
        })
    }

    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(text) => path == text.as_bytes(),
            Self::Prefix(text) => path.starts_with(text.as_bytes()),
            Self::Suffix(text) => {
                path.ends_with(text.as_bytes())
                    || text.strip_prefix('/').is_some_and(|rest| path == rest.as_bytes())
            }
            Self::Program(program) => program.matches(path),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Prefix,
    Suffix,
    Program,
}
