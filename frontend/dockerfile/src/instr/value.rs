//! Instructions whose argument is the rest of the line: `WORKDIR`, `USER`, `STOPSIGNAL`, `MAINTAINER`.

use super::{Head, form_of, no_flags};
use crate::context::Context;
use crate::{Word, codes};

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, name: &str) -> Option<Word> {
    no_flags(cx, head);
    rest(cx, head, name)
}

/// Flags are dropped in silence: BuildKit does not look at them here.
pub(super) fn parse_stopsignal(cx: &mut Context<'_>, head: &Head<'_>) -> Option<Word> {
    rest(cx, head, "STOPSIGNAL")
}

pub(super) fn parse_maintainer(cx: &mut Context<'_>, head: &Head<'_>) -> Option<Word> {
    let message = "maintainer instruction is deprecated in favor of using label";
    let help =
        format!("write LABEL org.opencontainers.image.authors=\"{}\"", head.rest.text().trim_matches('"'));
    cx.lint(codes::MAINTAINER_DEPRECATED, head.span(), message, &help);
    parse(cx, head, "MAINTAINER")
}

fn rest(cx: &mut Context<'_>, head: &Head<'_>, name: &str) -> Option<Word> {
    if head.rest.text().is_empty() {
        let message = format!("{name} requires exactly one argument");
        cx.error(codes::NOT_ONE_ARGUMENT, head.keyword.span(), message, form_of(name));
        return None;
    }
    Some(head.rest.word())
}
