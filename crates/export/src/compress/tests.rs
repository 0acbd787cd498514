//! The same bytes on any number of threads, and failures that leave nothing and hang nobody.

use super::*;
use crate::testing::Blobs;
use std::io::Read;
use std::sync::Arc;

use rbuild_ports::ReadAt;
use rbuild_tree::{Entry, Kind, RelPath};

use super::repeats::Member;

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Compressible, but not trivially.
        out.extend_from_slice(&[b"abcdefgh"[(state >> 60) as usize & 7]; 3]);
        out.push((state >> 33) as u8);
    }
    out.truncate(len);
    out
}

fn run(spec: CompressionSpec, threads: usize, data: &[u8], chunk: usize) -> (Compressed, Vec<u8>) {
    let blobs = Blobs::default();
    let pool = Pool::new(threads).unwrap();
    let made = pool
        .store(&spec, &blobs, &CancelToken::new(), &|_| {}, &mut |out| {
            data.chunks(chunk)
                .try_for_each(|part| out.write_all(part))
                .map_err(|e| PortError::io("write", "x", e))
        })
        .unwrap();
    let bytes = blobs.read(&made.digest);
    assert_eq!(made.size, bytes.len() as u64);
    (made, bytes)
}

fn specs() -> [CompressionSpec; 3] {
    [
        CompressionSpec::NONE,
        CompressionSpec::GZIP,
        CompressionSpec { kind: Compression::Zstd, level: None, force: false },
    ]
}

#[test]
fn bytes_do_not_depend_on_threads_or_writes() {
    let data = noise(5 * gzip::BLOCK + 12_345);
    for spec in specs() {
        let (first, bytes) = run(spec, 1, &data, 64 * 1024);
        assert_eq!(first.tar, TarFacts { diff_id: Digest::of(&data), size: data.len() as u64 });
        for (threads, chunk) in [(1, 1000), (2, 7 * gzip::BLOCK), (5, 333_333)] {
            assert_eq!(run(spec, threads, &data, chunk).0, first, "{spec:?} {threads} {chunk}");
        }
        let mut text = vec![];
        match spec.kind {
            Compression::None => text = bytes,
            Compression::Gzip => {
                flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text).unwrap();
            }
            Compression::Zstd => text = zstd::decode_all(bytes.as_slice()).unwrap(),
        }
        assert!(text == data, "{spec:?} does not decode");
    }
}

#[test]
fn small_and_exact_streams() {
    for len in [0, 1, gzip::BLOCK - 1, gzip::BLOCK, gzip::BLOCK + 1, 2 * gzip::BLOCK] {
        let data = noise(len);
        let (_, bytes) = run(CompressionSpec::GZIP, 2, &data, 4096);
        let mut text = vec![];
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text).unwrap();
        assert!(text == data, "{len}");
        assert!(bytes.windows(2).any(|pair| pair == b"RB"), "{len}");
    }
}

#[test]
fn makers_name_what_enters_the_bytes() {
    let makers: Vec<String> = specs().iter().map(CompressionSpec::maker).collect();
    assert_eq!(makers, ["tar", "gzip:2:1mib:32kib", "zstd:3:4mib"]);
    let nine = CompressionSpec { level: Some(9), force: true, ..CompressionSpec::GZIP };
    assert_eq!(nine.maker(), "gzip:9:1mib:32kib");
    let zero = CompressionSpec { kind: Compression::Zstd, level: Some(0), force: false };
    assert_eq!(zero.maker(), "zstd:3:4mib");
}

#[test]
fn failures_leave_no_blob_and_do_not_hang() {
    let data = noise(40 * gzip::BLOCK);
    for spec in specs() {
        let pool = Pool::new(2).unwrap();
        // The disk is full.
        let blobs = Blobs::full_after(300_000);
        let full = pool.store(&spec, &blobs, &CancelToken::new(), &|_| {}, &mut |out| {
            out.write_all(&data).map_err(|e| PortError::io("write", "elsewhere", e))
        });
        assert_eq!(full.unwrap_err().kind, ErrorKind::NoSpace, "{spec:?}");
        assert!(blobs.is_empty());
        // The layer cannot be read.
        let blobs = Blobs::default();
        let broken = pool.store(&spec, &blobs, &CancelToken::new(), &|_| {}, &mut |out| {
            out.write_all(&data[..3 * gzip::BLOCK / 2]).map_err(|e| PortError::io("write", "x", e))?;
            Err(PortError::new(ErrorKind::Corrupt, "bad layer"))
        });
        assert_eq!(broken.unwrap_err().message, "bad layer", "{spec:?}");
        // Somebody cancels.
        let cancel = CancelToken::new();
        let stopped = pool.store(&spec, &blobs, &cancel, &|_| {}, &mut |out| {
            out.write_all(&data[..gzip::BLOCK]).map_err(|e| PortError::io("write", "x", e))?;
            cancel.cancel();
            out.write_all(&data).map_err(|e| PortError::io("write", "x", e))
        });
        assert_eq!(stopped.unwrap_err().kind, ErrorKind::Cancelled, "{spec:?}");
        assert!(blobs.is_empty());
        assert_eq!(pool.blocks.free.lock().unwrap().len(), 6, "{spec:?}: a block got lost");
    }
}

/// A tar of files with these names and contents.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = rbuild_tree::TarWriter::new(vec![]);
    for (name, content) in files {
        let size = content.len() as u64;
        let entry = Entry::new(RelPath::parse(name).unwrap(), Kind::File { size }, 0o644);
        writer.entry(&entry, *content).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn equal_contents_are_compressed_once_and_nobody_sees_it() {
    let (a, b) = (noise(3 * gzip::BLOCK / 2), noise(40_000));
    let small = noise(1000);
    let first = tar(&[("a", &a), ("b", &b), ("c", &small), ("copy/a", &a), ("copy/c", &small)]);
    let second = tar(&[("x", &b), ("y", &a)]);
    let make = |pool: &Pool, blobs: &Blobs, data: &[u8]| {
        let spec = CompressionSpec::GZIP;
        pool.store(&spec, blobs, &CancelToken::new(), &|_| {}, &mut |out| {
            out.write_all(data).map_err(|e| PortError::io("write", "x", e))
        })
        .unwrap()
    };
    let blobs = Blobs::default();
    // One thread, so that what came before was written.
    let pool = Pool::new(1).unwrap();
    let made = [make(&pool, &blobs, &first), make(&pool, &blobs, &second)];
    // The two members of `a` in the second layer, and the one of `b`; in the first it depends on what was flushed.
    assert!(blobs.reread() >= 3, "{}", blobs.reread());
    for (data, made) in [&first, &second].into_iter().zip(made) {
        let alone = Blobs::default();
        assert_eq!(make(&Pool::new(2).unwrap(), &alone, data), made);
        let mut text = vec![];
        flate2::read::MultiGzDecoder::new(alone.read(&made.digest).as_slice())
            .read_to_end(&mut text)
            .unwrap();
        assert!(text == *data);
    }
}

#[test]
fn damaged_members_are_not_copied() {
    struct Wrong;
    impl ReadAt for Wrong {
        fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> io::Result<()> {
            buffer.fill(1);
            Ok(())
        }
    }
    let pool = Pool::new(1).unwrap();
    let data = noise(50_000);
    let member = Member { blob: Arc::new(Wrong), at: 0, length: 10, crc: 7 };
    pool.repeats.add(gzip::DEFAULT_LEVEL, Digest::of(&data), member);
    let mut block = Block { input: data.clone(), content: true, ..Block::default() };
    pool.compress(gzip::DEFAULT_LEVEL, &mut block).unwrap();
    let mut text = vec![];
    flate2::read::GzDecoder::new(block.output.as_slice()).read_to_end(&mut text).unwrap();
    assert!(text == data);
}
