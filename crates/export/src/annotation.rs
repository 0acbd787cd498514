//! Annotations of manifests, indexes and their descriptors: `annotation-index[linux/amd64].key=value` in outputs,
//! `index,manifest[linux/amd64]:key=value` on the command line.

use rbuild_oci::Platform;

use crate::OutputError;

/// What is annotated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnnotationTarget {
    /// The manifest.
    Manifest,
    /// The entry of the index (or layout) that points to the manifest.
    ManifestDescriptor,
    /// The index of several platforms.
    Index,
    /// The layout's entry that points to the index.
    IndexDescriptor,
}

/// One annotation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Annotation {
    /// Where it goes.
    pub target: AnnotationTarget,
    /// Only for this platform.
    pub platform: Option<Platform>,
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

impl AnnotationTarget {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "manifest" => Self::Manifest,
            "manifest-descriptor" => Self::ManifestDescriptor,
            "index" => Self::Index,
            "index-descriptor" => Self::IndexDescriptor,
            _ => return None,
        })
    }

    /// Whether it exists only when there is an index.
    #[must_use]
    pub fn needs_index(self) -> bool {
        matches!(self, Self::Index | Self::IndexDescriptor)
    }
}

impl Annotation {
    /// Reads the value of `--annotation`: `[type[platform],…:]key=value`, type `manifest` by default.
    ///
    /// # Errors
    /// If there is no `=`, no key, or the type or platform is unknown.
    pub fn parse_flag(text: &str) -> Result<Vec<Self>, OutputError> {
        let invalid = |reason: String| OutputError::Annotation { text: text.to_owned(), reason };
        let (left, value) = text.split_once('=').ok_or_else(|| invalid("expected key=value".to_owned()))?;
        let (types, key) = left.split_once(':').unwrap_or(("", left));
        if key.is_empty() {
            return Err(invalid("the key is empty".to_owned()));
        }
        let types: Vec<&str> = if types.is_empty() { vec!["manifest"] } else { types.split(',').collect() };
        types
            .into_iter()
            .map(|part| {
                let (target, platform) = target_and_platform(part).map_err(&invalid)?;
                Ok(Self { target, platform, key: key.to_owned(), value: value.to_owned() })
            })
            .collect()
    }

    /// Reads an output's attribute `annotation[-type][[platform]].key` with its value; `None` when `name` is no such
    /// attribute.
    pub(crate) fn parse_attribute(name: &str, value: &str) -> Option<Result<Self, OutputError>> {
        let rest = name.strip_prefix("annotation")?;
        let (head, key) = split_key(rest)?;
        if key.is_empty() {
            return Some(Err(OutputError::Annotation {
                text: name.to_owned(),
                reason: "the key is empty".to_owned(),
            }));
        }
        let part = match head.strip_prefix('-') {
            Some(part) => part.to_owned(),
            None if head.is_empty() || head.starts_with('[') => format!("manifest{head}"),
            None => return None,
        };
        Some(match target_and_platform(&part) {
            Ok((target, platform)) => {
                Ok(Self { target, platform, key: key.to_owned(), value: value.to_owned() })
            }
            Err(reason) => Err(OutputError::Annotation { text: name.to_owned(), reason }),
        })
    }
}

/// `-index[linux/amd64].org.example.key` → head and key, at the first dot outside of brackets.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let from = text.find(']').map_or(0, |end| end + 1);
    let dot = text.get(from..)?.find('.')? + from;
    Some((text.get(..dot)?, text.get(dot + 1..)?))
}

fn target_and_platform(part: &str) -> Result<(AnnotationTarget, Option<Platform>), String> {
    let (name, platform) = match part.split_once('[') {
        Some((name, rest)) => {
            let text = rest.strip_suffix(']').ok_or_else(|| format!("{part:?} has no closing bracket"))?;
            let platform = text.parse::<Platform>().map_err(|error| error.to_string())?;
            (name, Some(platform))
        }
        None => (part, None),
    };
    let target = AnnotationTarget::parse(name).ok_or_else(|| {
        format!("unknown type {name:?}: expected manifest, manifest-descriptor, index or index-descriptor")
    })?;
    Ok((target, platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(annotations: &[Annotation]) -> String {
        let one = |a: &Annotation| {
            let platform = a.platform.as_ref().map_or(String::new(), |p| format!("[{p}]"));
            format!("{:?}{platform} {}={}", a.target, a.key, a.value)
        };
        annotations.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn flags_and_attributes() {
        for (text, want) in [
            ("a=b=c", "Manifest a=b=c"),
            ("index:a=", "Index a="),
            ("index,manifest[linux/arm/v7]:org.x=1:2", "Index org.x=1:2; Manifest[linux/arm/v7] org.x=1:2"),
            ("manifest-descriptor,index-descriptor:k=v", "ManifestDescriptor k=v; IndexDescriptor k=v"),
        ] {
            assert_eq!(show(&Annotation::parse_flag(text).unwrap()), want, "{text}");
        }
        for (bad, says) in [
            ("a", "expected key=value"),
            ("=b", "the key is empty"),
            ("foo:a=b", "unknown type \"foo\""),
            ("index[linux:a=b", "no closing bracket"),
            ("index[../x]:a=b", "invalid platform"),
        ] {
            let error = Annotation::parse_flag(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        for (name, want) in [
            ("annotation.org.x", "Manifest org.x=v"),
            ("annotation-index.a", "Index a=v"),
            ("annotation[linux/amd64].a.b", "Manifest[linux/amd64] a.b=v"),
            ("annotation-manifest-descriptor[linux/arm64].a", "ManifestDescriptor[linux/arm64] a=v"),
        ] {
            let one = Annotation::parse_attribute(name, "v").unwrap().unwrap();
            assert_eq!(show(&[one]), want, "{name}");
        }
        assert!(Annotation::parse_attribute("annotations", "v").is_none());
        assert!(Annotation::parse_attribute("name", "v").is_none());
        assert!(Annotation::parse_attribute("annotation-foo.a", "v").unwrap().is_err());
    }
}
