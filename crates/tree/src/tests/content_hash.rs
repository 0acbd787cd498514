//! The content hash against BuildKit's answers, and its cost.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rbuild_digest::Digest;

use crate::{Entry, Kind, NodeKind, RelPath, SelectOptions, TreeSource, entry_hasher, select};

/// A tree of a test: kinds and finished digests.
#[derive(Default)]
struct Sample(BTreeMap<RelPath, (NodeKind, Digest)>);

impl TreeSource for Sample {
    type Error = Infallible;

    fn lookup(&self, path: &RelPath) -> Result<Option<NodeKind>, Infallible> {
        Ok(self.0.get(path).map(|(kind, _)| kind.clone()))
    }

    fn children(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, NodeKind)>, Infallible> {
        let below = self.0.range(dir.clone()..).skip(1).take_while(|(path, _)| path.starts_with(dir));
        Ok(below
            .filter(|(path, _)| path.parent().as_ref() == Some(dir))
            .map(|(path, (kind, _))| (path.file_name().unwrap().to_vec(), kind.clone()))
            .collect())
    }
}

impl Sample {
    fn new() -> Self {
        let mut sample = Self::default();
        sample.add("/", "dir");
        sample
    }

    fn add(&mut self, path: &str, what: &str) {
        let path = RelPath::parse(path).unwrap();
        let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
        let (node, kind, mode) = match word {
            "dir" => (NodeKind::Dir, Kind::Dir, 0o755),
            "file" => (NodeKind::File, Kind::File { size: rest.len() as u64 }, 0o644),
            "link" => (NodeKind::Symlink(rest.into()), Kind::Symlink { target: rest.into() }, 0o777),
            "as" => {
                let same = self.0[&RelPath::parse(rest).unwrap()].clone();
                self.0.insert(path, same);
                return;
            }
            other => panic!("{other}"),
        };
        let mut hasher = entry_hasher(&Entry::new(path.clone(), kind, mode));
        if word == "file" {
            hasher.update(rest.as_bytes());
        }
        self.0.insert(path, (node, hasher.finish()));
    }

    fn ask(&self, path: &str, options: &SelectOptions) -> String {
        let selection = match select(self, path, options) {
            Ok(selection) => selection,
            Err(error) => return format!("error {error}"),
        };
        let mut asked = Vec::new();
        let digest = selection.digest(|path| -> Result<Digest, Infallible> {
            asked.push(path.clone());
            Ok(self.0[path].1)
        });
        assert!(selection.needed().eq(&asked), "what is needed is what is asked");
        digest.unwrap().to_string()
    }
}

fn options(flags: &[&str]) -> SelectOptions {
    let mut options = SelectOptions::default();
    for flag in flags {
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        match flag.split_once('=') {
            None if *flag == "glob" => options.wildcard = true,
            None if *flag == "follow" => options.follow_links = true,
            Some(("include", text)) => options.include = list(text),
            Some(("exclude", text)) => options.exclude = list(text),
            Some(("require", text)) => options.required = list(text),
            other => panic!("{other:?}"),
        }
    }
    options
}

#[test]
fn known_answers() {
    let mut sample = Sample::new();
    let mut answers: BTreeMap<&str, String> = BTreeMap::new();
    let mut asked = 0;
    for line in include_str!("../../test_data/content_hash.txt").lines() {
        let Some((mark, rest)) = line.split_once(' ') else { continue };
        match mark {
            "tree" => sample = Sample::new(),
            "+" => {
                let (path, what) = rest.split_once(' ').unwrap();
                sample.add(path, what);
            }
            "?" => {
                asked += 1;
                let words: Vec<&str> = rest.split(' ').collect();
                let at =
                    words.iter().position(|w| w.starts_with("sha256:") || ["error", "=", "as"].contains(w));
                let (question, want) = words.split_at(at.unwrap());
                let got = sample.ask(question[0], &options(&question[1..]));
                match want {
                    ["as", name] => {
                        assert!(got.starts_with("sha256:"), "{line}: {got}");
                        answers.insert(name, got);
                    }
                    ["=", name] => assert_eq!(got, answers[name], "{line}"),
                    ["error", text @ ..] => assert!(got.contains(&text.join(" ")), "{line}: {got}"),
                    [digest] => assert_eq!(got, *digest, "{line}"),
                    other => panic!("{other:?}"),
                }
            }
            _ => {}
        }
    }
    assert!(asked > 50);
    let distinct: std::collections::BTreeSet<&String> = answers.values().collect();
    assert_eq!(distinct.len(), answers.len(), "answers that must differ: {answers:?}");
}

#[test]
fn entries_of_every_kind() {
    let digest = |kind: Kind, mode: u32, change: fn(&mut Entry)| {
        let mut entry = Entry::new(RelPath::root(), kind, mode);
        change(&mut entry);
        crate::header_digest(&entry)
    };
    let same = |_: &mut Entry| {};
    let plain = digest(Kind::File { size: 0 }, 0o644, same);
    // What is not hashed: name and time.
    assert_eq!(plain, digest(Kind::File { size: 0 }, 0o100_644, |e| e.mtime.secs = 9));
    let text = "namemode420uid0gid0size0typeflag0linknameunamegnamedevmajor0devminor0";
    assert_eq!(plain, Digest::of(text));
    let link = digest(Kind::Symlink { target: b"x".to_vec() }, 0o644, same);
    assert_eq!(link, Digest::of("namemode511uid0gid0size0typeflag2linknamexunamegnamedevmajor0devminor0"));
    let device = digest(Kind::CharDevice { major: 5, minor: 1 }, 0o4600, |e| (e.uid, e.gid) = (7, 8));
    assert_eq!(device, Digest::of("namemode2432uid7gid8size0typeflag3linknameunamegnamedevmajor5devminor1"));
    let attributes = digest(Kind::Dir, 0o755, |e| {
        for name in ["user.b", "user.a", "security.capability", "security.selinux", "system.posix_acl_access"]
        {
            e.xattrs.insert(name.into(), b"v".to_vec());
        }
    });
    assert_eq!(
        attributes,
        Digest::of(
            "namemode493uid0gid0size0typeflag5linknameunamegnamedevmajor0devminor0security.capabilityvuser.avuser.bv"
        )
    );
}

#[test]
fn only_what_is_needed_is_listed() {
    /// Fails when a directory is listed that the answer does not need.
    struct Guard(Sample);
    impl TreeSource for Guard {
        type Error = String;
        fn lookup(&self, path: &RelPath) -> Result<Option<NodeKind>, String> {
            self.0.lookup(path).map_err(|never| match never {})
        }
        fn children(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, NodeKind)>, String> {
            if dir.components().any(|name| name == b"big") {
                return Err(format!("listed {dir}"));
            }
            self.0.children(dir).map_err(|never| match never {})
        }
    }
    let mut sample = Sample::new();
    for (path, what) in [
        ("src", "dir"),
        ("src/a.rs", "file a"),
        ("big", "dir"),
        ("big/x", "file x"),
        ("src/big", "dir"),
        ("src/big/y.rs", "file y"),
    ] {
        sample.add(path, what);
    }
    let guard = Guard(sample);
    for (path, flags) in [
        ("/*.txt", &["glob"][..]),
        ("/src/*.rs", &["glob"]),
        ("/", &["exclude=**/big"]),
        ("/", &["include=src/*.rs"]),
        ("/src/a.rs", &[]),
    ] {
        assert!(select(&guard, path, &options(flags)).is_ok(), "{path} {flags:?}");
    }
    for (path, flags) in
        [("/", &[][..]), ("/", &["include=**/*.rs"]), ("/", &["exclude=*.o"]), ("/*", &["glob"])]
    {
        assert!(select(&guard, path, &options(flags)).is_err(), "{path} {flags:?}");
    }
}

#[test]
fn deep_trees_need_no_stack() {
    let mut sample = Sample::new();
    let mut path = String::new();
    for _ in 0..20_000 {
        path.push_str("/d");
    }
    // Only the deepest directory would be met by a walk that lists; a source that always has one child stands in.
    struct Endless;
    impl TreeSource for Endless {
        type Error = Infallible;
        fn lookup(&self, _: &RelPath) -> Result<Option<NodeKind>, Infallible> {
            Ok(Some(NodeKind::Dir))
        }
        fn children(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, NodeKind)>, Infallible> {
            Ok(if dir.as_bytes().len() < 8_000 { vec![(b"d".to_vec(), NodeKind::Dir)] } else { Vec::new() })
        }
    }
    let selection = select(&Endless, "/", &SelectOptions::default()).unwrap();
    assert_eq!(selection.needed().count(), 4_002);
    selection.digest(|_| Ok::<_, Infallible>(crate::context_root_digest())).unwrap();
    sample.add("a", "file x");
    assert!(sample.ask(&path, &SelectOptions::default()).contains("not found"));
}
