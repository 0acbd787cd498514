//! The value of `RUN --mount=` and `RUN --device=`: one line of comma-separated values. What the fields mean is not
//! known here.

use rbuild_diag::Span;

use crate::codes;
use crate::context::Context;
use crate::text::{Mapped, Slice};
use crate::{CsvField, CsvFlag};

/// What is wrong is reported: of `mounts`, or of `devices`, with an example of `help`.
pub(super) fn parse(
    cx: &mut Context<'_>,
    (value, span): (Slice<'_>, Span),
    what: &str,
    example: &str,
) -> Option<CsvFlag> {
    match split(value) {
        Ok(fields) => Some(CsvFlag { span, fields: fields.iter().map(field).collect() }),
        Err((why, place)) => {
            let message = format!("failed to parse csv {what}: {why}");
            let diagnostic = cx.diagnostic(codes::MALFORMED_MOUNT, place, message);
            let help = format!("write key=value fields with commas between them, such as {example}");
            cx.report(diagnostic.help(help));
            None
        }
    }
}

fn field(field: &Mapped) -> CsvField {
    match field.slice().split_once('=') {
        Some((key, value)) => CsvField { key: key.word(), value: Some(value.word()) },
        None => CsvField { key: field.slice().word(), value: None },
    }
}

/// A field in double quotes may hold commas, and double quotes that are doubled.
fn split(value: Slice<'_>) -> Result<Vec<Mapped>, (&'static str, Span)> {
    if value.text().is_empty() {
        return Err(("it is empty", value.span()));
    }
    let mut fields = Vec::new();
    let mut rest = value;
    loop {
        let (field, length) = if rest.text().starts_with('"') { quoted(rest)? } else { plain(rest)? };
        fields.push(field);
        if rest.text().len() == length {
            return Ok(fields);
        }
        rest = rest.from(length + 1);
    }
}

fn plain(rest: Slice<'_>) -> Result<(Mapped, usize), (&'static str, Span)> {
    let end = rest.text().find([',', '"']).unwrap_or(rest.text().len());
    if rest.text()[end..].starts_with('"') {
        return Err(("bare \" in non-quoted field", rest.sub(end..end + 1).span()));
    }
    let mut field = Mapped::new(rest.source_start());
    field.push(rest.sub(0..end));
    Ok((field, end))
}

fn quoted(rest: Slice<'_>) -> Result<(Mapped, usize), (&'static str, Span)> {
    let mut field = Mapped::new(rest.source_start());
    let mut inner = rest.from(1);
    while let Some(end) = inner.text().find('"') {
        field.push(inner.sub(0..end));
        let behind = inner.from(end + 1);
        if behind.text().is_empty() || behind.text().starts_with(',') {
            return Ok((field, rest.text().len() - behind.text().len()));
        }
        if !behind.text().starts_with('"') {
            break;
        }
        field.push(behind.sub(0..1));
        inner = behind.from(1);
    }
    Err(("extraneous or missing \" in quoted-field", rest.span()))
}
