//! `FROM [--platform=p] base [AS name]`.

use rbuild_diag::Spanned;

use super::Head;
use crate::context::Context;
use crate::flags::{Flags, Kind, Table};
use crate::text::Slice;
use crate::{FromInstr, InstructionKind, codes};

const FLAGS: Table = &[("platform", Kind::Text)];

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, comments: &[Spanned<String>]) -> InstructionKind {
    let flags = Flags::check(cx, "FROM", &head.flags, FLAGS);
    let words: Vec<Slice<'_>> = head.rest.fields().collect();
    let is_as = words.get(1).is_some_and(|word| word.text().eq_ignore_ascii_case("as"));
    if words.len() != 1 && !(words.len() == 3 && is_as) {
        let message = "FROM requires either one or three arguments";
        let help = "write FROM image, or FROM image AS name";
        cx.error(codes::FROM_ARGUMENTS, head.span(), message, help);
    }
    let Some(base) = words.first() else { return InstructionKind::Invalid };
    lint_casing(cx, head, &words);
    let name = if is_as { words.get(2) } else { None };
    if let Some(name) = name {
        if !is_stage_name(&name.text().to_lowercase()) {
            let message = format!(
                "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                name.text()
            );
            let help = "begin it with a letter; letters, digits, '-', '_' and '.' may follow; variables are not expanded";
            cx.error(codes::STAGE_NAME, name.span(), message, help);
        }
        lint_description(cx, comments, "FROM", &[name.text().to_lowercase()]);
    }
    InstructionKind::From(FromInstr {
        platform: flags.text("platform"),
        base: base.word(),
        as_keyword: words.get(1).filter(|_| is_as).map(|word| word.word()),
        name: name.map(|name| name.word()),
    })
}

/// In lower case.
fn is_stage_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

fn lint_casing(cx: &mut Context<'_>, head: &Head<'_>, words: &[Slice<'_>]) {
    let (Some(keyword), Some(name)) = (words.get(1), words.get(2)) else { return };
    if words.len() == 3 && name.text() != name.text().to_lowercase() {
        let message = format!("stage name '{}' should be lowercase", name.text());
        let help = format!("write {}", name.text().to_lowercase());
        cx.lint(codes::STAGE_NAME_CASING, name.span(), message, &help);
    }
    let from = head.keyword.text();
    // A keyword of mixed case is another rule's business.
    let expected = if from == from.to_lowercase() {
        keyword.text().to_lowercase()
    } else if from == from.to_uppercase() {
        keyword.text().to_uppercase()
    } else {
        return;
    };
    if keyword.text() != expected {
        let message = format!("'{}' and '{from}' keywords' casing do not match", keyword.text());
        cx.lint(codes::FROM_AS_CASING, keyword.span(), message, &format!("write {expected}"));
    }
}

/// The last comment above a definition should begin with the name that it describes. `# check=` is no exception.
pub(super) fn lint_description(
    cx: &mut Context<'_>,
    comments: &[Spanned<String>],
    keyword: &str,
    names: &[String],
) {
    let Some(comment) = comments.last() else { return };
    let first = comment.value.split(' ').next().unwrap_or_default();
    if names.iter().any(|name| name == first) {
        return;
    }
    let wanted = match names {
        [name] => format!("# {name} <description>"),
        _ => "# <arg_key> <description>".to_owned(),
    };
    let message = format!("comment for {keyword} should follow the format: `{wanted}`");
    let help = "if it is no description, put a line with a lone '#' between it and the instruction";
    cx.lint(codes::INVALID_DEFINITION_DESCRIPTION, comment.span, message, help);
}
