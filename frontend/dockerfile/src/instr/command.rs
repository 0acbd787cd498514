//! `CMD`, `ENTRYPOINT`, `SHELL`, and the command of every instruction that has one: shell form or JSON form.

use rbuild_diag::Spanned;

use super::{Head, needs_arguments, no_flags, not_strings};
use crate::context::Context;
use crate::text::Slice;
use crate::{Command, codes, json};

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, _name: &'static str) -> Option<Command> {
    no_flags(cx, head);
    read(cx, head.rest)
}

pub(super) fn parse_shell(cx: &mut Context<'_>, head: &Head<'_>) -> Option<Spanned<Vec<String>>> {
    no_flags(cx, head);
    match read(cx, head.rest)? {
        Command::Exec(array) if !array.value.is_empty() => Some(array),
        Command::Shell(text) if !text.value.is_empty() => {
            let message = "SHELL requires the arguments to be in JSON form";
            let diagnostic = cx.diagnostic(codes::SHELL_NOT_JSON, text.span, message);
            cx.report(diagnostic.help(if has_windows_path(&text.value) {
                "a backslash is written twice in JSON: [\"c:\\\\path\\\\to\\\\shell.exe\", \"/c\"]"
            } else {
                "write SHELL [\"/bin/sh\", \"-c\"]"
            }));
            None
        }
        _ => {
            needs_arguments(cx, head, "SHELL");
            None
        }
    }
}

/// `None` when it is a JSON array of other things than strings. No command at all is an empty shell form.
pub(super) fn read(cx: &mut Context<'_>, rest: Slice<'_>) -> Option<Command> {
    match json::array(rest.text()) {
        json::Json::Strings(strings) => {
            let strings = strings.into_iter().map(|(string, _)| string).collect();
            Some(Command::Exec(Spanned::new(strings, rest.span())))
        }
        json::Json::No => Some(Command::Shell(rest.word())),
        json::Json::Other(place) => {
            not_strings(cx, rest.sub(place));
            None
        }
    }
}

/// Whether it looks like an array that failed as JSON for the sake of a drive's path.
fn has_windows_path(text: &str) -> bool {
    let drive = |at: usize| text.as_bytes().get(at.wrapping_sub(1)).is_some_and(u8::is_ascii_alphabetic);
    text.starts_with('[') && !text.contains("\\\\") && text.match_indices(":\\").any(|(at, _)| drive(at))
}
