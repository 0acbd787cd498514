//! Ctrl-C and SIGTERM cancel the build, which then cleans up; a second one, a while later, ends the process at once.

use std::time::{Duration, Instant};

use rbuild::CancelToken;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that come this soon after the first belong to it: `timeout`, shells and supervisors signal a process and its group.
const SAME: Duration = Duration::from_millis(500);

/// Cancels `token` on SIGINT, SIGTERM and SIGHUP. Where handlers cannot be set, the signals kill as ever.
pub(crate) fn cancel_on_signals(token: &CancelToken) {
    let token = token.clone();
    let (ready, set) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let mut signals: Vec<Signal> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
            drop(ready);
            if signals.is_empty() {
                return;
            }
            any(&mut signals).await;
            token.cancel();
            let first = Instant::now();
            any(&mut signals).await;
            while first.elapsed() < SAME {
                any(&mut signals).await;
            }
            end_now();
        });
    });
    // Ends when the sender is dropped: the handlers are in place before the first step runs.
    let _ended = set.recv();
}

async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        if signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

#[expect(clippy::exit, reason = "the user asked twice; steps die with this process")]
fn end_now() -> ! {
    std::process::exit(130);
}
