//! Contexts that are not here: the Dockerfile in a git repository, or in an archive on the web, is fetched and read before anything
//! can be planned.

use std::path::Path;

use rbuild_diag::{Diagnostic, SourceFile};
use rbuild_engine::Ports;
use rbuild_graph::HttpSource;
use rbuild_lower::{GitContext, GitFacts, MainContext};
use rbuild_ports::{CancelToken, ErrorKind, PortError, View};
use rbuild_tree::{Kind, RelPath};

use crate::context_stream::read_context_archive;
use crate::inputs::MAX_BYTES;
use crate::vertices::Task;
use crate::{BuildError, BuildErrorKind, BuildRequest, ContextStream, DockerfileSource, codes, inputs};

/// What a download is called, as lowering calls it.
const CONTEXT: &str = "context";

/// What fetching takes.
pub(crate) struct Fetch<'a> {
    pub(crate) ports: &'a Ports,
    /// The store, below which archives are unpacked.
    pub(crate) root: &'a Path,
    pub(crate) cancel: &'a CancelToken,
    pub(crate) progress: &'a Task,
}

impl Fetch<'_> {
    /// The Dockerfile of a context in a git repository.
    pub(crate) fn git(&self, request: &BuildRequest, address: &str) -> Result<SourceFile, BuildError> {
        if let Some(text) = given(request) {
            return Ok(text);
        }
        let unusable = |reason: String| {
            user(codes::INVALID, format!("the context {address:?} cannot be used: {reason}"))
        };
        let context = GitContext::parse(address, inputs::keep_git_dir(request)).map_err(unusable)?;
        let query = context.query();
        let found = self.ports.sources.resolve_git(&query.url, &query.reference, self.cancel);
        let found = found.map_err(git_failed)?;
        let facts = GitFacts {
            name: found.name,
            commit: found.commit,
            tag_object: found.tag_object,
            committed: None,
        };
        let source = context.source(&facts).map_err(unusable)?;
        let view = self.ports.sources.git(&source, self.progress, self.cancel).map_err(git_failed)?;
        self.in_view(request, &*view)
    }

    /// The Dockerfile of a context on the web, and what copies from the context read: nothing, where it is just a Dockerfile.
    pub(crate) fn web(
        &self,
        request: &BuildRequest,
        address: &str,
    ) -> Result<(SourceFile, MainContext), BuildError> {
        let main = MainContext::Http(address.to_owned());
        if let Some(text) = given(request) {
            return Ok((text, main));
        }
        let name = RelPath::parse(CONTEXT).map_err(|error| {
            PortError::new(ErrorKind::Internal, format!("the name of a download: {error}"))
        })?;
        let source = HttpSource {
            url: address.to_owned(),
            filename: CONTEXT.to_owned(),
            checksum: None,
            mode: 0,
            uid: 0,
            gid: 0,
        };
        let (view, _) = self.ports.sources.http(&source, self.progress, self.cancel)?;
        match read_context_archive(view.open(&name)?, self.root, address, self.cancel)? {
            ContextStream::Dockerfile(text) => {
                Ok((SourceFile::new("Dockerfile", String::from_utf8_lossy(&text)), MainContext::None))
            }
            ContextStream::Archive(dir) => {
                let file = match &request.dockerfile {
                    DockerfileSource::File(file) => DockerfileSource::File(dir.path().join(inside(file))),
                    other => other.clone(),
                };
                let context = crate::Context::Dir(dir.path().to_owned());
                let (source, _) = inputs::dockerfile(&file, &context)?;
                Ok((SourceFile::new(name_of(request), source.text().to_owned()), main))
            }
        }
    }

    fn in_view(&self, request: &BuildRequest, view: &dyn View) -> Result<SourceFile, BuildError> {
        let names: Vec<String> = match &request.dockerfile {
            DockerfileSource::File(file) => vec![inside(file).to_string_lossy().into_owned()],
            _ => vec!["Dockerfile".to_owned(), "dockerfile".to_owned()],
        };
        for name in &names {
            let path = RelPath::clean(name.as_bytes()).map_err(|error| {
                user(codes::INVALID, format!("the Dockerfile {name:?} cannot be in the context: {error}"))
            })?;
            let Some(entry) = view.lookup(&path)? else { continue };
            match entry.kind {
                Kind::File { size } if size <= MAX_BYTES => {
                    let mut text = Vec::new();
                    std::io::Read::read_to_end(&mut view.open(&path)?, &mut text)
                        .map_err(|error| PortError::io("read", name, error))?;
                    return Ok(SourceFile::new(name.as_str(), String::from_utf8_lossy(&text)));
                }
                _ => {
                    return Err(user(
                        codes::NO_DOCKERFILE,
                        format!("{name:?} of the context is no regular file"),
                    ));
                }
            }
        }
        let found = view.children(&RelPath::root())?;
        let found: Vec<String> =
            found.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let name = names.first().map_or("Dockerfile", String::as_str);
        let error = user(codes::NO_DOCKERFILE, format!("the context has no {name}"));
        let mut similar = found.iter().filter(|found| found.to_lowercase().contains("dockerfile"));
        Err(match similar.next() {
            Some(similar) => error.with_help(&format!("did you mean {similar}? name it with -f")),
            None => error.with_help("name one with -f, or its directory behind the address: #REF:DIRECTORY"),
        })
    }
}

/// The Dockerfile, if it does not come from the context.
fn given(request: &BuildRequest) -> Option<SourceFile> {
    match &request.dockerfile {
        DockerfileSource::Text { name, text } => {
            Some(SourceFile::new(name.as_str(), String::from_utf8_lossy(text)))
        }
        DockerfileSource::File(_) | DockerfileSource::Default => None,
    }
}

/// Where a Dockerfile is within a context.
fn inside(file: &Path) -> &Path {
    file.strip_prefix("/").unwrap_or(file)
}

fn name_of(request: &BuildRequest) -> String {
    match &request.dockerfile {
        DockerfileSource::File(file) => inside(file).display().to_string(),
        _ => "Dockerfile".to_owned(),
    }
}

/// A repository that is not there is not a missing file.
pub(crate) fn git_failed(error: PortError) -> BuildError {
    let mut out = BuildError::from(error);
    if let Some(first) = out.diagnostics.first_mut().filter(|first| first.code == codes::NOT_FOUND) {
        first.code = codes::GIT_NOT_FOUND;
    }
    out
}

fn user(code: &'static str, message: String) -> BuildError {
    BuildError::new(BuildErrorKind::User, Diagnostic::error(code, message))
}
