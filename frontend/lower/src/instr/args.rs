//! `ENV`, `ARG` and `LABEL`.

use rbuild_dockerfile::{ArgDecl, KeyValues};

use crate::args::is_scan_arg;
use crate::ctx::{At, Ctx};
use crate::env::set_in_config;
use crate::fault::Fault;
use crate::lint;
use crate::outline::{OutlineArg, description};
use crate::stage::Run;

/// `ENV`: all values see the variables from before the instruction.
pub(crate) fn env(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, instr: &KeyValues) -> Result<(), Fault> {
    let pairs = expand_pairs(ctx, run, at, instr)?;
    check_legacy(ctx, at, "ENV", instr);
    let mut created_by = String::from("ENV");
    for ((name, value), pair) in pairs.iter().zip(&instr.pairs) {
        check_secret(ctx, at, "ENV", name, pair.key.span);
        created_by.push_str(&format!(" {name}={value}"));
        // The config has no name that the environment lacks: only names that are known are searched for.
        let known = run.state.env.get(name).is_some();
        run.state.set_env(name, value);
        let list = &mut run.state.image.edit().env;
        if known {
            set_in_config(list, name, value);
        } else {
            list.push(format!("{name}={value}"));
        }
    }
    run.state.image.commit(created_by, false, ctx.epoch);
    Ok(())
}

/// `LABEL`.
pub(crate) fn label(
    ctx: &mut Ctx<'_>,
    run: &mut Run<'_>,
    at: At<'_>,
    instr: &KeyValues,
) -> Result<(), Fault> {
    let pairs = expand_pairs(ctx, run, at, instr)?;
    check_legacy(ctx, at, "LABEL", instr);
    let mut created_by = String::from("LABEL");
    for (name, value) in pairs {
        created_by.push_str(&format!(" {name}={value}"));
        run.state.image.edit().labels.insert(name, value);
    }
    run.state.image.commit(created_by, false, ctx.epoch);
    Ok(())
}

fn expand_pairs(
    ctx: &mut Ctx<'_>,
    run: &Run<'_>,
    at: At<'_>,
    instr: &KeyValues,
) -> Result<Vec<(String, String)>, Fault> {
    let pairs = instr.pairs.iter();
    pairs.map(|pair| Ok((run.expand(ctx, at, &pair.key)?, run.expand(ctx, at, &pair.value)?))).collect()
}

/// `ARG`: the build argument, else the own default, else the global value, else declared and unset.
pub(crate) fn arg(
    ctx: &mut Ctx<'_>,
    run: &mut Run<'_>,
    at: At<'_>,
    declarations: &[ArgDecl],
) -> Result<(), Fault> {
    let mut shown = Vec::with_capacity(declarations.len());
    for declaration in declarations {
        let name = &declaration.name.value;
        check_secret(ctx, at, "ARG", name, declaration.name.span);
        let inherited = !ctx.build_args.contains_key(name)
            && declaration.default.is_none()
            && ctx.globals.get(name).is_some();
        let value = match (ctx.build_args.get(name), &declaration.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => Some(run.expand(ctx, at, default)?),
            (None, None) => ctx.globals.get(name).map(str::to_owned),
        };
        let own = (!inherited).then(|| OutlineArg {
            name: name.clone(),
            value: value.clone().unwrap_or_default(),
            description: description(&at.instruction.comments, name),
            span: ctx.place(at).span,
        });
        ctx.outline.arg(run.index, name, own);
        shown.push(match &value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        });
        if let Some(value) = &value
            && !is_scan_arg(name)
        {
            run.state.set_env(name, value);
        }
        run.state.declare(name, value);
    }
    run.state.image.commit(format!("ARG {}", shown.join(" ")), false, ctx.epoch);
    Ok(())
}

fn check_legacy(ctx: &mut Ctx<'_>, at: At<'_>, keyword: &str, instr: &KeyValues) {
    if !instr.legacy {
        return;
    }
    let Some(pair) = instr.pairs.first() else { return };
    let message =
        format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
    let help = format!("write {keyword} {}=\"…\"", pair.key.value);
    ctx.warn(lint::LEGACY_KEY_VALUE, at, at.instruction.span, message, Some(help));
}

fn check_secret(ctx: &mut Ctx<'_>, at: At<'_>, keyword: &str, name: &str, span: rbuild_diag::Span) {
    if lint::is_secret_name(name) {
        let message = format!("{keyword} {name} looks like a secret, and would stay in the image");
        let help = "pass it with --secret and use it in RUN --mount=type=secret".to_owned();
        ctx.warn(lint::SECRETS_IN_ENV, at, span, message, Some(help));
    }
}
