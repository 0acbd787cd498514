//! The threads that walk and hash. Their own pool: somebody who waits for a walk may hold a thread of the common one,
//! and threads that wait there take up other work, which could wait for the same walk.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

thread_local! {
    static INSIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `work` in the pool.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if INSIDE.get() {
        return work();
    }
    let start = || {
        ThreadPoolBuilder::new()
            .thread_name(|n| format!("rbuild-walk-{n}"))
            .start_handler(|_| INSIDE.set(true))
            .build()
            .ok()
    };
    // Without threads to be had, the common pool has to do.
    let Some(pool) = POOL.get_or_init(start) else { return work() };
    if rayon::current_thread_index().is_none() {
        return pool.install(work);
    }
    // A thread of another pool would take up other work while it waits.
    let mut out = None;
    std::thread::scope(|scope| {
        scope.spawn(|| out = Some(pool.install(work)));
    });
    #[expect(clippy::expect_used, reason = "the scope ends after the thread, and passes its panic on")]
    out.expect("the thread has run")
}
