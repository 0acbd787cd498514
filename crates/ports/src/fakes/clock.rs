//! A clock that moves when it is read.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::{Clock, Timestamp};

/// Each reading is one second after the last.
#[derive(Debug, Default)]
pub struct StepClock(AtomicI64);

impl Clock for StepClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1_000_000_000, Ordering::SeqCst))
    }
}
