//! Reads what a build starts from: the Dockerfile and the ignore files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rbuild_diag::{Diagnostic, SourceFile};
use rbuild_lower::IgnoreFile;
use rbuild_ports::PortError;

use crate::{BuildError, BuildErrorKind, BuildRequest, Context, DockerfileSource, codes};

/// No Dockerfile is larger; protects from devices and mistakes.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// The Dockerfile with the name that people know it by, and where it lies, if it is a file.
pub(crate) fn dockerfile(
    source: &DockerfileSource,
    context: &Context,
) -> Result<(SourceFile, Option<PathBuf>), BuildError> {
    match source {
        DockerfileSource::Text { name, text } => {
            Ok((SourceFile::new(name.as_str(), String::from_utf8_lossy(text)), None))
        }
        DockerfileSource::File(path) => match read(path) {
            Ok(text) => Ok((SourceFile::new(path.display().to_string(), text), Some(path.clone()))),
            Err(error) => Err(unreadable(path, &error, context)),
        },
        DockerfileSource::Default => {
            let Context::Dir(dir) = context else {
                return Err(
                    user(codes::NO_DOCKERFILE, "no Dockerfile was given").with_help("name one with -f")
                );
            };
            let upper = dir.join("Dockerfile");
            let first = match read(&upper) {
                Ok(text) => return Ok((SourceFile::new("Dockerfile", text), Some(upper))),
                Err(error) => error,
            };
            let lower = dir.join("dockerfile");
            if first.kind() == io::ErrorKind::NotFound
                && let Ok(text) = read(&lower)
            {
                return Ok((SourceFile::new("dockerfile", text), Some(lower)));
            }
            Err(unreadable(&upper, &first, context))
        }
    }
}

/// The ignore file of the main context: `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore`.
pub(crate) fn ignore_file(dir: &Path, dockerfile: Option<&Path>) -> Result<IgnoreFile, BuildError> {
    if let Some(dockerfile) = dockerfile {
        let mut name = dockerfile.as_os_str().to_owned();
        name.push(".dockerignore");
        let beside = PathBuf::from(name);
        if let Some(found) = read_ignore(&beside, &beside.display().to_string())? {
            return Ok(found);
        }
    }
    context_ignore_file(dir)
}

/// Whether a git context keeps its `.git`.
pub(crate) fn keep_git_dir(request: &BuildRequest) -> bool {
    let value = request.build_args.iter().rev().find(|(name, _)| name == "BUILDKIT_CONTEXT_KEEP_GIT_DIR");
    matches!(value.map(|(_, value)| value.as_str()), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// A directory's own `.dockerignore`.
pub(crate) fn context_ignore_file(dir: &Path) -> Result<IgnoreFile, BuildError> {
    Ok(read_ignore(&dir.join(".dockerignore"), ".dockerignore")?.unwrap_or_default())
}

fn read_ignore(path: &Path, name: &str) -> Result<Option<IgnoreFile>, BuildError> {
    match read(path) {
        Ok(text) => {
            let patterns =
                rbuild_tree::parse_ignore_file(&text).into_iter().map(|line| line.pattern).collect();
            Ok(Some(IgnoreFile { patterns, file: Some(SourceFile::new(name, text)) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BuildError::from(PortError::io("read", path, error))),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is larger than 64 MiB"));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

fn unreadable(path: &Path, error: &io::Error, context: &Context) -> BuildError {
    if error.kind() != io::ErrorKind::NotFound {
        return BuildError::from(PortError::io(
            "read",
            path,
            io::Error::new(error.kind(), error.to_string()),
        ));
    }
    let mut out = user(codes::NO_DOCKERFILE, &format!("there is no Dockerfile at {}", path.display()));
    if let Context::Dir(dir) = context
        && !dir.is_dir()
    {
        return user(
            codes::NO_CONTEXT_DIRECTORY,
            &format!("the build context {} is not a directory", dir.display()),
        )
        .with_help("give the directory that holds the Dockerfile, often `.`");
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside: Vec<String> = path
        .parent()
        .and_then(|dir| std::fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }).ok())
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let similar =
        rbuild_diag::nearest(&name, beside.iter().map(String::as_str)).map(str::to_owned).or_else(|| {
            let mut candidates: Vec<&String> = beside
                .iter()
                .filter(|n| n.to_lowercase().contains("dockerfile") || n.as_str() == "Containerfile")
                .collect();
            candidates.sort();
            candidates.first().map(|name| (*name).clone())
        });
    out = match similar {
        Some(similar) => out.with_help(&format!("did you mean {similar}? name it with -f")),
        None => out.with_help("name one with -f, or run the command in the directory that holds it"),
    };
    out
}

fn user(code: &'static str, message: &str) -> BuildError {
    BuildError::new(BuildErrorKind::User, Diagnostic::error(code, message))
}
