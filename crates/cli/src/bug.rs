//! Bugs: a panic anywhere becomes one message that asks for a report, and exit code 70.

use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use crate::render::eprint;

/// The first panic of this process: later ones tend to follow from it.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Runs `work`; panics in it are reported.
pub(crate) fn guarded(work: impl FnOnce() -> ExitCode) -> ExitCode {
    let standard = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        FIRST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| describe(info));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            standard(info);
        }
    }));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| report())
}

/// Says that something is a bug, and where it showed, as far as that is known.
pub(crate) fn report() -> ExitCode {
    let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
    eprint(&match first {
        Some(first) => format!("error: this is a bug in rbuild: {first}"),
        None => "error: this is a bug in rbuild".to_owned(),
    });
    eprint(concat!(
        "help: please report it with the Dockerfile and this message (rbuild ",
        env!("CARGO_PKG_VERSION"),
        "); RUST_BACKTRACE=1 shows more; the store is as it was"
    ));
    ExitCode::from(70)
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let what = info.payload();
    let what = what
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| what.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic");
    match info.location() {
        Some(at) => format!("{what} ({}:{})", at.file(), at.line()),
        None => what.to_owned(),
    }
}
