//! Threads of its own for copying and hashing, made when first needed, as many as there are cores.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// A few threads; without them the work is done by rayon's global ones.
#[derive(Default)]
pub(crate) struct Pool(OnceLock<Option<ThreadPool>>);

impl Pool {
    /// Runs `work` so that parallel iterators and scopes in it use these threads.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let pool = self.0.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16);
            let name = |index| format!("layers-{index}");
            ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build().ok()
        });
        match pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}
