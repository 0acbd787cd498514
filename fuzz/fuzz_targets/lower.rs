//! Any text that parses is lowered or refused, with images that are made up.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rbuild_diag::{Severity, SourceFile};
use rbuild_digest::Digest;
use rbuild_lower::{Facts, ImageFacts, LowerOptions, Outcome, local_mistakes, lower};
use rbuild_oci::{ImageConfig, Platform};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let source = SourceFile::new("Dockerfile", text.as_ref());
    let parsed = rbuild_dockerfile::parse(&source);
    let options = LowerOptions::new(Platform::new("linux", "amd64"));
    if parsed.diagnostics.iter().any(|it| it.severity == Severity::Error) {
        drop(local_mistakes(&parsed.file, &source, &options));
        return;
    }
    let mut facts = Facts::default();
    for _ in 0..4 {
        let Ok(Outcome::Need(needs)) = lower(&parsed.file, &source, &options, &facts) else { return };
        for need in needs.images {
            let digest = Digest::of(need.query.to_string());
            let platform = need.query.platform.clone();
            let config = Arc::new(ImageConfig::default());
            facts.images.insert(need.query, ImageFacts { digest, manifest: digest, platform, config });
        }
    }
});
