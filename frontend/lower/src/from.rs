//! The words of `FROM`: base and platform, expanded with the global arguments, and what can be wrong with them.

use std::collections::HashMap;

use rbuild_diag::{Spanned, nearest};
use rbuild_dockerfile::{ArgDecl, Expanded, FromInstr, Instruction, expand_word};
use rbuild_oci::{Platform, Reference};

use crate::ctx::{At, Ctx, expand_error};
use crate::stages::Part;
use crate::{args, codes, lint};

/// `FROM` should be valid when no build argument is given.
pub(crate) fn check_default_args(
    ctx: &mut Ctx<'_>,
    globals: &[(&Instruction, &[ArgDecl])],
    parts: &[Part<'_>],
) {
    let Ok((env, _)) = args::declared(ctx, &ctx.globals, globals, false) else { return };
    for (instruction, from, _) in parts.iter().filter(|(_, from, _)| from.base.value.contains('$')) {
        let lookup = |name: &str| env.get(name).map(str::to_owned);
        let Ok(base) = expand_word(&from.base.value, ctx.parsed.directives.escape, &lookup) else { return };
        if base.value.parse::<Reference>().is_ok() {
            continue;
        }
        let at = At { file: ctx.source, instruction, from: None };
        let message =
            format!("the default arguments make {:?} an empty or invalid image name", from.base.value);
        let help = "give the ARG before the first FROM a default that names an image".to_owned();
        ctx.warn(lint::INVALID_DEFAULT_ARG, at, from.base.span, message, Some(help));
    }
}

/// Expands a word of `FROM` with the global arguments.
pub(crate) fn expand_from(ctx: &mut Ctx<'_>, at: At<'_>, word: &Spanned<String>) -> Option<Expanded> {
    let lookup = |name: &str| ctx.globals.get(name).map(str::to_owned);
    let expanded = match expand_word(&word.value, ctx.parsed.directives.escape, &lookup) {
        Ok(expanded) => expanded,
        Err(error) => {
            let error = expand_error(at, word, &error);
            ctx.fail(error);
            return None;
        }
    };
    if expanded.unmatched.is_empty() {
        return Some(expanded);
    }
    let declared: Vec<String> = ctx.global_args.iter().map(|(name, _)| name.clone()).collect();
    for name in expanded.unmatched.iter().filter(|name| !declared.contains(name)) {
        let known = declared.iter().map(String::as_str).chain(ctx.globals.names());
        let help = match nearest(name, known) {
            Some(near) => format!("did you mean ${near}?"),
            None => format!("declare it before the first FROM: ARG {name}"),
        };
        let message = format!("FROM uses ${name}, which is not declared before the first FROM");
        ctx.warn(lint::UNDEFINED_ARG_IN_FROM, at, word.span, message, Some(help));
    }
    Some(expanded)
}

/// The base should be a name.
pub(crate) fn check_base_name(
    ctx: &mut Ctx<'_>,
    by_name: &HashMap<String, usize>,
    at: At<'_>,
    from: &FromInstr,
    text: &str,
    unset: &[String],
) {
    if text.is_empty() {
        if ctx.errors.iter().any(|it| it.place.as_ref().is_some_and(|(_, span)| *span == from.base.span)) {
            return; // its expansion failed, which was reported
        }
        let error = at
            .error(
                codes::EMPTY_BASE,
                from.base.span,
                format!("the base image {:?} expands to nothing", from.base.value),
            )
            .help("give the ARG a default before the first FROM, or pass it with --build-arg");
        ctx.fail(error);
        return;
    }
    if text == "scratch" {
        return;
    }
    let Err(error) = text.parse::<Reference>() else { return };
    let mut error = at.error(codes::INVALID_REFERENCE, from.base.span, error.to_string());
    let lower = text.to_lowercase();
    for name in unset {
        error = error.note(format!("${name} has no value here"));
    }
    if let Some(near) = similar_arg(ctx, unset) {
        error = error.help(format!("did you mean ${near}?"));
    } else if by_name.contains_key(&lower) {
        error = error.help(format!("stage names are lower-case here: FROM {lower}"));
    } else if let Some(near) = nearest(text, by_name_sorted(by_name)) {
        error = error.help(format!("did you mean the stage {near:?}?"));
    } else if let Some(name) = unset.first() {
        error = error.help(format!(
            "declare it before the first FROM: ARG {name}=value; arguments of stages do not reach FROM"
        ));
    }
    ctx.fail(error);
}

/// A global argument whose name is almost that of an unset one.
fn similar_arg(ctx: &Ctx<'_>, unset: &[String]) -> Option<String> {
    let known = || ctx.global_args.iter().map(|(name, _)| name.as_str()).chain(ctx.globals.names());
    unset.iter().find_map(|name| nearest(name, known()).filter(|near| near != name).map(str::to_owned))
}

fn by_name_sorted(by_name: &HashMap<String, usize>) -> Vec<&str> {
    let mut names: Vec<&str> = by_name.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// The value of `--platform`.
pub(crate) fn plan_platform(
    ctx: &mut Ctx<'_>,
    at: At<'_>,
    word: &Spanned<String>,
    stage: Option<&str>,
    index: usize,
) -> Option<Platform> {
    let expanded = expand_from(ctx, at, word)?;
    ctx.outline.uses(index, &expanded.used);
    if expanded.used == ["TARGETPLATFORM"]
        && expanded.unmatched.is_empty()
        && ctx.globals.get("TARGETPLATFORM") == Some(&expanded.value)
    {
        let message = format!("--platform={} is the default", word.value);
        ctx.warn(lint::REDUNDANT_PLATFORM, at, word.span, message, Some("leave --platform out".to_owned()));
    }
    let constant = expanded.used.is_empty() && expanded.unmatched.is_empty();
    match expanded.value.parse::<Platform>() {
        Ok(platform) if !expanded.value.is_empty() => {
            let stage = stage.unwrap_or_default();
            if constant && !stage.contains(&platform.os) && !stage.contains(&platform.architecture) {
                let message = format!("FROM has the constant platform {:?}", expanded.value);
                let help = "use a variable such as $BUILDPLATFORM, or name the stage after the platform";
                ctx.warn(lint::CONST_PLATFORM, at, word.span, message, Some(help.to_owned()));
            }
            Some(platform)
        }
        result => {
            let message = match result {
                Err(error) if !expanded.value.is_empty() => error.to_string(),
                _ => format!("the platform {:?} expands to nothing", word.value),
            };
            let mut error = at.error(codes::INVALID_PLATFORM, word.span, message);
            let unset = expanded.unmatched.first();
            if let Some(near) = unset.and_then(|name| nearest(name, ctx.globals.names())) {
                error = error.help(format!("did you mean ${near}?"));
            }
            ctx.fail(error);
            None
        }
    }
}
