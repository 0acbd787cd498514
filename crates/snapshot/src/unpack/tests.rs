//! Tars in, layer directories out; hostile tars; the same as other tools make of them.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use rbuild_ports::{CancelToken, ErrorKind, LayerId, Snapshot, Snapshots};
use rbuild_tree::{Entry, Kind, RelPath, TarWriter};

use crate::testing::*;

/// Lower layers, the tar, and the layer that it makes (without its root).
fn check(lower: &[&str], lines: &str, want: &str) {
    if !root() {
        return;
    }
    let test = store();
    let parents = test.snapshot(lower);
    let layer = test.unpack("new", &parents, lines).unwrap_or_else(|e| panic!("{e}\n{lines}"));
    let text = test.dump_layer(&layer.layer);
    let (_, got) = text.split_once('\n').unwrap();
    let want: String = want.lines().map(|line| format!("{}\n", line.trim())).collect();
    assert_eq!(got, want, "{lower:?}\n{lines}");
    assert_eq!(layer.entries, text.lines().filter(|line| !line.ends_with(" o")).count() as u64 - 1);
    test.assert_clean();
}

#[test]
fn metadata_of_every_kind() {
    check(
        &[],
        "d d 1750 1:2 @5.000000001
        f d/f 6755 3:4 @-7 =hello
        f d/ro 0 =x
        l d/l 5:6 @8 ->../x
        h d/h ->d/f
        c d/c 620 7:8 @9 #5,1
        b d/b 660 #8,0
        p d/p 600 @10
        f caps 755 x:user.a=b",
        "/caps f 0755 0:0 @0 0 user.a=b
        /d d 1750 1:2 @5.000000001
        /d/b b 0660 0:0 @0 8:0
        /d/c c 0620 7:8 @9 5:1
        /d/f f 6755 3:4 @-7 5 =hello
        /d/h f 6755 3:4 @-7 5 =hello
        /d/l l 0777 5:6 @8 -> ../x
        /d/p p 0600 0:0 @10
        /d/ro f 0000 0:0 @0 1 =x",
    );
}

#[test]
fn later_entries_win() {
    for (lines, want) in [
        ("f a =1\nf a 600 =22", "/a f 0600 0:0 @0 2 =22"),
        ("f a =1\nd a 700", "/a d 0700 0:0 @0"),
        ("d a\nf a/b\nd a/c\nf a =1", "/a f 0644 0:0 @0 1 =1"),
        ("d a\nf a/b\nl a ->x\nd a\nf a/c", "/a d 0755 0:0 @0\n/a/c f 0644 0:0 @0 0"),
        ("d a 700 @5\nf a/b\nd a 711 @6", "/a d 0711 0:0 @6\n/a/b f 0644 0:0 @0 0"),
        ("f a =1\nh b ->a\nf a =2", "/a f 0644 0:0 @0 1 =2\n/b f 0644 0:0 @0 1 =1"),
        ("h b ->a\nf a =1\nh c ->b", "/a f 0644 0:0 @0 1 =1\n/b f 0644 0:0 @0 1 =1\n/c f 0644 0:0 @0 1 =1"),
        ("h b ->a\nf a =1\nf b =2", "/a f 0644 0:0 @0 1 =1\n/b f 0644 0:0 @0 1 =2"),
    ] {
        check(&[], lines, want);
    }
}

#[test]
fn deletions() {
    let lower = &["d a\nf a/x\nd b\nf b/y\nf c"];
    for (lines, want) in [
        ("w a", "/a w"),
        ("d a\no a\nf a/z", "/a d 0755 0:0 @0\n/a o\n/a/z f 0644 0:0 @0 0"),
        ("d a\nf a/z\no a", "/a d 0755 0:0 @0\n/a o\n/a/z f 0644 0:0 @0 0"),
        ("w a\nd a\nf a/z", "/a d 0755 0:0 @0\n/a o\n/a/z f 0644 0:0 @0 0"),
        ("d a\nf a/z\nw a", "/a d 0755 0:0 @0\n/a o\n/a/z f 0644 0:0 @0 0"),
        ("f a =1\nw a", "/a f 0644 0:0 @0 1 =1"),
        ("w a\nf a =1", "/a f 0644 0:0 @0 1 =1"),
        ("w c\nw c", "/c w"),
        ("c c #0,0", "/c w"),
        // An overlay knows no opaque root: everything is deleted by name.
        ("d .\no .\nd b\nf n", "/a w\n/b d 0755 0:0 @0\n/b o\n/c w\n/n f 0644 0:0 @0 0"),
        ("w a/x", "/a d 0755 0:0 @0\n/a/x w"),
    ] {
        check(lower, lines, want);
    }
}

#[test]
fn directories_that_the_tar_implies_are_those_below() {
    let lower = &[
        "d usr 711 1:2 @3\nd usr/lib 700 @4 x:user.a=b\nl lib ->usr/lib\nl abs ->/usr\nl loop ->loop\nd gone\nf file",
    ];
    for (lines, want) in [
        (
            "f usr/lib/x =x",
            "/usr d 0711 1:2 @3\n/usr/lib d 0700 0:0 @4 user.a=b\n/usr/lib/x f 0644 0:0 @0 1 =x",
        ),
        ("f new/dir/x", "/new d 0755 0:0 @0\n/new/dir d 0755 0:0 @0\n/new/dir/x f 0644 0:0 @0 0"),
        // A link below: the file belongs where it leads.
        ("f lib/x =x", "/usr d 0711 1:2 @3\n/usr/lib d 0700 0:0 @4 user.a=b\n/usr/lib/x f 0644 0:0 @0 1 =x"),
        (
            "f lib/sub/x =x\nd usr/lib/sub 711 @9\nf usr/lib/y =y",
            "/usr d 0711 1:2 @3\n/usr/lib d 0700 0:0 @4 user.a=b\n/usr/lib/sub d 0711 0:0 @9\n/usr/lib/sub/x f 0644 0:0 @0 1 =x\n/usr/lib/y f 0644 0:0 @0 1 =y",
        ),
        ("f abs/x", "/usr d 0711 1:2 @3\n/usr/x f 0644 0:0 @0 0"),
        ("w lib/x", "/usr d 0711 1:2 @3\n/usr/lib d 0700 0:0 @4 user.a=b\n/usr/lib/x w"),
        // An entry of its own replaces the link.
        ("d lib\nf lib/x", "/lib d 0755 0:0 @0\n/lib/x f 0644 0:0 @0 0"),
        ("f lib/x\nd lib 700", "/lib d 0700 0:0 @0\n/lib/x f 0644 0:0 @0 0"),
        // What this layer deletes does not count.
        ("w gone\nf gone/x", "/gone d 0755 0:0 @0\n/gone o\n/gone/x f 0644 0:0 @0 0"),
        (
            "w usr\nf usr/lib/x",
            "/usr d 0755 0:0 @0\n/usr o\n/usr/lib d 0755 0:0 @0\n/usr/lib/x f 0644 0:0 @0 0",
        ),
        // A link of this layer.
        (
            "l l ->usr/lib\nf l/x",
            "/l l 0777 0:0 @0 -> usr/lib\n/usr d 0711 1:2 @3\n/usr/lib d 0700 0:0 @4 user.a=b\n/usr/lib/x f 0644 0:0 @0 0",
        ),
        ("f file/x", "/file d 0755 0:0 @0\n/file/x f 0644 0:0 @0 0"),
    ] {
        check(lower, lines, want);
    }
}

#[test]
fn links_into_lower_layers_are_copied_up() {
    let lower = &["d usr 711 @3\nf usr/f 4711 1:2 @5 =old\nl usr/l 3:4 @6 ->x\nl lib ->usr\nf gone =g"];
    for (lines, want) in [
        ("h n ->usr/f", "/n f 4711 1:2 @5 3 =old\n/usr d 0711 0:0 @3\n/usr/f f 4711 1:2 @5 3 =old"),
        ("h n ->lib/f", "/n f 4711 1:2 @5 3 =old\n/usr d 0711 0:0 @3\n/usr/f f 4711 1:2 @5 3 =old"),
        ("h n ->usr/l", "/n l 0777 3:4 @6 -> x\n/usr d 0711 0:0 @3\n/usr/l l 0777 3:4 @6 -> x"),
        ("h lib/n ->usr/f", "/usr d 0711 0:0 @3\n/usr/f f 4711 1:2 @5 3 =old\n/usr/n f 4711 1:2 @5 3 =old"),
    ] {
        check(lower, lines, want);
    }
    let test = store();
    let parents = test.snapshot(lower);
    for lines in ["h n ->none", "h n ->usr", "h n ->lib", "w gone\nh n ->gone", "d d\nh n ->d"] {
        let result = test.unpack("bad", &parents, lines);
        if lines == "h n ->lib" {
            // A link to a symbolic link is a second name of it.
            assert!(result.is_ok(), "{lines}");
            test.store.remove(&"bad".parse().unwrap()).unwrap();
            continue;
        }
        assert_eq!(result.unwrap_err().kind, ErrorKind::Invalid, "{lines}");
        test.assert_clean();
    }
}

/// A tar with names that `TarWriter` would not write: headers by hand.
fn raw(entries: &[(u8, &str, &str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, name, link, content) in entries {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000777");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000000");
        block[148..156].copy_from_slice(b"        ");
        block[156] = *kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(block);
        if !content.is_empty() {
            let mut data = content.as_bytes().to_vec();
            data.resize(data.len().next_multiple_of(512), 0);
            out.extend(data);
        }
    }
    out.extend([0; 1024]);
    out
}

#[test]
fn hostile_tars_write_nothing_outside() {
    let cases: &[&[(u8, &str, &str, &str)]] = &[
        &[(b'0', "../victim/x", "", "evil")],
        &[(b'0', "a/../../victim/x", "", "evil")],
        &[(b'2', "l", "../victim", ""), (b'0', "l/x", "", "evil")],
        &[(b'2', "l", "/VICTIM", ""), (b'0', "l/x", "", "evil"), (b'5', "l/d", "", "")],
        &[(b'2', "a", "..", ""), (b'2', "a/b", "..", ""), (b'0', "b/victim/x", "", "evil")],
        &[(b'2', "l", "/VICTIM", ""), (b'0', "l", "", "evil")],
        &[(b'2', "l", "/VICTIM/file", ""), (b'1', "h", "l", ""), (b'0', "h", "", "evil")],
        &[(b'1', "h", "../victim/file", ""), (b'0', "h", "", "evil")],
        &[(b'1', "h", "/VICTIM/file", "")],
        &[(b'2', "l", "/VICTIM", ""), (b'1', "h", "l/file", ""), (b'0', "h", "", "evil")],
        &[(b'5', "d", "", ""), (b'0', "d/f", "", ""), (b'2', "d", "/VICTIM", ""), (b'5', "d/sub", "", "")],
        &[(b'5', "d", "", ""), (b'2', "d", "/VICTIM", "")],
        &[(b'2', "l", "/VICTIM", ""), (b'0', "l/.wh.file", "", ""), (b'0', "l/.wh..wh..opq", "", "")],
        &[(b'0', ".wh..", "", "")],
        &[(b'0', "d/.wh...", "", "")],
        &[(b'0', ".wh.", "", "")],
        &[(b'2', ".", "/VICTIM", ""), (b'0', "x", "", "evil")],
        &[(b'2', "loop", "loop", ""), (b'0', "loop/x", "", "evil")],
        &[(b'5', "../victim", "", "")],
    ];
    let test = store();
    let victim = tempfile::tempdir_in(test.dir.path().parent().unwrap()).unwrap();
    std::fs::write(victim.path().join("file"), "precious").unwrap();
    let state = || {
        let meta = std::fs::metadata(victim.path()).unwrap();
        let file = std::fs::metadata(victim.path().join("file")).unwrap();
        let names = std::fs::read_dir(victim.path()).unwrap().count();
        let content = std::fs::read_to_string(victim.path().join("file")).unwrap();
        (
            meta.mode(),
            meta.mtime_nsec(),
            meta.mtime(),
            file.mode(),
            file.nlink(),
            file.mtime_nsec(),
            names,
            content,
        )
    };
    let before = state();
    let path = victim.path().display().to_string();
    for (index, case) in cases.iter().enumerate() {
        let entries: Vec<(u8, String, String, &str)> = case
            .iter()
            .map(|(kind, name, link, content)| {
                (*kind, name.replace("/VICTIM", &path), link.replace("/VICTIM", &path), *content)
            })
            .collect();
        let borrowed: Vec<_> = entries
            .iter()
            .map(|(kind, name, link, content)| (*kind, name.as_str(), link.as_str(), *content))
            .collect();
        let result = test.unpack_tar(&format!("h{index}"), &Snapshot::default(), &raw(&borrowed));
        if let Err(error) = &result {
            assert_eq!(error.kind, ErrorKind::Invalid, "{case:?}: {error}");
        }
        assert_eq!(state(), before, "{case:?}");
        test.assert_clean();
    }
}

#[test]
fn absolute_links_stay_in_the_layer() {
    let test = store();
    let tar = raw(&[(b'2', "l", "/d", ""), (b'5', "d", "", ""), (b'0', "l/x", "", "in")]);
    test.unpack_tar("x", &Snapshot::default(), &tar).unwrap();
    assert_eq!(std::fs::read_to_string(test.dir.path().join("layers/x/d/x")).unwrap(), "in");
}

#[test]
fn overlay_and_security_attributes_never_reach_the_disk() {
    let test = store();
    let lines = "d d x:trusted.overlay.opaque=y x:user.overlay.opaque=y x:user.ok=1\n\
                 f f x:trusted.overlay.redirect=/../../x x:security.selinux=evil x:trusted.overlay.metacopy=";
    let layer = test.unpack("x", &Snapshot::default(), lines).unwrap();
    for name in ["d", "f"] {
        let path = test.dir.path().join("layers/x").join(name);
        let mut buffer = [0u8; 1024];
        let size = rustix::fs::llistxattr(path.as_path(), &mut buffer[..]).unwrap();
        let names = String::from_utf8_lossy(&buffer[..size]).into_owned();
        let want = if name == "d" { "user.ok\0" } else { "" };
        assert_eq!(names, want, "{name}");
    }
    assert!(test.dump_layer(&layer.layer).contains("/d d 0755 0:0 @0 user.ok=1\n/f f"));
}

#[test]
fn broken_streams_leave_nothing() {
    let test = store();
    let good = tar("d d\nf d/f =hello\nf d/g =hello");
    let unpack = |mut stream: Box<dyn Read>, cancel: &CancelToken| {
        let id: LayerId = "x".parse().unwrap();
        let result = test.store.unpack(&id, &[], &mut *stream, cancel).unwrap_err();
        assert!(!test.store.present(&id));
        test.assert_clean();
        result.kind
    };
    let cancel = CancelToken::new();
    let cut = good[..1300].to_vec();
    assert_eq!(unpack(Box::new(std::io::Cursor::new(cut)), &cancel), ErrorKind::Corrupt);
    let mut damaged = good.clone();
    damaged[600] ^= 1;
    assert_eq!(unpack(Box::new(std::io::Cursor::new(damaged)), &cancel), ErrorKind::Invalid);
    // Whoever verifies the stream says so at its end.
    struct Wrong;
    impl Read for Wrong {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other(rbuild_ports::PortError::new(ErrorKind::Corrupt, "wrong digest")))
        }
    }
    let stream = std::io::Cursor::new(good.clone()).chain(Wrong);
    assert_eq!(unpack(Box::new(stream), &cancel), ErrorKind::Corrupt);
    let stop = CancelToken::new();
    stop.cancel();
    assert_eq!(unpack(Box::new(std::io::Cursor::new(good)), &stop), ErrorKind::Cancelled);
}

#[test]
fn damaged_tars_are_refused_or_unpacked_but_never_panic() {
    let test = store();
    let good = tar(
        "d d 711\nf d/f =hello\nl l ->d\nh h ->d/f\nf l/x =x\nw gone\no d\nf long/long/long x:user.a=b =y",
    );
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..3 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(seed >> 33).unwrap() % bytes.len();
            bytes[at] = b"\0/.017axg5 \xff"[usize::try_from(seed >> 20 & 0xff).unwrap() % 12];
            // The checksum is made right again, or nothing behind it would be tried.
            let block = at / 512 * 512;
            if bytes[block + 257..block + 262] == *b"ustar" {
                bytes[block + 148..block + 156].fill(b' ');
                let sum: u32 = bytes[block..block + 512].iter().map(|b| u32::from(*b)).sum();
                bytes[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        if let Err(error) = test.unpack_tar(&format!("m{round}"), &Snapshot::default(), &bytes) {
            assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::Corrupt), "{error}");
        }
    }
    test.assert_clean();
}

#[test]
fn names_of_any_bytes() {
    let test = store();
    let mut writer = TarWriter::new(Vec::new());
    let long = vec![b'n'; 255];
    let names: Vec<&[u8]> = vec![
        b"\xff\xfe",
        b"new\nline",
        b"-rf",
        b"trailing ",
        b"back\\slash",
        "é".as_bytes(),
        "e\u{301}".as_bytes(),
        &long,
    ];
    for name in &names {
        let entry = Entry::new(RelPath::parse(name).unwrap(), Kind::File { size: 0 }, 0o644);
        writer.bare(&entry).unwrap();
    }
    let layer = test.unpack_tar("x", &Snapshot::default(), &writer.finish().unwrap()).unwrap();
    let mut want: Vec<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
    want.sort();
    let view = test.view(&Snapshot::default().with(layer.layer.clone()));
    assert_eq!(view.children(&RelPath::root()).unwrap(), want);
    let again = test.unpack_tar("y", &Snapshot::default(), &test.tar(&layer.layer)).unwrap();
    assert_eq!(test.dump_layer(&again.layer), test.dump_layer(&layer.layer));
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 500 << 20).unwrap();
    let made = Command::new("tar").args(["-S", "-cf", "-", "-C"]).arg(dir.path()).arg("sparse").output();
    let Ok(made) = made else { return };
    let test = store();
    let layer = test.unpack_tar("x", &Snapshot::default(), &made.stdout).unwrap();
    assert_eq!(layer.bytes, 1 << 30);
    let path = test.dir.path().join("layers/x/sparse");
    assert!(std::fs::metadata(&path).unwrap().blocks() < 1000);
    let mut data = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(
        &std::fs::File::open(&path).unwrap(),
        &mut data,
        (500 << 20) - 1,
    )
    .unwrap();
    assert_eq!(&data, b"\0data\0");
}

#[test]
fn the_same_as_gnu_tar() {
    if !root() {
        return;
    }
    let test = store();
    let lines = "d . 711 @4\nd d 1777 1:2 @5.25\nf d/f 4755 3:4 @6 =x\nl d/l 5:6 @7 ->f\nh d/h ->d/f\nc d/c 600 @8 #1,3\np d/p 640 @9\nd d/e 0 @10\nf d/e/f 0 @11\nf implied =y";
    let archive = tar(lines);
    test.unpack_tar("x", &Snapshot::default(), &archive).unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("a.tar"), &archive).unwrap();
    let script = format!("mkdir $1/t; tar -xpf $1/a.tar --numeric-owner -C $1/t; set -- $1/t; {FIND}");
    let theirs = in_namespace(&script, &[&other.path().display().to_string()]);
    let ours = in_namespace(FIND, &[&test.dir.path().join("layers/x").display().to_string()]);
    assert_eq!(found(&ours), found(&theirs));
}
