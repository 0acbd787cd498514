//! Output of steps as text that is safe to print: lines from bytes, escape sequences, widths, times and sizes.

use rbuild::Timestamp;

/// A line longer than this is shown in pieces.
const MAX_LINE: usize = 64 << 10;

/// Cuts bytes into lines. What a carriage return would overwrite on a terminal is gone.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    returned: bool,
}

impl Lines {
    /// Takes bytes as they came, and hands on each line that is complete.
    pub(super) fn push(&mut self, data: &[u8], mut each: impl FnMut(&[u8])) {
        for byte in data {
            match byte {
                b'\n' => {
                    each(&self.line);
                    self.line.clear();
                    self.returned = false;
                }
                b'\r' => self.returned = true,
                _ => {
                    if std::mem::take(&mut self.returned) {
                        self.line.clear();
                    }
                    if self.line.len() >= MAX_LINE {
                        each(&self.line);
                        self.line.clear();
                    }
                    self.line.push(*byte);
                }
            }
        }
    }

    /// The line that is not complete yet.
    pub(super) fn rest(&self) -> &[u8] {
        &self.line
    }

    /// Takes it.
    pub(super) fn take_rest(&mut self) -> Option<Vec<u8>> {
        self.returned = false;
        (!self.line.is_empty()).then(|| std::mem::take(&mut self.line))
    }
}

/// Bytes as text: colours stay if `colors` says so, all other escape sequences and control characters go; bytes that are no
/// UTF-8 become replacement characters, tabs become spaces.
pub(crate) fn clean(bytes: &[u8], colors: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut painted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                Some('[') => {
                    let mut sequence = String::new();
                    let mut last = '\0';
                    for c in chars.by_ref() {
                        last = c;
                        if ('\x40'..='\x7e').contains(&c) {
                            break;
                        }
                        sequence.push(c);
                    }
                    let plain = sequence.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':');
                    if colors && last == 'm' && plain {
                        painted = !sequence.is_empty() && sequence != "0";
                        out.push_str("\x1b[");
                        out.push_str(&sequence);
                        out.push('m');
                    }
                }
                // Titles, links and other strings end with BEL or ESC \.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    while let Some(c) = chars.next() {
                        if c == '\x07' || (c == '\x1b' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                Some('(' | ')' | '#' | '%') => drop(chars.next()),
                _ => {}
            },
            '\x08' => drop(out.pop()),
            '\t' => out.push_str("    "),
            '\n' => out.push(' '),
            c if c.is_control() || turns_text(c) => {}
            c => out.push(c),
        }
    }
    if painted {
        out.push_str("\x1b[0m");
    }
    out
}

/// Marks that make text read in another order than it is written.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns that a character takes on a terminal.
pub(super) fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f680..=0x1f6ff
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Columns that `text` takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// The beginning of `text` that fits into `room` columns.
pub(super) fn fit(text: &str, room: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += columns_of(c);
        if used > room {
            return text.get(..at).unwrap_or_default();
        }
    }
    text
}

/// `1.2s`
pub(super) fn seconds(from: Timestamp, to: Timestamp) -> String {
    let tenths = to.0.saturating_sub(from.0).max(0) / 100_000_000;
    format!("{}.{}s", tenths / 10, tenths % 10)
}

/// `1.23MB`, decimal as BuildKit shows sizes.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n}B") } else { format!("{value:.2}{}", UNITS[unit]) }
}

/// ` 1.2MB / 3.4MB`, or nothing for a part that has no size worth a word.
pub(super) fn amount(current: u64, total: Option<u64>, done: bool) -> String {
    match total {
        _ if current <= 1 && total.is_none_or(|total| total <= 1) => String::new(),
        Some(total) if !done && total > 1 => format!(" {} / {}", bytes(current), bytes(total)),
        _ => format!(" {}", bytes(current)),
    }
}

/// RFC 3339 in UTC with nanoseconds.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    let (secs, nanos) = (at.0.div_euclid(1_000_000_000), at.0.rem_euclid(1_000_000_000));
    format!("{}.{nanos:09}Z", rbuild::date_time(secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_for_people() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(Timestamp(1_709_210_096_000_000_007)), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339(Timestamp(-1)), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(seconds(Timestamp(0), Timestamp(1_290_000_000)), "1.2s");
        assert_eq!(
            [bytes(0), bytes(999), bytes(1500), bytes(258_000_000)],
            ["0B", "999B", "1.50kB", "258.00MB"]
        );
        assert_eq!(amount(1, Some(1), true), "");
        assert_eq!(amount(1500, Some(3000), false), " 1.50kB / 3.00kB");
        assert_eq!(amount(3000, Some(3000), true), " 3.00kB");
    }

    #[test]
    fn only_colours_get_through() {
        for (bytes, kept, plain) in [
            (&b"a\x1b[31mred\x1b[0m"[..], "a\x1b[31mred\x1b[0m", "ared"),
            (b"\x1b[1;32mopen", "\x1b[1;32mopen\x1b[0m", "open"),
            (b"\x1b[2J\x1b[Hx\x1b[?25l", "x", "x"),
            (b"\x1b]0;title\x07y\x1b]8;;http://h\x1b\\z", "yz", "yz"),
            (b"a\tb\x07\x00c\xff", "a    bc\u{fffd}", "a    bc\u{fffd}"),
            (b"ab\x08c \x1b(Bd \x1b", "ac d ", "ac d "),
            ("x\u{202e}y".as_bytes(), "xy", "xy"),
        ] {
            assert_eq!((clean(bytes, true).as_str(), clean(bytes, false).as_str()), (kept, plain));
        }
    }

    #[test]
    fn lines_end_at_newlines_and_are_overwritten_after_returns() {
        let mut lines = Lines::default();
        let mut got = Vec::new();
        for data in [&b"a\r\nb"[..], b"c\n10%\r", b"20%\r30%", b"\n\nx"] {
            lines.push(data, |line| got.push(String::from_utf8_lossy(line).into_owned()));
        }
        assert_eq!(got, ["a", "bc", "30%", ""]);
        assert_eq!(lines.take_rest().as_deref(), Some(&b"x"[..]));
        lines.push(&vec![b'y'; MAX_LINE + 10], |line| assert_eq!(line.len(), MAX_LINE));
        assert_eq!(lines.rest().len(), 10);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!((width("a\u{6f22}e\u{301}"), fit("\u{6f22}\u{6f22}x", 3)), (4, "\u{6f22}"));
    }
}
