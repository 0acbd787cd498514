//! The few traits through which the engine and the exporters touch the world, as plain data and blocking
//! calls: whoever calls them does so from a thread that may wait. Adapters implement them; nothing here does
//! IO. Every method may be called from several threads at once.

mod blob;
mod cache;
mod cancel;
mod error;
mod executor;
mod flight;
mod layer;
mod sources;
mod view;

#[cfg(feature = "fakes")]
pub mod fakes;

pub use blob::{BlobReader, BlobStore, BlobWriter, ReadAt};
pub use cache::{
    Alternative, CacheIndex, ImageRecord, KeyId, KeyQuery, LayerBlob, LayerRow, NewRecord, Record,
    RecordKind, RemoteBlob,
};
pub use cancel::{CancelGuard, CancelToken};
pub use error::{ErrorKind, PortError, Result};
pub use executor::{
    DeviceEdits, DeviceKind, DeviceNode, ExecMount, ExecOutcome, ExecRequest, Executor, HostMount,
    MountSource, OverlayDirs, Progress, SecretBytes, SilentProgress, Stream,
};
pub use flight::{Alone, Flight, Flights};
pub use layer::{
    ActiveLayer, CacheMount, CacheMountInfo, CommittedLayer, FileInput, LayerId, ParseLayerIdError, Snapshot,
    Snapshots,
};
pub use sources::{
    Clock, Devices, ImageRequest, ImageSelector, ResolveMode, ResolvedGit, ResolvedImage, ResolvedLayer,
    Secrets, Sources, Timestamp,
};
pub use view::{View, node_kind};
