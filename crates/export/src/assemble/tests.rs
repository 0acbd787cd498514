//! Documents against those that BuildKit wrote, and the rules of history and times.

use super::*;

/// Config, manifest and layout index that BuildKit wrote, by project.
macro_rules! golden {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../test_data/buildkit/", $name, ".config.json")),
            include_str!(concat!("../../test_data/buildkit/", $name, ".manifest.json")),
            include_str!(concat!("../../test_data/buildkit/", $name, ".index.json")),
        )
    };
}
const GOLDEN: [(&str, &str, &str, &str); 4] =
    [golden!("linear"), golden!("stages"), golden!("copy"), golden!("mounts")];
const CACHE: &str = "moby.buildkit.cache.v0";

/// Takes a finished config apart into what the exporter is given: no `rootfs`, no times of new entries.
fn lowered(config: &str) -> (ImageConfig, Vec<LayerFacts>, String) {
    let mut config: ImageConfig = serde_json::from_str(config).unwrap();
    let cache = config.extra.remove(CACHE).map_or(String::new(), |v| v.as_str().unwrap().to_owned());
    let times = config
        .history
        .iter()
        .filter(|h| !h.empty_layer)
        .map(|h| time::parse(h.created.as_deref().unwrap()).unwrap());
    let layers = std::mem::take(&mut config.rootfs).diff_ids.into_iter().zip(times);
    let layers = layers
        .map(|(diff_id, at)| LayerFacts { diff_id, created: Timestamp(i64::try_from(at).unwrap()) })
        .collect();
    config.created = None;
    for entry in config.history.iter_mut().filter(|h| h.comment == "buildkit.dockerfile.v0") {
        entry.created = None;
    }
    (config, layers, cache)
}

fn finish(config: &ImageConfig, layers: &[LayerFacts], epoch: Option<i64>) -> FinishedConfig {
    super::config(&ConfigParts { config, layers, base_history: 0, epoch, inline_cache: None }).unwrap()
}

#[test]
fn documents_are_those_of_buildkit() {
    for (name, config_text, manifest_text, index_text) in GOLDEN {
        let (config, layers, cache) = lowered(config_text);
        let parts = ConfigParts {
            config: &config,
            layers: &layers,
            base_history: 0,
            epoch: None,
            inline_cache: Some(&cache),
        };
        let finished = super::config(&parts).unwrap();
        assert_eq!(String::from_utf8(finished.bytes.clone()).unwrap(), config_text, "{name}");

        let theirs: Manifest = serde_json::from_str(manifest_text).unwrap();
        let ours = manifest(&finished, &theirs.layers, true, BTreeMap::new()).unwrap();
        assert_eq!(String::from_utf8(ours.bytes).unwrap(), manifest_text, "{name}");

        // BuildKit puts the time of the export here; the rest must agree.
        let theirs: Index = serde_json::from_str(index_text).unwrap();
        let mut entry = ours.descriptor;
        entry.platform = Some(config.platform());
        entry.annotations.clone_from(&theirs.manifests[0].annotations);
        assert_eq!(String::from_utf8(layout_index(vec![entry]).unwrap()).unwrap(), index_text, "{name}");
    }
}

/// `layers` is one second a layer, from 10; `-` is an empty entry, `+` a layer's, with a time behind it when it has one.
fn history(entries: &str, layers: usize, epoch: Option<i64>, base: usize) -> String {
    let entries = entries.split_whitespace().map(|word| History {
        empty_layer: word.starts_with('-'),
        created: word.get(1..).filter(|t| !t.is_empty()).map(|t| time::format_secs(t.parse().unwrap())),
        ..History::default()
    });
    let config = ImageConfig {
        os: "linux".into(),
        architecture: "amd64".into(),
        history: entries.collect(),
        ..ImageConfig::default()
    };
    let layers: Vec<LayerFacts> = (0..layers)
        .map(|i| LayerFacts {
            diff_id: Digest::of([i as u8]),
            created: Timestamp((10 + i as i64) * 1_000_000_000),
        })
        .collect();
    let parts =
        ConfigParts { config: &config, layers: &layers, base_history: base, epoch, inline_cache: None };
    let finished: ImageConfig = serde_json::from_slice(&super::config(&parts).unwrap().bytes).unwrap();
    let secs = |t: &Option<String>| {
        t.as_deref().map_or("?".to_owned(), |t| (time::parse(t).unwrap() / 1_000_000_000).to_string())
    };
    let mut out: Vec<String> = finished
        .history
        .iter()
        .map(|h| {
            let made = if h.comment == EXPORTER_COMMENT { "!" } else { "" };
            format!("{}{}{made}", if h.empty_layer { '-' } else { '+' }, secs(&h.created))
        })
        .collect();
    out.push(format!("created={}", secs(&finished.created)));
    out.join(" ")
}

#[test]
fn history_is_normalised() {
    for (entries, layers, want) in [
        ("", 0, "created=?"),
        ("-", 0, "-? created=?"),
        ("+ +", 2, "+10 +11 created=11"),
        // A command before the first new layer takes that layer's time, one after it the last layer's.
        ("+1 -1 - + -", 2, "+1 -1 -11 +11 -11 created=11"),
        ("+1 - -", 1, "+1 -1 -1 created=1"),
        ("- + - + -", 2, "-10 +10 -10 +11 -11 created=11"),
        // Entries for layers that history does not mention.
        ("+", 3, "+10 +11! +12! created=12"),
        ("", 1, "+10! created=10"),
        // Layers that are not there.
        ("+ + +", 1, "+10 -10 -10 created=10"),
    ] {
        assert_eq!(history(entries, layers, None, 0), want, "{entries} with {layers} layers");
    }
}

#[test]
fn times_are_clamped() {
    for (entries, layers, base, want) in [
        ("+ - +", 2, 0, "+5 -5 +5 created=5"),
        ("+1 +", 2, 0, "+1 +5 created=5"),
        ("+9 +", 2, 1, "+9 +5 created=5"),
        ("-", 0, 0, "-5 created=5"),
    ] {
        assert_eq!(history(entries, layers, Some(5), base), want, "{entries}");
    }
    let mut config =
        ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    for (created, want) in
        [("1970-01-01T00:00:03Z", "1970-01-01T00:00:03Z"), ("1970-01-01T00:00:05.1Z", "1970-01-01T00:00:05Z")]
    {
        config.created = Some(created.to_owned());
        let layers = [LayerFacts { diff_id: Digest::of("x"), created: Timestamp(i64::MAX) }];
        assert_eq!(finish(&config, &layers, Some(5)).created.as_deref(), Some(want), "{created}");
    }
}

#[test]
fn docker_types_and_strange_layers() {
    let config = ImageConfig {
        os: "linux".into(),
        architecture: "arm".into(),
        variant: "v7".into(),
        ..ImageConfig::default()
    };
    let finished = finish(&config, &[], None);
    assert_eq!(
        String::from_utf8(finished.bytes.clone()).unwrap(),
        r#"{"architecture":"arm","config":{},"created":null,"history":[],"os":"linux","rootfs":{"type":"layers","diff_ids":[]},"variant":"v7"}"#
    );
    let mut layer = Descriptor::new(media_type::DOCKER_FOREIGN_LAYER_GZIP, Digest::of("l"), 3);
    layer.urls.push("https://example.com/l".to_owned());
    let docker = manifest(&finished, &[layer.clone()], false, BTreeMap::new()).unwrap();
    let text = String::from_utf8(docker.bytes).unwrap();
    assert!(text.contains(media_type::DOCKER_MANIFEST) && text.contains(media_type::DOCKER_CONFIG), "{text}");
    assert!(text.contains(media_type::DOCKER_LAYER_GZIP) && !text.contains("example.com"), "{text}");
    layer.media_type = "text/plain".to_owned();
    assert!(manifest(&finished, &[layer], true, BTreeMap::new()).unwrap_err().message.contains("text/plain"));
    let nothing = ImageConfig::default();
    let parts =
        ConfigParts { config: &nothing, layers: &[], base_history: 0, epoch: None, inline_cache: None };
    assert!(super::config(&parts).is_err());
}
