//! Reading the layers of a store against what they held: their manifests, which small layers get right after the build, else
//! the tar that they were exported as. What was never known is taken as it is, and compared from then on.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rbuild_cache_explain::Manifest;
use rbuild_cache_index::Index;
use rbuild_digest::Hasher;
use rbuild_ports::{CacheIndex, LayerId, Result, Snapshot, Snapshots, View};
use rbuild_store::Sums;
use rbuild_tree::{NodeKind, RelPath};

use crate::history::manifest_of;

/// Paths that a message names.
const NAMED: usize = 3;

/// Looks at layers.
pub(crate) struct Inspector<'a> {
    pub(crate) snapshots: &'a dyn Snapshots,
    pub(crate) index: &'a dyn CacheIndex,
    pub(crate) sums: Sums,
}

impl Inspector<'_> {
    /// What is wrong with a layer, if something is.
    pub(crate) fn inspect(&self, layer: &LayerId) -> Result<Option<String>> {
        let view = self.snapshots.view(&Snapshot { layers: vec![layer.clone()] })?;
        let now = manifest(&view)?;
        if let Some(before) = self.sums.get(layer).and_then(|bytes| Manifest::from_bytes(&bytes)) {
            return Ok(differs(&before, &now));
        }
        if self.tar_differs(layer)? {
            return Ok(Some("its tar has not the digest it was exported with".to_owned()));
        }
        // Failing only means that the next check knows no more than this one.
        drop(self.sums.keep(layer, &now.to_bytes()));
        Ok(None)
    }

    /// Only of layers that were made here: those of images were not written by this program.
    fn tar_differs(&self, layer: &LayerId) -> Result<bool> {
        if !layer.as_str().starts_with('l') {
            return Ok(false);
        }
        let Some(expected) = self.index.layer(layer)?.and_then(|row| row.diff_id) else { return Ok(false) };
        let mut out = HashOnly(Hasher::new());
        self.snapshots.write_tar(layer, None, &mut out)?;
        Ok(out.0.finish() != expected)
    }
}

/// Layers up to this size are read again right after a build, so that a check can tell later whether they changed.
const SMALL_BYTES: u64 = 16 << 20;
const SMALL_ENTRIES: u64 = 1000;

/// How long that may go on after the build.
const MOMENT: Duration = Duration::from_millis(20);

/// Reads new small layers beside the end of a build.
pub(crate) struct Sealing {
    stop: Arc<AtomicBool>,
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Sealing {
    /// Starts it; `None` without a thread.
    pub(crate) fn start(snapshots: Arc<dyn Snapshots>, index: Arc<Index>, sums: Sums) -> Option<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, done) = channel();
        let stopped = stop.clone();
        let work = move || {
            for layer in index.layer_counts().unwrap_or_default() {
                let small = layer.bytes <= SMALL_BYTES && layer.entries <= SMALL_ENTRIES;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if small && !sums.has(&layer.layer) && snapshots.present(&layer.layer) {
                    // Failing only means that a check knows less.
                    drop(seal(&*snapshots, &sums, &layer.layer));
                }
            }
            // Nobody waits any more if it took too long.
            let _ = send.send(());
        };
        let thread = std::thread::Builder::new().name("seal".to_owned()).spawn(work).ok()?;
        Some(Self { stop, done, thread })
    }

    /// Waits a moment, and then for the layer that is being read.
    pub(crate) fn finish(self) {
        let _ = self.done.recv_timeout(MOMENT);
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.join());
    }
}

fn seal(snapshots: &dyn Snapshots, sums: &Sums, layer: &LayerId) -> Result<()> {
    let view = snapshots.view(&Snapshot { layers: vec![layer.clone()] })?;
    sums.keep(layer, &manifest(&view)?.to_bytes())
}

struct HashOnly(Hasher);

impl Write for HashOnly {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that a layer shows, hashed now.
fn manifest(view: &Arc<dyn View>) -> Result<Manifest> {
    let mut paths = vec![RelPath::root()];
    let mut waiting = vec![RelPath::root()];
    while let Some(dir) = waiting.pop() {
        for (name, kind) in view.list(&dir)? {
            let Ok(path) = dir.child(&name) else { continue };
            if kind == NodeKind::Dir {
                waiting.push(path.clone());
            }
            paths.push(path);
        }
    }
    let digests = view.entry_digests(&paths)?;
    Ok(manifest_of(&**view, &paths.into_iter().zip(digests).collect::<Vec<_>>()))
}

fn differs(before: &Manifest, now: &Manifest) -> Option<String> {
    let changes = before.changes_to(now, |_, _| false);
    let first: Vec<String> = changes.iter().take(NAMED).map(ToString::to_string).collect();
    let more = changes.len().saturating_sub(NAMED);
    match (first.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(format!("its files changed: {}", first.join(", "))),
        (false, _) => Some(format!("its files changed: {} and {more} more", first.join(", "))),
    }
}
