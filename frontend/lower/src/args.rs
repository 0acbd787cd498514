//! Arguments before the first `FROM`: the predefined platform arguments, the declared ones, and
//! `SOURCE_DATE_EPOCH`.

use rbuild_diag::Diagnostic;
use rbuild_dockerfile::{ArgDecl, Instruction, expand_word};
use rbuild_oci::Platform;

use crate::codes;
use crate::ctx::{At, Ctx, expand_error};
use crate::env::Env;
use crate::fault::Fault;
use crate::{MainContext, Need, git};

/// Says which parts of a build are scanned for a bill of materials; never part of an environment.
pub(crate) const SCAN_CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
/// See [`SCAN_CONTEXT`].
pub(crate) const SCAN_STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Whether `name` never enters an environment.
pub(crate) fn is_scan_arg(name: &str) -> bool {
    matches!(name, SCAN_CONTEXT | SCAN_STAGE)
}

/// `os/architecture/variant` with the version of Windows in parentheses, as BuildKit prints it.
pub(crate) fn platform_text(platform: &Platform) -> String {
    if platform.os_version.is_empty() {
        return platform.to_string();
    }
    let mut out = format!("{}({})/{}", platform.os, platform.os_version, platform.architecture);
    if !platform.variant.is_empty() {
        out.push('/');
        out.push_str(&platform.variant);
    }
    out
}

/// Sets the predefined platform arguments; build arguments of the same name win.
pub(crate) fn set_platform_args(ctx: &mut Ctx<'_>, target_stage: &str) {
    let build = ctx.options.build_platform.normalized();
    let target = ctx.options.platform.normalized();
    let stage = if target_stage.is_empty() { "default" } else { target_stage };
    let values = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", build.os_version.clone()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", platform_text(&target)),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", target.os_version.clone()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", target.variant.clone()),
        ("TARGETSTAGE", stage.to_owned()),
    ];
    for (name, value) in values {
        let value = ctx.build_args.get(name).unwrap_or(&value).clone();
        ctx.globals.set(name, &value);
    }
}

/// The variables, and every declaration with its value.
type Declared = (Env, Vec<(String, Option<String>)>);

/// What the declarations before the first `FROM` give, over `start`. With `overridden` build arguments count;
/// without, it is what the file means by itself.
pub(crate) fn declared(
    ctx: &Ctx<'_>,
    start: &Env,
    declarations: &[(&Instruction, &[ArgDecl])],
    overridden: bool,
) -> Result<Declared, Vec<Fault>> {
    let mut env = start.clone();
    let mut all = Vec::new();
    let mut errors = Vec::new();
    for (instruction, args) in declarations {
        let at = At { file: ctx.source, instruction, from: None };
        for arg in *args {
            let name = &arg.name.value;
            let given = ctx.build_args.get(name).filter(|_| overridden);
            let value = match (given, &arg.default) {
                (Some(value), _) => Some(value.clone()),
                (None, None) => None,
                (None, Some(default)) => {
                    let lookup = |name: &str| env.get(name).map(str::to_owned);
                    match expand_word(&default.value, ctx.parsed.directives.escape, &lookup) {
                        Ok(expanded) => Some(expanded.value),
                        Err(error) => {
                            errors.push(expand_error(at, default, &error));
                            continue;
                        }
                    }
                }
            };
            if let Some(value) = &value {
                env.set(name, value);
            }
            all.push((name.clone(), value));
        }
    }
    if errors.is_empty() { Ok((env, all)) } else { Err(errors) }
}

/// Finds out `SOURCE_DATE_EPOCH` from the build arguments or the global arguments and makes it a number in both.
pub(crate) fn resolve_epoch(ctx: &mut Ctx<'_>) {
    let from_args = ctx.build_args.get(EPOCH).cloned();
    let Some(text) = from_args.clone().or_else(|| ctx.globals.get(EPOCH).map(str::to_owned)) else { return };
    let epoch = match text.as_str() {
        "" => None,
        "context" => context_epoch(ctx),
        text => match text.parse::<i64>() {
            Ok(seconds) => Some(seconds),
            Err(_) => {
                ctx.errors
                    .push(Diagnostic::error(codes::EPOCH, format!("invalid {EPOCH} {text:?}")).help(
                        "give seconds since 1970, or \"context\" for the commit time of a git context",
                    ));
                None
            }
        },
    };
    ctx.epoch = epoch;
    let set = |env: &mut Env| match epoch {
        Some(seconds) => env.set(EPOCH, &seconds.to_string()),
        None => env.remove(EPOCH),
    };
    if ctx.globals.get(EPOCH).is_some() {
        set(&mut ctx.globals);
    }
    if from_args.is_some() {
        match epoch {
            Some(seconds) => ctx.build_args.insert(EPOCH.to_owned(), seconds.to_string()),
            None => ctx.build_args.remove(EPOCH),
        };
    }
}

/// The commit time of a git context; local contexts have none.
fn context_epoch(ctx: &mut Ctx<'_>) -> Option<i64> {
    let MainContext::Git(text) = &ctx.options.context else { return None };
    let git::Parsed::Yes(url) = git::parse(text, true) else { return None };
    let query = url.query(true);
    if let Some(facts) = ctx.facts.git.get(&query) {
        return facts.committed;
    }
    if ctx.needs.git.iter().all(|need| need.query != query) {
        ctx.needs.git.push(Need { query, place: None, similar: None });
    }
    None
}
