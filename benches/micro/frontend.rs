//! Text → tree → graph → keys, on one long Dockerfile of many stages.

use std::hint::black_box;
use std::sync::Arc;

use rbuild_cache_key::cache_map;
use rbuild_diag::SourceFile;
use rbuild_digest::Digest;
use rbuild_dockerfile::Parsed;
use rbuild_lower::{Facts, ImageFacts, LowerOptions, Lowered, Outcome};
use rbuild_oci::{ImageConfig, Platform};

use super::{Micro, Size};

const STAGES: usize = 200;

fn source(size: Size) -> SourceFile {
    let mut text = String::from("# syntax=docker/dockerfile:1\nARG VERSION=1.2\n");
    let stages = (STAGES / size.shrink).max(2);
    for n in 0..stages {
        let base =
            if n % 4 == 0 { "docker.io/library/debian:bookworm".to_owned() } else { format!("s{}", n - 1) };
        text.push_str(&format!(
            "\n# stage {n}\nFROM {base} AS s{n}\nARG VERSION\nENV PATH=/opt/{n}/bin:$PATH NAME=\"a b $VERSION\"\nWORKDIR /work/{n}\n\
             COPY --chown=1:1 src/{n} *.txt ./\nRUN --mount=type=cache,target=/root/.cache/{n} make -j4 \\\n    ARG=${{VERSION:-none}} \\\n    all && \\\n    make install\n\
             RUN <<EOF\nset -e\necho {n} > /out\nEOF\nLABEL a{n}=b c=\"$NAME\"\n"
        ));
    }
    text.push_str("\nFROM scratch\n");
    for n in (0..stages).filter(|n| n % 4 == 3 || n + 1 == stages) {
        text.push_str(&format!("COPY --from=s{n} /out /out/{n}\n"));
    }
    text.push_str("CMD [\"/out\"]\n");
    SourceFile::new("Dockerfile", text)
}

fn parsed(size: Size) -> Result<(SourceFile, Parsed), String> {
    let source = source(size);
    let parsed = rbuild_dockerfile::parse(&source);
    match parsed.diagnostics.iter().find(|it| it.severity == rbuild_diag::Severity::Error) {
        Some(error) => Err(format!("the benchmark's Dockerfile is wrong: {}", error.message)),
        None => Ok((source, parsed)),
    }
}

/// Text → tree.
pub(super) fn parse(size: Size) -> Result<Micro, String> {
    let (source, _) = parsed(size)?;
    let amount = source.text().len();
    Ok(Micro {
        run: Box::new(move || {
            black_box(rbuild_dockerfile::parse(&source));
        }),
        amount,
        unit: "B",
    })
}

/// What lowering wants to know, answered with made-up digests.
fn answer(source: &SourceFile, parsed: &Parsed, options: &LowerOptions) -> Result<(Facts, Lowered), String> {
    let mut facts = Facts::default();
    for _ in 0..8 {
        match rbuild_lower::lower(&parsed.file, source, options, &facts) {
            Err(errors) => {
                let first = errors.first().map_or_else(String::new, |error| error.message.clone());
                return Err(format!("the benchmark's Dockerfile cannot be lowered: {first}"));
            }
            Ok(Outcome::Done(lowered)) => return Ok((facts, *lowered)),
            Ok(Outcome::Need(needs)) => {
                for need in needs.images {
                    let digest = Digest::of(need.query.to_string());
                    let platform = need.query.platform.clone();
                    let config = Arc::new(ImageConfig::default());
                    facts
                        .images
                        .insert(need.query, ImageFacts { digest, manifest: digest, platform, config });
                }
            }
        }
    }
    Err("lowering asks for ever".into())
}

/// Tree → graph, everything known.
pub(super) fn lower(size: Size) -> Result<Micro, String> {
    let (source, parsed) = parsed(size)?;
    let options = LowerOptions::new(Platform::new("linux", "amd64"));
    let (facts, lowered) = answer(&source, &parsed, &options)?;
    Ok(Micro {
        run: Box::new(move || {
            drop(black_box(rbuild_lower::lower(&parsed.file, &source, &options, &facts)));
        }),
        amount: lowered.graph.len(),
        unit: "node",
    })
}

/// Text → graph of ten thousand instructions in two hundred stages, everything known.
pub(super) fn long(size: Size) -> Result<Micro, String> {
    let stages = (STAGES / size.shrink).max(2);
    let mut text = String::from("ARG BASE=docker.io/library/debian:bookworm\n");
    for n in 0..stages {
        let base = if n % 10 == 0 { "$BASE".to_owned() } else { format!("s{}", n - 1) };
        text.push_str(&format!(
            "FROM {base} AS s{n}\nARG V{n}=\"{n} x\"\nENV E{}=\"a ${{V{n}:-b}}\"\n",
            n % 9
        ));
        for step in 0..16 {
            text.push_str(&format!(
                "RUN --mount=type=cache,target=/c make part-{n}-{step} \\\n  && make install\n\
                 COPY --chown=1:1 src/{n}/{step} *.txt /work/$V{n}/\nLABEL l{step}=\"$E{}\"\n",
                n % 9
            ));
        }
    }
    let source = SourceFile::new("Dockerfile", text);
    let options = LowerOptions::new(Platform::new("linux", "amd64"));
    let parsed = rbuild_dockerfile::parse(&source);
    let (facts, _) = answer(&source, &parsed, &options)?;
    Ok(Micro {
        amount: parsed.file.instructions.len(),
        run: Box::new(move || {
            let parsed = rbuild_dockerfile::parse(&source);
            drop(black_box(rbuild_lower::lower(&parsed.file, &source, &options, &facts)));
        }),
        unit: "instruction",
    })
}

/// The cache map of every node.
pub(super) fn keys(size: Size) -> Result<Micro, String> {
    let (source, parsed) = parsed(size)?;
    let (_, lowered) = answer(&source, &parsed, &LowerOptions::new(Platform::new("linux", "amd64")))?;
    let amount = lowered.graph.len();
    let facts = rbuild_cache_key::Facts::default();
    Ok(Micro {
        run: Box::new(move || {
            for (_, node) in lowered.graph.nodes() {
                drop(black_box(cache_map(node, &facts)));
            }
        }),
        amount,
        unit: "node",
    })
}
