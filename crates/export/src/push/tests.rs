//! Pushes to a registry in memory that refuses a manifest before its blobs.

use super::*;
use crate::testing::{World, tar};
use crate::{BuiltImage, Digests, ExportContext, ExportRequest, Exported, OutputSpec};
use rbuild_oci::ImageConfig;
use rbuild_ports::{CacheIndex, CancelToken, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// A registry in memory that writes down what it was asked.
#[derive(Default)]
struct Fake {
    blobs: Mutex<BTreeSet<(String, Digest)>>,
    manifests: Mutex<BTreeMap<String, Vec<u8>>>,
    log: Mutex<Vec<String>>,
    broken_uploads: AtomicU64,
}

impl Registry for Fake {
    fn blob_exists(&self, target: &Reference, blob: &Descriptor, _: &CancelToken) -> Result<bool> {
        Ok(self.blobs.lock().unwrap().contains(&(target.name(), blob.digest)))
    }

    fn mount_blob(&self, target: &Reference, blob: &Descriptor, from: &str, _: &CancelToken) -> Result<bool> {
        let mut blobs = self.blobs.lock().unwrap();
        let there = blobs.contains(&(format!("{}/{from}", target.domain), blob.digest));
        if there {
            blobs.insert((target.name(), blob.digest));
        }
        self.log.lock().unwrap().push(format!("mount from {from} {there}"));
        Ok(there)
    }

    fn push_blob(
        &self,
        target: &Reference,
        blob: &Descriptor,
        open: &crate::OpenBlob<'_>,
        _: &CancelToken,
    ) -> Result<()> {
        let mut data = vec![];
        if self.broken_uploads.load(Ordering::Relaxed) > 0 {
            self.broken_uploads.fetch_sub(1, Ordering::Relaxed);
            drop(open()?.take(1).read_to_end(&mut data));
            data.clear();
        }
        let read = open()?.read_to_end(&mut data);
        read.map_err(|error| PortError::new(ErrorKind::Io, format!("the source broke: {error}")))?;
        assert_eq!((Digest::of(&data), data.len() as u64), (blob.digest, blob.size));
        self.blobs.lock().unwrap().insert((target.name(), blob.digest));
        self.log.lock().unwrap().push("push".to_owned());
        Ok(())
    }

    fn put_manifest(
        &self,
        target: &Reference,
        media_type: &str,
        bytes: &[u8],
        _: &CancelToken,
    ) -> Result<Digest> {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let document = rbuild_oci::parse_document(bytes, Some(media_type)).unwrap();
        // Everything it names must be there first.
        match document {
            rbuild_oci::Document::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    assert!(self.blobs.lock().unwrap().contains(&(target.name(), blob.digest)), "{text}");
                }
            }
            rbuild_oci::Document::Index(index) => {
                for manifest in &index.manifests {
                    let name = format!("{}@{}", target.name(), manifest.digest);
                    assert!(self.manifests.lock().unwrap().contains_key(&name), "{name}");
                }
            }
        }
        self.manifests.lock().unwrap().insert(target.to_string(), bytes.to_vec());
        Ok(Digest::of(bytes))
    }
}

impl Fake {
    fn log(&self) -> String {
        let mut log = std::mem::take(&mut *self.log.lock().unwrap());
        log.sort();
        log.join("; ")
    }

    fn names(&self) -> Vec<String> {
        self.manifests.lock().unwrap().keys().cloned().collect()
    }
}

fn image(world: &World, platform: &str, layer: &str) -> BuiltImage {
    let platform: rbuild_oci::Platform = platform.parse().unwrap();
    let base = world.remote_layer(&tar(&[("base", "b")]), "r.io/library/base").0;
    let top = world.layer(layer, &tar(&[("top", layer)]), 7);
    let config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        ..ImageConfig::default()
    };
    BuiltImage { platform, snapshot: Snapshot { layers: vec![base, top] }, config, base_history: 0 }
}

fn run(world: &World, fake: &Fake, images: &[BuiltImage], output: &str, names: &[&str]) -> Result<Exported> {
    let outputs = [output.parse::<OutputSpec>().unwrap()];
    let names: Vec<Reference> = names.iter().map(|name| name.parse().unwrap()).collect();
    let request = ExportRequest {
        images,
        indexed: images.len() > 1,
        outputs: &outputs,
        names: &names,
        annotations: &[],
        source_date_epoch: None,
        inline_cache: None,
        want: Digests::None,
    };
    crate::export(&ExportContext { registry: Some(fake), ..world.cx() }, &request)
}

#[test]
fn what_is_there_is_not_sent() {
    let (world, fake) = (World::default(), Fake::default());
    let images = [image(&world, "linux/amd64", "s1")];
    let base = world.remote.blobs.lock().unwrap().keys().next().copied().unwrap();
    fake.blobs.lock().unwrap().insert(("r.io/library/base".to_owned(), base));
    fake.broken_uploads.store(1, Ordering::Relaxed);
    let exported = run(&world, &fake, &images, "type=registry", &["r.io/app:1", "r.io/app:2"]).unwrap();
    // The base was taken over from its own repository and never fetched.
    assert_eq!(fake.log(), "mount from library/base true; push; push");
    assert!(world.remote.fetched.lock().unwrap().is_empty());
    assert_eq!(fake.names(), ["r.io/app:1", "r.io/app:2"]);
    assert!(exported.outputs[0].skipped > 0 && exported.outputs[0].bytes > 0, "{exported:?}");
    // It is in the own store, too.
    let digest = exported.descriptor.as_ref().unwrap().digest;
    assert_eq!(world.index.image("r.io/app:2").unwrap().unwrap().manifest, Some(digest));
    // Nothing is sent twice.
    assert_eq!(run(&world, &fake, &images, "type=registry", &["r.io/app:3"]).unwrap().outputs[0].bytes, 0);
    assert_eq!(fake.log(), "");
    // Elsewhere the base must be sent.
    run(&world, &fake, &images, "type=registry,store=false", &["other.io/app"]).unwrap();
    assert_eq!(fake.log(), "push; push; push");
    assert_eq!(*world.remote.fetched.lock().unwrap(), [base]);
    assert!(world.index.image("other.io/app:latest").unwrap().is_none());
}

#[test]
fn an_index_comes_last() {
    let (world, fake) = (World::default(), Fake::default());
    let images = [image(&world, "linux/amd64", "s1"), image(&world, "linux/arm64", "s2")];
    let exported =
        run(&world, &fake, &images, "type=image,push=true,name-canonical=true", &["r.io/app"]).unwrap();
    let digest = exported.descriptor.unwrap().digest;
    assert_eq!(fake.names().len(), 3);
    assert_eq!(Digest::of(&fake.manifests.lock().unwrap()["r.io/app:latest"]), digest);
    assert_eq!(exported.names, ["r.io/app:latest"]);
    let record = world.index.image("r.io/app:latest").unwrap().unwrap();
    assert_eq!(record.platform, rbuild_oci::Platform::host().to_string());
    let fake = Fake::default();
    run(&world, &fake, &images[..1], "type=registry,push-by-digest=true", &["r.io/app:1"]).unwrap();
    assert!(fake.names()[0].starts_with("r.io/app@sha256:"), "{:?}", fake.names());
}

#[test]
fn damage_and_refusals() {
    let (world, fake) = (World::default(), Fake::default());
    let images = [image(&world, "linux/amd64", "s1")];
    assert!(run(&world, &fake, &images, "type=registry", &[]).unwrap_err().message.contains("needs a name"));
    run(&world, &fake, &images, "type=registry", &["a.io/x"]).unwrap();
    let digests: Vec<Digest> = world.blobs.all().keys().copied().collect();
    digests.iter().for_each(|digest| world.blobs.damage(digest));
    run(&world, &fake, &images, "type=registry", &["b.io/x"]).unwrap();
    assert_eq!(world.warnings.0.lock().unwrap().len(), 2);
    world.cancel.cancel();
    let error = run(&world, &fake, &images, "type=registry", &["c.io/x"]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(fake.names(), ["a.io/x:latest", "b.io/x:latest"]);
}
