//! `CMD`, `ENTRYPOINT` and `HEALTHCHECK`: what a container of the image runs.

use rbuild_diag::Spanned;
use rbuild_dockerfile::{Command, HealthcheckInstr};
use rbuild_oci::Healthcheck;

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::gotext;
use crate::image::shell;
use crate::lint;
use crate::stage::Run;

/// `CMD`.
pub(crate) fn cmd(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, command: &Command) {
    once(ctx, at, run.cmd);
    run.cmd = Some(at.instruction.span);
    let args = words(ctx, run, at, command);
    run.state.image.commit(format!("CMD {}", gotext::quote_list(&args)), false, ctx.epoch);
    let config = run.state.image.edit();
    config.cmd = Some(args).filter(|args| !args.is_empty());
    config.args_escaped = true;
}

/// `ENTRYPOINT`: an inherited `CMD` is dropped, one of this stage is kept.
pub(crate) fn entrypoint(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, command: &Command) {
    once(ctx, at, run.entrypoint);
    run.entrypoint = Some(at.instruction.span);
    let args = words(ctx, run, at, command);
    run.state.image.commit(format!("ENTRYPOINT {}", gotext::quote_list(&args)), false, ctx.epoch);
    let keep_cmd = run.cmd.is_some();
    let config = run.state.image.edit();
    config.entrypoint = Some(args).filter(|args| !args.is_empty());
    if !keep_cmd {
        config.cmd = None;
    }
}

fn words(ctx: &mut Ctx<'_>, run: &Run<'_>, at: At<'_>, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.value.clone(),
        Command::Shell(text) => {
            let config = run.state.image.config();
            let mut words = shell(config);
            if config.config.shell.is_empty() {
                let keyword = &at.instruction.keyword.value;
                let message = format!("{keyword} in shell form does not receive signals");
                let help = format!("write the words as a JSON array: {keyword} [\"program\", \"argument\"]");
                ctx.warn(lint::JSON_ARGS, at, at.instruction.span, message, Some(help));
            }
            words.push(text.value.clone());
            words
        }
    }
}

/// Only the last of its kind counts; the earlier one is what the finding shows.
fn once(ctx: &mut Ctx<'_>, at: At<'_>, earlier: Option<rbuild_diag::Span>) {
    if let Some(earlier) = earlier {
        let keyword = &at.instruction.keyword.value;
        let message = format!("this {keyword} has no effect: a later one of the same stage replaces it");
        ctx.warn(lint::MULTIPLE_INSTRUCTIONS, at, earlier, message, Some("remove it".to_owned()));
    }
}

/// `HEALTHCHECK`.
pub(crate) fn healthcheck(
    ctx: &mut Ctx<'_>,
    run: &mut Run<'_>,
    at: At<'_>,
    instr: &HealthcheckInstr,
) -> Result<(), Fault> {
    once(ctx, at, run.healthcheck);
    run.healthcheck = Some(at.instruction.span);
    let check = match instr {
        HealthcheckInstr::None => Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() },
        HealthcheckInstr::Cmd { interval, timeout, start_period, start_interval, retries, command } => {
            let test = match command {
                Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.value.clone()],
                Command::Exec(words) => {
                    std::iter::once("CMD".to_owned()).chain(words.value.iter().cloned()).collect()
                }
            };
            Healthcheck {
                test,
                interval: duration(at, "interval", interval.as_ref())?,
                timeout: duration(at, "timeout", timeout.as_ref())?,
                start_period: duration(at, "start-period", start_period.as_ref())?,
                start_interval: duration(at, "start-interval", start_interval.as_ref())?,
                retries: count(at, retries.as_ref())?,
            }
        }
    };
    // As Go's `%+v` prints the structure. Older releases, such as the one in Docker 20.10, print it with `%q`.
    let shown = format!(
        "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        gotext::plain_list(&check.test),
        gotext::duration(check.interval),
        gotext::duration(check.timeout),
        gotext::duration(check.start_period),
        gotext::duration(check.start_interval),
        check.retries,
    );
    run.state.image.commit(shown, false, ctx.epoch);
    run.state.image.edit().healthcheck = Some(check);
    Ok(())
}

/// Nanoseconds; unset and 0 inherit.
fn duration(at: At<'_>, flag: &str, text: Option<&Spanned<String>>) -> Result<i64, Fault> {
    let Some(text) = text.filter(|text| !text.value.is_empty()) else { return Ok(0) };
    let help = "write a number with a unit: 30s, 1m30s, 500ms";
    let Some(duration) = gotext::parse_duration(&text.value) else {
        return Err(at
            .error(codes::HEALTHCHECK, text.span, format!("invalid duration {:?} of --{flag}", text.value))
            .help(help));
    };
    if duration != 0 && duration < 1_000_000 {
        return Err(at
            .error(
                codes::HEALTHCHECK,
                text.span,
                format!("--{flag} cannot be less than 1ms, but is {}", text.value),
            )
            .help(help));
    }
    Ok(duration)
}

fn count(at: At<'_>, text: Option<&Spanned<String>>) -> Result<i64, Fault> {
    let Some(text) = text.filter(|text| !text.value.is_empty()) else { return Ok(0) };
    match text.value.parse::<i32>() {
        Ok(count) if count >= 0 => Ok(i64::from(count)),
        _ => Err(at
            .error(codes::HEALTHCHECK, text.span, format!("invalid number {:?} of --retries", text.value))
            .help("write a whole number, 0 or more")),
    }
}
