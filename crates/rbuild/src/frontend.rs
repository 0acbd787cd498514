//! From a request to a parsed Dockerfile and what is asked of it, and from there to plans: with everything that was found wrong or
//! doubtful on the way, in one list. Runs nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_diag::{Diagnostic, Severity, SourceFile};
use rbuild_dockerfile::{Dockerfile, Parsed};
use rbuild_engine::Ports;
use rbuild_lower::{LowerOptions, Lowered, MainContext, NamedContextValue};
use rbuild_oci::Platform;
use rbuild_ports::{CancelToken, LayerId};

use crate::remote_context::Fetch;
use crate::resolve::{Resolver, Unlowered};
use crate::vertices::Vertices;
use crate::{BuildError, BuildErrorKind, BuildRequest, Context, NamedContextSource, codes, inputs};

/// A Dockerfile that was read, and how it is to be lowered, once a platform.
pub(crate) struct Frontend {
    pub(crate) source: SourceFile,
    /// Where it lies, if it is a file.
    pub(crate) path: Option<PathBuf>,
    pub(crate) file: Dockerfile,
    /// What the parser found; lint rules are not filtered yet.
    found: Vec<Diagnostic>,
    pub(crate) options: Vec<LowerOptions>,
}

/// What is to be solved, and what layers of own images are called.
pub(crate) struct Lowereds {
    pub(crate) plans: Vec<Lowered>,
    pub(crate) aliases: std::collections::HashMap<LayerId, LayerId>,
    /// Findings, in the order of the file.
    pub(crate) findings: Vec<Diagnostic>,
}

/// Why there are no plans.
pub(crate) struct Unplanned {
    pub(crate) error: Box<BuildError>,
    /// What the lint found besides.
    pub(crate) findings: Vec<Diagnostic>,
}

impl Frontend {
    /// Reads the Dockerfile and the ignore files.
    pub(crate) fn read(
        request: &BuildRequest,
        ports: &Ports,
        root: &Path,
        vertices: &Arc<Vertices>,
        cancel: &CancelToken,
    ) -> Result<Self, BuildError> {
        let (source, path, context) = definition(request, ports, root, vertices, cancel)?;
        let Parsed { file, diagnostics } = rbuild_dockerfile::parse(&source);
        let several = multi_platform(request)?;
        let host = [Platform::host()];
        let platforms = if request.platforms.is_empty() { host.as_slice() } else { &request.platforms };
        let options = platforms
            .iter()
            .map(|platform| lower_options(request, platform, several, context.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { source, path, file, found: diagnostics, options })
    }

    /// Whether the parser found errors.
    pub(crate) fn is_broken(&self) -> bool {
        self.found.iter().any(|found| found.severity == Severity::Error)
    }

    /// Lowers for every platform.
    pub(crate) fn plan(
        &self,
        request: &BuildRequest,
        ports: &Ports,
        vertices: &Arc<Vertices>,
        cancel: &CancelToken,
    ) -> Result<Lowereds, Unplanned> {
        if self.is_broken() {
            return Err(self.mistakes(vec![]));
        }
        let resolver = Resolver { ports, vertices, pull: request.pull, cancel, aliases: Mutex::default() };
        let mut plans: Vec<Lowered> = Vec::with_capacity(self.options.len());
        let mut findings: Vec<Diagnostic> = vec![];
        for options in &self.options {
            let lowered = resolver.lower(&self.file, &self.source, options);
            match lowered {
                Ok(lowered) => {
                    // The same line is found once a platform.
                    for warning in &lowered.warnings {
                        if !findings.contains(warning) {
                            findings.push(warning.clone());
                        }
                    }
                    plans.push(*lowered);
                }
                Err(Unlowered::Mistakes(mistakes)) => return Err(self.mistakes(mistakes)),
                Err(Unlowered::Other(error)) => {
                    let known = rbuild_lower::lint_stages(&self.file, &self.source, options);
                    let findings = self.with_checks(known).unwrap_or_else(|both| both);
                    let findings = findings.into_iter().filter(is_warning).collect();
                    return Err(Unplanned { error: Box::new(error), findings });
                }
            }
        }
        let findings = self.with_checks(findings).map_err(|all| self.split(all))?;
        let aliases = resolver.aliases.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Lowereds { plans, aliases, findings })
    }

    /// Everything that is wrong with the file, given what lowering found.
    pub(crate) fn mistakes(&self, mut known: Vec<Diagnostic>) -> Unplanned {
        if let Some(options) = self.options.first().filter(|_| self.is_broken()) {
            known.extend(rbuild_lower::local_mistakes(&self.file, &self.source, options));
        }
        let all = self.with_checks(known).unwrap_or_else(|all| all);
        self.split(all)
    }

    /// What the parser found and what lowering found, as the checks are configured. `Err` when the findings are errors.
    fn with_checks(&self, lowered: Vec<Diagnostic>) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
        let Some(options) = self.options.first() else { return Ok(lowered) };
        // The check configuration is the file's; it is the same for all platforms.
        let merged =
            rbuild_lower::merge_checks(&self.file, &self.source, options, self.found.clone(), lowered);
        let sorted = |mut all: Vec<Diagnostic>| {
            rbuild_lower::sort_by_place(&self.source, &mut all);
            all
        };
        merged.map(sorted).map_err(sorted)
    }

    fn split(&self, all: Vec<Diagnostic>) -> Unplanned {
        let (findings, errors) = all.into_iter().partition(is_warning);
        Unplanned { error: Box::new(BuildError::findings(errors)), findings }
    }
}

/// The Dockerfile, where it lies if it is a file, and what copies from the context read.
fn definition(
    request: &BuildRequest,
    ports: &Ports,
    root: &Path,
    vertices: &Arc<Vertices>,
    cancel: &CancelToken,
) -> Result<(SourceFile, Option<PathBuf>, MainContext), BuildError> {
    let remote = |address: &str| {
        vertices.task(&format!("[internal] load build definition from {}", without_secrets(address)))
    };
    match &request.context {
        Context::Dir(_) | Context::None => {
            let task = vertices.task("[internal] load build definition");
            let (source, path) = task.finish(inputs::dockerfile(&request.dockerfile, &request.context))?;
            let main = match &request.context {
                Context::Dir(dir) => MainContext::Local(inputs::ignore_file(dir, path.as_deref())?),
                _ => MainContext::None,
            };
            Ok((source, path, main))
        }
        Context::Git(address) => {
            let task = remote(address);
            let found = Fetch { ports, root, cancel, progress: &task }.git(request, address);
            Ok((task.finish(found)?, None, MainContext::Git(address.clone())))
        }
        Context::Http(address) => {
            let task = remote(address);
            let found = Fetch { ports, root, cancel, progress: &task }.web(request, address);
            let (source, main) = task.finish(found)?;
            Ok((source, None, main))
        }
    }
}

/// An address without what stands before its host.
fn without_secrets(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => address.to_owned(),
    }
}

/// Whether the result is one of several platforms: `BUILDKIT_MULTI_PLATFORM` makes one platform an index too.
pub(crate) fn multi_platform(request: &BuildRequest) -> Result<bool, BuildError> {
    let several = request.platforms.len() > 1;
    let asked = request.build_args.iter().rev().find(|(name, _)| name == "BUILDKIT_MULTI_PLATFORM");
    let invalid = |message: String, help: &str| {
        let diagnostic = Diagnostic::error(codes::INVALID, message).help(help);
        Err(BuildError::new(BuildErrorKind::User, diagnostic))
    };
    match asked.map(|(_, value)| value.as_str()) {
        None | Some("") => Ok(several),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") if several => invalid(
            "several platforms were asked for, and BUILDKIT_MULTI_PLATFORM forbids them".to_owned(),
            "build one platform at a time, or leave the argument out",
        ),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => invalid(
            format!("invalid BUILDKIT_MULTI_PLATFORM {other:?}: it is neither true nor false"),
            "write --build-arg BUILDKIT_MULTI_PLATFORM=1",
        ),
    }
}

fn is_warning(diagnostic: &Diagnostic) -> bool {
    diagnostic.severity == Severity::Warning
}

fn lower_options(
    request: &BuildRequest,
    platform: &Platform,
    several: bool,
    context: MainContext,
) -> Result<LowerOptions, BuildError> {
    let mut named_contexts = Vec::with_capacity(request.named_contexts.len());
    for named in &request.named_contexts {
        let value = match &named.value {
            NamedContextSource::Image(reference) => NamedContextValue::Image(reference.clone()),
            NamedContextSource::OciLayout { path, reference } => NamedContextValue::OciLayout {
                path: path.to_string_lossy().into_owned(),
                reference: reference.clone(),
            },
            NamedContextSource::Dir(dir) => NamedContextValue::Local(inputs::context_ignore_file(dir)?),
            NamedContextSource::Git(url) => NamedContextValue::Git(url.clone()),
            NamedContextSource::Http(url) => NamedContextValue::Http(url.clone()),
        };
        named_contexts.push(rbuild_lower::NamedContext {
            name: named.name.clone(),
            platform: named.platform.clone(),
            value,
        });
    }
    Ok(LowerOptions {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        labels: request.labels.clone(),
        platform: platform.clone(),
        build_platform: Platform::host(),
        implicit_platform: request.platforms.is_empty(),
        multi_platform: several,
        no_cache: request.no_cache.clone(),
        network: request.network,
        extra_hosts: request.extra_hosts.clone(),
        hostname: String::new(),
        shm_size: request.shm_size,
        ulimits: request.ulimits.clone(),
        cgroup_parent: request.cgroup_parent.clone(),
        named_contexts,
        context,
        all_stages: false,
    })
}
