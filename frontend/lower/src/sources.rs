//! Where file systems come from that no stage makes: images, named contexts, the main context. Finding out what a
//! name means, asking for the facts that are missing, and making the source operations.

use std::sync::Arc;

use rbuild_diag::{SourceFile, Span};
use rbuild_graph::{
    CopyAction, Edge, FileAction, FileKind, FileOp, HttpSource, ImageSource, LocalSource, Node, NodeMeta,
    OciLayoutSource, Op, Place, SourceOp,
};
use rbuild_oci::{ImageConfig, ParseReferenceError, Platform, Reference};

use crate::codes;
use crate::ctx::Ctx;
use crate::fault::Fault;
use crate::git::{self, GitUrl};
use crate::{
    GitFacts, IgnoreFile, ImageFacts, ImageOrigin, ImageQuery, LowerOptions, MainContext, NamedContextValue,
    Need,
};

/// Named contexts by their normalised names, and what was made of them.
#[derive(Debug, Default)]
pub(crate) struct Contexts {
    names: Vec<String>,
    /// The main context's operation.
    main: Option<Edge>,
}

impl Contexts {
    pub(crate) fn new(options: &LowerOptions) -> Self {
        let names = options.named_contexts.iter().map(|context| normal_name(&context.name)).collect();
        Self { names, main: None }
    }

    /// The operation of the main context, if a step used it.
    pub(crate) fn main(&self) -> Option<Edge> {
        self.main
    }
}

/// `alpine`, `alpine:latest` and `docker.io/library/alpine` are one name.
fn normal_name(name: &str) -> String {
    let Ok(reference) = name.parse::<Reference>() else { return name.to_lowercase() };
    let familiar = reference.familiar();
    familiar.strip_suffix(":latest").map(str::to_owned).unwrap_or(familiar)
}

/// What a name means.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Nothing to start from.
    Scratch,
    /// A named context, by its position in the options.
    Context(usize),
    /// An image.
    Image(Reference),
}

/// A file system and, for images, its config.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// `None` is an empty one.
    pub(crate) rootfs: Option<Edge>,
    pub(crate) config: Option<Arc<ImageConfig>>,
    /// The platform of what was found, where that is known.
    pub(crate) platform: Option<Platform>,
}

impl Opened {
    const EMPTY: Self = Self { rootfs: None, config: None, platform: None };
}

impl Ctx<'_> {
    /// The named context called `name` for `platform`.
    pub(crate) fn named_context(&self, name: &str, platform: &Platform) -> Option<usize> {
        if self.contexts.names.is_empty()
            || name.eq_ignore_ascii_case("scratch")
            || name.eq_ignore_ascii_case("context")
        {
            return None;
        }
        let name = normal_name(name);
        let wanted = platform.normalized();
        let all = || {
            let contexts = self.options.named_contexts.iter().zip(&self.contexts.names).enumerate();
            contexts.filter(|(_, (_, known))| **known == name)
        };
        let of_platform = all().find(|(_, (context, _))| {
            context.platform.as_ref().is_some_and(|platform| platform.normalized() == wanted)
        });
        of_platform.or_else(|| all().find(|(_, (it, _))| it.platform.is_none())).map(|(index, _)| index)
    }

    /// What `text` means where it is no stage.
    pub(crate) fn find(&self, text: &str, platform: &Platform) -> Result<Found, ParseReferenceError> {
        if text == "scratch" {
            return Ok(Found::Scratch);
        }
        let reference = text.parse::<Reference>()?.with_default_tag();
        match self.named_context(&reference.to_string(), platform) {
            Some(index) => Ok(Found::Context(index)),
            None => Ok(Found::Image(reference)),
        }
    }

    /// The image that `found` is, if it is one.
    pub(crate) fn image_query(&self, found: &Found, platform: &Platform) -> Option<ImageQuery> {
        let platform = platform.normalized();
        match found {
            Found::Scratch => None,
            Found::Image(reference) => Some(registry_query(reference, platform)),
            Found::Context(index) => match &self.options.named_contexts.get(*index)?.value {
                NamedContextValue::Image(reference) if is_scratch(reference) => None,
                NamedContextValue::Image(reference) => {
                    Some(registry_query(&reference.clone().with_default_tag(), platform))
                }
                NamedContextValue::OciLayout { path, reference } => {
                    Some(layout_query(&self.context_name(*index), path, reference, platform))
                }
                _ => None,
            },
        }
    }

    /// Asks for what is needed to open `found`; `similar` names a stage that may be meant.
    pub(crate) fn require(
        &mut self,
        found: &Found,
        platform: &Platform,
        place: (&SourceFile, Span),
        similar: impl FnOnce() -> Option<String>,
    ) {
        if let Some(query) = self.image_query(found, platform) {
            let known = self.facts.images.contains_key(&query);
            if !known && self.needs.images.iter().all(|it| it.query != query) {
                let place = Some((place.0.clone(), place.1));
                self.needs.images.push(Need { query, place, similar: similar() });
            }
            return;
        }
        let Found::Context(index) = found else { return };
        if let Some(NamedContextValue::Git(text)) =
            self.options.named_contexts.get(*index).map(|it| &it.value)
            && let git::Parsed::Yes(url) = git::parse(text, true)
        {
            let _ = self.commit_of(&url, place.0, place.1);
        }
    }

    /// Makes the operation for `found`. `title` makes the step's name of an image's. `None` when facts are missing.
    pub(crate) fn open(
        &mut self,
        found: &Found,
        platform: &Platform,
        place: (&SourceFile, Span),
        stage: &str,
        title: &mut dyn FnMut(String) -> String,
    ) -> Result<Option<Opened>, Fault> {
        let query = self.image_query(found, platform);
        let facts = match &query {
            Some(query) => match self.facts.images.get(query) {
                Some(facts) => Some(facts.clone()),
                None => return Ok(None),
            },
            None => None,
        };
        let platform = platform.normalized();
        match (found, facts) {
            (Found::Image(reference), Some(facts)) => {
                Ok(Some(self.open_image(reference, &facts, platform, place, stage, title)))
            }
            (Found::Context(index), facts) => {
                self.open_context(*index, facts, platform, place, stage).map(Some)
            }
            (Found::Scratch | Found::Image(_), _) => Ok(Some(Opened::EMPTY)),
        }
    }

    fn context_name(&self, index: usize) -> String {
        let Some(context) = self.options.named_contexts.get(index) else { return String::new() };
        match &context.platform {
            None => context.name.clone(),
            Some(platform) => format!("{}::{platform}", context.name),
        }
    }

    fn open_image(
        &mut self,
        reference: &Reference,
        facts: &ImageFacts,
        platform: Platform,
        place: (&SourceFile, Span),
        stage: &str,
        title: &mut dyn FnMut(String) -> String,
    ) -> Opened {
        let config = Some(facts.config.clone());
        let found_platform = Some(facts.config.platform());
        if has_no_layers(&facts.config) {
            return Opened { rootfs: None, config, platform: found_platform };
        }
        let op = Op::Source(SourceOp::Image(ImageSource {
            reference: reference.clone(),
            digest: facts.digest,
            manifest: facts.manifest,
            diff_ids: facts.config.rootfs.diff_ids.clone(),
        }));
        let name = title(reference.clone().with_digest(facts.digest).to_string());
        let rootfs = Some(self.add_source(op, platform, name, Some(place), stage));
        Opened { rootfs, config, platform: found_platform }
    }

    fn open_context(
        &mut self,
        index: usize,
        facts: Option<ImageFacts>,
        platform: Platform,
        place: (&SourceFile, Span),
        stage: &str,
    ) -> Result<Opened, Fault> {
        let options = self.options;
        let Some(context) = options.named_contexts.get(index) else { return Ok(Opened::EMPTY) };
        let label = self.context_name(index);
        let bare = |rootfs| Opened { rootfs: Some(rootfs), config: None, platform: None };
        match (&context.value, facts) {
            (NamedContextValue::Image(reference), Some(facts)) => {
                let reference = reference.clone().with_default_tag();
                let mut title = |name: String| format!("[context {label}] {name}");
                Ok(self.open_image(&reference, &facts, platform, place, stage, &mut title))
            }
            (NamedContextValue::OciLayout { path, .. }, Some(facts)) => {
                let mut out = Opened {
                    rootfs: None,
                    platform: Some(facts.config.platform()),
                    config: Some(facts.config.clone()),
                };
                if !has_no_layers(&facts.config) {
                    let op = Op::Source(SourceOp::OciLayout(OciLayoutSource {
                        store: context.name.clone(),
                        path: path.clone(),
                        digest: facts.digest,
                        manifest: facts.manifest,
                        diff_ids: facts.config.rootfs.diff_ids.clone(),
                    }));
                    let name = format!("[context {label}] OCI load from client");
                    out.rootfs = Some(self.add_source(op, platform, name, Some(place), stage));
                }
                Ok(out)
            }
            (NamedContextValue::Image(_) | NamedContextValue::OciLayout { .. }, None) => Ok(Opened::EMPTY),
            (NamedContextValue::Local(ignore), _) => {
                let name = format!("[context {label}] load from client");
                Ok(bare(self.add_local(&context.name, ignore, name)))
            }
            (NamedContextValue::Git(text), _) => {
                let name = format!("[context {label}] load git source {text}");
                self.add_git_context(text, false, name, place).map(bare)
            }
            (NamedContextValue::Http(text), _) => match git::parse(text, false) {
                git::Parsed::Yes(_) => {
                    let name = format!("[context {label}] load git source {text}");
                    self.add_git_context(text, false, name, place).map(bare)
                }
                _ => {
                    let (file, name) =
                        (http_file_name(text, "download"), format!("[context {label}] {text}"));
                    Ok(bare(self.add_http(text, file, None, name, None)))
                }
            },
            (NamedContextValue::Target(lowered), _) => Ok(Opened {
                rootfs: self.graft(lowered),
                config: Some(Arc::new(lowered.config.clone())),
                platform: Some(lowered.platform.clone()),
            }),
        }
    }

    /// Copies the operations of another target; its result.
    fn graft(&mut self, lowered: &crate::Lowered) -> Option<Edge> {
        let target = lowered.target?;
        let mut places: Vec<Edge> = Vec::with_capacity(lowered.graph.len());
        for (_, node) in lowered.graph.nodes() {
            let mut node = node.clone();
            if let Op::Source(SourceOp::Local(local)) = &mut node.op {
                // One operation for each directory: its paths are found again from all that use it.
                local.follow_paths.clear();
            }
            for input in &mut node.inputs {
                if let Some(place) = places.get(input.node.index()) {
                    *input = Edge { node: place.node, output: input.output };
                }
            }
            places.push(self.draft.add(node));
        }
        places.get(target.node.index()).map(|place| Edge { node: place.node, output: target.output })
    }

    /// The main context's operation.
    pub(crate) fn main_context(&mut self, place: (&SourceFile, Span)) -> Result<Edge, Fault> {
        if let Some(known) = self.contexts.main {
            return Ok(known);
        }
        let options = self.options;
        let edge = match &options.context {
            MainContext::Local(ignore) => {
                self.add_local("context", ignore, "[internal] load build context".to_owned())
            }
            MainContext::Git(text) => {
                let keep = self.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
                let keep = keep.and_then(|value| crate::gotext::parse_bool(value)).unwrap_or(false);
                let name = format!("[internal] load git source {text}");
                self.add_git_context(text, keep, name, place)?
            }
            MainContext::Http(text) => self.add_http_context(text),
            MainContext::None => {
                return Err(Fault::error(codes::NO_CONTEXT, "there is no build context to copy from")
                    .at(place.0, place.1)
                    .note("the Dockerfile came without a context directory")
                    .help("name a context directory on the command line, or copy from a stage or image with --from"));
            }
        };
        self.contexts.main = Some(edge);
        Ok(edge)
    }

    fn add_http_context(&mut self, text: &str) -> Edge {
        let name = "[internal] load remote build context".to_owned();
        let archive = self.add_http(text, "context".to_owned(), None, name, None);
        let unpack = FileOp {
            actions: vec![FileAction {
                input: None,
                secondary_input: Some(0),
                output: Some(0),
                kind: FileKind::Copy(CopyAction {
                    src: "/context".to_owned(),
                    dest: "/".to_owned(),
                    attempt_unpack: true,
                    ..CopyAction::default()
                }),
            }],
            epoch: None,
        };
        let meta = NodeMeta { name: "[internal] unpack build context".to_owned(), ..NodeMeta::default() };
        let platform = self.any_platform();
        self.draft.add(Node { op: Op::File(unpack), inputs: vec![archive], platform, meta })
    }

    fn add_local(&mut self, name: &str, ignore: &IgnoreFile, title: String) -> Edge {
        let op = Op::Source(SourceOp::Local(LocalSource {
            name: name.to_owned(),
            include: vec![],
            exclude: ignore.patterns.clone(),
            follow_paths: vec![],
        }));
        let platform = self.any_platform();
        self.add_source(op, platform, title, None, "")
    }

    fn add_git_context(
        &mut self,
        text: &str,
        keep_git_dir: bool,
        title: String,
        place: (&SourceFile, Span),
    ) -> Result<Edge, Fault> {
        match git::parse(text, true) {
            git::Parsed::Yes(mut url) => {
                url.keep_git_dir = Some(url.keep_git_dir.unwrap_or(keep_git_dir));
                self.add_git(&url, title, None, place)
            }
            git::Parsed::No => Err(Fault::error(codes::GIT_URL, format!("{text:?} is no git URL"))),
            git::Parsed::Bad(reason) => {
                Err(Fault::error(codes::GIT_URL, format!("git URL {text:?} cannot be used: {reason}")))
            }
        }
    }

    /// A git source. While its commit is not known, any stands for it: the call ends with what is needed.
    pub(crate) fn add_git(
        &mut self,
        url: &GitUrl,
        title: String,
        step: Option<Place>,
        place: (&SourceFile, Span),
    ) -> Result<Edge, Fault> {
        let facts = match self.commit_of(url, place.0, place.1) {
            Some(facts) => {
                url.check(&facts).map_err(|message| {
                    Fault::error(codes::COMMIT, message)
                        .at(place.0, place.1)
                        .help("correct the checksum, or find out who moved the branch or tag")
                })?;
                facts
            }
            None => GitFacts::default(),
        };
        let source = url.source(&facts);
        let op = Op::Source(SourceOp::Git(source));
        let meta = NodeMeta { name: title, place: step, ..NodeMeta::default() };
        let platform = self.any_platform();
        Ok(self.draft.add(Node { op, inputs: vec![], platform, meta }))
    }

    /// What a git URL means; asked for when it is not known.
    fn commit_of(&mut self, url: &GitUrl, file: &SourceFile, span: Span) -> Option<GitFacts> {
        if is_commit(&url.reference) {
            return Some(GitFacts { commit: url.reference.clone(), ..GitFacts::default() });
        }
        let query = url.query(false);
        if let Some(facts) = self.facts.git.get(&query) {
            return Some(facts.clone());
        }
        if self.needs.git.iter().all(|need| need.query != query) {
            self.needs.git.push(Need { query, place: Some((file.clone(), span)), similar: None });
        }
        None
    }

    /// A file from the web.
    pub(crate) fn add_http(
        &mut self,
        url: &str,
        filename: String,
        checksum: Option<rbuild_digest::Digest>,
        title: String,
        step: Option<Place>,
    ) -> Edge {
        let op = Op::Source(SourceOp::Http(HttpSource {
            url: url.to_owned(),
            filename,
            checksum,
            mode: 0,
            uid: 0,
            gid: 0,
        }));
        let meta = NodeMeta { name: title, place: step, ..NodeMeta::default() };
        let platform = self.any_platform();
        self.draft.add(Node { op, inputs: vec![], platform, meta })
    }

    fn add_source(
        &mut self,
        op: Op,
        platform: Platform,
        name: String,
        place: Option<(&SourceFile, Span)>,
        stage: &str,
    ) -> Edge {
        let place = place.map(|(file, span)| Place { file: file.clone(), span });
        let meta = NodeMeta { name, place, stage: stage.to_owned(), ..NodeMeta::default() };
        self.draft.add(Node { op, inputs: vec![], platform, meta })
    }
}

/// The last part of a URL's path, or `default`.
pub(crate) fn http_file_name(url: &str, default: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    match crate::paths::base(&git::percent_decode(path)) {
        "." | "/" => default.to_owned(),
        base => base.to_owned(),
    }
}

fn registry_query(reference: &Reference, platform: Platform) -> ImageQuery {
    ImageQuery { origin: ImageOrigin::Registry(reference.clone()), platform }
}

fn layout_query(store: &str, path: &str, reference: &str, platform: Platform) -> ImageQuery {
    let origin = ImageOrigin::OciLayout {
        store: store.to_owned(),
        path: path.to_owned(),
        reference: reference.to_owned(),
    };
    ImageQuery { origin, platform }
}

/// Such an image is as good as scratch.
fn has_no_layers(config: &ImageConfig) -> bool {
    config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer)
}

fn is_scratch(reference: &Reference) -> bool {
    reference.domain == "docker.io" && reference.path == "library/scratch"
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
