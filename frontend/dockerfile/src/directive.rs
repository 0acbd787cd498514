//! Parser directives: `# syntax=`, `# escape=`, `# check=`. They stand at the very head of the file; the first
//! line that is none of them ends them.

use rbuild_diag::{Span, Spanned};

/// A line that is a directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directive<'a> {
    pub(crate) name: Name,
    pub(crate) value: &'a str,
    /// Where the value begins in the line.
    pub(crate) at: usize,
}

/// The directives there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Syntax,
    Escape,
    Check,
}

impl Name {
    /// In lower case.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Escape => "escape",
            Self::Check => "check",
        }
    }
}

/// Which frontend a text asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// The frontend's image: the first word of the value.
    pub image: String,
    /// The whole value.
    pub cmdline: String,
    /// Where the value is; the whole text when it is JSON.
    pub span: Span,
}

/// Finds the frontend that a text of any language asks for: `# syntax=` or `// syntax=` at its head, perhaps
/// behind a `#!` line, or a JSON object with a member `syntax`.
#[must_use]
pub fn detect_syntax(text: &str) -> Option<Syntax> {
    let found = find(text, "#", Name::Syntax).or_else(|| find(text, "//", Name::Syntax));
    let (cmdline, span) = match found {
        Some(value) => (value.value, value.span),
        None => {
            let body = without_shebang(text);
            if !body.trim_start().starts_with('{') {
                return None;
            }
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(body).ok()?;
            let value = object.get(Name::Syntax.text())?.as_str()?.to_owned();
            return Some(Syntax { image: value.clone(), cmdline: value, span: Span::new(0, text.len()) });
        }
    };
    let image = cmdline.split(' ').next().unwrap_or_default().to_owned();
    Some(Syntax { image, cmdline, span })
}

/// The value of `# name=` at the head of a text, a `#!` line skipped.
pub(crate) fn find(text: &str, comment: &str, name: Name) -> Option<Spanned<String>> {
    let mut seen = Vec::new();
    let body = without_shebang(text);
    let mut offset = text.len() - body.len();
    for line in body.split('\n') {
        let directive = parse(line, comment)?;
        if directive.name == name {
            let start = offset + directive.at;
            let span = Span::new(start, start + directive.value.len());
            return Some(Spanned::new(directive.value.to_owned(), span));
        }
        if seen.contains(&directive.name) {
            return None;
        }
        seen.push(directive.name);
        offset += line.len() + 1;
    }
    None
}

fn without_shebang(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.strip_prefix("#!") {
        Some(line) => line.split_once('\n').map_or("", |(_, rest)| rest),
        None => text,
    }
}

/// Reads one line, which must begin with `comment`.
pub(crate) fn parse<'a>(line: &'a str, comment: &str) -> Option<Directive<'a>> {
    let is_space = |c| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let (name, rest) = line.strip_prefix(comment)?.trim_start().split_once('=')?;
    let rest_at = line.len() - rest.len();
    let name = match name.trim_end_matches(is_space).to_ascii_lowercase().as_str() {
        "syntax" => Name::Syntax,
        "escape" => Name::Escape,
        "check" => Name::Check,
        _ => return None,
    };
    let value = rest.trim_matches(is_space);
    if !value.is_empty() {
        let at = rest_at + (rest.len() - rest.trim_start_matches(is_space).len());
        return Some(Directive { name, value, at });
    }
    // Nothing but blanks: the last one is the value.
    let blank = rest.char_indices().next_back()?.0;
    Some(Directive { name, value: rest.get(blank..)?, at: rest_at + blank })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_is_found_in_many_languages() {
        for (text, image, cmdline) in [
            ("# syntax=a\nFROM b", "a", "a"),
            (
                "#syntax = docker/dockerfile:1  # rest \n",
                "docker/dockerfile:1",
                "docker/dockerfile:1  # rest",
            ),
            ("\u{feff}# SynTax=a\r\n", "a", "a"),
            ("#!/usr/bin/env x\n# syntax=a\n", "a", "a"),
            ("# escape=`\n# check=skip=all\n# syntax=a\n", "a", "a"),
            ("// syntax=a b\n", "a", "a b"),
            ("#!/x\n// syntax=a\n", "a", "a"),
            ("{\"syntax\": \"a b\", \"x\": [1]}", "a b", "a b"),
        ] {
            let syntax = detect_syntax(text).unwrap_or_else(|| panic!("nothing in {text}"));
            assert_eq!((syntax.image.as_str(), syntax.cmdline.as_str()), (image, cmdline), "{text}");
            if !text.contains('{') {
                assert_eq!(&text[syntax.span.range()], cmdline);
            }
        }
    }

    #[test]
    fn syntax_is_not_found_elsewhere() {
        for text in [
            "",
            "FROM a\n# syntax=a\n",
            "\n# syntax=a\n",
            "# comment\n# syntax=a\n",
            "# key=value\n# syntax=a\n",
            "#!/x\n\n# syntax=a\n",
            "# escape=`\n# escape=`\n# syntax=a\n",
            "  # syntax=a\n",
            "# syntax=\n",
            "# syn tax=a",
            "{\"syntax\": 1}",
            "{\"syntax\": \"a\"",
            "[]",
        ] {
            assert_eq!(detect_syntax(text), None, "{text}");
        }
    }
}
