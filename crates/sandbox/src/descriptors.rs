//! How many descriptors this process may have. A build of many steps, layers and downloads needs more than the 1024 that
//! shells give; steps still start with what this process started with.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as are of use here; more only makes programs slow that close all they could have.
const WANTED: u64 = 65_536;

static STARTED_WITH: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the soft limit of open descriptors as far as it goes. Called once, at the start of the program.
pub fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (current, maximum.unwrap_or(u64::MAX)) else { return };
    let new = WANTED.min(hard);
    // Should it be refused, the build goes on with what there is.
    if soft < new && setrlimit(Resource::Nofile, Rlimit { current: Some(new), maximum }).is_ok() {
        STARTED_WITH.get_or_init(|| (soft, hard));
    }
}

/// What steps get, if it was changed here.
pub(crate) fn started_with() -> Option<(u64, u64)> {
    STARTED_WITH.get().copied()
}
