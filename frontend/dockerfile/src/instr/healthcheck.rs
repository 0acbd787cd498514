//! `HEALTHCHECK NONE` and `HEALTHCHECK [flags] CMD command`.

use rbuild_diag::nearest;

use super::{Head, command, form_of, needs_arguments};
use crate::context::Context;
use crate::flags::{Flags, Kind, Table};
use crate::{Command, HealthcheckInstr, codes};

const FLAGS: Table = &[
    ("interval", Kind::Text),
    ("timeout", Kind::Text),
    ("start-period", Kind::Text),
    ("start-interval", Kind::Text),
    ("retries", Kind::Text),
];

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>) -> Option<HealthcheckInstr> {
    let text = head.rest.text();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let kind = head.rest.sub(0..end);
    let rest = head.rest.from(end).trim();
    if end == 0 {
        needs_arguments(cx, head, "HEALTHCHECK");
        return None;
    }
    let probe = command::read(cx, rest);
    let is_empty = match &probe {
        Some(Command::Shell(text)) => text.value.is_empty(),
        Some(Command::Exec(array)) => array.value.is_empty(),
        None => false,
    };
    if kind.text().eq_ignore_ascii_case("NONE") {
        // Flags are dropped in silence here, as BuildKit does.
        if !is_empty {
            let message = "HEALTHCHECK NONE takes no arguments";
            let help = "write HEALTHCHECK NONE alone, or HEALTHCHECK CMD command";
            cx.error(codes::HEALTHCHECK_NONE_ARGUMENTS, rest.span(), message, help);
        }
        return Some(HealthcheckInstr::None);
    }
    let flags = Flags::check(cx, "HEALTHCHECK", &head.flags, FLAGS);
    if !kind.text().eq_ignore_ascii_case("CMD") {
        let message = format!("unknown type \"{}\" in HEALTHCHECK (try CMD)", kind.text().to_uppercase());
        let help = match nearest(kind.text(), ["CMD", "NONE"]) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("write HEALTHCHECK CMD {text}"),
        };
        cx.error(codes::HEALTHCHECK_TYPE, kind.span(), message, help);
        return None;
    }
    if is_empty {
        let message = "missing command after HEALTHCHECK CMD";
        cx.error(codes::HEALTHCHECK_NO_COMMAND, head.span(), message, form_of("HEALTHCHECK"));
        return None;
    }
    Some(HealthcheckInstr::Cmd {
        interval: flags.text("interval"),
        timeout: flags.text("timeout"),
        start_period: flags.text("start-period"),
        start_interval: flags.text("start-interval"),
        retries: flags.text("retries"),
        command: probe?,
    })
}
