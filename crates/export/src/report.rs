//! The files that tell scripts what was built: `--iidfile` and `--metadata-file`.

use serde_json::{Map, Value};

use crate::Exported;

/// The content of `--iidfile`: the image id, or the index's digest when there are several platforms; `None` when no
/// image was made. Without a newline, as docker and buildx write it.
#[must_use]
pub fn iidfile(exported: &Exported) -> Option<String> {
    let descriptor = exported.descriptor.as_ref().map(|descriptor| descriptor.digest);
    exported.config_digest.or(descriptor).map(|digest| digest.to_string())
}

/// The content of `--metadata-file`: buildx's keys, sorted on every level, indented by two spaces. `build_ref` is
/// `buildx.build.ref`; `more` are keys that others know (`buildx.build.warnings`, `cache.manifest`).
#[must_use]
pub fn metadata_file(exported: &Exported, build_ref: Option<&str>, more: Map<String, Value>) -> String {
    let mut fields = more;
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            fields.insert(key.to_owned(), Value::String(value));
        }
    };
    add("buildx.build.ref", build_ref.map(str::to_owned));
    add("containerimage.config.digest", exported.config_digest.map(|digest| digest.to_string()));
    add(
        "containerimage.digest",
        exported.descriptor.as_ref().map(|descriptor| descriptor.digest.to_string()),
    );
    add("image.name", (!exported.names.is_empty()).then(|| exported.names.join(",")));
    if let Some(descriptor) = &exported.descriptor {
        let mut descriptor = descriptor.clone();
        if let Some(config) = exported.config_digest {
            descriptor.annotations.insert("config.digest".to_owned(), config.to_string());
        }
        if let Ok(value) = serde_json::to_value(&descriptor) {
            fields.insert("containerimage.descriptor".to_owned(), value);
        }
    }
    serde_json::to_string_pretty(&sorted(Value::Object(fields))).unwrap_or_else(|_| "{}".to_owned())
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> =
                fields.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_digest::Digest;
    use rbuild_oci::{Descriptor, Platform};

    #[test]
    fn keys_are_those_of_buildx() {
        let mut descriptor = Descriptor::new("m", Digest::of("manifest"), 7);
        descriptor
            .annotations
            .insert("org.opencontainers.image.created".to_owned(), "2024-01-01T00:00:00Z".to_owned());
        descriptor.platform = Some(Platform::new("linux", "amd64"));
        let mut exported = Exported {
            descriptor: Some(descriptor),
            config_digest: Some(Digest::of("config")),
            names: vec!["docker.io/library/a:1".to_owned(), "b.io/c:2".to_owned()],
            outputs: vec![],
        };
        let (config, manifest) = (Digest::of("config"), Digest::of("manifest"));
        let mut more = Map::new();
        more.insert("cache.manifest".to_owned(), serde_json::json!({"z": 1, "a": [2]}));
        let want = format!(
            r#"{{
  "buildx.build.ref": "b/b0/x",
  "cache.manifest": {{
    "a": [
      2
    ],
    "z": 1
  }},
  "containerimage.config.digest": "{config}",
  "containerimage.descriptor": {{
    "annotations": {{
      "config.digest": "{config}",
      "org.opencontainers.image.created": "2024-01-01T00:00:00Z"
    }},
    "digest": "{manifest}",
    "mediaType": "m",
    "platform": {{
      "architecture": "amd64",
      "os": "linux"
    }},
    "size": 7
  }},
  "containerimage.digest": "{manifest}",
  "image.name": "docker.io/library/a:1,b.io/c:2"
}}"#
        );
        assert_eq!(metadata_file(&exported, Some("b/b0/x"), more), want);
        assert_eq!(iidfile(&exported), Some(config.to_string()));
        exported.config_digest = None;
        assert_eq!(iidfile(&exported), Some(manifest.to_string()));
        assert_eq!(iidfile(&Exported::default()), None);
        assert_eq!(metadata_file(&Exported::default(), None, Map::new()), "{}");
    }
}
