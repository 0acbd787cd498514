//! Questions about a Dockerfile that run no step: its build checks, what its target takes from outside, which targets it has.

use std::sync::Arc;

use rbuild_diag::{Diagnostic, SourceFile, Span};
use rbuild_dockerfile::InstructionKind;
use rbuild_lower::Outline;
use rbuild_ports::CancelToken;

use crate::frontend::Frontend;
use crate::vertices::Vertices;
use crate::{BuildError, BuildEvents, BuildRequest, Builder};

/// What the build checks found.
#[derive(Debug)]
pub struct CheckReport {
    /// The Dockerfile.
    pub source: SourceFile,
    /// Where each instruction stands, in the order of the file.
    pub instructions: Vec<Span>,
    /// Findings, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// Why the file cannot be built, as far as that shows without building it.
    pub error: Option<BuildError>,
}

/// What a target takes from outside.
#[derive(Clone, Debug)]
pub struct OutlineReport {
    /// The Dockerfile.
    pub source: SourceFile,
    /// It.
    pub outline: Outline,
}

/// The stages of a Dockerfile.
#[derive(Clone, Debug)]
pub struct TargetList {
    /// The Dockerfile.
    pub source: SourceFile,
    /// In the order of the file.
    pub targets: Vec<Target>,
}

/// One stage, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name in lower case; empty when it has none.
    pub name: String,
    /// It is built when no target is asked for.
    pub default: bool,
    /// From the comment above its `FROM`.
    pub description: String,
    /// What it starts from, not expanded.
    pub base: String,
    /// `--platform`, not expanded.
    pub platform: String,
    /// Place of its `FROM`.
    pub span: Span,
}

impl Builder {
    /// Runs the build checks: on the target and what it needs, or on all stages when no target is asked for. Images are resolved.
    ///
    /// # Errors
    /// If there is no Dockerfile to check; what is wrong with it is in the report.
    pub fn check(
        &self,
        request: &BuildRequest,
        events: Arc<dyn BuildEvents>,
        cancel: &CancelToken,
    ) -> Result<CheckReport, BuildError> {
        let vertices = Vertices::new(events, self.store.clock());
        let ports = self.store.session(request, &vertices);
        let mut frontend = Frontend::read(request, &ports, self.store.path(), &vertices, cancel)?;
        frontend.options.truncate(1);
        for options in &mut frontend.options {
            options.all_stages = options.target.as_deref().unwrap_or_default().is_empty();
        }
        let (warnings, error) = match frontend.plan(request, &ports, &vertices, cancel) {
            Ok(plans) => (plans.findings, None),
            Err(unplanned) => (unplanned.findings, Some(*unplanned.error)),
        };
        let instructions = frontend.file.instructions.iter().map(|instruction| instruction.span).collect();
        Ok(CheckReport { source: frontend.source, instructions, warnings, error })
    }

    /// What the target takes from outside. Images are resolved.
    ///
    /// # Errors
    /// As `plan`.
    pub fn outline(
        &self,
        request: &BuildRequest,
        events: Arc<dyn BuildEvents>,
        cancel: &CancelToken,
    ) -> Result<OutlineReport, BuildError> {
        let vertices = Vertices::new(events, self.store.clock());
        let ports = self.store.session(request, &vertices);
        let mut frontend = Frontend::read(request, &ports, self.store.path(), &vertices, cancel)?;
        frontend.options.truncate(1);
        let plans =
            frontend.plan(request, &ports, &vertices, cancel).map_err(|unplanned| *unplanned.error)?;
        let outline = plans.plans.into_iter().next().map(|plan| plan.outline).unwrap_or_default();
        Ok(OutlineReport { source: frontend.source, outline })
    }

    /// The file's stages. Nothing is resolved.
    ///
    /// # Errors
    /// If there is no Dockerfile, or it cannot be parsed.
    pub fn targets(
        &self,
        request: &BuildRequest,
        events: Arc<dyn BuildEvents>,
        cancel: &CancelToken,
    ) -> Result<TargetList, BuildError> {
        let vertices = Vertices::new(events, self.store.clock());
        let ports = self.store.session(request, &vertices);
        let frontend = Frontend::read(request, &ports, self.store.path(), &vertices, cancel)?;
        if frontend.is_broken() {
            return Err(*frontend.mistakes(vec![]).error);
        }
        let froms = frontend.file.instructions.iter().filter_map(|instruction| match &instruction.kind {
            InstructionKind::From(from) => Some((instruction, from)),
            _ => None,
        });
        let mut targets: Vec<Target> = froms
            .map(|(instruction, from)| {
                let name = from.name.as_ref().map(|name| name.value.to_lowercase()).unwrap_or_default();
                Target {
                    description: rbuild_lower::description(&instruction.comments, &name),
                    name,
                    default: false,
                    base: from.base.value.clone(),
                    platform: from.platform.as_ref().map(|word| word.value.clone()).unwrap_or_default(),
                    span: instruction.span,
                }
            })
            .collect();
        if let Some(last) = targets.last_mut() {
            last.default = true;
        }
        Ok(TargetList { source: frontend.source, targets })
    }
}
