//! Runs scripts of commands through the built binary: files and command lines in, what people see and exit codes out.
//! Everything that differs between runs and machines is replaced before it is compared.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rbuild_testkit::registry::TestRegistry;

/// The `rbuild` command, built once in the profile of this test.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let exe = std::env::current_exe().expect("a process knows its executable");
        let profile =
            exe.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps").to_owned();
        let target = profile.parent().expect("profiles lie in the target directory");
        let name = match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "-p", "rbuild-cli", "--profile", name])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", target)
            .status()
            .expect("cargo runs, it runs this test");
        assert!(status.success(), "rbuild-cli cannot be built");
        profile.join("rbuild")
    })
}

/// `rbuild` in `dir` with the store `store`, the environment of the test otherwise, and nothing to read.
pub(crate) fn rbuild(dir: &Path, store: &Path) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(dir).env("RBUILD_ROOT", store).stdin(Stdio::null());
    command
}

/// `rbuild` in `dir` with nothing of the test's environment but `PATH`; home and store lie in `space`.
pub(crate) fn bare_rbuild(dir: &Path, space: &Path) -> Command {
    let mut command = rbuild(dir, &space.join("store"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", space)
        .env("RBUILD_ROOT", space.join("store"))
        .env("COLUMNS", "100");
    command
}

/// Runs the script `test_data/NAME` and compares; `UPDATE_EXPECT=1` writes what was seen.
///
/// A case begins with `=== title`. `+++ file` writes the lines that follow to the file. `$ build .` runs `rbuild build .`,
/// with standard input from a file if the line ends in `< file`; `! chmod 600 a` is for the shell. What a command printed follows it (standard output
/// with `| ` in front, then standard error) up to `=> exit code` follow.
pub(crate) fn check_script(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("suite/test_data").join(name);
    let script = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
    let registry = TestRegistry::start();
    let mut seen = String::new();
    for case in script.split_inclusive('\n').collect::<Vec<_>>().chunk_by(|_, next| !next.starts_with("=== "))
    {
        run_case(&case.concat(), &registry.host(), &mut seen);
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &seen).expect("the expectation can be written");
        return;
    }
    for (line, (want, got)) in script.lines().zip(seen.lines()).enumerate() {
        assert_eq!(got, want, "{name}:{} differs; all of it:\n{seen}", line + 1);
    }
    assert_eq!(seen, script);
}

fn run_case(case: &str, registry: &str, seen: &mut String) {
    let space = tempfile::tempdir().expect("a temporary directory can be made");
    let dir = space.path().join("dir");
    fs::create_dir(&dir).expect("a directory can be made");
    let mut file: Option<(PathBuf, String)> = None;
    let mut expecting = false;
    for line in case.lines() {
        if expecting {
            expecting = !line.starts_with("=> ");
            continue;
        }
        let name = line.strip_prefix("+++ ");
        let command = line.strip_prefix("$ ");
        let shell = line.strip_prefix("! ");
        if let Some((path, text)) = file.take_if(|_| name.is_some() || command.is_some() || shell.is_some()) {
            write_file(&path, &text.replace("REGISTRY", registry));
        }
        let _ = writeln!(seen, "{line}");
        if let Some(name) = name {
            file = Some((dir.join(name), String::new()));
        } else if let Some(shell) = shell {
            let status = Command::new("sh").args(["-ec", shell]).current_dir(&dir).status();
            assert!(status.is_ok_and(|status| status.success()), "{shell}");
        } else if let Some(command) = command {
            let (text, code) = run(space.path(), &dir, &command.replace("REGISTRY", registry));
            let text = normalize(&text, space.path(), registry);
            let _ = writeln!(seen, "{text}=> {code}");
            expecting = true;
        } else if let Some((_, text)) = &mut file {
            let _ = writeln!(text, "{line}");
        }
    }
}

fn write_file(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("files lie in the directory")).expect("directories can be made");
    fs::write(path, text).expect("a file can be written");
}

/// What `rbuild ARGS` printed, and its exit code.
fn run(space: &Path, dir: &Path, args: &str) -> (String, String) {
    let (args, input) = match args.split_once(" < ") {
        Some((args, input)) => (args, Some(dir.join(input))),
        None => (args, None),
    };
    let stdin = match input {
        Some(path) => Stdio::from(fs::File::open(path).expect("the input is a file of the case")),
        None => Stdio::null(),
    };
    let output = bare_rbuild(dir, space)
        .args(args.split_whitespace())
        .stdin(stdin)
        .output()
        .expect("the command runs");
    let mut text = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let _ = writeln!(text, "{}", format!("| {line}").trim_end());
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        if !line.starts_with("WARNING: building with one user id only") {
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    let code = output.status.code().map_or_else(|| "killed".to_owned(), |code| code.to_string());
    (text, code)
}

/// Paths, ports, digests, ids, times: replaced by words.
fn normalize(text: &str, space: &Path, registry: &str) -> String {
    let text = text
        .replace(&space.join("store").display().to_string(), "STORE")
        .replace(&space.display().to_string(), "SPACE")
        .replace(registry, "REGISTRY")
        .replace("linux/arm64", "linux/amd64");
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let line = match line.find(" DONE ") {
            Some(at) if line.starts_with('#') => format!("{} DONE 0.0s\n", &line[..at]),
            _ => line.to_owned(),
        };
        for word in line.split_inclusive([' ', '"', '\n']) {
            let bare = word.trim_end_matches([' ', '"', '\n', ',']);
            let rest = &word[bare.len()..];
            let hex = bare.strip_prefix("sha256:").unwrap_or_default();
            let id = bare.len() >= 26 && bare.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            match () {
                () if hex.len() == 12 && bare.len() == 19 => out.push_str("sha256:SHORT"),
                () if hex.len() == 64 => out.push_str("sha256:DIGEST"),
                () if bare.starts_with("default/default/") => out.push_str("BUILD"),
                () if id => out.push_str("ID"),
                () if is_date(bare) => out.push_str("DATE"),
                () if is_seconds(bare) => out.push_str("0.0s"),
                () => out.push_str(bare),
            }
            out.push_str(rest);
        }
    }
    out
}

/// `1.2s`.
fn is_seconds(word: &str) -> bool {
    let parts = word.strip_suffix('s').and_then(|number| number.split_once('.'));
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    parts.is_some_and(|(whole, part)| digits(whole) && digits(part))
}

/// `2026-01-02`, `12:34` or `12:34:56`.
fn is_date(word: &str) -> bool {
    let digits = |separator: char, lengths: &[usize]| {
        let parts: Vec<&str> = word.split(separator).collect();
        parts.iter().map(|part| part.len()).eq(lengths.iter().copied())
            && parts.iter().all(|part| part.chars().all(|c| c.is_ascii_digit()))
    };
    digits('-', &[4, 2, 2]) || digits(':', &[2, 2, 2]) || digits(':', &[2, 2])
}
