//! `docs/errors.md` shows what rbuild says about common mistakes: each section is built here, and must say what the page says.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::bare_rbuild;
use crate::common::{require_root, require_sandbox};

/// One section of the page.
#[derive(Default)]
struct Section {
    files: Vec<(String, String)>,
    args: Vec<String>,
    /// What rbuild says, and where in the page it stands.
    said: String,
    at: std::ops::Range<usize>,
}

#[test]
fn the_page_of_mistakes_is_true() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").join("docs/errors.md");
    let page = fs::read_to_string(&path).expect("docs/errors.md can be read");
    let space = tempfile::tempdir().expect("a temporary directory can be made");
    base(space.path());
    let mut fresh = page.clone();
    let sections = sections(&page);
    assert!(sections.len() >= 20, "the page lost its sections: {}", sections.len());
    for section in sections.iter().rev() {
        let said = run(space.path(), section);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fresh.replace_range(section.at.clone(), &said);
            continue;
        }
        assert_eq!(said, section.said, "{:?}", section.files);
    }
    if fresh != page {
        fs::write(&path, fresh).expect("docs/errors.md can be written");
    }
}

/// An image called busybox in the store.
fn base(space: &Path) {
    let dir = space.join("base");
    fs::create_dir_all(dir.join("bin")).expect("a directory can be made");
    fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("the package busybox-static is installed");
    for applet in ["sh", "cat", "touch", "mkdir"] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).expect("a link can be made");
    }
    fs::write(dir.join("Dockerfile"), "FROM scratch\nCOPY bin /bin\nENV PATH=/bin\n").expect("it is written");
    let (text, code) = rbuild(space, &dir, &["-t".to_owned(), "busybox".to_owned(), ".".to_owned()]);
    assert_eq!(code, Some(0), "{text}");
}

fn sections(page: &str) -> Vec<Section> {
    let mut out: Vec<Section> = Vec::new();
    let mut name = String::new();
    let mut offset = 0;
    let mut inside = None;
    for line in page.split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let text = line.trim_end();
        if text.starts_with("## ") {
            out.push(Section::default());
        }
        let Some(section) = out.last_mut() else { continue };
        match inside {
            Some(begin) if text == "```" => {
                let body = page[begin..start].replace('␍', "\r");
                match name.strip_prefix("rbuild build ") {
                    Some(args) => {
                        section.args = args.split_whitespace().map(str::to_owned).collect();
                        (section.said, section.at) = (body, begin..start);
                    }
                    None if !name.is_empty() => section.files.push((name.clone(), body)),
                    None => {}
                }
                name.clear();
                inside = None;
            }
            Some(_) => {}
            None if text == "```dockerfile" => {
                name = "Dockerfile".to_owned();
                inside = Some(offset);
            }
            None if text.starts_with("```") => inside = Some(offset),
            None => {
                let quoted = text.strip_prefix('`').and_then(|rest| rest.strip_suffix("`:"));
                name = quoted.unwrap_or_default().to_owned();
            }
        }
    }
    out
}

fn run(space: &Path, section: &Section) -> String {
    let dir = space.join("context");
    drop(fs::remove_dir_all(&dir));
    for (name, text) in &section.files {
        let path: PathBuf = dir.join(name);
        fs::create_dir_all(path.parent().expect("files lie in a directory"))
            .expect("directories can be made");
        fs::write(path, text).expect("a file can be written");
    }
    let mut args = vec!["--progress=quiet".to_owned(), "--network=none".to_owned()];
    args.extend(section.args.iter().cloned());
    let (text, code) = rbuild(space, &dir, &args);
    assert_eq!(code, Some(1), "{:?} should fail: {text}", section.files);
    text
}

fn rbuild(space: &Path, dir: &Path, args: &[String]) -> (String, Option<i32>) {
    let output = bare_rbuild(dir, space)
        .arg("build")
        .args(args)
        // No test asks a registry of the world: nobody is there.
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .output()
        .expect("the command runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (text.lines().map(|line| format!("{}\n", line.trim_end())).collect(), output.status.code())
}
