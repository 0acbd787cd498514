//! Physical lines to logical ones: byte order mark, line ends, comments, continuations, heredoc bodies.

use std::borrow::Cow;

use rbuild_diag::{Span, Spanned};

use crate::text::{OffsetMap, Slice};

/// Longer lines are refused.
pub(crate) const MAX_LINE: usize = 65_535;

/// A physical line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Physical<'a> {
    /// Where it begins.
    pub(crate) start: usize,
    /// With its line end.
    pub(crate) raw: &'a str,
    /// Without it.
    pub(crate) text: &'a str,
}

impl Physical<'_> {
    /// The place of its text.
    pub(crate) fn span(&self) -> Span {
        Span::new(self.start, self.start + self.text.len())
    }

    /// Whether it is longer than a line may be, its line feed not counted.
    pub(crate) fn is_too_long(&self) -> bool {
        self.raw.strip_suffix('\n').unwrap_or(self.raw).len() > MAX_LINE
    }
}

/// Walks the lines of a text.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    text: &'a str,
    at: usize,
    too_long: Vec<Span>,
}

impl<'a> Lines<'a> {
    /// From the start, behind a byte order mark.
    pub(crate) fn new(text: &'a str) -> Self {
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self { text, at, too_long: vec![] }
    }

    /// The next line.
    pub(crate) fn next(&mut self) -> Option<Physical<'a>> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let length = memchr::memchr(b'\n', rest.as_bytes()).map_or(rest.len(), |at| at + 1);
        let raw = rest.get(..length)?;
        let line = Physical { start: self.at, raw, text: raw.trim_end_matches(['\r', '\n']) };
        self.at += length;
        if line.is_too_long() {
            self.too_long.push(line.span());
        }
        Some(line)
    }

    /// Where the next line begins.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    /// Lines that were too long, since the last call.
    pub(crate) fn take_too_long(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.too_long)
    }
}

/// An instruction's line: continuations joined, comments dropped.
#[derive(Debug)]
pub(crate) struct Logical<'a> {
    text: Cow<'a, str>,
    map: OffsetMap,
    /// End of the last physical line.
    pub(crate) end: usize,
    /// The first blank line inside it.
    pub(crate) blank: Option<Span>,
}

impl<'a> Logical<'a> {
    /// Begins with `first`, which is not blank; takes the lines that continue it from `lines`. `None` when there
    /// is nothing to begin with.
    pub(crate) fn read(first: Physical<'a>, lines: &mut Lines<'a>, escape: char) -> Option<Self> {
        let stripped = first.text.trim_start();
        let (text, mut continues) = cut_continuation(stripped, escape);
        if text.is_empty() && !continues {
            return None;
        }
        let indent = first.text.len() - stripped.len();
        let mut logical = Self {
            text: Cow::Borrowed(text),
            map: OffsetMap::from_one(first.start + indent),
            end: first.start + first.text.len(),
            blank: None,
        };
        while continues {
            let Some(line) = lines.next() else { break };
            logical.end = line.start + line.text.len();
            if is_comment(line.text) {
                continue;
            }
            if line.text.trim_start().is_empty() {
                logical.blank.get_or_insert(line.span());
                continue;
            }
            let (text, more) = cut_continuation(line.text, escape);
            logical.map.push(logical.text.len(), line.start);
            logical.text.to_mut().push_str(text);
            continues = more;
        }
        Some(logical)
    }

    /// The whole line.
    pub(crate) fn slice(&self) -> Slice<'_> {
        Slice::new(&self.text, &self.map)
    }
}

/// The line without its continuation character, and whether there was one: the last that is neither blank nor
/// tab, with no other of its kind directly before it.
fn cut_continuation(line: &str, escape: char) -> (&str, bool) {
    let Some(before) = line.trim_end_matches([' ', '\t']).strip_suffix(escape) else { return (line, false) };
    if before.ends_with(escape) { (line, false) } else { (before, true) }
}

/// Whether the first character that is not white space is `#`.
pub(crate) fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// What a comment line says. The first character goes, whatever it is: BuildKit takes it for the `#`.
pub(crate) fn comment_text(line: &Physical<'_>) -> Spanned<String> {
    let first = line.raw.chars().next().map_or(0, char::len_utf8);
    let tail = line.raw.get(first..).unwrap_or_default();
    let text = tail.trim();
    let start = line.start + first + (tail.len() - tail.trim_start().len());
    Spanned::new(text.to_owned(), Span::new(start, start + text.len()))
}

/// A body and how it ended.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    /// As written, without the terminator.
    pub(crate) raw: &'a str,
    /// Its place.
    pub(crate) span: Span,
    /// The terminator's line end, or the end of the text.
    pub(crate) end: usize,
    /// Whether the terminator was there.
    pub(crate) terminated: bool,
    /// A line that looks like the terminator but for blanks around it.
    pub(crate) near_miss: Option<Span>,
}

/// Takes the lines up to one that is `name`, tabs in front of it ignored with `chomp`.
pub(crate) fn read_body<'a>(text: &'a str, lines: &mut Lines<'a>, name: &str, chomp: bool) -> Body<'a> {
    let start = lines.offset();
    let mut near_miss = None;
    let mut end = start;
    while let Some(line) = lines.next() {
        let candidate = if chomp { line.text.trim_start_matches('\t') } else { line.text };
        if candidate == name {
            let raw = text.get(start..line.start).unwrap_or_default();
            let end = line.start + line.text.len();
            return Body { raw, span: Span::new(start, line.start), end, terminated: true, near_miss: None };
        }
        if near_miss.is_none() && line.text.trim() == name {
            near_miss = Some(line.span());
        }
        end = line.start + line.text.len();
    }
    let raw = text.get(start..).unwrap_or_default();
    Body { raw, span: Span::new(start, text.len()), end, terminated: false, near_miss }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations() {
        for (line, expected) in [
            ("a \\", ("a ", true)),
            ("a \\ \t", ("a ", true)),
            ("\\", ("", true)),
            ("a \\\\", ("a \\\\", false)),
            ("a \\\\\\", ("a \\\\\\", false)),
            ("a \\ \x0b", ("a \\ \x0b", false)),
            ("a \\b", ("a \\b", false)),
            ("", ("", false)),
        ] {
            assert_eq!(cut_continuation(line, '\\'), expected, "{line:?}");
        }
        assert_eq!(cut_continuation("c:\\ `", '`'), ("c:\\ ", true));
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit() {
        for (length, end, too_long) in
            [(MAX_LINE, "\n", 0), (MAX_LINE, "", 0), (MAX_LINE + 1, "\n", 1), (MAX_LINE, "\r\n", 1)]
        {
            let text = "x".repeat(length) + end;
            let mut lines = Lines::new(&text);
            while lines.next().is_some() {}
            assert_eq!(lines.take_too_long().len(), too_long, "{length}{end:?}");
        }
    }
}
