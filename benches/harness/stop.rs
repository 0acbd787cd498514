//! Interrupts: the first one ends the command that runs and lets the harness clean up after itself.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process_group};

static STOPPED: AtomicBool = AtomicBool::new(false);
/// The process group of the command that runs; 0 is none.
static CURRENT: AtomicI32 = AtomicI32::new(0);

/// Listens for SIGINT and SIGTERM from now on.
pub(crate) fn listen() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut int), Ok(mut term)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = int.recv() => (),
                    _ = term.recv() => (),
                }
                STOPPED.store(true, Ordering::SeqCst);
                kill_current(Signal::TERM);
            }
        });
    });
    Ok(())
}

/// Whether somebody asked to stop.
pub(crate) fn stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// From now on an interrupt goes to this process group.
pub(crate) fn enter(group: u32) {
    CURRENT.store(i32::try_from(group).unwrap_or(0), Ordering::SeqCst);
    if stopped() {
        kill_current(Signal::TERM);
    }
}

/// No command runs.
pub(crate) fn leave() {
    CURRENT.store(0, Ordering::SeqCst);
}

fn kill_current(signal: Signal) {
    kill_group(CURRENT.load(Ordering::SeqCst), signal);
}

/// Signals a process group; one that is gone is fine.
pub(crate) fn kill_group(group: i32, signal: Signal) {
    if group > 0
        && let Some(pid) = Pid::from_raw(group)
    {
        let _gone = kill_process_group(pid, signal);
    }
}
