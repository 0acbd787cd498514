//! A named text and its lines.

use std::sync::Arc;

/// A text with the name that users know it by (`Dockerfile`, `app/.dockerignore`). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    name: Arc<str>,
    text: Arc<str>,
    line_starts: Arc<[u32]>,
}

/// A place as people count: both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineCol {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
}

impl SourceFile {
    /// Names `text`.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let mut starts = vec![0u32];
        for (i, byte) in text.bytes().enumerate() {
            if byte == b'\n' {
                starts.push(u32::try_from(i + 1).unwrap_or(u32::MAX));
            }
        }
        Self { name: name.into(), text, line_starts: starts.into() }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where byte `offset` lies; past the end counts as the end.
    #[must_use]
    pub fn line_col(&self, offset: u32) -> LineCol {
        let mut offset = (offset as usize).min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.line_starts.partition_point(|&start| start as usize <= offset).max(1) - 1;
        let start = self.line_starts[line] as usize;
        let col = self.text[start..offset].chars().count() + 1;
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        LineCol { line: clamp(line + 1), col: clamp(col) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_one_in_characters() {
        let file = SourceFile::new("f", "é1\nab");
        let at = |offset| {
            let place = file.line_col(offset);
            (place.line, place.col)
        };
        assert_eq!(
            [at(0), at(1), at(2), at(4), at(5), at(99)],
            [(1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
        );
    }
}
