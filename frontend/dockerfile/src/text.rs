//! Text that knows where its bytes were written. A logical line is glued together from physical lines, and a
//! flag loses its quotes; every token cut out of them still points at the source.

use std::ops::Range;

use rbuild_diag::{Span, Spanned};

use crate::Word;

/// From offsets in a derived text to offsets in the source: runs of bytes that were copied one to one.
#[derive(Clone, Debug)]
pub(crate) struct OffsetMap {
    /// Where a run begins, in the derived text and in the source. Sorted by both.
    runs: Vec<(usize, usize)>,
}

impl OffsetMap {
    /// The map of a text that was copied as a whole from `source`.
    pub(crate) fn from_one(source: usize) -> Self {
        Self { runs: vec![(0, source)] }
    }

    /// Says that what is appended at `derived` comes from `source`.
    pub(crate) fn push(&mut self, derived: usize, source: usize) {
        if let Some(&(at, from)) = self.runs.last() {
            if from + (derived - at) == source {
                return;
            }
            if at == derived {
                self.runs.pop();
            }
        }
        self.runs.push((derived, source));
    }

    /// The source offset of the byte at `derived`.
    fn locate(&self, derived: usize) -> usize {
        let run = self.runs.partition_point(|&(at, _)| at <= derived).max(1) - 1;
        self.runs.get(run).map_or(derived, |&(at, from)| from + derived.saturating_sub(at))
    }

    /// Copies to `derived` what stands at `range` of `other`.
    fn push_part(&mut self, derived: usize, other: &Self, range: Range<usize>) {
        let first = other.runs.partition_point(|&(at, _)| at <= range.start).max(1) - 1;
        let runs = other.runs.get(first..).unwrap_or_default();
        for &(at, from) in runs.iter().take_while(|&&(at, _)| at < range.end) {
            let start = at.max(range.start);
            self.push(derived + (start - range.start), from + (start - at));
        }
    }

    /// The place in the source that `range` was made from.
    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        let start = self.locate(range.start);
        let end = if range.end > range.start { self.locate(range.end - 1) + 1 } else { start };
        Span::new(start, end)
    }
}

/// A derived text that owns its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    text: String,
    map: OffsetMap,
}

impl Mapped {
    /// Nothing yet, at `source`.
    pub(crate) fn new(source: usize) -> Self {
        Self { text: String::new(), map: OffsetMap::from_one(source) }
    }

    /// Appends a part of another text.
    pub(crate) fn push(&mut self, part: Slice<'_>) {
        self.map.push_part(self.text.len(), part.map, part.at..part.at + part.text.len());
        self.text.push_str(part.text);
    }

    /// The whole as a slice.
    pub(crate) fn slice(&self) -> Slice<'_> {
        Slice::new(&self.text, &self.map)
    }

    /// The bytes.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// A part of a derived text. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice<'a> {
    text: &'a str,
    at: usize,
    map: &'a OffsetMap,
}

impl<'a> Slice<'a> {
    /// The whole of `text`.
    pub(crate) fn new(text: &'a str, map: &'a OffsetMap) -> Self {
        Self { text, at: 0, map }
    }

    /// The bytes.
    pub(crate) fn text(self) -> &'a str {
        self.text
    }

    /// The place in the source.
    pub(crate) fn span(self) -> Span {
        self.map.span(self.at..self.at + self.text.len())
    }

    /// Where its first byte was written.
    pub(crate) fn source_start(self) -> usize {
        self.map.locate(self.at)
    }

    /// A part; empty when `range` is not one of this text.
    pub(crate) fn sub(self, range: Range<usize>) -> Self {
        let at = self.at + range.start;
        Self { text: self.text.get(range).unwrap_or_default(), at, map: self.map }
    }

    /// Everything from `start`.
    pub(crate) fn from(self, start: usize) -> Self {
        self.sub(start..self.text.len())
    }

    /// Without white space around it.
    pub(crate) fn trim(self) -> Self {
        let start = self.text.len() - self.text.trim_start().len();
        self.sub(start..start.max(self.text.trim_end().len()))
    }

    /// As a value with its place.
    pub(crate) fn word(self) -> Word {
        Spanned::new(self.text.to_owned(), self.span())
    }

    /// The parts before and after the first `separator`.
    pub(crate) fn split_once(self, separator: char) -> Option<(Self, Self)> {
        let at = self.text.find(separator)?;
        Some((self.sub(0..at), self.from(at + separator.len_utf8())))
    }

    /// The words between runs of blanks; `[\t\v\f\r ]` only, other white space belongs to words.
    pub(crate) fn fields(self) -> impl Iterator<Item = Slice<'a>> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let start = rest.text.find(|c| !is_blank(c))?;
            let tail = rest.from(start);
            let end = tail.text.find(is_blank).unwrap_or(tail.text.len());
            rest = tail.from(end);
            Some(tail.sub(0..end))
        })
    }
}

/// What separates the words of `FROM`, `COPY` and the like.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_lead_back_over_gaps() {
        let mut line = Mapped::new(0);
        for (text, at) in [("ab", 10), ("", 15), ("é", 20), ("c", 22)] {
            line.push(Slice::new(text, &OffsetMap::from_one(at)));
        }
        let mut copy = Mapped::new(0);
        copy.push(line.slice().sub(0..1));
        copy.push(line.slice().from(1));
        let all = copy.slice();
        assert_eq!(all.text(), "abéc");
        assert_eq!(all.span(), Span::new(10, 23));
        assert_eq!(all.sub(1..4).span(), Span::new(11, 22));
        assert_eq!(all.from(2).span(), Span::new(20, 23));
        assert_eq!(all.sub(2..2).span(), Span::new(20, 20));
        assert_eq!(all.sub(3..9).text(), "");
    }

    #[test]
    fn fields_are_split_at_ascii_blanks() {
        let map = OffsetMap::from_one(5);
        let line = Slice::new(" a\t\x0bb\u{a0}c  ", &map);
        let fields: Vec<_> = line.fields().map(|f| (f.text(), f.span())).collect();
        assert_eq!(fields, [("a", Span::new(6, 7)), ("b\u{a0}c", Span::new(9, 13))]);
        assert_eq!(line.trim().text(), "a\t\x0bb\u{a0}c");
    }
}
