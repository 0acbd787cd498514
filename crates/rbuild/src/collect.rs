//! Garbage collection after builds: on a thread of its own, once a minute at most, and not waited for when it takes long. What
//! it leaves undone the next one does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rbuild_cache_index::{GcPolicy, Index, PruneReport};

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(60);

/// When none came to its end for so long, the next one is waited for longer.
const OVERDUE: Duration = Duration::from_secs(24 * 3600);

/// How long it is waited for.
const SHORT: Duration = Duration::from_millis(250);
const LONG: Duration = Duration::from_secs(10);

/// A collection that may be going on.
pub struct Collecting {
    done: Option<Receiver<Option<PruneReport>>>,
    patience: Duration,
}

impl Collecting {
    /// Starts one on the store at `root`, unless the last was just now. A new store only begins to count.
    pub(crate) fn start(root: &Path, index: Arc<Index>, policy: GcPolicy) -> Self {
        let (tried, finished) = (root.join("gc.tried"), root.join("gc.done"));
        let nothing = Self { done: None, patience: SHORT };
        let Some(age) = age(&tried) else {
            touch(&tried);
            touch(&finished);
            return nothing;
        };
        if age < PAUSE {
            return nothing;
        }
        touch(&tried);
        let overdue = self::age(&finished).is_none_or(|age| age > OVERDUE);
        let (send, receive) = channel();
        let work = move || {
            let report = index.collect(&policy).ok();
            if report.is_some() {
                touch(&finished);
            }
            drop(send.send(report));
        };
        match std::thread::Builder::new().name("gc".to_owned()).spawn(work) {
            Ok(_) => Self { done: Some(receive), patience: if overdue { LONG } else { SHORT } },
            Err(_) => nothing,
        }
    }

    /// Waits a moment for its end. What it removed; `None` when it did not run, failed, or goes on.
    #[must_use]
    pub fn wait(self) -> Option<PruneReport> {
        self.done?.recv_timeout(self.patience).ok().flatten()
    }
}

/// How long ago a file was touched; `None` when it is not there. A time to come counts as long ago.
fn age(path: &PathBuf) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
    Some(modified.elapsed().unwrap_or(OVERDUE * 2))
}

/// Failing only means that the next build tries again.
fn touch(path: &PathBuf) {
    drop(fs::write(path, ""));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_since_the_last_touch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert_eq!(age(&path), None);
        touch(&path);
        assert!(age(&path).unwrap() < OVERDUE);
        let future = std::time::SystemTime::now() + OVERDUE;
        fs::File::options().write(true).open(&path).unwrap().set_modified(future).unwrap();
        assert!(age(&path).unwrap() > OVERDUE);
    }
}
