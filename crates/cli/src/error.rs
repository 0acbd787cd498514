//! Errors as people read them, and exit codes. The only place that knows both.

use std::process::ExitCode;

use rbuild::{BuildError, BuildErrorKind, PortError};

use crate::render::{clean, colors, eprint};
use crate::request::Usage;
use crate::{bug, messages};

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

/// Prints why it failed, and gives the exit code.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Usage(Usage(message)) => {
            messages::usage(message);
            ExitCode::from(2)
        }
        Failure::Port(error) => build(&BuildError::port(error, None)),
        Failure::Build(error) => build(error),
    }
}

fn build(error: &BuildError) -> ExitCode {
    if error.kind() == BuildErrorKind::Cancelled {
        if messages::json() {
            messages::show_error(error);
        } else {
            eprint("cancelled");
        }
        return ExitCode::from(130);
    }
    if !messages::json() && !error.log_tail.is_empty() {
        eprint("------");
        if let Some(step) = &error.step {
            eprint(&format!(" > {}:", clean(step.as_bytes(), false)));
        }
        for line in &error.log_tail {
            eprint(&clean(line.as_bytes(), colors()));
        }
        eprint("------");
    }
    messages::show_error(error);
    if error.kind() == BuildErrorKind::Internal {
        return bug::report();
    }
    ExitCode::from(1)
}
