//! A layer that a step writes through an overlay mount.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_ports::{ActiveLayer, CommittedLayer, ErrorKind, OverlayDirs, PortError, Result, Snapshot, View};
use rbuild_tree::RelPath;

use crate::meta::{Meta, failed};
use crate::seal::{committed, tidy_upper};
use crate::store::Shared;
use crate::sys;
use crate::view::LayerView;
use crate::work::Scratch;

/// The upper directory and the work directory of an overlay mount.
pub(crate) struct OpenLayer {
    shared: Arc<Shared>,
    below: Arc<LayerView>,
    dirs: OverlayDirs,
    scratch: Scratch,
    upper: OwnedFd,
}

const UPPER: &str = "fs";
const WORK: &str = "work";

impl OpenLayer {
    pub(crate) fn new(shared: Arc<Shared>, parent: &Snapshot) -> Result<Self> {
        let below = shared.view(&parent.layers)?;
        let scratch = shared.space.scratch()?;
        let upper = scratch.subdir(UPPER)?;
        scratch.subdir(WORK)?;
        let root = RelPath::root();
        let top = below.lookup(&root)?.map_or_else(Meta::default_dir, |entry| Meta::of_entry(&entry));
        shared.maker.finish_dir(&upper, &top, false).map_err(|e| failed("set the mode of", &root, e))?;
        let dirs = OverlayDirs {
            upper: Some(scratch.path().join(UPPER)),
            work: Some(scratch.path().join(WORK)),
            ..shared.lower_dirs(&parent.layers)
        };
        Ok(Self { shared, below, dirs, scratch, upper })
    }
}

impl ActiveLayer for OpenLayer {
    fn dirs(&self) -> OverlayDirs {
        self.dirs.clone()
    }

    fn commit(self: Box<Self>) -> Result<CommittedLayer> {
        let Self { shared, below, dirs: _, scratch, upper } = *self;
        let count = tidy_upper(upper, &below, &shared.maker)?;
        let layer = shared.new_layer_id()?;
        (shared.pin)(&layer)?;
        if !crate::seal::publish(scratch.dir(), UPPER, &shared.layers, &layer)? {
            return Err(PortError::new(ErrorKind::Internal, format!("two layers are called {layer}")));
        }
        Ok(committed(layer, count))
    }
}

impl std::fmt::Debug for OpenLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenLayer").field("dirs", &self.dirs).finish_non_exhaustive()
    }
}

/// Where a layer's directory is, for messages.
pub(crate) fn layer_path(shared: &Shared, layer: &str) -> PathBuf {
    shared.layers_path.join(layer)
}

/// Opens a layer directory; `NotFound` when it is not on the disk.
pub(crate) fn open_layer(shared: &Shared, layer: &str) -> Result<OwnedFd> {
    sys::open_at(&shared.layers, layer.as_bytes(), sys::DIR)
        .map_err(|e| PortError::io("open", layer_path(shared, layer), e))
}
