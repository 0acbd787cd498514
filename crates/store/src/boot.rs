//! Which boot of the machine it is: what a crashed kernel may have lost is what an earlier boot wrote and nobody synced.

use std::fmt;
use std::sync::Arc;

use rbuild_ports::{ErrorKind, PortError, Result};

use crate::fs::random_name;

const SOURCE: &str = "/proc/sys/kernel/random/boot_id";

/// The name of a boot: 1 to 64 of `a-z0-9-`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BootId(Arc<str>);

impl BootId {
    /// The running boot. Where the kernel does not tell, a name that never comes again: then nothing that was
    /// not synced is trusted by the next process.
    #[must_use]
    pub fn current() -> Self {
        std::fs::read_to_string(SOURCE)
            .ok()
            .and_then(|text| Self::new(text.trim()).ok())
            .unwrap_or_else(|| Self(format!("unknown-{}", random_name()).into()))
    }

    /// A boot by name.
    ///
    /// # Errors
    /// `Invalid` when `name` is not 1 to 64 of `a-z0-9-`.
    pub fn new(name: &str) -> Result<Self> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=64).contains(&name.len()) && name.bytes().all(fine) {
            return Ok(Self(name.into()));
        }
        Err(PortError::new(ErrorKind::Invalid, "the kernel's boot id is malformed"))
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_directory_names() {
        assert_eq!(BootId::current(), BootId::current());
        for bad in ["", "..", "a/b", "A", "a~b", &"a".repeat(65)] {
            assert!(BootId::new(bad).is_err(), "{bad}");
        }
    }
}
