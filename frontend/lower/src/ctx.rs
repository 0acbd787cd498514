//! What every part of one `lower` call shares: the request, the global arguments, findings and errors, the draft of
//! the graph, the facts that turned out to be missing.

use std::collections::HashMap;

use rbuild_diag::{Diagnostic, SourceFile, Span};
use rbuild_dockerfile::{Dockerfile, ExpandError, Instruction, InstructionKind, Word, expand_word};
use rbuild_graph::{Place, ProxyEnv};
use rbuild_oci::Platform;

use crate::codes;
use crate::draft::Draft;
use crate::env::Env;
use crate::fault::Fault;
use crate::ignore::Ignored;
use crate::lint::{Lint, Rule};
use crate::outline::Capture;
use crate::sources::Contexts;
use crate::{Facts, LowerOptions, Needs};

/// Shared by one call.
pub(crate) struct Ctx<'a> {
    pub(crate) parsed: &'a Dockerfile,
    pub(crate) source: &'a SourceFile,
    pub(crate) options: &'a LowerOptions,
    pub(crate) facts: &'a Facts,
    /// Build arguments by name; `SOURCE_DATE_EPOCH` is a number here, or absent.
    pub(crate) build_args: HashMap<String, String>,
    /// Platform arguments and those declared before the first `FROM`.
    pub(crate) globals: Env,
    /// As declared before the first `FROM`, for people.
    pub(crate) global_args: Vec<(String, Option<String>)>,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub(crate) epoch: Option<i64>,
    pub(crate) proxy: ProxyEnv,
    pub(crate) hostname: String,
    pub(crate) cache_namespace: String,
    pub(crate) lint: Lint,
    /// Warnings that are no findings of a lint rule.
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) draft: Draft,
    pub(crate) needs: Needs,
    pub(crate) contexts: Contexts,
    pub(crate) ignored: Ignored,
    pub(crate) outline: Capture,
}

/// An instruction and the text it stands in.
#[derive(Clone, Copy)]
pub(crate) struct At<'b> {
    /// The Dockerfile, or the text of a trigger from a base image.
    pub(crate) file: &'b SourceFile,
    pub(crate) instruction: &'b Instruction,
    /// For triggers of base images: the `FROM` that brings them in. Steps show this place.
    pub(crate) from: Option<&'b Instruction>,
}

impl At<'_> {
    /// An error at `span` of this text.
    pub(crate) fn error(&self, code: &'static str, span: Span, message: impl Into<String>) -> Fault {
        let fault = Fault::error(code, message).at(self.file, span);
        match self.from {
            Some(from) => fault.note(format!("it is an ONBUILD trigger that {:?} brings in", from.original)),
            None => fault,
        }
    }
}

impl<'a> Ctx<'a> {
    pub(crate) fn new(
        parsed: &'a Dockerfile,
        source: &'a SourceFile,
        options: &'a LowerOptions,
        facts: &'a Facts,
    ) -> Self {
        let (config, problems) = crate::lint::config(parsed, source, options);
        let (errors, warnings) =
            problems.into_iter().partition(|it| it.severity == rbuild_diag::Severity::Error);
        let build_args: HashMap<String, String> = options.build_args.iter().cloned().collect();
        let arg = |name: &str| build_args.get(name).filter(|value| !value.is_empty()).cloned();
        Self {
            parsed,
            source,
            options,
            facts,
            globals: Env::default(),
            global_args: vec![],
            epoch: None,
            proxy: proxy_env(options),
            hostname: arg("BUILDKIT_SANDBOX_HOSTNAME").unwrap_or_else(|| options.hostname.clone()),
            cache_namespace: arg("BUILDKIT_CACHE_MOUNT_NS").unwrap_or_default(),
            build_args,
            lint: Lint::new(config),
            warnings,
            errors,
            draft: Draft::default(),
            needs: Needs::default(),
            contexts: Contexts::new(options),
            ignored: Ignored::default(),
            outline: Capture::default(),
        }
    }

    /// Notes an error.
    pub(crate) fn fail(&mut self, fault: Fault) {
        if let Fault::New(diagnostic) = fault {
            self.errors.push(*diagnostic);
        }
    }

    /// The platform of operations that depend on none.
    pub(crate) fn any_platform(&self) -> Platform {
        self.options.build_platform.normalized()
    }

    /// Notes a finding of a lint rule.
    pub(crate) fn warn(
        &mut self,
        rule: Rule,
        at: At<'_>,
        span: Span,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let mut finding = Diagnostic::warning(rule.name, message).at(at.file, span);
        if let Some(from) = at.from {
            // As in BuildKit, the finding is the stage's that runs the trigger.
            let trigger = at.instruction.original.trim();
            finding = finding.at(self.source, from.span);
            finding.notes.push(format!("its base brings in the ONBUILD trigger {trigger:?}"));
        }
        finding.help = help;
        self.lint.warn(rule, &at.instruction.comments, finding);
    }

    /// The place that a step shows.
    pub(crate) fn place(&self, at: At<'_>) -> Place {
        match at.from {
            Some(from) => Place { file: self.source.clone(), span: from.span },
            None => Place { file: at.file.clone(), span: at.instruction.span },
        }
    }

    /// Expands a word with the variables of a stage; unset ones are findings unless `declared`.
    pub(crate) fn expand(
        &mut self,
        env: &Env,
        declared: &dyn Fn(&str) -> bool,
        at: At<'_>,
        word: &Word,
    ) -> Result<String, Fault> {
        let escape = self.parsed.directives.escape;
        if is_plain(&word.value, escape) {
            return Ok(word.value.clone());
        }
        let expanded = expand_word(&word.value, escape, &|name| env.get(name).map(str::to_owned))
            .map_err(|error| expand_error(at, word, &error))?;
        self.report_unset(env, declared, at, word.span, &expanded.unmatched);
        Ok(expanded.value)
    }

    /// Notes variables that are neither set nor declared.
    pub(crate) fn report_unset(
        &mut self,
        env: &Env,
        declared: &dyn Fn(&str) -> bool,
        at: At<'_>,
        span: Span,
        unmatched: &[String],
    ) {
        for name in unmatched.iter().filter(|name| !declared(name) && !crate::args::is_scan_arg(name)) {
            let help = rbuild_diag::nearest(name, env.names()).map(|near| format!("did you mean ${near}?"));
            self.warn(
                crate::lint::UNDEFINED_VAR,
                at,
                span,
                format!("variable ${name} is not defined here"),
                help,
            );
        }
    }
}

/// Whether expansion leaves the word as it is.
fn is_plain(word: &str, escape: char) -> bool {
    !word.contains(['$', '\'', '"', escape])
}

/// An expansion that failed, at its place in the word.
pub(crate) fn expand_error(at: At<'_>, word: &Word, error: &ExpandError) -> Fault {
    let length = word.span.end.saturating_sub(word.span.start) as usize;
    let span = if length == word.value.len() && error.offset < length {
        Span::new(word.span.start as usize + error.offset, word.span.end as usize)
    } else {
        word.span
    };
    let fault =
        at.error(codes::EXPANSION, span, format!("cannot expand {:?}: {}", word.value, error.message));
    fault.help(expansion_help(&at.instruction.kind, &error.message))
}

fn expansion_help(kind: &InstructionKind, message: &str) -> &'static str {
    let list =
        matches!(kind, InstructionKind::Copy(_) | InstructionKind::Add(_) | InstructionKind::Volume(_));
    if message.contains("-quote") && list {
        // The word is half of what was meant.
        "blanks part paths whether quoted or not: write a path with blanks in JSON, [\"a b\", \"c\"]"
    } else if message.contains("-quote") {
        "close the quote, or put the escape character before one that is meant literally"
    } else if message.contains("missing '/'") {
        "write ${NAME/pattern/replacement}"
    } else if message.contains("missing '}'") {
        "close it with }, or escape a $ that is meant literally"
    } else if message.starts_with("unsupported modifier") {
        "after the name may follow one of :- - :+ + :? ? # ## % %% / //"
    } else if message.starts_with("invalid pattern") {
        "in a pattern * and ? match; a backslash may stand only before * ? / } or another backslash"
    } else if ["syntax error", "unexpected"].iter().any(|start| message.starts_with(start)) {
        "escape a $ that is meant literally, or put single quotes around it"
    } else {
        "set the variable with ARG or ENV before this line, or pass it with --build-arg"
    }
}

/// The proxy variables that build arguments set, in any case of letters; later names in byte order win.
fn proxy_env(options: &LowerOptions) -> ProxyEnv {
    let mut args: Vec<&(String, String)> = options.build_args.iter().collect();
    args.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = ProxyEnv::default();
    for (name, value) in args {
        let slot = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut out.http_proxy,
            "https_proxy" => &mut out.https_proxy,
            "ftp_proxy" => &mut out.ftp_proxy,
            "no_proxy" => &mut out.no_proxy,
            "all_proxy" => &mut out.all_proxy,
            _ => continue,
        };
        value.clone_into(slot);
    }
    out
}
