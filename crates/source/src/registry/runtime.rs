//! From blocking calls to asynchronous work: on the runtime that the caller lent, or on a small one that is
//! started when it is first needed.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;

use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use tokio::runtime::{Builder, Handle, Runtime};

/// Where the network's tasks run.
pub(crate) struct Tasks {
    lent: Option<Handle>,
    own: OnceLock<std::result::Result<OwnRuntime, String>>,
}

struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        // A plain drop waits for tasks, and panics where waiting is forbidden.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Tasks {
    pub(crate) fn new(lent: Option<Handle>) -> Self {
        Self { lent, own: OnceLock::new() }
    }

    pub(crate) fn handle(&self) -> Result<Handle> {
        if let Some(handle) = &self.lent {
            return Ok(handle.clone());
        }
        let start = || {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(2).thread_name("rbuild-net").enable_all();
            builder.build().map(|runtime| OwnRuntime(Some(runtime))).map_err(|error| error.to_string())
        };
        match self.own.get_or_init(start) {
            Ok(OwnRuntime(Some(runtime))) => Ok(runtime.handle().clone()),
            Ok(OwnRuntime(None)) => Err(gone()),
            Err(error) => {
                Err(PortError::new(ErrorKind::Io, format!("cannot start the network threads: {error}")))
            }
        }
    }

    /// Runs `work` and waits for it, or until it is cancelled.
    pub(crate) fn block<T: Send + 'static>(
        &self,
        cancel: &CancelToken,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        cancel.check()?;
        let handle = self.handle()?;
        let (give, take) = sync_channel(1);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let guard = cancel.on_cancel(move || {
            let _ = stop.send(());
        });
        handle.spawn(async move {
            let outcome = tokio::select! {
                outcome = work => outcome,
                () = until(stopped) => Err(PortError::cancelled()),
            };
            // Nobody waits any more when the receiver is gone.
            let _ = give.send(outcome);
        });
        let outcome = take.recv().map_err(|_| gone())?;
        drop(guard);
        outcome
    }
}

/// Ready once `stopped` is told; never when its sender merely goes away.
pub(crate) async fn until(stopped: tokio::sync::oneshot::Receiver<()>) {
    if stopped.await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn gone() -> PortError {
    PortError::new(ErrorKind::Internal, "the network threads are gone")
}
