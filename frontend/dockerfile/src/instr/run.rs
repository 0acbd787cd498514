//! `RUN [flags] command`.

use rbuild_diag::Spanned;

use super::{Head, command, mount};
use crate::context::Context;
use crate::flags::{Flags, Kind, Table};
use crate::{Heredoc, InstructionKind, RunInstr};

const FLAGS: Table =
    &[("mount", Kind::List), ("network", Kind::Text), ("security", Kind::Text), ("device", Kind::List)];

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, heredocs: Vec<Heredoc>) -> InstructionKind {
    let flags = Flags::check(cx, "RUN", &head.flags, FLAGS);
    let mounts = flags.list("mount").filter_map(|(value, span)| mount::parse(cx, value, span)).collect();
    let Some(command) = command::read(cx, head.rest) else { return InstructionKind::Invalid };
    InstructionKind::Run(RunInstr {
        mounts,
        network: flags.raw_text("network"),
        security: flags.raw_text("security"),
        devices: flags
            .list("device")
            .map(|(value, span)| Spanned::new(value.text().to_owned(), span))
            .collect(),
        command,
        heredocs,
    })
}
