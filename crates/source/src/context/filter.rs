//! What of a context is shown: the ignore file's patterns, and the paths a build asked for. A directory that is left
//! out is entered only when something in it may be taken back, and is shown when something was.

use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::{MatchInfo, PatternMatcher};

/// Compiled patterns.
pub(crate) struct Filter {
    /// Only what matches; `None` is everything.
    include: Option<PatternMatcher>,
    /// Not what matches.
    exclude: Option<PatternMatcher>,
}

/// What is known of a directory: its entries need it.
#[derive(Clone, Default)]
pub(crate) struct DirState {
    include: MatchInfo,
    exclude: MatchInfo,
}

/// What becomes of an entry.
pub(crate) enum Verdict {
    /// It is shown.
    Show(DirState),
    /// A directory that is shown only if something in it is.
    Through(DirState),
    /// It is not, nor is anything in it.
    Hide,
}

impl Filter {
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let compile = |what: &str, patterns: &[String]| {
            if patterns.is_empty() {
                return Ok(None);
            }
            let matcher = PatternMatcher::new(patterns)
                .map_err(|error| PortError::new(ErrorKind::Invalid, format!("{what}: {error}")))?;
            Ok(Some(matcher))
        };
        Ok(Self {
            include: compile("include patterns", include)?,
            exclude: compile("ignore patterns", exclude)?,
        })
    }

    /// Judges the entry at `path` of a directory with `parent`. Without patterns this costs nothing.
    pub(crate) fn judge(&self, path: &[u8], parent: &DirState, is_dir: bool) -> Verdict {
        let mut state = DirState::default();
        let mut through = false;
        if let Some(include) = &self.include {
            let (matched, info) = include.matches_in(path, &parent.include);
            if !matched {
                if !is_dir || !include.may_match_below(path) {
                    return Verdict::Hide;
                }
                through = true;
            }
            state.include = info;
        }
        if let Some(exclude) = &self.exclude {
            let (matched, info) = exclude.matches_in(path, &parent.exclude);
            if matched {
                if !is_dir || !exclude.may_take_back_below(path, &info) {
                    return Verdict::Hide;
                }
                through = true;
            }
            state.exclude = info;
        }
        if through { Verdict::Through(state) } else { Verdict::Show(state) }
    }

    /// Judges the directory or file at `path` from the root down. `Hide` when a directory above it is hidden.
    pub(crate) fn judge_from_root(&self, path: &[u8], is_dir: bool) -> Verdict {
        let mut state = DirState::default();
        if path.is_empty() {
            return Verdict::Show(state);
        }
        for (at, _) in path.iter().enumerate().filter(|(_, c)| **c == b'/') {
            match self.judge(&path[..at], &state, true) {
                Verdict::Show(next) | Verdict::Through(next) => state = next,
                Verdict::Hide => return Verdict::Hide,
            }
        }
        self.judge(path, &state, is_dir)
    }
}
