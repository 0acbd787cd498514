//! Tar in and out: archives of GNU tar in every format, a table of malformed and hostile headers, round trips.

use std::io::{self, Read};

use proptest::prelude::*;
use rbuild_digest::Digest;

use crate::{
    Entry, Kind, Limits, RelPath, TarItem, TarReadError, TarReader, TarScan, TarWriter, Time, dump_entry,
};

fn path(name: &str) -> RelPath {
    RelPath::parse(name).unwrap()
}

/// Every entry with a digest of its content, then the error if there is one.
fn list(archive: &[u8]) -> String {
    let mut reader = TarReader::new(archive, Limits::default());
    let mut out = String::new();
    loop {
        match reader.next_entry() {
            Ok(None) => return out,
            Ok(Some(entry)) => {
                out.push_str(&dump_entry(&entry));
                if entry.content_size() > 0 {
                    let mut content = Vec::new();
                    match reader.copy_to(&mut content) {
                        Ok(_) => out.push_str(&format!(" {}", Digest::of(content).short())),
                        Err(error) => out.push_str(&format!(" error: {error}")),
                    }
                }
                out.push('\n');
            }
            Err(error) => {
                out.push_str(&format!("error: {error}\n"));
                assert!(reader.next_entry().is_err(), "a refused archive stays refused");
                return out;
            }
        }
    }
}

macro_rules! fixtures {
    ($($name:literal),*) => { [$(($name, &include_bytes!(concat!("../../test_data/tar/", $name, ".tar"))[..])),*] };
}

#[test]
fn archives_of_gnu_tar() {
    let mut out = String::new();
    for (name, bytes) in fixtures![
        "v7",
        "ustar",
        "oldgnu",
        "gnu",
        "pax",
        "base256",
        "global",
        "paxids",
        "sparse-oldgnu",
        "sparse-0.0",
        "sparse-0.1",
        "sparse-1.0"
    ] {
        out.push_str(&format!("== {name}\n{}", list(bytes)));
    }
    let want = include_str!("../../test_data/tar/list.txt");
    assert_eq!(out, want, "\n{out}");
}

#[test]
fn sparse_regions_are_offered() {
    let bytes = &include_bytes!("../../test_data/tar/sparse-1.0.tar")[..];
    let mut reader = TarReader::new(bytes, Limits::default());
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!(entry.kind, Kind::File { size: 786_432 });
    let regions = reader.sparse_regions().unwrap().to_vec();
    let stored: u64 = regions.iter().map(|region| region.length).sum();
    let mut data = Vec::new();
    reader.data().read_to_end(&mut data).unwrap();
    assert_eq!(data.len() as u64, stored);
    assert!(stored < 64 * 1024);
    let few = Limits { sparse_regions: 2, ..Limits::default() };
    assert!(TarReader::new(bytes, few).next_entry().unwrap_err().to_string().contains("limit of 2"));
    let small = Limits { sparse_size: 1000, ..Limits::default() };
    assert!(TarReader::new(bytes, small).next_entry().unwrap_err().to_string().contains("limit of 1000"));
}

/// A raw header with its body; the test's own writer, so that it can write what `TarWriter` never would.
struct Raw(Vec<u8>);

impl Raw {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn header(mut self, name: &str, kind: u8, size: u64, change: impl FnOnce(&mut [u8])) -> Self {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|c| u32::from(*c)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.header(name, b'0', content.len() as u64, |_| {}).body(content)
    }

    fn pax(self, kind: u8, records: &[(&str, &str)]) -> Self {
        let mut body = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let length = (1..).find(|n| n.to_string().len() + rest.len() == *n).unwrap();
            body.push_str(&format!("{length}{rest}"));
        }
        self.header("pax", kind, body.len() as u64, |_| {}).body(body.as_bytes())
    }

    fn long(self, kind: u8, name: &str) -> Self {
        self.header("././@LongLink", kind, name.len() as u64 + 1, |_| {}).body(format!("{name}\0").as_bytes())
    }

    fn link(self, name: &str, kind: u8, target: &str) -> Self {
        self.header(name, kind, 0, |b| b[157..157 + target.len()].copy_from_slice(target.as_bytes()))
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn check(name: &str, archive: &[u8], want: &str) {
    let got = list(archive);
    assert!(got.contains(want), "{name}: expected {want:?} in\n{got}");
}

#[test]
fn malformed_archives_are_refused() {
    let r = Raw::new;
    let inner = r().file("inner", b"hidden").end();
    for (name, archive, want) in [
        ("dotdot", r().file("../x", b"").end(), "\"..\""),
        ("dotdot inside", r().file("a/../../x", b"").end(), "\"..\""),
        ("hardlink up", r().link("h", b'1', "../x").end(), "\"..\""),
        ("hardlink to root", r().link("h", b'1', "/").end(), "hard link to the root"),
        ("hardlink to nothing", r().link("h", b'1', "").end(), "empty path"),
        ("symlink to nothing", r().link("s", b'2', "").end(), "without a valid target"),
        ("no name", r().file("", b"").end(), "empty path"),
        ("root is a link", r().link("./", b'2', "/etc").end(), "root is no directory"),
        ("root is a file", r().file(".", b"").end(), "root is no directory"),
        ("file with slash", r().file("a/", b"").end(), "ends with"),
        (
            "directory with content",
            r().header("d", b'5', 512, |_| {}).body(&[1; 512]).end(),
            "no file has content",
        ),
        ("unknown type", r().header("x", b'Z', 0, |_| {}).end(), "type 'Z'"),
        ("multi-volume", r().header("x", b'M', 0, |_| {}).end(), "type 'M'"),
        ("bad octal", r().header("x", b'0', 0, |b| b[100] = b'9').end(), "mode field"),
        ("negative size", r().header("x", b'0', 0, |b| b[124..136].fill(0xff)).end(), "size field"),
        ("huge size", r().header("x", b'0', 0, |b| b[124..136].fill(0xbf)).end(), "size field"),
        (
            "uid beyond 32 bits",
            r().header("x", b'0', 0, |b| b[108..116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0")).end(),
            "uid field",
        ),
        ("truncated content", r().header("x", b'0', 5000, |_| {}).body(b"abc").0, "cut off"),
        ("truncated header", r().file("a", b"").0[..300].to_vec(), "cut off"),
        ("dangling pax", r().pax(b'x', &[("path", "a")]).end(), "without an entry"),
        ("dangling long name at the end of the stream", r().long(b'L', "a").0, "without an entry"),
        (
            "two pax",
            r().pax(b'x', &[("path", "a")]).pax(b'x', &[("path", "b")]).file("c", b"").end(),
            "two PAX headers",
        ),
        ("two long names", r().long(b'L', "a").long(b'L', "b").file("c", b"").end(), "two GNU long names"),
        (
            "pax and long name",
            r().pax(b'x', &[("path", "a")]).long(b'L', "b").file("c", b"").end(),
            "both a PAX record",
        ),
        ("pax twice", r().pax(b'x', &[("path", "a"), ("path", "b")]).file("c", b"").end(), "twice"),
        ("pax negative size", r().pax(b'x', &[("size", "-1")]).file("c", b"").end(), "no size"),
        ("pax empty path", r().pax(b'x', &[("path", "")]).file("c", b"").end(), "is empty"),
        ("pax dotdot", r().pax(b'x', &[("path", "a/../b")]).file("c", b"").end(), "\"..\""),
        (
            "pax without newline",
            r().header("p", b'x', 9, |_| {}).body(b"9 path=ab").file("c", b"").end(),
            "wrong length",
        ),
        ("pax too large", r().header("p", b'x', 1 << 30, |_| {}).end(), "limit of 1048576"),
        ("long name too large", r().header("p", b'L', 1 << 30, |_| {}).end(), "limit of 1048576"),
        (
            "long name with NUL",
            r().header("p", b'L', 4, |_| {}).body(b"a\0b\0").file("c", b"").end(),
            "NUL byte inside",
        ),
        ("global size", r().pax(b'g', &[("size", "1024")]).file("a", b"").end(), "global PAX header"),
        ("global path", r().pax(b'g', &[("path", "x")]).file("a", b"").end(), "global PAX header"),
        (
            "global between",
            r().pax(b'x', &[("path", "x")]).pax(b'g', &[("uid", "1")]).file("a", b"").end(),
            "between",
        ),
        (
            "pax size below the header's: the hidden archive is data or refused",
            r().pax(b'x', &[("size", "0")])
                .header("outer", b'0', inner.len() as u64, |_| {})
                .body(&inner)
                .end(),
            "/inner f",
        ),
        ("zero block inside", [r().0, vec![0; 512], r().file("a", b"").end()].concat(), "zero block"),
        ("garbage", vec![b'x'; 2048], "checksum"),
        (
            "sparse without map",
            r().pax(b'x', &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]).file("a", b"").end(),
            "no size",
        ),
        (
            "sparse short",
            r().pax(b'x', &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,4")]).file("a", b"abc").end(),
            "not as long",
        ),
        (
            "sparse odd",
            r().pax(b'x', &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,3,4")]).file("a", b"abc").end(),
            "number of regions",
        ),
        ("old sparse without GNU magic", r().header("a", b'S', 0, |_| {}).end(), "several formats"),
    ] {
        check(name, &archive, want);
    }
}

#[test]
fn pax_applies_to_the_right_entry() {
    // A PAX size covers a nested archive whose ustar size says 0: only the outer entries exist.
    let inner = Raw::new().file("inner", b"hidden").end();
    let archive = Raw::new()
        .pax(b'x', &[("size", &inner.len().to_string())])
        .header("outer", b'0', 0, |_| {})
        .body(&inner)
        .file("after", b"z")
        .end();
    let names: Vec<String> =
        list(&archive).lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["/outer", "/after"]);
    // Its size does not apply to the GNU header between it and its entry.
    let archive = Raw::new()
        .pax(b'x', &[("size", "3"), ("mtime", "7.5")])
        .long(b'L', "long")
        .file("short", b"abc")
        .file("next", b"")
        .end();
    assert_eq!(list(&archive), "/long f 0644 0:0 @7.5 3 ba7816bf8f01\n/next f 0644 0:0 @0 0\n");
    // Global records last until others replace them; local ones win.
    let archive = Raw::new()
        .pax(b'g', &[("uid", "7"), ("comment", "x")])
        .file("a", b"")
        .pax(b'x', &[("uid", "8")])
        .file("b", b"")
        .file("c", b"")
        .end();
    let owners: Vec<String> =
        list(&archive).lines().map(|l| l.split(' ').nth(3).unwrap().to_owned()).collect();
    assert_eq!(owners, ["7:0", "8:0", "7:0"]);
}

#[test]
fn odd_but_clear_archives_are_read() {
    let r = Raw::new;
    for (name, archive, want) in [
        ("v7 directory", r().header("d/", 0, 0, |b| b[257..265].fill(0)).end(), "/d d 0644"),
        ("contiguous", r().header("c", b'7', 1, |_| {}).body(b"x").end(), "/c f 0644 0:0 @0 1 "),
        (
            "hard link with size",
            r().file("a", b"").header("h", b'1', 99, |b| b[157] = b'a').end(),
            "/h h 0644 0:0 @0 -> /a",
        ),
        ("absolute", r().file("/etc/x", b"").end(), "/etc/x f"),
        ("prefix", r().header("n", b'0', 0, |b| b[345..348].copy_from_slice(b"a/b")).end(), "/a/b/n f"),
        ("no end", r().file("a", b"").0, "/a f"),
        ("one zero block", [r().file("a", b"").0, vec![0; 512]].concat(), "/a f"),
        (
            "type bits in mode",
            r().header("a", b'0', 0, |b| b[100..108].copy_from_slice(b"0104755\0")).end(),
            "/a f 4755",
        ),
        ("negative time", r().header("a", b'0', 0, |b| b[136..148].fill(0xff)).end(), "@-1"),
        (
            "device",
            r().header("t", b'3', 0, |b| {
                b[329..337].copy_from_slice(b"0000005\0");
                b[337..345].copy_from_slice(b"0000001\0");
            })
            .end(),
            "/t c 0644 0:0 @0 5:1",
        ),
    ] {
        check(name, &archive, want);
        assert!(!list(&archive).contains("error"), "{name}");
    }
}

#[test]
fn whiteouts() {
    let items = |names: &[&str]| -> Result<Vec<String>, TarReadError> {
        let archive = names.iter().fold(Raw::new(), |raw, name| raw.file(name, b"")).end();
        let mut reader = TarReader::new(&archive[..], Limits::default());
        let mut out = Vec::new();
        while let Some(item) = reader.next_item()? {
            out.push(match item {
                TarItem::Entry(entry) => format!("+{}", entry.path),
                TarItem::Whiteout { dir, name } => format!("-{}", dir.child(name).unwrap()),
                TarItem::Opaque { dir } => format!("o{dir}"),
            });
        }
        Ok(out)
    };
    let good = items(&["a/.wh.b", ".wh.c", "d/.wh..wh..opq", ".wh..wh..opq", "e.wh.f", ".wh...x"]).unwrap();
    assert_eq!(good, ["-/a/b", "-/c", "o/d", "o/", "+/e.wh.f", "-/..x"]);
    for bad in [".wh.", "a/.wh.", ".wh..", ".wh...", ".wh..wh.plnk", ".wh..wh..wh..opq", ".wh.d/x"] {
        assert!(items(&[bad]).is_err(), "{bad}");
    }
}

#[test]
fn writer_refuses_what_readers_would_misread() {
    let mut layer = TarWriter::layer(Vec::new());
    let marker = Entry::new(path("a/.wh.keep"), Kind::File { size: 0 }, 0o644);
    assert!(layer.bare(&marker).unwrap_err().to_string().contains("/a/.wh.keep"));
    assert!(layer.whiteout(&path(".wh.x"), Time::default()).is_err());
    assert!(layer.whiteout(&RelPath::root(), Time::default()).is_err());
    let mut plain = TarWriter::new(Vec::new());
    plain.bare(&marker).unwrap();
    let file = Entry::new(path("f"), Kind::File { size: 3 }, 0o644);
    assert!(plain.entry(&file, &b"ab"[..]).unwrap_err().to_string().contains("2 bytes instead of 3"));
    assert!(plain.entry(&file, &b"abcd"[..]).unwrap_err().to_string().contains("more than 3"));
    let mut attributes = file.clone();
    attributes.xattrs.insert(b"user.a=b".to_vec(), Vec::new());
    assert!(plain.entry(&attributes, &b"abc"[..]).is_err());
    let device = Entry::new(path("c"), Kind::CharDevice { major: 1 << 21, minor: 0 }, 0o600);
    assert!(plain.bare(&device).is_err());
}

#[test]
fn written_bytes_are_stable() {
    let mut writer = TarWriter::layer(Vec::new());
    let mut entry = Entry::new(path("bin/app"), Kind::File { size: 2 }, 0o4755);
    entry.mtime = Time { secs: 1_700_000_000, nanos: 250_000_000 };
    entry.xattrs.insert(b"security.capability".to_vec(), b"\x01\0\0\x02\xff".to_vec());
    writer.bare(&Entry::new(RelPath::root(), Kind::Dir, 0o755)).unwrap();
    writer.entry(&entry, &b"hi"[..]).unwrap();
    writer.whiteout(&path("bin/old"), Time::default()).unwrap();
    writer.opaque(&path("etc"), Time::default()).unwrap();
    let bytes = writer.finish().unwrap();
    assert_eq!(bytes.len() % 512, 0);
    // Recorded when the format was settled: a change here changes the digest of every layer.
    assert_eq!(Digest::of(&bytes).short(), "be362edf51be");
    let times = |bytes: &[u8]| {
        let mut reader = TarReader::new(bytes, Limits::default());
        let mut times = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            times.push(entry.mtime);
        }
        times
    };
    assert_eq!(times(&bytes)[1], Time { secs: 1_700_000_000, nanos: 0 }, "layers have whole seconds");
    let mut plain = TarWriter::new(Vec::new());
    plain.entry(&entry, &b"hi"[..]).unwrap();
    assert_eq!(times(&plain.finish().unwrap()), [entry.mtime]);
}

fn names() -> impl Strategy<Value = RelPath> {
    let name =
        prop_oneof!["[a-z]{1,3}", "[a-z ]{60,110}", Just("\u{e9}\n".to_owned()), Just("-rf \\".to_owned()),];
    prop::collection::vec(name, 1..4).prop_map(|parts| RelPath::parse(parts.join("/")).unwrap())
}

fn entries() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        (0..3000u64).prop_map(|size| Kind::File { size }),
        Just(Kind::Dir),
        Just(Kind::Fifo),
        prop::collection::vec(1..=255u8, 1..150).prop_map(|target| Kind::Symlink { target }),
        names().prop_map(|target| Kind::Hardlink { target }),
        (0..4096u32, 0..1_048_576u32).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        (0..4096u32, 0..1_048_576u32).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
    ];
    let time = (any::<i32>(), 0..1_000_000_000u32, any::<bool>()).prop_map(|(secs, nanos, far)| Time {
        secs: if far { i64::from(secs) * 1_000_000 } else { i64::from(secs) },
        nanos: if far { nanos } else { 0 },
    });
    let xattrs = prop::collection::btree_map(
        "[a-z]{1,4}\\.[a-z.]{1,9}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..80),
        0..3,
    );
    (names(), kind, 0..0o10000u32, any::<u32>(), any::<u32>(), time, xattrs).prop_map(
        |(path, kind, mode, uid, gid, mtime, xattrs)| Entry { path, kind, mode, uid, gid, mtime, xattrs },
    )
}

/// Whether any of its texts has one.
fn has_newline(entry: &Entry) -> bool {
    let target: &[u8] = match &entry.kind {
        Kind::Symlink { target } => target,
        Kind::Hardlink { target } => target.as_bytes(),
        _ => b"",
    };
    let texts = entry.xattrs.values().map(Vec::as_slice).chain([target, entry.path.as_bytes()]);
    texts.into_iter().any(|text| text.contains(&b'\n'))
}

fn write(entries: &[Entry]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for entry in entries {
        writer.entry(entry, io::repeat(b'x').take(entry.content_size())).unwrap();
    }
    writer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entries(), 0..6)) {
        let archive = write(&entries);
        prop_assert_eq!(&archive, &write(&entries));
        let mut reader = TarReader::new(&archive[..], Limits::default());
        for entry in &entries {
            let got = reader.next_entry().unwrap().unwrap();
            prop_assert_eq!(&got, entry);
            let mut content = Vec::new();
            reader.content().read_to_end(&mut content).unwrap();
            prop_assert_eq!(content.len() as u64, entry.content_size());
        }
        prop_assert!(reader.next_entry().unwrap().is_none());
        prop_assert!(reader.finish().unwrap().is_empty());
        // Another implementation reads the same names and sizes (it splits PAX records at newlines).
        if entries.iter().any(has_newline) {
            return Ok(());
        }
        let mut other = tar::Archive::new(&archive[..]);
        let mut count = 0;
        for (theirs, ours) in other.entries().unwrap().zip(&entries) {
            let theirs = theirs.unwrap();
            let name = theirs.path_bytes().to_vec();
            prop_assert_eq!(RelPath::parse(&name).unwrap(), ours.path.clone());
            prop_assert_eq!(theirs.size(), ours.content_size());
            count += 1;
        }
        prop_assert_eq!(count, entries.len());
    }

    #[test]
    fn mutated_archives_never_panic(
        which in 0..4usize, at in prop::collection::vec((0..8192usize, any::<u8>()), 1..8), cut in 0..16384usize,
        repair in any::<bool>(),
    ) {
        let [a, b, c, d] = fixtures!["pax", "sparse-0.1", "gnu", "sparse-oldgnu"];
        let mut archive = [a, b, c, d][which].1.to_vec();
        for (place, byte) in at {
            let place = place % archive.len();
            archive[place] = byte;
            if repair {
                let start = place / 512 * 512;
                let block = &mut archive[start..start + 512];
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().map(|c| u32::from(*c)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        archive.truncate(cut.max(512));
        let mut reader = TarReader::new(&archive[..], Limits { sparse_size: 1 << 24, ..Limits::default() });
        while let Ok(Some(entry)) = reader.next_item() {
            if let TarItem::Entry(entry) = &entry {
                prop_assert!(entry.path.components().all(|c| c != b".." && c != b"."));
            }
            let _ = reader.copy_to(&mut io::sink());
        }
    }
}

/// Runs of small and large parts of a stream that passes in pieces of `step` bytes.
fn scan(archive: &[u8], large: u64, step: usize) -> Vec<(bool, usize)> {
    let mut scan = TarScan::new(large);
    let mut parts: Vec<(bool, usize)> = vec![];
    for mut piece in archive.chunks(step) {
        while !piece.is_empty() {
            let (n, large) = scan.next(piece);
            assert!(n > 0);
            match parts.last_mut() {
                Some((kind, length)) if *kind == large => *length += n,
                _ => parts.push((large, n)),
            }
            piece = &piece[n..];
        }
    }
    parts
}

#[test]
fn large_contents_are_found_in_a_stream() {
    let mut writer = TarWriter::new(vec![]);
    for (name, size) in [("small", 999), ("large", 1000), (&*"long/".repeat(60), 5000), ("empty", 0)] {
        let entry = Entry::new(path(name.trim_end_matches('/')), Kind::File { size }, 0o644);
        writer.entry(&entry, io::repeat(b'x').take(size)).unwrap();
    }
    let archive = writer.finish().unwrap();
    let whole = scan(&archive, 1000, archive.len());
    let large: Vec<usize> = whole.iter().filter(|part| part.0).map(|part| part.1).collect();
    assert_eq!(large, [1024, 5120], "with their padding");
    assert_eq!(whole.first(), Some(&(false, 512 + 1024 + 512)));
    for step in [1, 7, 511, 513, 4096] {
        assert_eq!(scan(&archive, 1000, step), whole, "{step}");
    }
    // What is no tar has no large files, and is all there.
    let noise: Vec<u8> = (0..10_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    assert_eq!(scan(&noise, 1, 1000), [(false, 10_000)]);
}
