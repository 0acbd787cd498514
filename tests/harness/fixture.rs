//! Test cases as text: a file of cases with sections, and a directory tree described one line an entry.
//!
//! ```text
//! d src 755            directory
//! f src/a 644 text     file with this text and no line end ("" for none)
//! l src/link a         symbolic link
//! h src/hard src/a     hard link
//! p src/pipe 600       named pipe
//! x src/a user.k v     extended attribute
//! t a.tar.gz gz        archive; what follows and is indented is in it: `  f path mode uid:gid text`
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The time of every file that fixtures make: 2020-01-01.
pub const TIME: i64 = 1_577_836_800;

/// A case: its name and its sections in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What stands after `==`.
    pub name: String,
    /// Name after `--` and the text below it.
    pub sections: Vec<(String, String)>,
}

impl Case {
    /// A section's text; empty when there is none.
    #[must_use]
    pub fn section(&self, name: &str) -> &str {
        self.sections.iter().find(|(known, _)| known == name).map_or("", |(_, text)| text)
    }

    /// Whether there is such a section.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.sections.iter().any(|(known, _)| known == name)
    }

    /// Sets a section's text.
    pub fn set(&mut self, name: &str, text: &str) {
        match self.sections.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => text.clone_into(old),
            None => self.sections.push((name.to_owned(), text.to_owned())),
        }
    }
}

/// The cases of a file: `== name`, then `-- section` and its lines. What stands before the first case is a comment.
#[must_use]
pub fn cases(text: &str) -> Vec<Case> {
    let mut out: Vec<Case> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            out.push(Case { name: name.to_owned(), sections: vec![] });
        } else if let (Some(name), Some(case)) = (line.strip_prefix("-- "), out.last_mut()) {
            case.sections.push((name.to_owned(), String::new()));
        } else if let Some((_, section)) = out.last_mut().and_then(|case| case.sections.last_mut()) {
            section.push_str(line);
            section.push('\n');
        }
    }
    for (_, section) in out.iter_mut().flat_map(|case| &mut case.sections) {
        while section.ends_with("\n\n") || section == "\n" {
            section.pop();
        }
    }
    out
}

/// The other way round, below the comment that `text` begins with.
#[must_use]
pub fn write_cases(text: &str, cases: &[Case]) -> String {
    let comment: Vec<&str> = text.lines().take_while(|line| !line.starts_with("== ")).collect();
    let mut out = comment.join("\n");
    for case in cases {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("== {}\n", case.name));
        for (name, text) in &case.sections {
            out.push_str(&format!("-- {name}\n{text}"));
        }
    }
    out
}

/// Makes the tree that `text` describes in `dir`. Directories that are only implied have mode 755. All have [`TIME`].
///
/// # Panics
/// When a line is not understood, or the file system cannot hold what it says.
pub fn make_tree(dir: &Path, text: &str) {
    fs::create_dir_all(dir).expect("the context");
    let mut modes = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.splitn(4, ' ');
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (third, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a parent directory");
        }
        let octal = || u32::from_str_radix(third, 8).unwrap_or_else(|_| panic!("{line:?} has no mode"));
        match kind {
            "" => continue,
            "d" => {
                fs::create_dir_all(&path).expect("a directory");
                modes.push((path, octal()));
            }
            "f" => {
                fs::write(&path, unquote(rest)).expect("a file");
                modes.push((path, octal()));
            }
            "l" => std::os::unix::fs::symlink(third, &path).expect("a symbolic link"),
            "h" => fs::hard_link(dir.join(third), &path).expect("a hard link"),
            "p" => {
                run(Command::new("mkfifo").arg(&path));
                modes.push((path, octal()));
            }
            "x" => {
                rustix::fs::lsetxattr(&path, third, rest.as_bytes(), rustix::fs::XattrFlags::empty())
                    .expect("an extended attribute");
            }
            "t" => {
                let mut entries = Vec::new();
                while let Some(entry) = lines.next_if(|next| next.starts_with("  ")) {
                    entries.push(entry.trim_start());
                }
                fs::write(&path, compress(&archive(&entries), third)).expect("an archive");
                modes.push((path, 0o644));
            }
            _ => panic!("{line:?} is not understood"),
        }
    }
    for (path, mode) in modes.iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("a mode");
    }
    set_times(dir);
}

/// Gives everything below `dir`, and itself, [`TIME`]; links are not followed.
///
/// # Panics
/// When a time cannot be set.
pub fn set_times(dir: &Path) {
    set_times_to(dir, TIME);
}

/// Gives everything below `dir`, and itself, this time; links are not followed.
///
/// # Panics
/// When a time cannot be set.
pub fn set_times_to(dir: &Path, time: i64) {
    for entry in fs::read_dir(dir).expect("a directory of the fixture").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            set_times_to(&entry.path(), time);
        } else {
            set_time(&entry.path(), time);
        }
    }
    set_time(dir, time);
}

/// Sets when a file was last changed; a link is not followed.
///
/// # Panics
/// When it cannot be set.
pub fn set_time(path: &Path, seconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .unwrap_or_else(|error| panic!("set the time of {}: {error}", path.display()));
}

/// `""` is nothing; `\n` is a line end.
fn unquote(text: &str) -> String {
    if text == "\"\"" { String::new() } else { text.replace("\\n", "\n") }
}

fn archive(entries: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let words: Vec<&str> = entry.splitn(5, ' ').collect();
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let mut header = tar::Header::new_gnu();
        header.set_mtime(TIME.unsigned_abs());
        let (kind, content, link) = match word(0) {
            "d" => (tar::EntryType::Directory, String::new(), ""),
            "f" => (tar::EntryType::Regular, unquote(word(4)), ""),
            "l" => (tar::EntryType::Symlink, String::new(), word(4)),
            "h" => (tar::EntryType::Link, String::new(), word(4)),
            "p" => (tar::EntryType::Fifo, String::new(), ""),
            "c" => {
                header.set_device_major(1).expect("a number");
                header.set_device_minor(3).expect("a number");
                (tar::EntryType::Char, String::new(), "")
            }
            _ => panic!("{entry:?} is not understood"),
        };
        header.set_entry_type(kind);
        header.set_mode(u32::from_str_radix(word(2), 8).expect("a mode"));
        let (uid, gid) = word(3).split_once(':').expect("an owner");
        header.set_uid(uid.parse().expect("a number"));
        header.set_gid(gid.parse().expect("a number"));
        header.set_size(content.len() as u64);
        // Names are written as they are: tests want ones that no library makes.
        let name = word(1).as_bytes();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).expect("a tar in memory");
    }
    tar.into_inner().expect("a tar in memory")
}

/// `tar`, `gz`, `bz2`, `xz` or `zst`; the rarer ones by the tools of this machine.
fn compress(bytes: &[u8], kind: &str) -> Vec<u8> {
    match kind {
        "tar" => bytes.to_vec(),
        "gz" => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).expect("memory");
            out.finish().expect("memory")
        }
        "zst" => zstd::stream::encode_all(bytes, 1).expect("memory"),
        "bz2" => filter("bzip2", bytes),
        "xz" => filter("xz", bytes),
        _ => panic!("no compression {kind:?}"),
    }
}

fn filter(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    let mut stdin = child.stdin.take().expect("it was piped");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads");
    output.stdout
}

/// Runs a command that must succeed, and returns what it said.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a program is in the path. As root in CI (`RBUILD_REQUIRE_SANDBOX=1`) it must be.
///
/// # Panics
/// When it must be there and is not.
#[must_use]
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    assert!(
        found || std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(),
        "{program} is not installed, and RBUILD_REQUIRE_SANDBOX is set"
    );
    found
}
