//! `RUN [flags] command`.

use super::{Head, command, csv};
use crate::context::Context;
use crate::flags::{Flags, Kind, Table};
use crate::{Heredoc, InstructionKind, RunInstr};

const FLAGS: Table =
    &[("mount", Kind::List), ("network", Kind::Text), ("security", Kind::Text), ("device", Kind::List)];

pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, heredocs: Vec<Heredoc>) -> InstructionKind {
    let flags = Flags::check(cx, "RUN", &head.flags, FLAGS);
    let mounts = flags
        .list("mount")
        .filter_map(|flag| csv::parse(cx, flag, "mounts", "type=cache,target=/x"))
        .collect();
    let devices = flags
        .list("device")
        .filter_map(|flag| csv::parse(cx, flag, "devices", "vendor.com/gpu=all,required"))
        .collect();
    let Some(command) = command::read(cx, head.rest) else { return InstructionKind::Invalid };
    InstructionKind::Run(RunInstr {
        mounts,
        network: flags.raw_text("network"),
        security: flags.raw_text("security"),
        devices,
        command,
        heredocs,
    })
}
