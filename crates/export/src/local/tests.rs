//! Directories: new, merged, replaced; nothing outside is touched.

use super::*;
use crate::testing::World;
use crate::{BuiltImage, Dest, Digests, ExportRequest, OutputSpec, TarOutput};
use rbuild_oci::{ImageConfig, Platform};
use rbuild_ports::Snapshot;

/// A directory as lines: name, kind, mode, mtime, content.
fn dump(root: &Path) -> String {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for path in names {
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().display();
            let mode = meta.mode() & 0o7777;
            out.push(match meta.file_type() {
                t if t.is_dir() => format!("{name}/ {mode:o} @{}", meta.mtime()),
                t if t.is_symlink() => format!("{name} -> {}", path.read_link().unwrap().display()),
                _ => format!("{name} {mode:o} @{} {:?}", meta.mtime(), fs::read_to_string(&path).unwrap()),
            });
            if meta.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = vec![];
    walk(root, root, &mut out);
    out.join("\n")
}

fn touch(path: &Path, secs: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// `a/` with a file, a link and a second name; `ro/`, which forbids writing.
fn image_tree(dir: &Path) {
    fs::create_dir_all(dir.join("a")).unwrap();
    fs::create_dir(dir.join("ro")).unwrap();
    fs::write(dir.join("a/f"), "new").unwrap();
    fs::write(dir.join("ro/x"), "x").unwrap();
    fs::hard_link(dir.join("a/f"), dir.join("second")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("a/link")).unwrap();
    fs::set_permissions(dir.join("a/f"), fs::Permissions::from_mode(0o640)).unwrap();
    for (path, secs) in [("a/f", 11), ("a/link", 12), ("ro/x", 13), ("a", 14), ("ro", 15)] {
        touch(&dir.join(path), secs);
    }
    for (path, mode) in [("a", 0o750), ("ro", 0o555), ("ro/x", 0o444)] {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
}

const TREE: &str = r#"a/ 750 @14
a/f 640 @11 "new"
a/link -> /etc/passwd
ro/ 555 @15
ro/x 444 @13 "x"
second 640 @11 "new""#;

fn built(snapshot: Snapshot, platform: &str) -> BuiltImage {
    BuiltImage {
        platform: platform.parse::<Platform>().unwrap(),
        snapshot,
        config: ImageConfig::default(),
        base_history: 0,
    }
}

fn request<'a>(images: &'a [BuiltImage], outputs: &'a [OutputSpec]) -> ExportRequest<'a> {
    ExportRequest {
        images,
        indexed: images.len() > 1,
        outputs,
        names: &[],
        annotations: &[],
        source_date_epoch: None,
        inline_cache: None,
        want: Digests::None,
    }
}

fn to(dest: &Path) -> LocalOutput {
    LocalOutput {
        dest: dest.to_owned(),
        mode: LocalMode::Copy,
        platform_split: None,
        source_date_epoch: None,
    }
}

struct Case {
    dir: tempfile::TempDir,
    world: World,
    images: Vec<BuiltImage>,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("image");
        fs::create_dir(&tree).unwrap();
        image_tree(&tree);
        let world = World::default();
        let images = vec![built(world.tree("s1", &tree), "linux/amd64")];
        Self { dir, world, images }
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn export(&self, output: &LocalOutput) -> Result<OutputReport> {
        export(&self.world.cx(), &request(&self.images, &[]), output)
    }
}

#[test]
fn a_new_directory() {
    let case = Case::new();
    let report = case.export(&to(&case.dest())).unwrap();
    assert_eq!(dump(&case.dest()), TREE);
    let inode = |name: &str| fs::metadata(case.dest().join(name)).unwrap().ino();
    assert_eq!(inode("a/f"), inode("second"));
    assert_eq!((report.bytes, report.target), (4, case.dest().display().to_string()));
    let meta = fs::metadata(case.dest().join("a/f")).unwrap();
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn an_existing_directory_is_merged_or_replaced() {
    for (mode, extra) in [(LocalMode::Copy, true), (LocalMode::Delete, false)] {
        let case = Case::new();
        let dest = case.dest();
        fs::create_dir_all(dest.join("a/deep/deeper")).unwrap();
        fs::create_dir_all(dest.join("second/was/a/dir")).unwrap();
        fs::write(dest.join("a/f"), "old").unwrap();
        fs::set_permissions(dest.join("a/f"), fs::Permissions::from_mode(0o400)).unwrap();
        fs::write(dest.join("kept"), "kept").unwrap();
        fs::write(dest.join("ro"), "was a file").unwrap();
        touch(&dest.join("kept"), 1);
        touch(&dest.join("a/deep/deeper"), 2);
        touch(&dest.join("a/deep"), 3);
        for dir in ["a/deep/deeper", "a/deep"] {
            fs::set_permissions(dest.join(dir), fs::Permissions::from_mode(0o555)).unwrap();
        }
        case.export(&LocalOutput { mode, ..to(&dest) }).unwrap();
        let want = if extra {
            TREE.replace("a/f 640", "a/deep/ 555 @3\na/deep/deeper/ 555 @2\na/f 640")
                .replace("ro/ 555", "kept 644 @1 \"kept\"\nro/ 555")
        } else {
            TREE.to_owned()
        };
        assert_eq!(dump(&dest), want, "{mode:?}");
        // Again over its own output, read-only directories and all.
        case.export(&LocalOutput { mode, ..to(&dest) }).unwrap();
        assert_eq!(dump(&dest), want, "{mode:?}");
    }
}

#[test]
fn links_in_the_destination_are_not_followed() {
    let case = Case::new();
    let (dest, outside) = (case.dest(), case.dir.path().join("outside"));
    fs::create_dir_all(&dest).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "safe").unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("a")).unwrap();
    std::os::unix::fs::symlink(outside.join("victim"), dest.join("second")).unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("other")).unwrap();
    let before = dump(&outside);
    case.export(&LocalOutput { mode: LocalMode::Delete, ..to(&dest) }).unwrap();
    assert_eq!(dump(&dest), TREE);
    assert_eq!(dump(&outside), before);
    // The destination itself may be a link.
    let link = case.dir.path().join("link");
    std::os::unix::fs::symlink("out", &link).unwrap();
    case.export(&to(&link)).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(dump(&dest), TREE);
}

#[test]
fn failures_leave_what_was_there() {
    let case = Case::new();
    fs::write(case.dest(), "a file").unwrap();
    assert!(case.export(&to(&case.dest())).unwrap_err().message.contains("it is a file"));
    fs::remove_file(case.dest()).unwrap();
    case.world.cancel.cancel();
    for dest in [case.dest(), case.dest().join("made/too")] {
        assert_eq!(case.export(&to(&dest)).unwrap_err().kind, ErrorKind::Cancelled);
        assert!(!case.dest().exists());
    }
    fs::create_dir(case.dest()).unwrap();
    assert!(case.export(&to(&case.dest())).is_err());
    assert_eq!(dump(&case.dest()), "");
}

#[test]
fn several_platforms() {
    let mut case = Case::new();
    let other = case.dir.path().join("other");
    fs::create_dir_all(other.join("a")).unwrap();
    fs::write(other.join("a/arm"), "arm").unwrap();
    case.images.push(built(case.world.tree("s2", &other), "linux/arm/v7"));
    let output = LocalOutput { source_date_epoch: Some(77), ..to(&case.dest()) };
    case.export(&output).unwrap();
    let text = dump(&case.dest());
    for line in
        ["linux_amd64/ 755 @77", "linux_amd64/a/f 640 @77 \"new\"", "linux_arm_v7/a/arm 644 @77 \"arm\""]
    {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    // In one directory: what both have must be a directory.
    let one = case.dir.path().join("one");
    case.export(&LocalOutput { platform_split: Some(false), ..to(&one) }).unwrap();
    assert!(one.join("a/f").exists() && one.join("a/arm").exists());
    fs::write(other.join("second"), "twice").unwrap();
    let error = case.export(&LocalOutput { platform_split: Some(false), ..to(&one) }).unwrap_err();
    assert!(error.message.contains("cannot overwrite /second"), "{error}");
    let tar = TarOutput {
        dest: Dest::Path(case.dir.path().join("t")),
        platform_split: Some(false),
        source_date_epoch: None,
    };
    let error = crate::rootfs_tar::export(&case.world.cx(), &request(&case.images, &[]), &tar).unwrap_err();
    assert!(error.message.contains("cannot overwrite /second"), "{error}");
    assert!(!case.dir.path().join("t").exists());
}

#[test]
fn holes_stay_holes() {
    let case = Case::new();
    let tree = case.dir.path().join("image");
    let file = File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 100 << 20).unwrap();
    case.export(&to(&case.dest())).unwrap();
    let meta = fs::metadata(case.dest().join("sparse")).unwrap();
    assert_eq!(meta.len(), (100 << 20) + 3);
    let source = fs::metadata(tree.join("sparse")).unwrap().blocks();
    assert!(meta.blocks() <= source + 64, "{} blocks of {source}", meta.blocks());
    let mut end = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(
        &File::open(case.dest().join("sparse")).unwrap(),
        &mut end,
        (100 << 20) - 1,
    )
    .unwrap();
    assert_eq!(&end, b"\0end");
}

#[test]
fn setuid_stays_only_with_its_owner() {
    let (world, path) = (World::default(), Path::new("/"));
    let cx = world.cx();
    let writer = TreeWriter::new(&cx, path, path, None);
    let mut entry = Entry::new(RelPath::parse("su").unwrap(), Kind::File { size: 0 }, 0o6755);
    (entry.uid, entry.gid) = (writer.uid, writer.gid);
    assert_eq!(writer.mode(&entry), 0o6755);
    entry.uid += 1;
    assert_eq!(writer.mode(&entry), 0o2755);
    entry.gid += 1;
    assert_eq!(writer.mode(&entry), 0o755);
}

#[test]
fn the_root_file_system_as_tar() {
    let case = Case::new();
    let path = case.dir.path().join("root.tar");
    let output = TarOutput { dest: Dest::Path(path.clone()), platform_split: None, source_date_epoch: None };
    crate::rootfs_tar::export(&case.world.cx(), &request(&case.images, &[]), &output).unwrap();
    let text = std::process::Command::new("tar").args(["-tvf"]).arg(&path).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    let names: Vec<&str> = text.lines().map(|line| line.split_whitespace().nth(5).unwrap()).collect();
    assert_eq!(names, ["a/", "a/f", "a/link", "ro/", "ro/x", "second"], "{text}");
    assert!(text.contains("second link to a/f"), "{text}");
    let first = fs::read(&path).unwrap();
    crate::rootfs_tar::export(&case.world.cx(), &request(&case.images, &[]), &output).unwrap();
    assert!(fs::read(&path).unwrap() == first);
    // To standard output only when there is one for it.
    let output = TarOutput { dest: Dest::Stdout, ..output };
    let error =
        crate::rootfs_tar::export(&case.world.cx(), &request(&case.images, &[]), &output).unwrap_err();
    assert!(error.message.contains("terminal"), "{error}");
    let stdout = Mutex::new(Vec::<u8>::new());
    let cx = ExportContext { stdout: Some(&stdout), ..case.world.cx() };
    crate::rootfs_tar::export(&cx, &request(&case.images, &[]), &output).unwrap();
    assert!(*stdout.lock().unwrap() == first);
}
