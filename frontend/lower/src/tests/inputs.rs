//! The text forms of options and facts. Images that are not described are made up, but for those whose name starts
//! with `missing`.

use std::sync::Arc;

use rbuild_diag::SourceFile;
use rbuild_digest::Digest;
use rbuild_graph::{HostIp, NetMode, Ulimit};
use rbuild_oci::{ImageConfig, Platform, Reference};

use crate::{
    Facts, GitFacts, GitQuery, IgnoreFile, ImageFacts, ImageOrigin, ImageQuery, LowerOptions, MainContext,
    NamedContext, NamedContextValue, Needs, NoCache,
};

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap();
    (name.to_owned(), value.to_owned())
}

/// One option a line.
pub(super) fn options(text: &str) -> LowerOptions {
    let mut out = LowerOptions::new(platform("linux/amd64"));
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "target" => out.target = Some(value.to_owned()),
            "arg" => out.build_args.push(pair(value)),
            "label" => out.labels.push(pair(value)),
            "platform" => out.platform = platform(value),
            "build-platform" => out.build_platform = platform(value),
            "implicit" => out.implicit_platform = true,
            "multi" => out.multi_platform = true,
            "all-stages" => out.all_stages = true,
            "no-cache" if value.is_empty() => out.no_cache = NoCache::All,
            "no-cache" => out.no_cache = NoCache::Stages(value.split(',').map(str::to_owned).collect()),
            "network" => {
                out.network = if value == "host" { NetMode::Host } else { NetMode::None };
            }
            "host" => {
                let (host, ip) = pair(value);
                out.extra_hosts.push(HostIp { host, ip });
            }
            "hostname" => out.hostname = value.to_owned(),
            "shm" => out.shm_size = value.parse().unwrap(),
            "ulimit" => {
                let (name, limits) = pair(value);
                let (soft, hard) = limits.split_once(':').unwrap();
                out.ulimits.push(Ulimit { name, soft: soft.parse().unwrap(), hard: hard.parse().unwrap() });
            }
            "cgroup" => out.cgroup_parent = value.to_owned(),
            "ignore" => {
                let lines = value.replace('|', "\n");
                let file = SourceFile::new(".dockerignore", lines.as_str());
                let patterns =
                    rbuild_tree::parse_ignore_file(&lines).into_iter().map(|it| it.pattern).collect();
                out.context = MainContext::Local(IgnoreFile { patterns, file: Some(file) });
            }
            "main-git" => out.context = MainContext::Git(value.to_owned()),
            "main-http" => out.context = MainContext::Http(value.to_owned()),
            "main-none" => out.context = MainContext::None,
            "context" => out.named_contexts.push(context(value)),
            _ => panic!("unknown input {line:?}"),
        }
    }
    out
}

/// `NAME[::PLATFORM]=KIND:VALUE`.
fn context(text: &str) -> NamedContext {
    let (name, value) = pair(text);
    let (name, of) = match name.split_once("::") {
        Some((name, of)) => (name.to_owned(), Some(platform(of))),
        None => (name, None),
    };
    let (kind, rest) = value.split_once(':').unwrap_or((&value, ""));
    let value = match kind {
        "image" => NamedContextValue::Image(rest.parse().unwrap()),
        "layout" => {
            let (path, reference) = rest.split_once(':').unwrap();
            NamedContextValue::OciLayout { path: path.to_owned(), reference: reference.to_owned() }
        }
        "local" => NamedContextValue::Local(IgnoreFile { patterns: vec!["*.o".to_owned()], file: None }),
        "git" => NamedContextValue::Git(rest.to_owned()),
        "http" => NamedContextValue::Http(rest.to_owned()),
        "target" => {
            let dockerfile = rest.replace('|', "\n");
            let outcome = super::run(&dockerfile, &options(""), &mut Facts::default()).unwrap().1;
            let crate::Outcome::Done(lowered) = outcome else { panic!("{rest:?} is not lowered") };
            NamedContextValue::Target(Arc::new(*lowered))
        }
        _ => panic!("unknown context {text:?}"),
    };
    NamedContext { name, platform: of, value }
}

/// `image REF PLATFORM INDEX-DIGEST MANIFEST-DIGEST CONFIG-JSON` or `git URL REF COMMIT [TAG|-] [TIME]`, a line each.
pub(super) fn facts(text: &str) -> Facts {
    let mut out = Facts::default();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        match words.as_slice() {
            ["image", reference, of, index, manifest, json] => {
                let reference = reference.parse::<Reference>().unwrap().with_default_tag();
                let query = ImageQuery { origin: ImageOrigin::Registry(reference), platform: platform(of) };
                let config: ImageConfig = serde_json::from_str(json).unwrap();
                let facts = ImageFacts {
                    digest: digest(index),
                    manifest: digest(manifest),
                    platform: platform(of),
                    config: Arc::new(config),
                };
                out.images.insert(query, facts);
            }
            ["git", url, reference, commit, rest @ ..] => {
                let reference = if *reference == "HEAD" { "" } else { reference };
                let query = |committed| GitQuery {
                    url: (*url).to_owned(),
                    reference: reference.to_owned(),
                    committed,
                };
                let name = match reference {
                    "" => "refs/heads/main".to_owned(),
                    full if full.starts_with("refs/") => full.to_owned(),
                    tag if tag.starts_with('v') => format!("refs/tags/{tag}"),
                    branch => format!("refs/heads/{branch}"),
                };
                let facts = GitFacts {
                    name,
                    commit: (*commit).to_owned(),
                    tag_object: rest.first().filter(|tag| **tag != "-").map(|tag| (*tag).to_owned()),
                    committed: rest.get(1).map(|time| time.parse().unwrap()),
                };
                out.git.insert(query(false), facts.clone());
                out.git.insert(query(true), facts);
            }
            _ => panic!("unknown fact {line:?}"),
        }
    }
    out
}

fn digest(text: &str) -> Digest {
    if text == "-" { Digest::of("digest") } else { text.parse().unwrap() }
}

/// Makes up what is missing; false when nothing could be.
pub(super) fn answer(needs: &Needs, facts: &mut Facts) -> bool {
    let mut any = false;
    for need in &needs.images {
        let name = match &need.query.origin {
            ImageOrigin::Registry(reference) => reference.to_string(),
            ImageOrigin::OciLayout { path, reference, .. } => format!("{path}:{reference}"),
        };
        if name.contains("/missing") || name.contains("biuld") {
            continue;
        }
        any = true;
        let of = &need.query.platform;
        let json = serde_json::json!({
            "architecture": of.architecture, "os": of.os, "variant": of.variant,
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&name).to_string()]},
            "history": [{"created_by": format!("the makers of {name}")}],
        });
        let config: ImageConfig = serde_json::from_value(json).unwrap();
        let made = ImageFacts {
            digest: Digest::of(format!("index {name}")),
            manifest: Digest::of(format!("manifest {name} {of}")),
            platform: of.clone(),
            config: Arc::new(config),
        };
        facts.images.insert(need.query.clone(), made);
    }
    any
}
