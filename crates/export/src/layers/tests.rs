//! What is reused, what is made, what is fetched, and how damage is found.

use super::*;
use crate::testing::{World, gzip, tar};
use rbuild_ports::CacheIndex;

const ZSTD: CompressionSpec = CompressionSpec { kind: Compression::Zstd, level: None, force: false };

fn force(spec: CompressionSpec) -> CompressionSpec {
    CompressionSpec { force: true, ..spec }
}

fn untar(world: &World, descriptor: &Descriptor) -> Vec<u8> {
    let mut out = vec![];
    decompress(descriptor, world.blobs.read(&descriptor.digest).as_slice(), &mut out).unwrap();
    out
}

#[test]
fn a_layer_is_compressed_once() {
    let world = World::default();
    let text = tar(&[("a", "hello")]);
    let id = world.layer("s1", &text, 7);
    let maker = LayerMaker::new(&world.cx());
    let first = maker.ensure_blob(&id, &CompressionSpec::GZIP).unwrap();
    assert_eq!(first.place, Place::Store);
    assert_eq!(first.created, Timestamp(7_000_000_000));
    assert_eq!(first.descriptor.diff_id, Digest::of(&text));
    assert_eq!(untar(&world, &first.descriptor.descriptor), text);
    assert_eq!(maker.ensure_blob(&id, &force(CompressionSpec::GZIP)).unwrap(), first);
    assert_eq!(maker.ensure_diff_id(&id).unwrap(), Digest::of(&text));
    assert_eq!(*world.layers.written.lock().unwrap(), 1);
    // Another compression is another blob of the same layer.
    let zstd = maker.ensure_blob(&id, &ZSTD).unwrap();
    assert_eq!(untar(&world, &zstd.descriptor.descriptor), text);
    let row = world.index.layer(&id).unwrap().unwrap();
    let makers: Vec<&str> = row.blobs.iter().map(|blob| blob.maker.as_str()).collect();
    assert_eq!(makers, ["gzip:2:1mib:32kib", "zstd:3:4mib"]);
    // A blob that is gone is made again.
    world.blobs.all().clear();
    assert_eq!(maker.ensure_blob(&id, &CompressionSpec::GZIP).unwrap(), first);
    assert_eq!(untar(&world, &first.descriptor.descriptor), text);
}

#[test]
fn only_diff_ids_compress_nothing() {
    let world = World::default();
    let text = tar(&[("a", "hello")]);
    let id = world.layer("s1", &text, 7);
    let maker = LayerMaker::new(&world.cx());
    let ids = maker.ensure_diff_ids(&[id.clone(), id.clone()]).unwrap();
    assert_eq!(ids, vec![(Digest::of(&text), Timestamp(7_000_000_000)); 2]);
    assert!(world.blobs.is_empty());
    let plain = maker.plain_tars(&[id]).unwrap();
    assert_eq!(plain[0].descriptor.descriptor.size, text.len() as u64);
    assert_eq!(*world.layers.written.lock().unwrap(), 1, "the size was remembered with the diff id");
    assert!(world.blobs.is_empty());
}

#[test]
fn layers_of_images_stay_where_they_are_until_needed() {
    let world = World::default();
    let text = tar(&[("base", "b")]);
    let (id, descriptor) = world.remote_layer(&text, "r.io/base");
    let maker = LayerMaker::new(&world.cx());
    for spec in [CompressionSpec::GZIP, force(CompressionSpec::GZIP), ZSTD] {
        let layer = maker.ensure_blob(&id, &spec).unwrap();
        assert_eq!((layer.place, &layer.descriptor.descriptor), (Place::Remote, &descriptor), "{spec:?}");
        assert_eq!(layer.remotes[0].location, "r.io/base");
    }
    assert!(world.remote.fetched.lock().unwrap().is_empty());
    let layers = maker.ensure_blobs(&[id.clone(), id.clone()], &CompressionSpec::GZIP).unwrap();
    maker.fetch(&layers).unwrap();
    maker.fetch(&layers).unwrap();
    assert_eq!(*world.remote.fetched.lock().unwrap(), [descriptor.digest]);
    assert_eq!(maker.ensure_blob(&id, &CompressionSpec::GZIP).unwrap().place, Place::Store);
    // Recompressed from the image's own tar, not from the directory.
    let zstd = maker.ensure_blob(&id, &force(ZSTD)).unwrap();
    assert_eq!(zstd.descriptor.diff_id, Digest::of(&text));
    assert_eq!(untar(&world, &zstd.descriptor.descriptor), text);
    assert_eq!(*world.layers.written.lock().unwrap(), 0);
}

#[test]
fn what_comes_from_elsewhere_is_verified() {
    let world = World::default();
    let (id, descriptor) = world.remote_layer(&tar(&[("base", "b")]), "r.io/base");
    let maker = LayerMaker::new(&world.cx());
    let layers = maker.ensure_blobs(&[id], &CompressionSpec::GZIP).unwrap();
    for (bytes, says) in
        [(gzip(b"evil"), "has not the"), (vec![0; usize::try_from(descriptor.size).unwrap()], "the blob is")]
    {
        world.remote.blobs.lock().unwrap().insert(descriptor.digest, bytes);
        let error = maker.fetch(&layers).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        assert!(error.message.contains(says), "{error}");
        assert!(world.blobs.is_empty());
    }
    world.remote.blobs.lock().unwrap().clear();
    assert_eq!(maker.fetch(&layers).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_base_layer_that_nobody_has_is_written_anew() {
    let world = World::default();
    let (id, _) = world.remote_layer(&tar(&[("base", "b")]), "r.io/base");
    let again = tar(&[("base", "b"), ("more", "")]);
    world.layers.tars.lock().unwrap().insert(id.clone(), again.clone());
    world.remote.blobs.lock().unwrap().clear();
    let maker = LayerMaker::new(&world.cx());
    assert!(maker.give_up_remote(&id, &PortError::new(ErrorKind::NotFound, "gone")));
    assert!(!maker.give_up_remote(&id, &PortError::new(ErrorKind::NotFound, "gone")), "only once");
    let layer = maker.ensure_blob(&id, &CompressionSpec::GZIP).unwrap();
    assert_eq!(layer.descriptor.diff_id, Digest::of(&again));
    // The index keeps the image's diff id.
    let row = world.index.layer(&id).unwrap().unwrap();
    assert_eq!((row.diff_id, row.blobs), (Some(Digest::of(tar(&[("base", "b")]))), vec![]));
    assert!(world.warnings.0.lock().unwrap()[0].contains("cannot be fetched"));
}

#[test]
fn damage_is_found() {
    let world = World::default();
    let id = world.layer("s1", &tar(&[("a", "1")]), 7);
    let maker = LayerMaker::new(&world.cx());
    maker.ensure_diff_id(&id).unwrap();
    world.layers.tars.lock().unwrap().insert(id.clone(), tar(&[("a", "2")]));
    let error = maker.ensure_blob(&id, &CompressionSpec::GZIP).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains("layer s1 is damaged"), "{error}");
    assert!(world.blobs.is_empty());
    world.layers.tars.lock().unwrap().clear();
    assert_eq!(maker.ensure_blob(&id, &CompressionSpec::GZIP).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(maker.ensure_blob(&"nix".parse().unwrap(), &ZSTD).unwrap_err().kind, ErrorKind::NotFound);
    world.cancel.cancel();
    assert_eq!(maker.ensure_blobs(&[id.clone(), id], &ZSTD).unwrap_err().kind, ErrorKind::Cancelled);
}
