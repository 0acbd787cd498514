//! The executor: what lives as long as the process that runs steps.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rbuild_ports::{CancelToken, ErrorKind, ExecOutcome, ExecRequest, Executor, PortError, Progress, Result};

use crate::cgroup::{self, OomCount};
use crate::fence::Fence;
use crate::net::Pool;
use crate::seccomp::{self, Instruction};
use crate::{SandboxOptions, run};

/// Runs steps. Dropping it takes down the networks it kept, and whatever may still run.
pub struct Sandbox {
    options: SandboxOptions,
    pool: Arc<Pool>,
    fence: Mutex<Option<Arc<Fence>>>,
    facts: OnceLock<Facts>,
    filter: OnceLock<Vec<Instruction>>,
    warned: AtomicBool,
}

/// What does not change while the process lives.
pub(crate) struct Facts {
    /// In a user namespace.
    pub(crate) user_namespace: bool,
    /// Whether group 5 exists there.
    pub(crate) tty_group: bool,
    /// Whether groups may be set there.
    pub(crate) set_groups: bool,
    /// Whether version 2 of control groups is all there is.
    pub(crate) only_cgroup_2: bool,
    pub(crate) oom: Option<OomCount>,
}

impl Sandbox {
    /// Nothing happens until the first step runs.
    #[must_use]
    pub fn new(options: SandboxOptions) -> Self {
        Self {
            pool: Pool::new(&options),
            options,
            fence: Mutex::default(),
            facts: OnceLock::new(),
            filter: OnceLock::new(),
            warned: AtomicBool::new(false),
        }
    }

    /// Prepares in the background what the first step needs, for callers who know that one is going to run soon.
    pub fn prewarm(&self) {
        self.facts();
        self.filter();
        // Should there be no fence, the first step says why.
        if let Ok(fence) = self.fence() {
            self.pool.prewarm(fence);
        }
    }

    pub(crate) fn options(&self) -> &SandboxOptions {
        &self.options
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.facts.get_or_init(Facts::gather)
    }

    pub(crate) fn filter(&self) -> &[Instruction] {
        self.filter.get_or_init(|| seccomp::program(self.options.i386_sockets))
    }

    /// The fence, built again should somebody have torn it down.
    pub(crate) fn fence(&self) -> Result<Arc<Fence>> {
        let mut fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fence) = fence.as_ref().filter(|fence| fence.stands()) {
            return Ok(fence.clone());
        }
        let new = Arc::new(Fence::new().map_err(|error| run::explain_clone(&error))?);
        *fence = Some(new.clone());
        Ok(new)
    }

    /// Says something aloud, once.
    pub(crate) fn warn_once(&self, progress: &dyn Progress, message: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            progress.warn(message);
        }
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Facts {
    fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            user_namespace: !is_initial(&read("/proc/self/uid_map")),
            tty_group: maps(&read("/proc/self/gid_map"), 5),
            set_groups: read("/proc/self/setgroups").trim() != "deny",
            only_cgroup_2: cgroup::only_version_2(),
            oom: OomCount::open(),
        }
    }
}

/// Whether this map of ids is that of no user namespace at all.
pub(crate) fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a map of ids has this one.
fn maps(map: &str, id: u64) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => (first..first.saturating_add(count)).contains(&id),
            _ => false,
        }
    })
}

impl Executor for Sandbox {
    fn run(
        &self,
        request: &ExecRequest,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<ExecOutcome> {
        cancel.check()?;
        // Children of this thread start behind the fence, so it can be used for nothing else. It lives as long as the
        // step, which is told when it ends.
        let stepping = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("step".to_owned());
            let thread = thread.spawn_scoped(scope, || run::run(self, request, progress, cancel));
            thread.map(|thread| thread.join())
        });
        match stepping {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PortError::new(ErrorKind::Internal, "running a step panicked")),
            Err(error) => {
                Err(PortError::new(ErrorKind::Io, format!("cannot start a thread for the step: {error}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_ids() {
        assert!(is_initial("         0          0 4294967295\n") && !is_initial("0 1000 1\n"));
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert!(maps(map, 0) && maps(map, 5) && maps(map, 65536) && !maps(map, 65537));
        assert!(!maps("0 1000 1\n", 5) && !maps("", 0));
    }
}
