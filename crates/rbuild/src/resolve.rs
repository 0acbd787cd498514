//! Finds out what lowering asks for, all questions of a round at once, and lowers again until nothing is missing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_diag::{Diagnostic, SourceFile};
use rbuild_dockerfile::Dockerfile;
use rbuild_engine::{Ports, record_image};
use rbuild_graph::GitSource;
use rbuild_lower::{
    Facts, GitFacts, GitQuery, ImageFacts, ImageOrigin, ImageQuery, LowerOptions, Lowered, Need, Outcome,
    lower,
};
use rbuild_ports::{
    CancelToken, ImageRequest, ImageSelector, LayerId, PortError, ResolveMode, ResolvedGit, ResolvedImage,
};

use crate::own_image::{OwnImage, own_image};
use crate::remote_context::git_failed;
use crate::vertices::Vertices;
use crate::{BuildError, BuildErrorKind, codes};

/// Lowering asks again for the triggers of images it learned of; more rounds than this are a loop.
const MAX_ROUNDS: usize = 20;

/// Why a file was not lowered.
pub(crate) enum Unlowered {
    /// It is wrong; findings of the lint are among them.
    Mistakes(Vec<Diagnostic>),
    /// An image cannot be found out, or the like.
    Other(BuildError),
}

impl From<BuildError> for Unlowered {
    fn from(error: BuildError) -> Self {
        Self::Other(error)
    }
}

/// What several platforms of one build share.
pub(crate) struct Resolver<'a> {
    pub(crate) ports: &'a Ports,
    pub(crate) vertices: &'a Arc<Vertices>,
    pub(crate) pull: bool,
    pub(crate) cancel: &'a CancelToken,
    /// Layers of own images have names of their own.
    pub(crate) aliases: Mutex<HashMap<LayerId, LayerId>>,
}

impl Resolver<'_> {
    /// Lowers `file` for the platform of `options`.
    pub(crate) fn lower(
        &self,
        file: &Dockerfile,
        source: &SourceFile,
        options: &LowerOptions,
    ) -> Result<Box<Lowered>, Unlowered> {
        let mut facts = Facts::default();
        for _ in 0..MAX_ROUNDS {
            self.cancel.check().map_err(BuildError::from)?;
            match lower(file, source, options, &facts).map_err(Unlowered::Mistakes)? {
                Outcome::Done(lowered) => return Ok(lowered),
                Outcome::Need(needs) => {
                    self.images(&needs.images, &mut facts)?;
                    for need in &needs.git {
                        facts.git.insert(need.query.clone(), self.git(need)?);
                    }
                }
            }
        }
        let message = "the images of this Dockerfile keep asking for more images";
        Err(BuildError::new(BuildErrorKind::Internal, Diagnostic::error(codes::INTERNAL, message)).into())
    }

    fn images(&self, needs: &[Need<ImageQuery>], facts: &mut Facts) -> Result<(), BuildError> {
        let found: Vec<Result<ImageFacts, BuildError>> = match needs {
            [one] => vec![self.image(one)],
            several => std::thread::scope(|scope| {
                let threads: Vec<_> = several.iter().map(|need| scope.spawn(|| self.image(need))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
            }),
        };
        let mut failures = Vec::new();
        for (need, found) in needs.iter().zip(found) {
            match found {
                Ok(image) => {
                    facts.images.insert(need.query.clone(), image);
                }
                Err(error) => failures.push(error),
            }
        }
        match failures.into_iter().reduce(|mut first, more| {
            first.diagnostics.extend(more.diagnostics);
            first
        }) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn image(&self, need: &Need<ImageQuery>) -> Result<ImageFacts, BuildError> {
        let (request, label) = request(&need.query);
        let task = self.vertices.task(&format!("[internal] load metadata for {label}"));
        let result = self.resolve(&request, &need.query);
        task.finish(result).map_err(|error| {
            let mut out = BuildError::port(&error, need.place.as_ref().map(|(file, span)| (file, *span)));
            if let Some(first) = out.diagnostics.first_mut().filter(|first| first.code == codes::NOT_FOUND) {
                first.code = codes::IMAGE_NOT_FOUND;
            }
            if let (Some(similar), Some(first)) = (&need.similar, out.diagnostics.first_mut()) {
                first.notes.extend(first.help.take());
                first.help = Some(format!("did you mean the stage {similar:?}?"));
            }
            out
        })
    }

    fn git(&self, need: &Need<GitQuery>) -> Result<GitFacts, BuildError> {
        let GitQuery { url, reference, committed } = &need.query;
        let task = self.vertices.task(&format!("[internal] load git metadata for {}", need.query));
        let sources = &self.ports.sources;
        let result = sources.resolve_git(url, reference, self.cancel).and_then(|found| {
            let ResolvedGit { name, commit, tag_object } = found;
            let committed = if *committed {
                let source = GitSource {
                    url: url.clone(),
                    reference: name.clone(),
                    subdir: String::new(),
                    commit: commit.clone(),
                    keep_git_dir: false,
                    skip_submodules: false,
                };
                Some(sources.git_commit_time(&source, &task, self.cancel)?)
            } else {
                None
            };
            Ok(GitFacts { name, commit, tag_object, committed })
        });
        task.finish(result).map_err(|error| {
            let mut out = git_failed(error);
            if let (Some((file, span)), Some(first)) = (&need.place, out.diagnostics.first_mut()) {
                *first = first.clone().at(file, *span);
            }
            out
        })
    }

    fn resolve(&self, request: &ImageRequest, query: &ImageQuery) -> rbuild_ports::Result<ImageFacts> {
        if let ImageOrigin::Registry(reference) = &query.origin
            && !self.pull
            && let Some(OwnImage { facts, aliases }) =
                own_image(self.ports, reference, &query.platform, self.cancel)?
        {
            self.aliases.lock().unwrap_or_else(PoisonError::into_inner).extend(aliases);
            return Ok(facts);
        }
        let mode = if self.pull { ResolveMode::Pull } else { ResolveMode::Default };
        let image = self.ports.sources.resolve_image(request, mode, self.cancel)?;
        record_image(self.ports, &image)?;
        Ok(facts_of(image))
    }
}

fn facts_of(image: ResolvedImage) -> ImageFacts {
    let mut config = image.config;
    config.rootfs.diff_ids = image.layers.iter().map(|layer| layer.diff_id).collect();
    ImageFacts {
        digest: image.digest,
        manifest: image.manifest,
        platform: image.platform,
        config: Arc::new(config),
    }
}

fn request(query: &ImageQuery) -> (ImageRequest, String) {
    let platform = query.platform.clone();
    match &query.origin {
        ImageOrigin::Registry(reference) => {
            let request = ImageRequest { image: ImageSelector::Registry(reference.clone()), platform };
            (request, reference.to_string())
        }
        ImageOrigin::OciLayout { store, path, reference } => {
            let digest = reference.rsplit('@').next().and_then(|text| text.parse().ok());
            let tag = reference
                .split('@')
                .next()
                .filter(|tag| !tag.is_empty() && !tag.starts_with("sha256:"))
                .map(str::to_owned);
            let selector = ImageSelector::OciLayout { path: PathBuf::from(path), tag, digest };
            (ImageRequest { image: selector, platform }, format!("oci-layout://{store}"))
        }
    }
}

fn panicked() -> BuildError {
    BuildError::from(PortError::new(rbuild_ports::ErrorKind::Internal, "resolving an image panicked"))
}
