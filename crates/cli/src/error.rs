//! Errors as people read them, and exit codes. The only place that knows both.

use std::process::ExitCode;

use rbuild::{BuildError, BuildErrorKind, Diagnostic, PortError, RenderOptions, render};

use crate::bug;
use crate::render::{clean, colors, eprint, size};
use crate::request::Usage;

/// Why a command failed.
pub(crate) enum Failure {
    /// The build failed.
    Build(Box<BuildError>),
    /// The command line is wrong.
    Usage(Usage),
    /// Something else, such as the store.
    Port(PortError),
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Build(Box::new(error))
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

/// Prints a finding.
pub(crate) fn show(diagnostic: &Diagnostic) {
    eprint(&render(diagnostic, RenderOptions { color: colors(), width: size().0 }));
}

/// Prints why it failed, and gives the exit code.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Usage(Usage(message)) => {
            eprint(&format!("error: {message}\n\nFor more information, try '--help'."));
            ExitCode::from(2)
        }
        Failure::Port(error) => {
            eprint(&format!("error: {error}"));
            if let Some(help) = &error.help {
                eprint(&format!("help: {help}"));
            }
            ExitCode::from(1)
        }
        Failure::Build(error) => build(error),
    }
}

fn build(error: &BuildError) -> ExitCode {
    if error.kind() == BuildErrorKind::Cancelled {
        eprint("cancelled");
        return ExitCode::from(130);
    }
    if !error.log_tail.is_empty() {
        eprint("------");
        if let Some(step) = &error.step {
            eprint(&format!(" > {}:", clean(step.as_bytes(), false)));
        }
        for line in &error.log_tail {
            eprint(&clean(line.as_bytes(), colors()));
        }
        eprint("------");
    }
    for diagnostic in &error.diagnostics {
        show(diagnostic);
    }
    if error.kind() == BuildErrorKind::Internal {
        return bug::report();
    }
    ExitCode::from(1)
}
