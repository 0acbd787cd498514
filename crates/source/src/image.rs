//! From a name and a platform to an image's documents: index, manifest, config. The same rules for registries and OCI
//! layouts: everything is verified, ambiguous documents are refused, nothing but documents is read.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_digest::Digest;
use rbuild_oci::media_type::{self, Compression};
use rbuild_oci::{Descriptor, Document, ImageConfig, Index, Manifest, Platform, Reference, parse_document};
use rbuild_ports::{
    CancelToken, ErrorKind, ImageRequest, ImageSelector, PortError, RemoteBlob, ResolveMode, ResolvedImage,
    ResolvedLayer, Result,
};

use crate::documents::Documents;
use crate::layout::Layout;
use crate::registry::{MAX_CONFIG, MAX_MANIFEST, Registry, Repository};

/// Indexes in indexes.
const MAX_DEPTH: usize = 4;
/// Entries of an index that do not say for which platform they are, and are looked into.
const MAX_UNLABELLED: usize = 16;
/// On the entries of an index that are no images but say something about one.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

type Flight = Arc<Mutex<Option<ResolvedImage>>>;

/// Resolves images for one build.
pub(crate) struct Images {
    registry: Registry,
    documents: Documents,
    offline_ok: bool,
    warn: Arc<dyn Fn(&str) + Send + Sync>,
    /// What was resolved; whoever comes second waits for the first.
    flights: Mutex<HashMap<ImageRequest, Flight>>,
    /// What tags point to: one answer for all platforms.
    tags: Mutex<HashMap<Reference, Arc<Mutex<Option<Head>>>>>,
    /// Documents of this build: there may be no directory to keep them in.
    memory: Mutex<HashMap<Digest, Vec<u8>>>,
}

/// What a reference resolved to, and its document if it came along.
#[derive(Clone)]
struct Head {
    digest: Digest,
    media_type: String,
}

/// Where documents come from.
trait Shelf {
    fn document(&self, digest: &Digest) -> Result<Vec<u8>>;
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// The manifest that was chosen.
struct Chosen {
    digest: Digest,
    manifest: Manifest,
    config: Vec<u8>,
    platform: Option<Platform>,
}

impl Images {
    pub(crate) fn new(
        registry: Registry,
        state: Option<&Path>,
        offline_ok: bool,
        warn: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let documents = Documents::new(state);
        let (flights, tags, memory) = Default::default();
        Self { registry, documents, offline_ok, warn, flights, tags, memory }
    }

    pub(crate) fn resolve(
        &self,
        request: &ImageRequest,
        mode: ResolveMode,
        cancel: &CancelToken,
    ) -> Result<ResolvedImage> {
        let flight = lock(&self.flights).entry(request.clone()).or_default().clone();
        let mut image = lock(&flight);
        if let Some(image) = &*image {
            return Ok(image.clone());
        }
        let fresh = match &request.image {
            ImageSelector::Registry(reference) => {
                self.ask_registry(reference, &request.platform, mode, cancel)?
            }
            ImageSelector::OciLayout { path, tag, digest } => {
                from_layout(path, tag.as_deref(), digest.as_ref(), &request.platform)?
            }
        };
        *image = Some(fresh.clone());
        Ok(fresh)
    }

    fn ask_registry(
        &self,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        cancel: &CancelToken,
    ) -> Result<ResolvedImage> {
        let reference = reference.clone().with_default_tag();
        let head = self.head(&reference, mode, cancel)?;
        let shelf = RegistryShelf { images: self, reference: &reference, cancel };
        let bytes = shelf.document(&head.digest)?;
        let name = reference.to_string();
        let chosen = choose(&shelf, &name, &head.digest, &bytes, &head.media_type, platform)?;
        resolved(&name, head.digest, chosen, platform, &reference.name())
    }

    /// What the reference points to; its document is then among the documents, or can be fetched by digest.
    fn head(&self, reference: &Reference, mode: ResolveMode, cancel: &CancelToken) -> Result<Head> {
        if let Some(digest) = reference.digest {
            return Ok(Head { digest, media_type: String::new() });
        }
        let flight = lock(&self.tags).entry(reference.clone()).or_default().clone();
        let mut known = lock(&flight);
        if let Some(head) = &*known {
            return Ok(head.clone());
        }
        let remembered = self.documents.tag(reference);
        let asked = match remembered {
            // It is likely the same as last time: asking for the digest is enough.
            Some(_) => self
                .registry
                .resolve(reference, cancel)
                .map(|it| Head { digest: it.digest, media_type: it.media_type }),
            None => self.registry.fetch_manifest(reference, cancel).map(|document| {
                self.keep(document.digest, document.bytes);
                Head { digest: document.digest, media_type: document.media_type }
            }),
        };
        let head = match (asked, remembered) {
            (Ok(head), _) => {
                self.documents.put_tag(reference, &head.digest);
                head
            }
            (Err(error), Some(digest))
                if error.kind == ErrorKind::Network && self.offline_ok && mode == ResolveMode::Default =>
            {
                if self.documents.get(&digest).is_none() {
                    return Err(error);
                }
                (self.warn)(&format!("{error}; going on with {reference} as it was last time: {digest}"));
                Head { digest, media_type: String::new() }
            }
            (Err(error), _) => return Err(error),
        };
        *known = Some(head.clone());
        Ok(head)
    }

    /// Keeps a document, for this build and later ones.
    fn keep(&self, digest: Digest, bytes: Vec<u8>) {
        self.documents.put(&digest, &bytes);
        lock(&self.memory).insert(digest, bytes);
    }
}

struct RegistryShelf<'a> {
    images: &'a Images,
    reference: &'a Reference,
    cancel: &'a CancelToken,
}

impl RegistryShelf<'_> {
    fn kept(&self, digest: &Digest) -> Option<Vec<u8>> {
        let kept = lock(&self.images.memory).get(digest).cloned();
        kept.or_else(|| self.images.documents.get(digest))
    }
}

impl Shelf for RegistryShelf<'_> {
    fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept(digest) {
            return Ok(bytes);
        }
        let reference = self.reference.clone().with_digest(*digest);
        let document = self.images.registry.fetch_manifest(&reference, self.cancel)?;
        self.images.keep(*digest, document.bytes.clone());
        Ok(document.bytes)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept(&descriptor.digest) {
            return Ok(bytes);
        }
        let repository = Repository::of(self.reference);
        let bytes =
            self.images.registry.fetch_small_blob(&repository, descriptor, MAX_CONFIG, self.cancel)?;
        self.images.keep(descriptor.digest, bytes.clone());
        Ok(bytes)
    }
}

impl Shelf for Layout {
    fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        Layout::document(self, digest, MAX_MANIFEST)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        Layout::config(self, descriptor)
    }
}

fn from_layout(
    path: &Path,
    tag: Option<&str>,
    digest: Option<&Digest>,
    platform: &Platform,
) -> Result<ResolvedImage> {
    let layout = Layout::open(path)?;
    let top = layout.choose(tag, digest)?;
    let name = format!("oci-layout://{}", path.display());
    let chosen = choose(&layout, &name, &top.digest, &top.bytes, &top.media_type, platform)?;
    resolved(&name, top.digest, chosen, platform, &layout.location())
}

/// The manifest for `platform` in the document `bytes`.
fn choose(
    shelf: &dyn Shelf,
    name: &str,
    digest: &Digest,
    bytes: &[u8],
    media_type: &str,
    platform: &Platform,
) -> Result<Chosen> {
    let mut offers = Vec::new();
    let found = search(shelf, name, digest, bytes, media_type, platform, None, MAX_DEPTH, &mut offers)?;
    found.ok_or_else(|| {
        offers.sort();
        offers.dedup();
        let error = PortError::new(ErrorKind::Invalid, format!("{name} has no image for {platform}"));
        if offers.is_empty() {
            error.help("its index lists no images")
        } else {
            error.help(format!("it has {}; choose with --platform", offers.join(", ")))
        }
    })
}

#[expect(clippy::too_many_arguments, reason = "one recursion, private to this file")]
fn search(
    shelf: &dyn Shelf,
    name: &str,
    digest: &Digest,
    bytes: &[u8],
    media_type: &str,
    wanted: &Platform,
    labelled: Option<&Platform>,
    depth: usize,
    offers: &mut Vec<String>,
) -> Result<Option<Chosen>> {
    let declared = Some(media_type).filter(|media_type| !media_type.is_empty());
    let document = parse_document(bytes, declared)
        .map_err(|error| PortError::new(ErrorKind::Invalid, format!("{name} ({digest}): {error}")))?;
    match document {
        Document::Manifest(manifest) => {
            let config = shelf.config(&manifest.config)?;
            Ok(Some(Chosen { digest: *digest, manifest, config, platform: labelled.cloned() }))
        }
        Document::Index(_) if depth == 0 => Err(PortError::new(
            ErrorKind::Invalid,
            format!("{name}: more than {MAX_DEPTH} indexes in each other"),
        )),
        Document::Index(index) => search_index(shelf, name, &index, wanted, depth - 1, offers),
    }
}

fn search_index(
    shelf: &dyn Shelf,
    name: &str,
    index: &Index,
    wanted: &Platform,
    depth: usize,
    offers: &mut Vec<String>,
) -> Result<Option<Chosen>> {
    let images = || index.manifests.iter().filter(|entry| !entry.annotations.contains_key(REFERENCE_TYPE));
    let unknown = |platform: &Platform| platform.os == "unknown" || platform.os.is_empty();
    let labelled =
        images().filter_map(|entry| Some((entry, entry.platform.as_ref().filter(|p| !unknown(p))?)));
    offers.extend(labelled.clone().map(|(_, platform)| platform.normalized().to_string()));
    let best = labelled
        .filter_map(|(entry, platform)| platform.serves(wanted).map(|distance| (distance, entry, platform)))
        .min_by_key(|(distance, _, _)| *distance);
    if let Some((_, entry, platform)) = best {
        let bytes = entry_document(shelf, name, entry)?;
        return search(
            shelf,
            name,
            &entry.digest,
            &bytes,
            &entry.media_type,
            wanted,
            Some(platform),
            depth,
            offers,
        );
    }
    // Entries without a label: indexes in this one, and images whose config tells.
    let known = |entry: &&Descriptor| {
        media_type::is_index(&entry.media_type) || media_type::is_manifest(&entry.media_type)
    };
    for entry in images().filter(|entry| entry.platform.is_none()).filter(known).take(MAX_UNLABELLED) {
        let bytes = entry_document(shelf, name, entry)?;
        let found =
            search(shelf, name, &entry.digest, &bytes, &entry.media_type, wanted, None, depth, offers)?;
        let Some(found) = found else { continue };
        let platform = match &found.platform {
            Some(platform) => platform.clone(),
            None => parse_config(name, &found.config)?.platform().normalized(),
        };
        if platform.serves(wanted).is_some() {
            return Ok(Some(found));
        }
        offers.push(platform.to_string());
    }
    Ok(None)
}

fn entry_document(shelf: &dyn Shelf, name: &str, entry: &Descriptor) -> Result<Vec<u8>> {
    let wrong = |what: String| PortError::new(ErrorKind::Corrupt, format!("{name}: {} {what}", entry.digest));
    if entry.size > MAX_MANIFEST {
        return Err(wrong(format!(
            "has {} bytes, more than the {MAX_MANIFEST} a manifest may have",
            entry.size
        )));
    }
    let bytes = shelf.document(&entry.digest)?;
    if bytes.len() as u64 != entry.size {
        return Err(wrong(format!("has {} bytes instead of {}", bytes.len(), entry.size)));
    }
    Ok(bytes)
}

fn parse_config(name: &str, bytes: &[u8]) -> Result<ImageConfig> {
    serde_json::from_slice(bytes).map_err(|error| {
        PortError::new(ErrorKind::Invalid, format!("the image config of {name} is malformed: {error}"))
    })
}

/// Checks that config and layers belong together.
fn resolved(
    name: &str,
    digest: Digest,
    chosen: Chosen,
    wanted: &Platform,
    location: &str,
) -> Result<ResolvedImage> {
    let Chosen { digest: manifest_digest, manifest, config, platform } = chosen;
    let is_image =
        matches!(manifest.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG);
    let no_image = |what: String| {
        PortError::new(ErrorKind::Invalid, format!("{name} is no container image: {what}"))
            .help("it may be another kind of artifact, such as a chart or a signature")
    };
    let config: ImageConfig = match parse_config(name, &config) {
        Err(_) if !is_image => {
            return Err(no_image(format!("its config is {:?}", manifest.config.media_type)));
        }
        outcome => outcome?,
    };
    if !is_image && config.rootfs.diff_ids.is_empty() && config.os.is_empty() {
        return Err(no_image(format!("its config is {:?}", manifest.config.media_type)));
    }
    let (diff_ids, layers) = (&config.rootfs.diff_ids, manifest.layers);
    if diff_ids.len() != layers.len() {
        let message =
            format!("{name}: its config lists {} layers and its manifest {}", diff_ids.len(), layers.len());
        return Err(PortError::new(ErrorKind::Corrupt, message));
    }
    if let Some(strange) = layers.iter().find(|layer| Compression::of_layer(&layer.media_type).is_none()) {
        return Err(no_image(format!("a layer is {:?}", strange.media_type)));
    }
    let layers = diff_ids
        .iter()
        .zip(layers)
        .map(|(diff_id, descriptor)| ResolvedLayer {
            diff_id: *diff_id,
            remote: RemoteBlob { location: location.to_owned(), descriptor },
        })
        .collect();
    let said = config.platform().normalized();
    let platform = if said.os.is_empty() || said.architecture.is_empty() {
        platform.unwrap_or_else(|| wanted.clone()).normalized()
    } else {
        said
    };
    Ok(ResolvedImage { digest, manifest: manifest_digest, platform, config, layers })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
