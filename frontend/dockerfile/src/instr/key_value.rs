//! `ENV` and `LABEL`: `key=value …`, or `key the rest of the line`. Also the words that `ARG` shares with them.

use super::{Head, form_of, needs_arguments, no_flags};
use crate::context::Context;
use crate::text::{Slice, is_blank};
use crate::{KeyValue, KeyValues, codes};

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, name: &'static str) -> Option<KeyValues> {
    no_flags(cx, head);
    let words = quoted_words(head.rest, cx.escape);
    let Some(first) = words.first() else {
        needs_arguments(cx, head, name);
        return None;
    };
    if !first.text().contains('=') {
        return legacy(cx, head, name);
    }
    let pairs = words.into_iter().filter_map(|word| pair(cx, word, name)).collect();
    Some(KeyValues { pairs, legacy: false })
}

fn pair(cx: &mut Context<'_>, word: Slice<'_>, name: &str) -> Option<KeyValue> {
    let Some((key, value)) = word.split_once('=') else {
        let message = format!(
            "Syntax error - can't find = in \"{}\". Must be of the form: name=value",
            word.text().escape_debug()
        );
        let diagnostic = cx.diagnostic(codes::NO_EQUALS_SIGN, word.span(), message);
        cx.report_form(diagnostic.help("put quotes around a value with blanks in it"));
        return None;
    };
    if key.text().is_empty() {
        cx.error(codes::BLANK_NAME, word.span(), format!("{name} names can not be blank"), form_of(name));
        return None;
    }
    Some(KeyValue { key: key.word(), value: value.word() })
}

fn legacy(cx: &mut Context<'_>, head: &Head<'_>, name: &str) -> Option<KeyValues> {
    let text = head.rest.text();
    let Some(end) = text.find(is_blank) else {
        let diagnostic =
            cx.diagnostic(codes::NO_VALUE, head.rest.span(), format!("{name} must have two arguments"));
        cx.report_form(diagnostic.help(format!("write {name} {text}=value")));
        return None;
    };
    let key = head.rest.sub(0..end);
    let after = head.rest.from(end);
    let blanks = after.text().find(|c| !is_blank(c)).unwrap_or(0);
    let pair = KeyValue { key: key.word(), value: after.from(blanks).word() };
    Some(KeyValues { pairs: vec![pair], legacy: true })
}

/// Words between white space that is neither quoted nor escaped. Quotes and escapes stay in them, but for an
/// escape character at the very end.
pub(super) fn quoted_words(text: Slice<'_>, escape: char) -> Vec<Slice<'_>> {
    let mut words = Vec::new();
    let mut start = 0;
    let mut end = text.text().len();
    let mut quote = None;
    let mut chars = text.text().char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                words.push(text.sub(start..at));
                start = at + c.len_utf8();
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape && quote != Some('\'') && chars.next().is_none() => end = at,
            _ => {}
        }
    }
    words.push(text.sub(start..end));
    words.retain(|word| !word.text().is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::OffsetMap;

    #[test]
    fn words_keep_quotes_and_escapes() {
        let map = OffsetMap::from_one(0);
        for (line, escape, expected) in [
            ("a=b c=d", '\\', vec!["a=b", "c=d"]),
            ("a=\"b c\" d='e f'g", '\\', vec!["a=\"b c\"", "d='e f'g"]),
            ("a=b\\ c d", '\\', vec!["a=b\\ c", "d"]),
            ("a=\"b\\\" c\" d", '\\', vec!["a=\"b\\\" c\"", "d"]),
            ("a='b\\' c", '\\', vec!["a='b\\'", "c"]),
            ("a=b\\", '\\', vec!["a=b"]),
            ("a=\"b\\", '\\', vec!["a=\"b"]),
            ("a=\"b c", '\\', vec!["a=\"b c"]),
            ("a=c:\\ b` c", '`', vec!["a=c:\\", "b` c"]),
            ("\\", '\\', vec![]),
            ("a\u{a0}b", '\\', vec!["a", "b"]),
        ] {
            let words = quoted_words(Slice::new(line, &map), escape);
            assert_eq!(words.iter().map(|word| word.text()).collect::<Vec<_>>(), expected, "{line}");
        }
    }
}
