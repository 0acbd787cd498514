//! Instructions whose arguments are words: `EXPOSE` and `VOLUME`.

use super::{Head, copy, needs_arguments, no_flags};
use crate::context::Context;
use crate::text::Slice;
use crate::{Word, codes};

pub(super) fn parse_expose(cx: &mut Context<'_>, head: &Head<'_>) -> Option<Vec<Word>> {
    no_flags(cx, head);
    let words: Vec<Word> = head.rest.fields().map(Slice::word).collect();
    if words.is_empty() {
        needs_arguments(cx, head, "EXPOSE");
        return None;
    }
    Some(words)
}

pub(super) fn parse_volume(cx: &mut Context<'_>, head: &Head<'_>) -> Option<Vec<Word>> {
    no_flags(cx, head);
    let words = copy::words(cx, head.rest)?;
    if words.is_empty() {
        needs_arguments(cx, head, "VOLUME");
        return None;
    }
    let trimmed: Vec<Word> = words.into_iter().map(|word| word.map(|text| text.trim().to_owned())).collect();
    if let Some(empty) = trimmed.iter().find(|word| word.value.is_empty()) {
        let message = "VOLUME specified can not be an empty string";
        cx.error(codes::EMPTY_VOLUME, empty.span, message, "remove it, or write a path");
        return None;
    }
    Some(trimmed)
}
