//! Build checks: the table of rules, what switches them off or on (`# check=`, a comment above an instruction, the
//! build argument `BUILDKIT_DOCKERFILE_CHECK`), and what they look for. Findings are warnings whose code is the
//! rule's name. Some rules are the parser's, which knows no configuration: `apply_check` filters its findings.

use std::collections::BTreeSet;

use rbuild_diag::{Diagnostic, SourceFile, Spanned};
use rbuild_dockerfile::{Dockerfile, Instruction};

use crate::codes;
use crate::{LowerOptions, gotext};

/// A rule: its name, what it is about, and whether it must be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As in `# check=skip=NAME`.
    pub name: &'static str,
    /// What it finds.
    pub description: &'static str,
    /// Only on with `experimental=`.
    pub experimental: bool,
}

macro_rules! rules {
    ($($ident:ident, $name:literal, $experimental:literal, $description:literal;)*) => {
        $(pub(crate) const $ident: Rule =
            Rule { name: $name, description: $description, experimental: $experimental };)*
        /// All rules, those of the parser included.
        pub const RULES: &[Rule] = &[$($ident),*];
    };
}

rules! {
    STAGE_NAME_CASING, "StageNameCasing", false, "stage names should be lower-case";
    FROM_AS_CASING, "FromAsCasing", false, "AS should be written in the case of FROM";
    NO_EMPTY_CONTINUATION, "NoEmptyContinuation", false, "empty lines inside an instruction will become errors";
    INSTRUCTION_CASING, "ConsistentInstructionCasing", false, "all instructions of a file should be written in one case";
    DUPLICATE_STAGE_NAME, "DuplicateStageName", false, "stage names should be unique";
    RESERVED_STAGE_NAME, "ReservedStageName", false, "stages should not be called scratch or context";
    JSON_ARGS, "JSONArgsRecommended", false, "CMD and ENTRYPOINT in shell form do not receive signals";
    MAINTAINER, "MaintainerDeprecated", false, "MAINTAINER is deprecated in favour of a label";
    UNDEFINED_ARG_IN_FROM, "UndefinedArgInFrom", false, "FROM should only use declared arguments";
    WORKDIR_RELATIVE, "WorkdirRelativePath", false, "a first WORKDIR that is relative depends on the base image";
    UNDEFINED_VAR, "UndefinedVar", false, "variables should be defined before they are used";
    MULTIPLE_INSTRUCTIONS, "MultipleInstructionsDisallowed", false, "only the last CMD, ENTRYPOINT or HEALTHCHECK counts";
    LEGACY_KEY_VALUE, "LegacyKeyValueFormat", false, "KEY=value should be used instead of KEY value";
    INVALID_BASE_PLATFORM, "InvalidBaseImagePlatform", false, "the base image is of another platform";
    REDUNDANT_PLATFORM, "RedundantTargetPlatform", false, "--platform=$TARGETPLATFORM is the default";
    SECRETS_IN_ENV, "SecretsUsedInArgOrEnv", false, "secrets in ARG or ENV stay in the image";
    INVALID_DEFAULT_ARG, "InvalidDefaultArgInFrom", false, "FROM should be valid with the arguments' defaults";
    CONST_PLATFORM, "FromPlatformFlagConstDisallowed", false, "--platform of FROM should not be a constant";
    COPY_IGNORED, "CopyIgnoredFile", false, "the ignore file excludes what is copied";
    DEFINITION_DESCRIPTION, "InvalidDefinitionDescription", true, "comments above FROM and ARG should describe their name";
    EXPOSE_CASING, "ExposeProtoCasing", false, "the protocol of EXPOSE should be lower-case";
    EXPOSE_FORMAT, "ExposeInvalidFormat", false, "EXPOSE takes no host address or port";
}

/// Which rules are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    skip_all: bool,
    skip: BTreeSet<String>,
    experimental_all: bool,
    experimental: BTreeSet<String>,
    error: bool,
}

impl Config {
    /// Reads `skip=A,B;error=true;experimental=all`. Of an option that is given twice the last list counts, and `all`
    /// stays.
    fn parse(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        if text.trim().is_empty() {
            return Ok(out);
        }
        for option in text.splitn(3, ';') {
            let Some((key, value)) = option.split_once('=') else {
                return Err(format!("invalid check option {option:?}: it has no value"));
            };
            let (key, value) = (key.trim(), value.trim());
            let names = || value.split(',').map(|name| name.trim().to_owned()).filter(|n| !n.is_empty());
            match key {
                "skip" if value == "all" => out.skip_all = true,
                "skip" => out.skip = names().collect(),
                "experimental" if value == "all" => out.experimental_all = true,
                "experimental" => out.experimental = names().collect(),
                "error" => {
                    out.error = gotext::parse_bool(value).ok_or_else(|| {
                        format!("invalid check option {option:?}: {value:?} is neither true nor false")
                    })?;
                }
                _ => return Err(format!("unknown check option {key:?}")),
            }
        }
        Ok(out)
    }

    fn allows(&self, rule: Rule) -> bool {
        if rule.experimental {
            self.experimental_all || self.experimental.contains(rule.name)
        } else {
            !self.skip_all && !self.skip.contains(rule.name)
        }
    }
}

/// The configuration of a file, and what is wrong with it.
pub(crate) fn config(
    parsed: &Dockerfile,
    source: &SourceFile,
    options: &LowerOptions,
) -> (Config, Vec<Diagnostic>) {
    let from_args = options.build_args.iter().rev().find(|(name, _)| name == "BUILDKIT_DOCKERFILE_CHECK");
    let (text, span) = match (from_args, &parsed.directives.check) {
        (Some((_, text)), _) => (text.as_str(), None),
        (None, Some(directive)) => (first_word(&directive.value), Some(directive.span)),
        (None, None) => return (Config::default(), vec![]),
    };
    let ignored = span.and(parsed.directives.check.as_ref()).and_then(|directive| {
        let rest = directive.value.get(text.len()..).unwrap_or_default();
        let message = format!("the check directive ends at the first blank: {:?} is ignored", rest.trim());
        let warning = Diagnostic::warning(codes::NO_SUCH_CHECK, message).at(source, directive.span);
        (!rest.trim().is_empty()).then(|| warning.help("write it without blanks"))
    });
    let at = |diagnostic: Diagnostic| match span {
        Some(span) => diagnostic.at(source, span),
        None => diagnostic.note("it was given as build argument BUILDKIT_DOCKERFILE_CHECK"),
    };
    match Config::parse(text) {
        Ok(config) => {
            let problems = unknown_rules(&config).map(&at).chain(ignored).collect();
            (config, problems)
        }
        Err(reason) => {
            let error = Diagnostic::error(codes::CHECK_OPTION, reason)
                .help("write for example: # check=skip=JSONArgsRecommended;error=true");
            (Config::default(), vec![at(error)])
        }
    }
}

fn unknown_rules(config: &Config) -> impl Iterator<Item = Diagnostic> {
    config
        .skip
        .iter()
        .chain(&config.experimental)
        .filter(|name| RULES.iter().all(|rule| rule.name != *name))
        .map(|name| {
            let warning =
                Diagnostic::warning(codes::NO_SUCH_CHECK, format!("there is no build check {name:?}"));
            match rbuild_diag::nearest(name, RULES.iter().map(|rule| rule.name)) {
                Some(near) => warning.help(format!("did you mean {near}?")),
                None => warning,
            }
        })
}

/// Collects findings.
#[derive(Debug, Default)]
pub(crate) struct Lint {
    config: Config,
    findings: Vec<Diagnostic>,
}

impl Lint {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, findings: vec![] }
    }

    /// Whether `rule` is on for an instruction with these comments above it.
    pub(crate) fn allows(&self, rule: Rule, comments: &[Spanned<String>]) -> bool {
        match comments.iter().find_map(|comment| check_comment(&comment.value)) {
            None => self.config.allows(rule),
            Some(own) if rule.experimental => self.config.allows(rule) || own.allows(rule),
            Some(own) => self.config.allows(rule) && own.allows(rule),
        }
    }

    /// Notes a finding of `rule`, if it is on.
    pub(crate) fn warn(&mut self, rule: Rule, comments: &[Spanned<String>], finding: Diagnostic) {
        if self.allows(rule, comments) {
            self.findings.push(finding);
        }
    }

    /// Whether the findings are an error.
    pub(crate) fn fails(&self) -> bool {
        self.config.error && !self.findings.is_empty()
    }

    /// The findings, and an error if there are some and `error=true`.
    pub(crate) fn finish(self) -> (Vec<Diagnostic>, Option<Diagnostic>) {
        let error = violation(&self.config, &self.findings);
        (self.findings, error)
    }
}

/// Directives and comments end at the first blank, as in BuildKit; the build argument does not.
fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// The configuration that a comment such as `check=skip=Rule` gives.
fn check_comment(comment: &str) -> Option<Config> {
    let (key, value) = comment.split_once('=')?;
    if !key.trim().eq_ignore_ascii_case("check") {
        return None;
    }
    Config::parse(first_word(value.trim_start())).ok()
}

fn violation(config: &Config, findings: &[Diagnostic]) -> Option<Diagnostic> {
    let rules = findings.iter().filter(|finding| rule(finding.code).is_some());
    let codes: BTreeSet<&str> = rules.map(|finding| finding.code).collect();
    if !config.error || codes.is_empty() {
        return None;
    }
    let codes: Vec<&str> = codes.into_iter().collect();
    Some(
        Diagnostic::error(codes::CHECK_FAILED, format!("build checks failed: {}", codes.join(", ")))
            .note("the file's check directive, or BUILDKIT_DOCKERFILE_CHECK, has error=true")
            .help(format!("correct the findings, or skip a rule: # check=skip={}", codes.join(","))),
    )
}

/// The rule of that name.
#[must_use]
pub fn rule(name: &str) -> Option<Rule> {
    RULES.iter().find(|rule| rule.name == name).copied()
}

/// Joins what the parser found, which knows no configuration, with what lowering found: findings whose rule is off
/// are left out; what is no finding of a rule is kept.
///
/// # Errors
/// If the configuration has `error=true` and something was found: everything, and the error.
pub fn merge_checks(
    parsed: &Dockerfile,
    source: &SourceFile,
    options: &LowerOptions,
    found: Vec<Diagnostic>,
    lowered: Vec<Diagnostic>,
) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let (config, _) = config(parsed, source, options);
    let comments = |finding: &Diagnostic| -> &[Spanned<String>] {
        let Some((_, span)) = &finding.place else { return &[] };
        let at = parsed.instructions.partition_point(|instruction| instruction.span.end <= span.start);
        parsed.instructions.get(at).map_or(&[], |instruction| &instruction.comments)
    };
    let lint = Lint::new(config.clone());
    let on =
        |finding: &Diagnostic| rule(finding.code).is_none_or(|rule| lint.allows(rule, comments(finding)));
    let mut all: Vec<Diagnostic> = found.into_iter().filter(on).collect();
    // It named the rules of one side only.
    all.extend(lowered.into_iter().filter(|it| it.code != codes::CHECK_FAILED));
    match violation(&config, &all) {
        Some(error) => {
            all.push(error);
            Err(all)
        }
        None => Ok(all),
    }
}

/// Whether a variable's name says that it holds a secret.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    const SECRET: &[&str] = &[
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    const HARMLESS: &[&str] = &["public", "file", "version"];
    let lower = name.to_ascii_lowercase();
    let words = || lower.split('_');
    words().any(|word| SECRET.contains(&word)) && !words().any(|word| HARMLESS.contains(&word))
}

/// Rules about the file as a whole: casing of keywords, names of stages.
pub(crate) fn check_file(lint: &mut Lint, parsed: &Dockerfile, source: &SourceFile) {
    check_casing(lint, parsed, source);
    let mut names: BTreeSet<String> = BTreeSet::new();
    for instruction in &parsed.instructions {
        let rbuild_dockerfile::InstructionKind::From(from) = &instruction.kind else { continue };
        let Some(name) = &from.name else { continue };
        let lower = name.value.to_lowercase();
        let mut warn = |rule: Rule, message: String| {
            let finding = Diagnostic::warning(rule.name, message).at(source, name.span);
            lint.warn(rule, &instruction.comments, finding);
        };
        if matches!(lower.as_str(), "context" | "scratch") {
            warn(RESERVED_STAGE_NAME, format!("stage name {lower:?} is reserved"));
        }
        if !names.insert(lower.clone()) {
            warn(
                DUPLICATE_STAGE_NAME,
                format!("duplicate stage name {lower:?}: later references mean this stage"),
            );
        }
    }
}

fn check_casing(lint: &mut Lint, parsed: &Dockerfile, source: &SourceFile) {
    let of_stages = || {
        let first = parsed
            .instructions
            .iter()
            .position(|it| matches!(it.kind, rbuild_dockerfile::InstructionKind::From(_)))
            .unwrap_or(parsed.instructions.len());
        parsed.instructions.iter().skip(first).filter(|it| !it.keyword.value.is_empty())
    };
    let is = |it: &Instruction, lower: bool| {
        it.keyword
            .value
            .chars()
            .all(|c| if lower { !c.is_ascii_uppercase() } else { !c.is_ascii_lowercase() })
    };
    let lower = of_stages().filter(|it| is(it, true)).count();
    let upper = of_stages().filter(|it| is(it, false)).count();
    let majority_lower = lower > upper;
    for instruction in of_stages().filter(|it| !is(it, majority_lower)) {
        let case = if majority_lower { "lower" } else { "upper" };
        let message = format!(
            "instruction {:?} should be written in {case} case, like most of the file",
            instruction.keyword.value
        );
        let finding =
            Diagnostic::warning(INSTRUCTION_CASING.name, message).at(source, instruction.keyword.span);
        lint.warn(INSTRUCTION_CASING, &instruction.comments, finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let config =
            Config::parse(" skip=JSONArgsRecommended, StageNameCasing ;error=true;experimental=all").unwrap();
        assert!(config.error && config.experimental_all && !config.skip_all);
        assert!(
            !config.allows(JSON_ARGS) && config.allows(MAINTAINER) && config.allows(DEFINITION_DESCRIPTION)
        );
        assert!(!Config::parse("skip=all").unwrap().allows(JSON_ARGS));
        assert!(!Config::default().allows(DEFINITION_DESCRIPTION));
        let twice = Config::parse("skip=JSONArgsRecommended;skip=MaintainerDeprecated").unwrap();
        assert!(twice.allows(JSON_ARGS) && !twice.allows(MAINTAINER));
        assert!(!Config::parse("skip=all;skip=MaintainerDeprecated").unwrap().allows(JSON_ARGS));
        for bad in ["skip", "error=maybe", "foo=bar"] {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_secrets() {
        for (name, secret) in [
            ("api_key", true),
            ("DATABASE_PASSWORD", true),
            ("secret_MESSAGE", true),
            ("AUTH", true),
            ("PUBLIC_KEY", false),
            ("KEY_FILE", false),
            ("TOKEN_VERSION", false),
            ("MONKEY", false),
            ("AUTHOR", false),
        ] {
            assert_eq!(is_secret_name(name), secret, "{name}");
        }
    }
}
