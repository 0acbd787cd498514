//! Ignore files (`.dockerignore`): their lines as patterns, and which line leaves a path out.

use crate::{BadPattern, PatternMatcher, go_path};

/// A line of an ignore file that is a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoreLine {
    /// From 1.
    pub line: usize,
    /// The pattern, cleaned, without a leading slash, with its `!`.
    pub pattern: String,
}

/// A read ignore file.
#[derive(Clone, Debug)]
pub struct IgnoreFile {
    lines: Vec<IgnoreLine>,
    matcher: PatternMatcher,
}

/// The patterns of an ignore file: comments (`#` in the first column) and empty lines are left out, a byte order
/// mark is skipped, paths are cleaned and made relative.
#[must_use]
pub fn parse_ignore_file(text: &str) -> Vec<IgnoreLine> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (negated, path) = match line.strip_prefix('!') {
            Some(rest) => ("!", rest.trim()),
            None => ("", line),
        };
        let cleaned = if path.is_empty() { String::new() } else { go_path::clean(path) };
        let relative = match cleaned.strip_prefix('/') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &cleaned,
        };
        out.push(IgnoreLine { line: i + 1, pattern: format!("{negated}{relative}") });
    }
    out
}

impl IgnoreFile {
    /// Reads the text of an ignore file.
    ///
    /// # Errors
    /// If a pattern is malformed.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let lines = parse_ignore_file(text);
        let patterns: Vec<&str> = lines.iter().map(|line| line.pattern.as_str()).collect();
        let matcher = PatternMatcher::new(&patterns)?;
        Ok(Self { lines, matcher })
    }

    /// The patterns in order.
    #[must_use]
    pub fn patterns(&self) -> Vec<String> {
        self.lines.iter().map(|line| line.pattern.clone()).collect()
    }

    /// The compiled patterns.
    #[must_use]
    pub fn matcher(&self) -> &PatternMatcher {
        &self.matcher
    }

    /// The line that leaves `path` out; `None` if it is kept.
    #[must_use]
    pub fn which_excludes(&self, path: impl AsRef<[u8]>) -> Option<&IgnoreLine> {
        self.lines.get(self.matcher.which(path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = "\u{feff}test1\r\n/test2\n/a/file/here\n\nlastfile\n# this is a comment\n! /inverted/abs/path\n!\n! \n  #x \n/\na/../b/\n";
        let got: Vec<(usize, String)> =
            parse_ignore_file(text).into_iter().map(|line| (line.line, line.pattern)).collect();
        let want = [
            (1, "test1"),
            (2, "test2"),
            (3, "a/file/here"),
            (5, "lastfile"),
            (7, "!inverted/abs/path"),
            (8, "!"),
            (9, "!"),
            (10, "#x"),
            (11, "/"),
            (12, "b"),
        ];
        assert_eq!(got, want.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn the_deciding_line_is_named() {
        let file = IgnoreFile::parse("*.md\n!README.md\n\ntarget\nREADME.secret.md\n").unwrap();
        let line = |path: &str| file.which_excludes(path).map(|line| line.line);
        assert_eq!(line("a.md"), Some(1));
        assert_eq!(line("README.md"), None);
        assert_eq!(line("target/debug/x"), Some(4));
        assert_eq!(line("README.secret.md"), Some(1));
        assert_eq!(line("src"), None);
        assert_eq!(line(""), None);
        assert!(IgnoreFile::parse("ok\n!\n").is_err());
    }
}
