//! `USER`, `VOLUME`, `SHELL`, `STOPSIGNAL` and `MAINTAINER`: settings of the image.

use rbuild_dockerfile::Word;
use rbuild_oci::Empty;

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::gotext;
use crate::stage::Run;

/// `USER`, kept as written.
pub(crate) fn user(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, word: &Word) -> Result<(), Fault> {
    let user = run.expand(ctx, at, word)?;
    run.state.image.commit(format!("USER {user}"), false, ctx.epoch);
    run.state.image.edit().user.clone_from(&user);
    run.state.user = user;
    Ok(())
}

/// `VOLUME`.
pub(crate) fn volume(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, words: &[Word]) -> Result<(), Fault> {
    let mut volumes = Vec::with_capacity(words.len());
    for word in words {
        let volume = run.expand(ctx, at, word)?;
        if volume.is_empty() {
            return Err(at
                .error(codes::VOLUME, word.span, format!("the volume {:?} expands to nothing", word.value))
                .help("name a directory"));
        }
        volumes.push(volume);
    }
    run.state.image.commit(format!("VOLUME {}", gotext::plain_list(&volumes)), false, ctx.epoch);
    run.state.image.edit().volumes.extend(volumes.into_iter().map(|volume| (volume, Empty {})));
    Ok(())
}

/// `SHELL`.
pub(crate) fn shell(ctx: &Ctx<'_>, run: &mut Run<'_>, words: &[String]) {
    run.state.image.commit(format!("SHELL {}", gotext::plain_list(words)), false, ctx.epoch);
    run.state.image.edit().shell = words.to_vec();
}

/// `MAINTAINER`.
pub(crate) fn maintainer(ctx: &Ctx<'_>, run: &mut Run<'_>, name: &str) {
    run.state.image.set_author(name);
    run.state.image.commit(format!("MAINTAINER {name}"), false, ctx.epoch);
}

/// `STOPSIGNAL`, by name or number, kept as written.
pub(crate) fn stop_signal(
    ctx: &mut Ctx<'_>,
    run: &mut Run<'_>,
    at: At<'_>,
    word: &Word,
) -> Result<(), Fault> {
    let signal = run.expand(ctx, at, word)?;
    if run.state.platform.os == "windows" {
        return Err(at.error(codes::SIGNAL, at.instruction.span, "Windows images have no stop signal"));
    }
    if !is_signal(&signal) {
        let mut error = at.error(codes::SIGNAL, word.span, format!("there is no signal {signal:?}"));
        error = match rbuild_diag::nearest(signal.trim_start_matches("SIG"), SIGNALS.iter().copied()) {
            Some(near) => error.help(format!("did you mean SIG{near}?")),
            None => error.help("name a signal, such as SIGTERM, or give its number"),
        };
        return Err(error);
    }
    run.state.image.commit(format!("STOPSIGNAL {signal}"), false, ctx.epoch);
    run.state.image.edit().stop_signal = signal;
    Ok(())
}

const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, sign: char, most: u8| {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(sign));
        number.and_then(|n| n.parse::<u8>().ok()).is_some_and(|n| (1..=most).contains(&n))
    };
    SIGNALS.contains(&name) || offset("RTMIN", '+', 15) || offset("RTMAX", '-', 14)
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn signals_by_name_and_number() {
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3", "RTMAX-14"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "SIGFOO", "RTMIN+16", "RTMAX+1"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
