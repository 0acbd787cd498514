//! Lowering of instructions, a file each (as in the parser), and what decides which is which.

mod args;
mod copy;
mod device;
mod entry;
mod expose;
mod fileop;
mod mount;
mod remote;
mod run;
mod settings;
pub(crate) mod workdir;

use rbuild_dockerfile::{Instruction, InstructionKind};

use crate::ctx::{At, Ctx};
use crate::stage::{Run, Stages};
use crate::stages::Plan;

/// Whether step names count it.
pub(crate) fn is_step(instruction: &Instruction) -> bool {
    matches!(
        instruction.kind,
        InstructionKind::Run(_)
            | InstructionKind::Copy(_)
            | InstructionKind::Add(_)
            | InstructionKind::Workdir(_)
    )
}

/// Lowers one instruction of a stage. What is wrong with it goes to the errors; the next ones are still looked at.
pub(crate) fn lower(ctx: &mut Ctx<'_>, plan: &Plan<'_>, stages: &Stages, run: &mut Run<'_>, at: At<'_>) {
    let result = match &at.instruction.kind {
        InstructionKind::From(_) | InstructionKind::Invalid => Ok(()),
        InstructionKind::Run(instr) => run::lower(ctx, plan, stages, run, at, instr),
        InstructionKind::Copy(instr) => copy::lower(ctx, plan, stages, run, at, instr, false),
        InstructionKind::Add(instr) => copy::lower(ctx, plan, stages, run, at, instr, true),
        InstructionKind::Env(instr) => args::env(ctx, run, at, instr),
        InstructionKind::Label(instr) => args::label(ctx, run, at, instr),
        InstructionKind::Arg(instr) => args::arg(ctx, run, at, instr),
        InstructionKind::Workdir(path) => workdir::lower(ctx, run, at, path),
        InstructionKind::User(user) => settings::user(ctx, run, at, user),
        InstructionKind::Expose(ports) => expose::lower(ctx, run, at, ports),
        InstructionKind::Volume(paths) => settings::volume(ctx, run, at, paths),
        InstructionKind::Cmd(command) => {
            entry::cmd(ctx, run, at, command);
            Ok(())
        }
        InstructionKind::Entrypoint(command) => {
            entry::entrypoint(ctx, run, at, command);
            Ok(())
        }
        InstructionKind::Shell(words) => {
            settings::shell(ctx, run, &words.value);
            Ok(())
        }
        InstructionKind::StopSignal(signal) => settings::stop_signal(ctx, run, at, signal),
        InstructionKind::Healthcheck(instr) => entry::healthcheck(ctx, run, at, instr),
        InstructionKind::Onbuild(instr) => {
            run.state.image.edit().on_build.push(instr.expression.clone());
            Ok(())
        }
        InstructionKind::Maintainer(name) => {
            settings::maintainer(ctx, run, &name.value);
            Ok(())
        }
    };
    if let Err(fault) = result {
        ctx.fail(fault);
    }
}
