//! Attributes of an output: splitting the CSV, and reading values one by one.

use rbuild_oci::Reference;
use rbuild_oci::media_type::Compression;

use crate::{Annotation, CompressionSpec, Dest, ImageOptions, OutputError};

/// The attributes of one output, or of something like it, that were not read yet.
pub struct Attributes {
    noun: &'static str,
    kind: String,
    pairs: Vec<(String, String)>,
}

impl Attributes {
    /// Refuses attributes that are not `known`; a later value of the same attribute wins. `noun` is what has the type
    /// `kind`, for messages.
    ///
    /// # Errors
    /// `UnknownAttribute`.
    pub fn new(
        noun: &'static str,
        kind: &str,
        known: Vec<&'static str>,
        pairs: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, OutputError> {
        let annotations = known.iter().any(|name| name.starts_with("annotation."));
        let mut out = Self { noun, kind: kind.to_owned(), pairs: vec![] };
        for (name, value) in pairs {
            let annotation = annotations && Annotation::parse_attribute(&name, "").is_some();
            if !annotation && !known.contains(&name.as_str()) {
                let hint = match rbuild_diag::nearest(&name, known.iter().copied()) {
                    Some(near) => format!(" (did you mean {near:?}?)"),
                    None if known.is_empty() => ": it has none".to_owned(),
                    None => format!(": expected one of {}", known.join(", ")),
                };
                return Err(OutputError::UnknownAttribute { kind: out.what(), name, hint });
            }
            out.pairs.retain(|(other, _)| *other != name);
            out.pairs.push((name, value));
        }
        Ok(out)
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    fn what(&self) -> String {
        format!("{} type={}", self.noun, self.kind)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(other, _)| other == name)
    }

    /// Takes a value as it was given.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(other, _)| other == name)?;
        Some(self.pairs.remove(at).1)
    }

    /// For attributes that change nothing here.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.take(name);
    }

    /// `dest`; empty is as if it were not there.
    pub(crate) fn dest(&mut self) -> Option<Dest> {
        match self.take("dest")?.as_str() {
            "" => None,
            "-" => Some(Dest::Stdout),
            path => Some(Dest::Path(path.into())),
        }
    }

    /// As Go's `strconv.ParseBool`; an empty value is true.
    ///
    /// # Errors
    /// `Value`.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, OutputError> {
        let value = self.bool_value(name)?;
        self.ignore(name);
        Ok(value)
    }

    /// The same without taking it.
    pub(crate) fn bool_value(&self, name: &str) -> Result<Option<bool>, OutputError> {
        let Some((_, value)) = self.pairs.iter().find(|(other, _)| other == name) else { return Ok(None) };
        match value.as_str() {
            "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            _ => Err(self.value(name, value, "expected true or false")),
        }
    }

    pub(crate) fn epoch(&mut self) -> Result<Option<i64>, OutputError> {
        let Some(value) = self.take("source-date-epoch").filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => Err(self.value("source-date-epoch", &value, "expected seconds since 1970")),
        }
    }

    /// Everything that all image outputs have.
    pub(crate) fn image_options(&mut self) -> Result<ImageOptions, OutputError> {
        self.refuse_unsupported()?;
        let mut oci_media_types = self.bool("oci-mediatypes")?.unwrap_or(true);
        let compression = self.compression()?;
        if compression.is_some_and(|spec| spec.kind == Compression::Zstd) {
            // Docker's media types know no zstd: BuildKit falls back to OCI's, too.
            oci_media_types = true;
        }
        let names = self.names()?;
        let source_date_epoch = self.epoch()?;
        let rewrite_timestamp = self.bool("rewrite-timestamp")?.unwrap_or(false);
        let mut annotations = vec![];
        for (name, value) in std::mem::take(&mut self.pairs) {
            if let Some(annotation) = Annotation::parse_attribute(&name, &value) {
                annotations.push(annotation?);
            }
        }
        Ok(ImageOptions {
            names,
            compression,
            oci_media_types,
            annotations,
            source_date_epoch,
            rewrite_timestamp,
        })
    }

    fn refuse_unsupported(&mut self) -> Result<(), OutputError> {
        // They speak of attestations, and there are none.
        self.ignore("oci-artifact");
        self.ignore("attestation-inline");
        if self.bool("prefer-nondist-layers")? == Some(true) {
            let reason = "foreign layers are stored and pushed like all others";
            return Err(self.unsupported("prefer-nondist-layers", "true", reason));
        }
        Ok(())
    }

    fn names(&mut self) -> Result<Vec<Reference>, OutputError> {
        let Some(value) = self.take("name").filter(|value| !value.is_empty()) else { return Ok(vec![]) };
        value
            .split(',')
            .map(|name| match name.trim().parse::<Reference>() {
                Ok(reference) => Ok(reference.with_default_tag()),
                Err(error) => Err(self.value("name", &value, &error.to_string())),
            })
            .collect()
    }

    /// `compression`, `compression-level`, `force-compression`; `None` when there are none.
    ///
    /// # Errors
    /// `Value`, `Unsupported`.
    pub fn compression(&mut self) -> Result<Option<CompressionSpec>, OutputError> {
        let kind = match self.take("compression").as_deref() {
            None => None,
            Some("uncompressed") => Some(Compression::None),
            Some("gzip") => Some(Compression::Gzip),
            Some("zstd") => Some(Compression::Zstd),
            Some(value @ ("estargz" | "nydus")) => {
                return Err(self.unsupported("compression", value, "use gzip or zstd"));
            }
            Some(other) => {
                return Err(self.value("compression", other, "expected gzip, zstd or uncompressed"));
            }
        };
        let level = self.take("compression-level");
        let force = self.bool("force-compression")?;
        if kind.is_none() && level.is_none() && force.is_none() {
            return Ok(None);
        }
        let kind = kind.unwrap_or(Compression::Gzip);
        let level = level.map(|text| self.level(kind, &text)).transpose()?;
        Ok(Some(CompressionSpec { kind, level, force: force.unwrap_or(false) }))
    }

    fn level(&self, kind: Compression, text: &str) -> Result<i32, OutputError> {
        let (highest, words) = match kind {
            Compression::Gzip => (9, "gzip has levels 0 to 9"),
            Compression::Zstd => (22, "zstd has levels 0 to 22"),
            Compression::None => (-1, "plain tars have no level"),
        };
        match text.parse() {
            Ok(level) if (0..=highest).contains(&level) => Ok(level),
            _ => Err(self.value("compression-level", text, words)),
        }
    }

    /// The error of a value that makes no sense.
    #[must_use]
    pub fn value(&self, name: &str, value: &str, reason: &str) -> OutputError {
        OutputError::Value {
            kind: self.what(),
            name: name.to_owned(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(crate) fn unsupported(&self, name: &str, value: &str, reason: &str) -> OutputError {
        OutputError::Unsupported {
            kind: self.what(),
            name: name.to_owned(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// The error of an attribute that is needed.
    #[must_use]
    pub fn missing(&self, name: &'static str, reason: &'static str) -> OutputError {
        OutputError::Missing { kind: self.what(), name, reason }
    }
}

/// Splits one line of CSV: fields may be quoted, `""` is a quote inside.
///
/// # Errors
/// Where the quotes do not fit, in words.
pub fn csv_fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![];
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at(end);
                if field.contains('"') {
                    return Err(format!("{field:?} has a quote that does not enclose the whole field"));
                }
                (field.to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(format!("{after:?} follows a closing quote")),
        }
    }
}

fn quoted_field(text: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"').ok_or_else(|| "a quote is not closed".to_owned())?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, after)),
        }
    }
}

#[cfg(test)]
mod tests;
