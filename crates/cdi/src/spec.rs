//! One spec file: read and checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::names::{self, NameError};
use crate::yaml;

/// The versions of the format. Newer ones may have fields that change what a device is.
const VERSIONS: [&str; 11] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "1.2.0"];

/// Why a text is no spec.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither JSON nor YAML, or of another form.
    #[error("it cannot be read: {0}")]
    Syntax(String),
    /// A version that is not known.
    #[error("cdiVersion is {0:?}, which is not known")]
    Version(String),
    /// A kind that cannot be one.
    #[error("the kind {0:?} is invalid: {1}")]
    Kind(String, NameError),
    /// A device whose name cannot be one.
    #[error("the device {0:?} is invalid: {1}")]
    Device(String, NameError),
    /// Two devices of one name.
    #[error("it has two devices {0:?}")]
    Twice(String),
    /// No devices.
    #[error("it has no devices")]
    Empty,
    /// A part that is there lacks something, or has something else than it should.
    #[error("{0}")]
    Edits(String),
}

/// A spec.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(deserialize_with = "text")]
    pub(crate) cdi_version: String,
    #[serde(deserialize_with = "text")]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "texts_by_name")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) container_edits: Edits,
}

/// A device of a spec.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    #[serde(deserialize_with = "text")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "texts_by_name")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) container_edits: Edits,
}

/// What is added to a container.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Edits {
    #[serde(deserialize_with = "texts")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) device_nodes: Vec<Node>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) net_devices: Vec<Value>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) hooks: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) mounts: Vec<Mount>,
    pub(crate) intel_rdt: Option<Value>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) additional_gids: Vec<Number>,
}

/// A device node.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Node {
    #[serde(deserialize_with = "text")]
    pub(crate) path: String,
    #[serde(default, deserialize_with = "text")]
    pub(crate) host_path: String,
    #[serde(default, rename = "type", deserialize_with = "text")]
    pub(crate) kind: String,
    pub(crate) major: Option<Number>,
    pub(crate) minor: Option<Number>,
    pub(crate) file_mode: Option<Number>,
    #[serde(default, deserialize_with = "text")]
    pub(crate) permissions: String,
    pub(crate) uid: Option<Number>,
    pub(crate) gid: Option<Number>,
}

/// A program of the host.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Hook {
    #[serde(deserialize_with = "text")]
    pub(crate) hook_name: String,
    #[serde(deserialize_with = "text")]
    pub(crate) path: String,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) env: Vec<String>,
    pub(crate) timeout: Option<Number>,
}

/// A mount of a path of the host.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    #[serde(deserialize_with = "text")]
    pub(crate) host_path: String,
    #[serde(deserialize_with = "text")]
    pub(crate) container_path: String,
    #[serde(default, rename = "type", deserialize_with = "text")]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) options: Vec<String>,
}

/// A number, also one that stands there as text: YAML has `0644` and `0x10`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Number(pub(crate) u32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => {
                let radix = |prefix: &str, radix| Some((text.strip_prefix(prefix)?, radix));
                let (digits, radix) =
                    radix("0x", 16).or(radix("0o", 8)).or(radix("0", 8)).unwrap_or((text, 10));
                if text == "0" { Some(0) } else { u64::from_str_radix(digits, radix).ok() }
            }
            _ => None,
        };
        match number.and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Self(number)),
            None => Err(de::Error::custom(format!("{value} is no number from 0 to 4294967295"))),
        }
    }
}

/// Text; a number or a truth value as it is written.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self(String::new())),
            Value::String(text) => Ok(Self(text)),
            value @ (Value::Bool(_) | Value::Number(_)) => Ok(Self(value.to_string())),
            Value::Array(_) | Value::Object(_) => Err(de::Error::custom("a text is expected")),
        }
    }
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Text::deserialize(deserializer).map(|text| text.0)
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let list: Option<Vec<Text>> = Option::deserialize(deserializer)?;
    Ok(list.unwrap_or_default().into_iter().map(|text| text.0).collect())
}

fn texts_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map: Option<BTreeMap<String, Text>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_iter().map(|(name, text)| (name, text.0)).collect())
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads and checks a spec. `json` says what it is written in; otherwise YAML.
///
/// # Errors
/// If it is not one.
pub fn parse(text: &str, json: bool) -> Result<Spec, SpecError> {
    let syntax = |error: serde_json::Error| SpecError::Syntax(error.to_string());
    let value: Value = match json {
        true => serde_json::from_str(text).map_err(syntax)?,
        false => yaml::parse(text).map_err(SpecError::Syntax)?,
    };
    if !value.is_object() {
        return Err(SpecError::Syntax("it is no mapping".to_owned()));
    }
    let spec: Spec = serde_json::from_value(value).map_err(syntax)?;
    if !VERSIONS.contains(&spec.cdi_version.trim_start_matches('v')) {
        return Err(SpecError::Version(spec.cdi_version));
    }
    names::check_kind(&spec.kind).map_err(|error| SpecError::Kind(spec.kind.clone(), error))?;
    if spec.devices.is_empty() {
        return Err(SpecError::Empty);
    }
    check_edits(&spec.container_edits)?;
    for (i, device) in spec.devices.iter().enumerate() {
        names::check_device(&device.name).map_err(|error| SpecError::Device(device.name.clone(), error))?;
        if spec.devices[..i].iter().any(|other| other.name == device.name) {
            return Err(SpecError::Twice(device.name.clone()));
        }
        if device.container_edits == Edits::default() {
            return Err(SpecError::Edits(format!("the device {:?} has no containerEdits", device.name)));
        }
        check_edits(&device.container_edits)?;
    }
    Ok(spec)
}

fn check_edits(edits: &Edits) -> Result<(), SpecError> {
    let wrong = |why: String| Err(SpecError::Edits(why));
    for variable in &edits.env {
        if variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            return wrong(format!("the variable {variable:?} is not NAME=value"));
        }
    }
    for node in &edits.device_nodes {
        if node.path.is_empty() {
            return wrong("a device node has no path".to_owned());
        }
        if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
            return wrong(format!("{}: there is no type {:?} of devices", node.path, node.kind));
        }
        if node.permissions.chars().any(|c| !"rwm".contains(c)) {
            return wrong(format!(
                "{}: permissions are of r, w and m, not {:?}",
                node.path, node.permissions
            ));
        }
    }
    for mount in &edits.mounts {
        if mount.host_path.is_empty() || mount.container_path.is_empty() {
            return wrong("a mount has no hostPath or no containerPath".to_owned());
        }
    }
    for hook in &edits.hooks {
        if hook.path.is_empty() {
            return wrong(format!("the hook {:?} has no path", hook.hook_name));
        }
    }
    Ok(())
}
