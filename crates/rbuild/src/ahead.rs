//! Work for an exported cache that need not wait for the build's end: as soon as a step has a result, its layer is compressed,
//! and sent where it will be sent, beside the steps that still run. Whatever goes wrong here is found again, and told, by
//! the export itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rbuild_cache_transfer::{CacheMode, CacheOptions, CacheTarget, CacheTo, RegistryTarget, send_ahead};
use rbuild_engine::Ports;
use rbuild_export::{ExportContext, LayerMaker};
use rbuild_ports::{CancelToken, Snapshot};
use rbuild_source::Registry;

use crate::BuildRequest;
use crate::export_context::layers_only;

/// What the worker is told.
enum Message {
    Result(Snapshot),
    Stop,
}

/// Where results are told of; made before the ports that tell.
pub(crate) struct Queue {
    send: Sender<Message>,
    receive: Receiver<Message>,
    exports: Vec<Export>,
}

/// A worker beside a build. Dropping it stops it at once.
pub(crate) struct Ahead {
    send: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    cancel: CancelToken,
}

struct Export {
    options: CacheOptions,
    /// Directories are written at the end: others wait for their lock.
    target: Option<RegistryTarget>,
}

impl Queue {
    /// For the exports of `request` that want all results; `None` when there are none.
    pub(crate) fn of(request: &BuildRequest, registry: &Registry) -> Option<Self> {
        let export = |to: &CacheTo| {
            let options = to.options().filter(|options| options.mode == CacheMode::Max)?.clone();
            let target = match to {
                CacheTo::Registry { reference, .. } => {
                    Some(RegistryTarget { registry: registry.clone(), reference: reference.clone() })
                }
                CacheTo::Local { .. } | CacheTo::Inline => None,
            };
            Some(Export { options, target })
        };
        let exports: Vec<Export> = request.cache_to.iter().filter_map(export).collect();
        let (send, receive) = channel();
        (!exports.is_empty()).then_some(Self { send, receive, exports })
    }

    /// What is to be called with every result.
    pub(crate) fn watch(&self) -> Arc<dyn Fn(&Snapshot) + Send + Sync> {
        let send = self.send.clone();
        // Nobody listens any more once the build is solved.
        Arc::new(move |snapshot| drop(send.send(Message::Result(snapshot.clone()))))
    }

    /// Begins to work.
    pub(crate) fn start(self, ports: Arc<Ports>) -> Ahead {
        let Self { send, receive, exports } = self;
        let cancel = CancelToken::new();
        let stop = cancel.clone();
        let work = move || work(&receive, &exports, &ports, &stop);
        let thread = std::thread::Builder::new().name("cache export".to_owned()).spawn(work).ok();
        Ahead { send, thread, cancel }
    }
}

impl Ahead {
    /// Ends after what is being done.
    pub(crate) fn finish(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            drop(self.send.send(Message::Stop));
            drop(thread.join());
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.cancel.cancel();
            self.join();
        }
    }
}

fn work(receive: &Receiver<Message>, exports: &[Export], ports: &Ports, cancel: &CancelToken) {
    // The steps come first.
    let context = ExportContext { threads: 1, ..layers_only(ports, cancel) };
    let maker = LayerMaker::new(&context);
    let mut seen = HashSet::new();
    while let Ok(Message::Result(snapshot)) = receive.recv() {
        for layer in snapshot.layers.into_iter().filter(|layer| ports.snapshots.present(layer)) {
            if !seen.insert(layer.clone()) {
                continue;
            }
            for export in exports {
                let target = export.target.as_ref().map(|target| target as &dyn CacheTarget);
                drop(send_ahead(&context, &maker, target, &export.options, &layer));
            }
        }
    }
}
