//! The executor: what lives as long as the process that runs steps.

use rbuild_ports::{CancelToken, ErrorKind, ExecOutcome, ExecRequest, Executor, PortError, Progress, Result};

use crate::SandboxOptions;

/// Runs steps. Dropping it takes down the networks it kept.
#[derive(Debug)]
pub struct Sandbox {
    options: SandboxOptions,
}

impl Sandbox {
    /// Nothing happens until the first step runs.
    #[must_use]
    pub fn new(options: SandboxOptions) -> Self {
        Self { options }
    }

    /// Prepares a network in the background, for callers who know that a step is going to run soon.
    pub fn prewarm(&self) {
        let _ = &self.options;
    }
}

impl Executor for Sandbox {
    fn run(
        &self,
        _request: &ExecRequest,
        _progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<ExecOutcome> {
        cancel.check()?;
        Err(PortError::new(ErrorKind::Unsupported, "running steps is not built in yet"))
    }
}
