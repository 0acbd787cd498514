//! `--name[=value]` in front of an instruction's arguments: cutting them off, which is the same for all, and
//! checking them against the instruction's table.

use rbuild_diag::{Diagnostic, Span, Spanned, nearest};

use crate::context::Context;
use crate::text::{Mapped, Slice};
use crate::{Word, codes};

/// A flag as written, quotes and escapes removed.
#[derive(Debug)]
pub(crate) struct RawFlag {
    word: Mapped,
    span: Span,
}

impl RawFlag {
    /// Without the dashes: the name and what follows `=`.
    fn parts(&self) -> (Slice<'_>, Option<Slice<'_>>) {
        let whole = self.word.slice();
        let body = whole.from(whole.text().len().min(2));
        match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        }
    }
}

/// Cuts the flags off the front. `--` ends them and is dropped.
pub(crate) fn take(arguments: Slice<'_>, escape: char) -> (Vec<RawFlag>, Slice<'_>) {
    let mut flags = Vec::new();
    let mut rest = arguments.trim();
    while rest.text().starts_with("--") {
        let (word, length, quoted) = read_word(rest, escape);
        let span = rest.sub(0..length).span();
        rest = rest.from(length).trim();
        match word.text() {
            "--" => break,
            "" if !quoted => {}
            _ => flags.push(RawFlag { word, span }),
        }
    }
    (flags, rest)
}

/// The first word, how many bytes it took, and whether it had quotes. The escape character works in both kinds
/// of quotes; at the very end it vanishes.
fn read_word(text: Slice<'_>, escape: char) -> (Mapped, usize, bool) {
    let mut word = Mapped::new(text.source_start());
    let mut quote = None;
    let mut quoted = false;
    // From here on nothing was left out.
    let mut plain = 0;
    let mut chars = text.text().char_indices();
    while let Some((at, c)) = chars.next() {
        let left_out = match quote {
            None if c.is_whitespace() => {
                word.push(text.sub(plain..at));
                return (word, at, quoted);
            }
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                quoted = true;
                true
            }
            Some(open) if c == open => {
                quote = None;
                true
            }
            _ if c == escape => {
                chars.next();
                true
            }
            _ => false,
        };
        if left_out {
            word.push(text.sub(plain..at));
            plain = at + c.len_utf8();
        }
    }
    word.push(text.from(plain));
    (word, text.text().len(), quoted)
}

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `--x`, `--x=true`, `--x=false`.
    Boolean,
    /// `--x=text`, once.
    Text,
    /// `--x=text`, any number of times.
    List,
}

/// The flags of an instruction.
pub(crate) type Table = &'static [(&'static str, Kind)];

/// Flags that an instruction was given and has.
#[derive(Debug)]
pub(crate) struct Flags<'a> {
    given: Vec<(&'static str, Slice<'a>, Span)>,
    /// Which rows of the table are in use.
    used: Vec<bool>,
}

impl<'a> Flags<'a> {
    /// Checks what was given; what is wrong is reported and left out.
    pub(crate) fn check(cx: &mut Context<'_>, keyword: &str, raw: &'a [RawFlag], table: Table) -> Self {
        let mut flags = Self { given: Vec::with_capacity(raw.len()), used: vec![false; table.len()] };
        for flag in raw {
            let (name, value) = flag.parts();
            let Some(row) = table.iter().position(|(known, _)| *known == name.text()) else {
                let diagnostic = unknown(cx, keyword, flag, name.text(), table);
                cx.report(diagnostic);
                continue;
            };
            let (known, kind) = table[row];
            if std::mem::replace(&mut flags.used[row], true) && kind != Kind::List {
                let message = format!("duplicate flag specified: --{known}");
                cx.error(codes::DUPLICATE_FLAG, flag.span, message, "remove one of them");
                continue;
            }
            match value {
                Some(value) if kind != Kind::Boolean => flags.given.push((known, value, flag.span)),
                None if kind == Kind::Boolean => flags.given.push((known, name.sub(0..0), flag.span)),
                Some(value) if is_boolean(value.text()) => flags.given.push((known, value, flag.span)),
                Some(value) if !value.text().is_empty() => {
                    let message =
                        format!("expecting boolean value for flag --{known}, not: {}", value.text());
                    let help = format!("write --{known}, --{known}=true or --{known}=false");
                    cx.error(codes::FLAG_NOT_BOOLEAN, value.span(), message, help);
                }
                _ => {
                    let message = format!("missing a value on flag: --{known}");
                    let help = format!("write --{known}=VALUE, with no blank around '='");
                    cx.error(codes::FLAG_WITHOUT_VALUE, flag.span, message, help);
                }
            }
        }
        flags
    }

    fn find(&self, name: &str) -> Option<Slice<'a>> {
        self.given.iter().find(|(given, _, _)| *given == name).map(|&(_, value, _)| value)
    }

    /// A text, empty or not.
    pub(crate) fn raw_text(&self, name: &str) -> Option<Word> {
        self.find(name).map(Slice::word)
    }

    /// A text; an empty one counts as not given.
    pub(crate) fn text(&self, name: &str) -> Option<Word> {
        self.raw_text(name).filter(|word| !word.value.is_empty())
    }

    /// A truth value with the place of the flag.
    pub(crate) fn boolean(&self, name: &str) -> Option<Spanned<bool>> {
        let &(_, value, span) = self.given.iter().find(|(given, _, _)| *given == name)?;
        Some(Spanned::new(!value.text().eq_ignore_ascii_case("false"), span))
    }

    /// All values of a flag that may be repeated, with the places of the flags.
    pub(crate) fn list(&self, name: &'a str) -> impl Iterator<Item = (Slice<'a>, Span)> {
        self.given.iter().filter(move |(given, _, _)| *given == name).map(|&(_, value, span)| (value, span))
    }
}

fn is_boolean(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

fn unknown(cx: &Context<'_>, keyword: &str, flag: &RawFlag, name: &str, table: Table) -> Diagnostic {
    let diagnostic = cx.diagnostic(codes::UNKNOWN_FLAG, flag.span, format!("unknown flag: --{name}"));
    let keyword = keyword.to_uppercase();
    let known: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
    if let Some(near) = nearest(name, known.iter().copied()) {
        return diagnostic.help(format!("did you mean --{near}?"));
    }
    let elsewhere = match (keyword.as_str(), name) {
        ("ADD", "from" | "parents") => Some("COPY"),
        ("COPY", "checksum" | "keep-git-dir" | "unpack") => Some("ADD"),
        _ => None,
    };
    if let Some(elsewhere) = elsewhere {
        return diagnostic.help(format!("{elsewhere} has this flag, {keyword} has not"));
    }
    if known.is_empty() {
        let help =
            format!("{keyword} has no flags; what begins with '--' and is no flag goes behind a lone '--'");
        return diagnostic.help(help);
    }
    diagnostic.help(format!("{keyword} has the flags --{}", known.join(", --")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::OffsetMap;

    fn show(line: &str, escape: char) -> String {
        let map = OffsetMap::from_one(0);
        let (flags, rest) = take(Slice::new(line, &map), escape);
        let flags: Vec<_> = flags.iter().map(|f| format!("{}@{:?}", f.word.text(), f.span.range())).collect();
        format!("{} | {}", flags.join(" "), rest.text())
    }

    #[test]
    fn flags_are_cut_off_the_front() {
        for (line, expected) in [
            ("a --b", " | a --b"),
            ("--a --b=c d  e", "--a@0..3 --b=c@4..9 | d  e"),
            ("--a -- --b c", "--a@0..3 | --b c"),
            ("--a=\"b c\" d", "--a=b c@0..9 | d"),
            ("--a='b\\'c' d", "--a=b'c@0..10 | d"),
            ("--a=b\\ c d", "--a=b c@0..8 | d"),
            ("--a=b\\", "--a=b@0..6 | "),
            ("--a=\"b c", "--a=b c@0..8 | "),
            ("--", " | "),
            ("-a", " | -a"),
            ("--a=é b", "--a=é@0..6 | b"),
        ] {
            assert_eq!(show(line, '\\'), expected, "{line}");
        }
        assert_eq!(show("--a=c:\\x` y z", '`'), "--a=c:\\x y@0..11 | z");
    }

    #[test]
    fn values_point_at_the_source() {
        let map = OffsetMap::from_one(100);
        let (flags, _) = take(Slice::new("--a=\"b\"c\\d e", &map), '\\');
        let (name, value) = flags[0].parts();
        assert_eq!((name.text(), name.span()), ("a", Span::new(102, 103)));
        assert_eq!(value.map(|v| (v.text(), v.span())), Some(("bcd", Span::new(105, 110))));
    }
}
