//! All outputs of a build, one after the other, and the second chance: a blob that turns out to be damaged or gone
//! while it is exported is made again, in the same command.

use rbuild_ports::{ErrorKind, PortError, Result};

use crate::content::{Attempt, Fault, Faults};
use crate::image::{ImageSettings, PreparedImage};
use crate::layers::LayerMaker;
use crate::{
    CompressionSpec, Digests, ExportContext, ExportRequest, Exported, ImageOptions, ImageOutput,
    OutputReport, OutputSpec, archive, load, local, push, rootfs_tar, store,
};

/// How many damaged or lost layers one output may have.
const SECOND_CHANCES: usize = 64;

/// Writes `request.images` to all of `request.outputs`, in order. Layers are made into blobs once and shared by the
/// outputs.
///
/// # Errors
/// If an output cannot be written, a layer cannot be read or fetched, a registry or engine refuses, or `Cancelled`.
/// What was not finished is not visible; outputs before it are.
pub fn export(cx: &ExportContext<'_>, request: &ExportRequest<'_>) -> Result<Exported> {
    check(request)?;
    let maker = LayerMaker::new(cx);
    let mut exported = Exported::default();
    for output in request.outputs {
        cx.cancel.check()?;
        let result = one(cx, &maker, request, output, &mut exported);
        let report =
            result.map_err(|error| if cx.cancel.is_cancelled() { PortError::cancelled() } else { error })?;
        exported.outputs.push(report);
    }
    Ok(exported)
}

fn check(request: &ExportRequest<'_>) -> Result<()> {
    if request.images.is_empty() {
        return Err(PortError::new(ErrorKind::Invalid, "there is no image to export"));
    }
    if request.outputs.iter().filter(|output| output.uses_stdout()).count() > 1 {
        let message = "two outputs go to standard output";
        return Err(PortError::new(ErrorKind::Invalid, message).help("give one of them a dest=FILE"));
    }
    Ok(())
}

fn one(
    cx: &ExportContext<'_>,
    maker: &LayerMaker<'_>,
    request: &ExportRequest<'_>,
    output: &OutputSpec,
    exported: &mut Exported,
) -> Result<OutputReport> {
    match output {
        OutputSpec::CacheOnly => {
            Ok(OutputReport { kind: output.kind(), target: String::new(), bytes: 0, skipped: 0 })
        }
        OutputSpec::Local(output) => local::export(cx, request, output),
        OutputSpec::Tar(output) => rootfs_tar::export(cx, request, output),
        OutputSpec::Oci(archive) | OutputSpec::Docker(archive) => {
            let docker = matches!(output, OutputSpec::Docker(_));
            let settings = settings(&archive.image, request, true);
            image(cx, maker, request, &settings, !output.uses_stdout(), exported, |attempt, image| {
                archive::export(attempt, image, archive, docker)
            })
        }
        OutputSpec::Load(load) => {
            let settings = settings(&load.image, request, false);
            image(cx, maker, request, &settings, true, exported, load::export)
        }
        OutputSpec::Image(output) => into_store(cx, maker, request, output, exported),
    }
}

fn settings(options: &ImageOptions, request: &ExportRequest<'_>, compressed: bool) -> ImageSettings {
    let default = compressed.then_some(CompressionSpec::GZIP);
    ImageSettings::new(options, request, options.compression.or(default))
}

fn into_store(
    cx: &ExportContext<'_>,
    maker: &LayerMaker<'_>,
    request: &ExportRequest<'_>,
    output: &ImageOutput,
    exported: &mut Exported,
) -> Result<OutputReport> {
    let settings = settings(&output.image, request, true);
    let names: Vec<String> = settings.names.iter().map(ToString::to_string).collect();
    let mut manifest = None;
    let mut report = OutputReport { kind: "image", target: names.join(", "), bytes: 0, skipped: 0 };
    if output.push {
        report = image(cx, maker, request, &settings, true, exported, |attempt, image| {
            push::export(attempt, image, output)
        })?;
        manifest = exported.descriptor.as_ref().map(|descriptor| descriptor.digest);
    } else {
        match (request.want, request.images) {
            (Digests::None, _) => exported.names.clone_from(&names),
            // The image id needs diff ids, and nothing to be compressed.
            (Digests::Id, [one]) => {
                exported.config_digest =
                    Some(PreparedImage::config_digest_of(maker, request, &settings, one)?);
                exported.names.clone_from(&names);
            }
            // The digest of a manifest or an index needs all of it.
            (Digests::Id | Digests::Manifest, _) => {
                let prepared = PreparedImage::new(maker, request, &settings)?;
                note(exported, &prepared);
                manifest = Some(prepared.entry.digest);
            }
        }
    }
    if output.store {
        // The own image keeps its layers as they are, so what was pushed is another one.
        let manifest = manifest.filter(|_| !settings.rewrite);
        store::put(cx, request.images, &settings.names, manifest)?;
    }
    Ok(report)
}

/// Prepares the image and gives it to `write`; when that finds a layer damaged or gone, the layer is made again and all
/// is tried once more, as long as something new was found.
fn image(
    cx: &ExportContext<'_>,
    maker: &LayerMaker<'_>,
    request: &ExportRequest<'_>,
    settings: &ImageSettings,
    repeatable: bool,
    exported: &mut Exported,
    write: impl Fn(&Attempt<'_>, &PreparedImage) -> Result<OutputReport>,
) -> Result<OutputReport> {
    let faults = Faults::default();
    let attempt = Attempt { cx, maker, faults: &faults };
    let mut chances = SECOND_CHANCES;
    loop {
        let prepared = PreparedImage::new(maker, request, settings)?;
        let error = match write(&attempt, &prepared) {
            Ok(report) => {
                note(exported, &prepared);
                return Ok(report);
            }
            Err(error) => error,
        };
        let found = faults.take();
        for fault in &found {
            if let Fault::Damaged(digest) = fault {
                maker.discard(digest)?;
            }
        }
        let hopeless = found.is_empty() || matches!(error.kind, ErrorKind::NoSpace | ErrorKind::Cancelled);
        if hopeless || cx.cancel.is_cancelled() || chances == 0 {
            return Err(error);
        }
        if !repeatable {
            return Err(error.help("the damaged blob was removed; run the build again"));
        }
        chances -= 1;
    }
}

fn note(exported: &mut Exported, image: &PreparedImage) {
    exported.descriptor = Some(image.entry.clone());
    exported.config_digest = image.config_digest();
    exported.names = image.names.iter().map(ToString::to_string).collect();
}

#[cfg(test)]
mod tests;
