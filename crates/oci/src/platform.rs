//! `os/architecture[/variant]`, normalised as containerd does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, Default)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`, …
    pub os: String,
    /// Windows builds.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Required features of the system.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {0:?}: expected os/architecture or os/architecture/variant, such as linux/amd64")]
pub struct ParsePlatformError(pub String);

impl Platform {
    /// A platform without variant, normalised.
    #[must_use]
    pub fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned(), ..Self::default() }.normalized()
    }

    /// The platform this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture)
    }

    /// The same platform under its usual names (containerd's `platforms.Normalize`): `x86_64` → `amd64`, `aarch64` →
    /// `arm64`, amd64 `v1` and arm64 `v8` → no variant, 32-bit arm without variant → `v7`.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let mut out = self.clone();
        out.os = self.os.to_lowercase();
        if out.os == "macos" {
            out.os = "darwin".to_owned();
        }
        let architecture = self.architecture.to_lowercase();
        let variant = self.variant.to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        out.architecture = architecture.to_owned();
        out.variant = variant.to_owned();
        out
    }

    /// How well `self`, a platform on offer, serves a build for `wanted`: 0 is exact, `None` is not at all.
    /// 32-bit variants run on newer ones (arm v6 on v7), and amd64/386, arm64/arm are not mixed.
    #[must_use]
    pub fn serves(&self, wanted: &Self) -> Option<u32> {
        let (offer, wanted) = (self.normalized(), wanted.normalized());
        if offer.os != wanted.os || offer.architecture != wanted.architecture {
            return None;
        }
        if offer.variant == wanted.variant {
            return Some(0);
        }
        let level = |v: &str, base: u32| {
            if v.is_empty() { Some(base) } else { v.strip_prefix('v')?.split('.').next()?.parse().ok() }
        };
        let base = if wanted.architecture == "arm64" { 8 } else { 1 };
        let (have, want) = (level(&offer.variant, base)?, level(&wanted.variant, base)?);
        want.checked_sub(have)
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParsePlatformError(text.chars().take(100).collect());
        let ok = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric())
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 || !parts.iter().all(|p| ok(p)) {
            return Err(invalid());
        }
        let known_os = |s: &str| {
            matches!(
                s,
                "linux"
                    | "windows"
                    | "darwin"
                    | "macos"
                    | "freebsd"
                    | "netbsd"
                    | "openbsd"
                    | "wasi"
                    | "wasip1"
                    | "js"
                    | "solaris"
                    | "plan9"
                    | "android"
                    | "aix"
                    | "dragonfly"
                    | "illumos"
                    | "ios"
                    | "zos"
            )
        };
        let known_architecture = |s: &str| {
            matches!(
                s,
                "386"
                    | "amd64"
                    | "arm"
                    | "arm64"
                    | "loong64"
                    | "mips"
                    | "mips64"
                    | "mips64le"
                    | "mipsle"
                    | "ppc64"
                    | "ppc64le"
                    | "riscv64"
                    | "s390x"
                    | "wasm"
                    | "i386"
                    | "x86_64"
                    | "x86-64"
                    | "aarch64"
                    | "armhf"
                    | "armel"
            )
        };
        let (os, architecture, variant) = match parts.as_slice() {
            [one] if text.eq_ignore_ascii_case("local") || one.is_empty() => return Ok(Self::host()),
            [one] if known_os(&one.to_lowercase()) => (*one, Self::host().architecture, ""),
            [one] if known_architecture(&one.to_lowercase()) => ("linux", (*one).to_owned(), ""),
            [_] => return Err(invalid()),
            [os, arch] => (*os, (*arch).to_owned(), ""),
            [os, arch, variant] => (*os, (*arch).to_owned(), *variant),
            _ => return Err(invalid()),
        };
        Ok(Self { os: os.to_owned(), architecture, variant: variant.to_owned(), ..Self::default() }
            .normalized())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_normalises() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().map(|p| p.to_string()), Ok(want.to_owned()), "{text}");
        }
        for bad in ["", "foo", "a/b/c/d", "linux/", "linux/amd 64", "../x"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn older_variants_serve_newer_machines() {
        let p = |s: &str| s.parse::<Platform>().unwrap();
        assert_eq!(p("linux/arm/v6").serves(&p("linux/arm/v7")), Some(1));
        assert_eq!(p("linux/arm/v7").serves(&p("linux/arm/v6")), None);
        assert_eq!(p("linux/amd64").serves(&p("linux/amd64")), Some(0));
        assert_eq!(p("linux/amd64").serves(&p("linux/arm64")), None);
    }
}
