//! The devices of all specs, and which of them a build may have: BuildKit's rules and words.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_graph::CdiDevice;
use rbuild_ports::DeviceEdits;

use crate::edits::{self, EditsError};
use crate::names::{self, NameError};
use crate::spec::{Device, Spec};

/// An annotation with a second name for devices.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// An annotation that makes a device available to every build.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Why devices are not to be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// Not a name of a device.
    #[error("invalid device {0:?}: {1}")]
    Name(String, NameError),
    /// A required device that no spec has.
    #[error("required device {name:?} is not registered")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Devices that the user did not allow.
    #[error("{}", denied(.0))]
    Denied(Vec<String>),
    /// A device that steps cannot have.
    #[error(transparent)]
    Edits(#[from] EditsError),
}

fn denied(names: &[String]) -> String {
    match names {
        [one] => format!("device {one} is requested by the build but not allowed"),
        all => format!("devices {} are requested by the build but not allowed", all.join(", ")),
    }
}

/// What the user allows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Grants {
    /// Every device.
    pub all: bool,
    /// Name or alias → what an alias stands for.
    pub devices: BTreeMap<String, Option<String>>,
}

/// All devices by their qualified names.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    specs: Vec<Spec>,
    /// Numbers of spec and device.
    devices: BTreeMap<String, (usize, usize)>,
}

impl Registry {
    /// From specs with the numbers of their directories: later directories win, and a device that one directory has twice
    /// is nobody's. Second: the names of such devices.
    #[must_use]
    pub fn new(specs: impl IntoIterator<Item = (usize, Spec)>) -> (Self, Vec<String>) {
        let mut out = Self::default();
        let mut priorities: BTreeMap<String, usize> = BTreeMap::new();
        let mut conflicts = BTreeSet::new();
        for (priority, spec) in specs {
            for (number, device) in spec.devices.iter().enumerate() {
                let name = format!("{}={}", spec.kind, device.name);
                match priorities.get(&name) {
                    Some(old) if *old == priority => drop(conflicts.insert(name)),
                    Some(old) if *old > priority => {}
                    _ => {
                        out.devices.insert(name.clone(), (out.specs.len(), number));
                        priorities.insert(name, priority);
                    }
                }
            }
            out.specs.push(spec);
        }
        out.devices.retain(|name, _| !conflicts.contains(name));
        (out, conflicts.into_iter().collect())
    }

    /// The names of all devices, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    fn device(&self, name: &str) -> Option<(&Spec, &Device)> {
        let (spec, device) = self.devices.get(name)?;
        let spec = self.specs.get(*spec)?;
        Some((spec, spec.devices.get(*device)?))
    }

    /// Of the device, or else of its spec.
    fn annotation(&self, name: &str, key: &str) -> Option<&str> {
        let (spec, device) = self.device(name)?;
        device.annotations.get(key).or_else(|| spec.annotations.get(key)).map(String::as_str)
    }

    /// The devices that a request means: a name, all of a kind (`=*`), the first of a kind (no name), or all of a class.
    fn find(&self, wanted: &CdiDevice) -> Result<Vec<&str>, RegistryError> {
        let (kind, name) =
            names::split(&wanted.name).map_err(|error| RegistryError::Name(wanted.name.clone(), error))?;
        let prefix = format!("{kind}=");
        let mut kin = self.names().filter(|known| known.starts_with(&prefix));
        let found: Vec<&str> = match name {
            "" => kin.next().into_iter().collect(),
            "*" => kin.collect(),
            _ => match self.devices.get_key_value(&wanted.name) {
                Some((known, _)) => vec![known.as_str()],
                None => kin.filter(|known| self.annotation(known, CLASS) == Some(name)).collect(),
            },
        };
        if found.is_empty() && !wanted.optional {
            let known = self.names().map(str::to_owned).collect();
            return Err(RegistryError::Unknown { name: wanted.name.clone(), known });
        }
        Ok(found)
    }

    /// What of `wanted` a build with these grants gets. Where not everything is allowed, requests become the devices that
    /// they mean, and optional ones that there are not are gone, as in the definition that BuildKit solves.
    ///
    /// # Errors
    /// If a device is not allowed, or a required one is not known.
    pub fn grant(&self, wanted: &[CdiDevice], grants: &Grants) -> Result<Vec<CdiDevice>, RegistryError> {
        if grants.all {
            return Ok(wanted.to_vec());
        }
        let mut out = Vec::new();
        let mut asked: Vec<&str> = Vec::new();
        for device in wanted {
            match grants.devices.get(&device.name) {
                Some(Some(real)) => out.push(CdiDevice { name: real.clone(), optional: device.optional }),
                _ => asked.extend(self.find(device)?),
            }
        }
        let asked = unique(asked);
        let mut granted = BTreeSet::new();
        if !asked.is_empty() {
            // What an alias stands for is not looked up: it is allowed already.
            for (name, _) in grants.devices.iter().filter(|(_, real)| real.is_none()) {
                granted.extend(self.find(&CdiDevice { name: name.clone(), optional: false })?);
            }
        }
        let may = |name: &str| {
            granted.contains(name)
                || matches!(
                    self.annotation(name, AUTO_ALLOW),
                    Some("1" | "t" | "T" | "true" | "True" | "TRUE")
                )
        };
        let (allowed, forbidden): (Vec<&str>, Vec<&str>) = asked.into_iter().partition(|name| may(name));
        if !forbidden.is_empty() {
            return Err(RegistryError::Denied(forbidden.into_iter().map(str::to_owned).collect()));
        }
        out.extend(allowed.into_iter().map(|name| CdiDevice { name: name.to_owned(), optional: false }));
        Ok(out)
    }

    /// What the devices add to a step: of each spec once what all its devices add, then what each adds itself.
    ///
    /// # Errors
    /// If a required device is not known, or one needs what steps cannot have.
    pub fn edits(&self, wanted: &[CdiDevice]) -> Result<DeviceEdits, RegistryError> {
        let mut names = Vec::new();
        for device in wanted {
            names.extend(self.find(device)?);
        }
        let mut out = DeviceEdits::default();
        let mut seen = BTreeSet::new();
        for name in unique(names) {
            let Some((number, _)) = self.devices.get(name) else { continue };
            let Some((spec, device)) = self.device(name) else { continue };
            if seen.insert(*number) {
                edits::add(&mut out, &spec.container_edits, name)?;
            }
            edits::add(&mut out, &device.container_edits, name)?;
        }
        Ok(out)
    }
}

fn unique(names: Vec<&str>) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(*name)).collect()
}
