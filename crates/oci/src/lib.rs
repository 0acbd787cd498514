//! The OCI documents as types: references, platforms, descriptors, manifests, indexes, image configs. These are
//! formats, so they derive (de)serialization. Foreign documents keep their unknown fields and are hashed by
//! their received bytes, never by a re-serialisation. Pure; knows nothing of registries or stores.

mod config;
mod descriptor;
mod manifest;
mod platform;
mod reference;

pub mod calendar;
pub mod media_type;
pub mod rfc3339;

pub use config::{ContainerConfig, Empty, Healthcheck, History, ImageConfig, RootFs, chain_ids};
pub use descriptor::Descriptor;
pub use manifest::{Document, DocumentError, Index, Manifest, parse_document};
pub use platform::{ParsePlatformError, Platform};
pub use reference::{ParseReferenceError, Reference};
