//! `ONBUILD instruction`: the trigger's text, and the trigger itself. BuildKit checks only a trigger's form when
//! the image is built; the rest of what is wrong with it is therefore a warning.

use rbuild_diag::Spanned;

use super::{Around, Head, needs_arguments, no_flags, parse as parse_kind, suggestion};
use crate::context::Context;
use crate::{Instruction, OnbuildInstr, codes};

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, around: Around<'_>) -> Option<OnbuildInstr> {
    no_flags(cx, head);
    if head.rest.text().is_empty() {
        needs_arguments(cx, head, "ONBUILD");
        return None;
    }
    let inner = Head::split(head.rest, cx.escape);
    match inner.name {
        Some("ONBUILD") => {
            let message = "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
            cx.error(codes::ONBUILD_CHAIN, inner.keyword.span(), message, "remove one of them");
            return None;
        }
        Some(name @ ("MAINTAINER" | "FROM")) => {
            let message = format!("{name} isn't allowed as an ONBUILD trigger");
            let help = "a trigger may be any instruction but FROM, MAINTAINER and ONBUILD";
            cx.error(codes::ONBUILD_TRIGGER, inner.keyword.span(), message, help);
            return None;
        }
        _ => {}
    }
    let expression = expression(&around);
    let span = inner.keyword.span().join(around.span);
    cx.in_trigger = true;
    if !inner.is_known() {
        let message = format!("unknown instruction: {}", inner.keyword.text());
        let mut diagnostic = cx.diagnostic(codes::UNKNOWN_INSTRUCTION, inner.keyword.span(), message);
        diagnostic.help = suggestion(inner.keyword.text());
        cx.report(diagnostic);
    }
    let around = Around { line: head.rest, heredocs: around.heredocs, comments: &[], span };
    let kind = parse_kind(cx, &inner, around);
    cx.in_trigger = false;
    let trigger = Instruction {
        keyword: Spanned::new(inner.keyword.text().to_owned(), inner.keyword.span()),
        span,
        original: head.rest.text().to_owned(),
        comments: vec![],
        kind,
    };
    Some(OnbuildInstr { expression, trigger: Box::new(trigger) })
}

/// The line without its first word, bodies and their terminators appended.
fn expression(around: &Around<'_>) -> String {
    let line = around.line.text().trim_start();
    let mut text = line.get("ONBUILD".len()..).unwrap_or_default().trim_start().to_owned();
    for heredoc in &around.heredocs {
        text.push('\n');
        text.push_str(&heredoc.raw);
        text.push_str(&heredoc.name);
    }
    text
}
