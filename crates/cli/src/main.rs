//! The `rbuild` command: arguments, environment, terminal and exit codes. All work is the library's.

mod args;
mod bug;
mod commands;
mod environment;
mod error;
mod messages;
mod render;
mod request;
mod signals;

use std::process::ExitCode;

use crate::args::{Command, DebugCommand};

fn main() -> ExitCode {
    let cli = args::parse();
    bug::guarded(|| {
        let result = match &cli.command {
            Command::Build(args) => commands::build::run(&cli, args),
            Command::Plan(args) => commands::plan::run(&cli, args),
            Command::Why(args) => commands::why::run(&cli, args),
            Command::Debug(DebugCommand::Key(args)) => commands::why::keys(&cli, args),
            Command::ExplainCode(args) => commands::explain_code::run(args),
            Command::Images(args) => commands::store::images(&cli, args),
            Command::Du(args) => commands::store::du(&cli, args),
            Command::Check(args) => commands::check::run(&cli, args),
            Command::Prune(args) => commands::store::prune(&cli, args),
        };
        match result {
            Ok(_) if render::output_lost() => ExitCode::FAILURE,
            Ok(code) => code,
            Err(failure) => error::report(&failure),
        }
    })
}
