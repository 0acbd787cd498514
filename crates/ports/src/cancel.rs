//! Cancellation: one flag, and callbacks for those who wait in the kernel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::PortError;

type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    callbacks: Mutex<(u64, BTreeMap<u64, Callback>)>,
}

/// Says whether the work is still wanted. Clones share it.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Shared>);

/// Unregisters its callback when dropped.
pub struct CancelGuard {
    token: CancelToken,
    id: u64,
}

impl CancelToken {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels: sets the flag and runs all callbacks once. Further calls do nothing.
    pub fn cancel(&self) {
        if self.0.cancelled.swap(true, Ordering::SeqCst) {
            return;
        }
        let callbacks =
            std::mem::take(&mut self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner).1);
        for (_, callback) in callbacks {
            callback();
        }
    }

    /// Whether it is cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// An error if it is cancelled.
    ///
    /// # Errors
    /// `ErrorKind::Cancelled`.
    pub fn check(&self) -> crate::Result<()> {
        if self.is_cancelled() { Err(PortError::cancelled()) } else { Ok(()) }
    }

    /// Runs `callback` when cancelled (at once if it is already), unless the guard is dropped before.
    #[must_use]
    pub fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) -> CancelGuard {
        let mut callbacks = self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.0 += 1;
        let id = callbacks.0;
        if self.is_cancelled() {
            drop(callbacks);
            callback();
        } else {
            callbacks.1.insert(id, Box::new(callback));
        }
        CancelGuard { token: self.clone(), id }
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.token.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn callbacks_run_once_and_not_after_their_guard() {
        let count = Arc::new(AtomicUsize::new(0));
        let token = CancelToken::new();
        let add = |n: usize| {
            let count = count.clone();
            move || {
                count.fetch_add(n, Ordering::SeqCst);
            }
        };
        let kept = token.on_cancel(add(1));
        drop(token.on_cancel(add(10)));
        assert!(token.check().is_ok());
        token.cancel();
        token.cancel();
        let late = token.on_cancel(add(100));
        assert_eq!(count.load(Ordering::SeqCst), 101);
        assert!(token.check().is_err());
        drop((kept, late));
    }
}
