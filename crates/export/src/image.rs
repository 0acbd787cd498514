//! A whole image: layers prepared, documents assembled for each platform, and the index over them.

use std::collections::BTreeMap;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{ErrorKind, PortError, Result};

use crate::assemble::{self, ConfigParts, Document, FinishedConfig, LayerFacts};
use crate::layers::{LayerMaker, PreparedLayer};
use crate::{Annotation, AnnotationTarget, BuiltImage, CompressionSpec, ExportRequest, ImageOptions};

/// `org.opencontainers.image.created`
const CREATED: &str = "org.opencontainers.image.created";
/// `org.opencontainers.image.ref.name`
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's full name.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// What an image output wants, after the build's own settings were mixed in.
#[derive(Clone, Debug)]
pub(crate) struct ImageSettings {
    pub(crate) names: Vec<Reference>,
    /// `None`: plain tars that are stored nowhere.
    pub(crate) compression: Option<CompressionSpec>,
    pub(crate) oci: bool,
    pub(crate) annotations: Vec<Annotation>,
    pub(crate) epoch: Option<i64>,
    /// Clamp the times of files, too, where there is an epoch.
    pub(crate) rewrite: bool,
}

/// One platform of an image.
pub(crate) struct PlatformImage {
    pub(crate) config: FinishedConfig,
    pub(crate) manifest: Document,
    pub(crate) layers: Vec<PreparedLayer>,
}

/// An image that is ready to go out.
pub(crate) struct PreparedImage {
    pub(crate) platforms: Vec<PlatformImage>,
    pub(crate) index: Option<Document>,
    /// What a layout's index says of it, without a name.
    pub(crate) entry: Descriptor,
    pub(crate) names: Vec<Reference>,
}

impl ImageSettings {
    /// Settings of an output: `-t` replaces `name=`, `--annotation` is added, the output's own epoch comes first.
    pub(crate) fn new(
        options: &ImageOptions,
        request: &ExportRequest<'_>,
        compression: Option<CompressionSpec>,
    ) -> Self {
        let names = if request.names.is_empty() { &options.names } else { request.names };
        Self {
            names: names.iter().map(|name| name.clone().with_default_tag()).collect(),
            compression,
            oci: options.oci_media_types,
            annotations: request.annotations.iter().chain(&options.annotations).cloned().collect(),
            epoch: options.source_date_epoch.or(request.source_date_epoch),
            rewrite: options.rewrite_timestamp,
        }
    }

    /// The annotations of `target` for one of the images; those without a platform first.
    fn annotations(&self, target: AnnotationTarget, image: Option<&BuiltImage>) -> BTreeMap<String, String> {
        let here = self.annotations.iter().filter(|annotation| annotation.target == target);
        let (of_one, of_all): (Vec<_>, Vec<_>) = here.partition(|annotation| annotation.platform.is_some());
        let applies = |annotation: &&Annotation| match (&annotation.platform, image) {
            (Some(platform), Some(image)) => platform.normalized() == image.platform.normalized(),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let chosen = of_all.into_iter().chain(of_one).filter(|annotation| applies(annotation));
        chosen.map(|annotation| (annotation.key.clone(), annotation.value.clone())).collect()
    }
}

impl PreparedImage {
    /// Prepares all layers and assembles the documents.
    pub(crate) fn new(
        maker: &LayerMaker<'_>,
        request: &ExportRequest<'_>,
        settings: &ImageSettings,
    ) -> Result<Self> {
        let indexed = request.indexed;
        check(request, settings, indexed)?;
        let latest = settings.epoch.filter(|_| settings.rewrite);
        let split = |image: &BuiltImage| if latest.is_some() { base_layers(image) } else { usize::MAX };
        let all: Vec<_> = request
            .images
            .iter()
            .flat_map(|image| image.snapshot.layers.iter().take(split(image)).cloned())
            .collect();
        let prepared = match &settings.compression {
            Some(spec) => maker.ensure_blobs(&all, spec)?,
            None => maker.plain_tars(&all)?,
        };
        let mut rest = prepared.into_iter();
        let mut platforms = Vec::with_capacity(request.images.len());
        let mut entries = Vec::with_capacity(request.images.len());
        for image in request.images {
            let count = image.snapshot.layers.len();
            let mut layers: Vec<PreparedLayer> = rest.by_ref().take(count.min(split(image))).collect();
            if let Some(latest) = latest {
                let own = image.snapshot.layers.get(layers.len()..).unwrap_or_default();
                let spec = settings.compression.unwrap_or(CompressionSpec::NONE);
                maker.materialise(&image.snapshot)?;
                layers.extend(maker.rewritten(own, latest, &spec)?);
            }
            let platform = assemble_platform(request, settings, image, layers)?;
            let mut entry = platform.manifest.descriptor.clone();
            entry.platform = Some(image.config.platform());
            entry.annotations = settings.annotations(AnnotationTarget::ManifestDescriptor, Some(image));
            entries.push(entry);
            platforms.push(platform);
        }
        let (index, mut entry) = match entries.as_slice() {
            [] => return Err(PortError::new(ErrorKind::Invalid, "there is no image to export")),
            [one] if !indexed => (None, one.clone()),
            _ => {
                let annotations = settings.annotations(AnnotationTarget::Index, None);
                let index = assemble::index(entries, settings.oci, annotations)?;
                let mut entry = index.descriptor.clone();
                entry.annotations = settings.annotations(AnnotationTarget::IndexDescriptor, None);
                (Some(index), entry)
            }
        };
        // The image's own time, not that of the export: the same image gives the same archive.
        if let Some(created) = platforms.iter().find_map(|platform| platform.config.created.clone()) {
            entry.annotations.entry(CREATED.to_owned()).or_insert(created);
        }
        Ok(Self { platforms, index, entry, names: settings.names.clone() })
    }

    /// The image id alone, for which nothing need be compressed.
    pub(crate) fn config_digest_of(
        maker: &LayerMaker<'_>,
        request: &ExportRequest<'_>,
        settings: &ImageSettings,
        image: &BuiltImage,
    ) -> Result<Digest> {
        if request.inline_cache.is_some() {
            // The inline cache names blobs, so they must be.
            let all = Self::new(maker, request, settings)?;
            return Ok(all.config_digest().unwrap_or(all.entry.digest));
        }
        let layers = maker.ensure_diff_ids(&image.snapshot.layers)?;
        let layers: Vec<_> =
            layers.into_iter().map(|(diff_id, created)| LayerFacts { diff_id, created }).collect();
        let parts = ConfigParts {
            config: &image.config,
            layers: &layers,
            base_history: image.base_history,
            epoch: settings.epoch,
            inline_cache: None,
        };
        Ok(assemble::config(&parts)?.digest)
    }

    /// The image id, when there is one platform.
    pub(crate) fn config_digest(&self) -> Option<Digest> {
        match self.platforms.as_slice() {
            [one] if self.index.is_none() => Some(one.config.digest),
            _ => None,
        }
    }

    /// All layers, each blob once, in order.
    pub(crate) fn layers(&self) -> Vec<&PreparedLayer> {
        let mut seen = std::collections::HashSet::new();
        let all = self.platforms.iter().flat_map(|platform| &platform.layers);
        all.filter(|layer| seen.insert(layer.descriptor.descriptor.digest)).collect()
    }

    /// Documents to be stored beside the layers: configs, manifests, the index.
    pub(crate) fn documents(&self) -> Vec<(Digest, &[u8])> {
        let mut out: Vec<(Digest, &[u8])> = vec![];
        for platform in &self.platforms {
            out.push((platform.config.digest, &platform.config.bytes));
            out.push((platform.manifest.descriptor.digest, &platform.manifest.bytes));
        }
        out.extend(self.index.iter().map(|index| (index.descriptor.digest, index.bytes.as_slice())));
        out.dedup_by_key(|document| document.0);
        out
    }

    /// Entries of a layout's `index.json`: one a name.
    pub(crate) fn layout_entries(&self) -> Vec<Descriptor> {
        let named = self.names.iter().map(|name| {
            let mut entry = self.entry.clone();
            entry.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
            entry.annotations.insert(REF_NAME.to_owned(), ref_name(name));
            entry
        });
        if self.names.is_empty() { vec![self.entry.clone()] } else { named.collect() }
    }
}

/// How many of the layers came with the base image.
fn base_layers(image: &BuiltImage) -> usize {
    image.config.history.iter().take(image.base_history).filter(|entry| !entry.empty_layer).count()
}

fn ref_name(name: &Reference) -> String {
    match (&name.tag, &name.digest) {
        (Some(tag), _) => tag.clone(),
        (None, Some(digest)) => digest.to_string(),
        (None, None) => "latest".to_owned(),
    }
}

fn check(request: &ExportRequest<'_>, settings: &ImageSettings, indexed: bool) -> Result<()> {
    for annotation in &settings.annotations {
        if annotation.target.needs_index() && !indexed {
            let message = format!(
                "the annotation {:?} is for an index, and an image of one platform has none",
                annotation.key
            );
            return Err(PortError::new(ErrorKind::Invalid, message).help("annotate the manifest instead"));
        }
        let known = annotation.platform.as_ref().is_none_or(|wanted| {
            request.images.iter().any(|image| image.platform.normalized() == wanted.normalized())
        });
        if !known {
            let platform = annotation.platform.as_ref().map(ToString::to_string).unwrap_or_default();
            let message =
                format!("the annotation {:?} is for {platform}, which is not built", annotation.key);
            return Err(PortError::new(ErrorKind::Invalid, message));
        }
    }
    Ok(())
}

fn assemble_platform(
    request: &ExportRequest<'_>,
    settings: &ImageSettings,
    image: &BuiltImage,
    layers: Vec<PreparedLayer>,
) -> Result<PlatformImage> {
    let facts: Vec<LayerFacts> = layers
        .iter()
        .map(|layer| LayerFacts { diff_id: layer.descriptor.diff_id, created: layer.created })
        .collect();
    let inline_cache = match request.inline_cache {
        Some(make) => {
            let descriptors: Vec<_> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
            make(image, &descriptors)?
        }
        None => None,
    };
    let config = assemble::config(&ConfigParts {
        config: &image.config,
        layers: &facts,
        base_history: image.base_history,
        epoch: settings.epoch,
        inline_cache: inline_cache.as_deref(),
    })?;
    let blobs: Vec<Descriptor> = layers.iter().map(|layer| layer.descriptor.descriptor.clone()).collect();
    let annotations = settings.annotations(AnnotationTarget::Manifest, Some(image));
    let manifest = assemble::manifest(&config, &blobs, settings.oci, annotations)?;
    Ok(PlatformImage { config, manifest, layers })
}
